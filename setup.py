'Gives setuptools what `settings.ini` says and `pyproject.toml` declares dynamic.'
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here,parser = Path(__file__).parent,ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
statuses = '1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive'
classifiers = [f"Development Status :: {statuses[int(cfg['status'])-1]}", f"Natural Language :: {cfg['language']}",
    'Programming Language :: Python :: 3', 'Programming Language :: Python :: 3 :: Only']
classifiers += [f'Intended Audience :: {o}' for o in cfg['audience'].split()]

setup(packages=find_packages(include=['cifar_fastai', 'cifar_fastai.*']), include_package_data=True,
    license=cfg['license'],
    author=cfg['author'], author_email=cfg['author_email'], keywords=cfg['keywords'].split(), classifiers=classifiers,
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')},
    entry_points=dict(console_scripts=cfg['console_scripts'].split(), nbdev=['cifar_fastai=cifar_fastai._modidx:d']),
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown')
