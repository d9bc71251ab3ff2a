'What is shipped is whole, its metadata come from settings.ini, and importing it or asking for help stays light'
import shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
commands = dict(o.split('=') for o in cfg['console_scripts'].split())
heavy = 'torch', 'torchvision', 'fastai', 'sklearn', 'matplotlib', 'pandas'

def python(code, **kw):
    "Run `code` in a fresh interpreter; what it printed"
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, **kw)
    assert not res.returncode, res.stderr
    return res.stdout

loaded = f'import sys; print(*[o for o in {heavy} if o in sys.modules])'

def test_import_is_light():
    "The package alone brings its version, and nothing else"
    assert python(f'import cifar_fastai; assert cifar_fastai.__version__; {loaded}').split()==[]

@pytest.mark.parametrize('name', commands)
def test_help_is_light(name):
    "`--help` says what a command takes without importing what the command needs"
    mod,func = commands[name].split(':')
    code = f'''import sys
sys.argv = [{name!r}, '--help']
from {mod} import {func}
try: {func}()
except SystemExit as e: assert not e.code
print('=====')
{loaded}'''
    shown,_,modules = python(code).partition('=====')
    assert 'usage:' in shown
    assert modules.split()==[]

@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "Wheel and sdist, built from a copy so that nothing is left in the checkout"
    tmp = tmp_path_factory.mktemp('build')
    skip = shutil.ignore_patterns('.git', '_docs', '_proc', 'exps', 'build', 'dist', '*.egg-info',
        '__pycache__', '.*_cache')
    shutil.copytree(root, tmp/'src', ignore=skip)
    args = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', tmp/'src']
    res = subprocess.run(args, capture_output=True, text=True)
    assert not res.returncode, res.stdout + res.stderr
    return tmp/'dist'

def test_wheel_is_whole(dist):
    "Every module of every subpackage, and every table beside them, is in the wheel"
    files = {o for o in zipfile.ZipFile(next(dist.glob('*.whl'))).namelist() if o.startswith('cifar_fastai/')}
    assert files=={o.relative_to(root).as_posix() for o in (root/'cifar_fastai').rglob('*.*') if o.suffix!='.pyc'}

def test_metadata(dist):
    "The wheel says what settings.ini, pyproject.toml and README.md say"
    whl = zipfile.ZipFile(next(dist.glob('*.whl')))
    def read(name): return whl.read(next(o for o in whl.namelist() if o.endswith(f'.dist-info/{name}'))).decode()
    meta = message_from_string(read('METADATA'))
    assert (meta['Name'], meta['License-Expression'] or meta['License']) == (cfg['lib_name'], 'MIT')
    assert meta['Requires-Python']==f">={cfg['min_python']}"
    extras = 'dev', 'timm', 'tensorboard', 'wandb', 'hub', 'optimizers', 'parquet', 'onnx', 'ray'
    assert set(meta.get_all('Provides-Extra'))==set(extras)
    assert {'Repository', 'Documentation'} <= {o.split(',')[0] for o in meta.get_all('Project-URL')}
    assert meta['Summary'] and meta['Keywords'] and meta['Author-email']
    assert meta['Description-Content-Type']=='text/markdown'
    assert meta.get_payload().strip()==(root/'README.md').read_text(encoding='utf-8').strip()
    assert 'MIT License' in read('licenses/LICENSE')
    for name,to in commands.items(): assert f'{name} = {to}' in read('entry_points.txt')
    assert 'cifar_fastai = cifar_fastai._modidx:d' in read('entry_points.txt'), 'other projects link to our pages by it'

def test_wheel_installs(dist, tmp_path):
    "Installed somewhere new, all of it is found there"
    args = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', tmp_path/'site',
        next(dist.glob('*.whl'))]
    subprocess.run(args, check=True, capture_output=True)
    code = f'import sys; sys.path.insert(0, {str(tmp_path/"site")!r}); import cifar_fastai, pkgutil; print(cifar_fastai.__file__)'
    assert Path(python(code, cwd=tmp_path).strip())==tmp_path/'site/cifar_fastai/__init__.py'
    for name in commands: assert (tmp_path/'site/bin'/name).exists()

def test_sdist_is_whole(dist):
    "The sdist holds what a build needs, and builds"
    with tarfile.open(next(dist.glob('*.tar.gz'))) as t: names = {o.partition('/')[2] for o in t.getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'cifar_fastai/_modidx.py'} <= names
