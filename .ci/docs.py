'''Builds the documentation site into `_docs`, and README.md, from the notebooks.

nbdev turns notebooks into pages (it runs their imports and exported cells, so the `dev` extra has to be installed);
Quarto renders them where there is one, smalldocs otherwise. README.md is always made by smalldocs, so that it is the
same everywhere. A link of the site or of README.md that leads nowhere is an error.'''
import inspect, os, re, shutil, subprocess, sys, tempfile, yaml
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote
from fastcore.nbio import mk_cell
from fastcore.script import call_parse
from fastai.callback.core import _events
import fastcore.docments, nbdev.serve
from nbdev.config import get_config, nbpath2html
from nbdev.process import Processor
from nbdev.processors import FilterDefaults
from nbdev.serve import proc_nbs
from smalldocs.site import build

# What the first digit of a notebook's number stands for, as the sidebar says it
parts = ['Foundations', 'Data', 'Augmentation', 'Backbones', 'Losses, optimizers, schedules', 'Callbacks',
    'Learner and runs', 'Studies', 'Speed', 'Commands']

class keep_intro(Processor):
    "nbdev takes the first cell for a page's title and description: text below them gets a cell of its own"
    def begin(self):
        title = self.nb.cells[0]
        title.source,_,rest = title.source.partition('\n\n')
        if rest: self.nb.cells.insert(1, mk_cell(rest, 'markdown'))

class Pages(FilterDefaults):
    def base_procs(self): return [keep_intro, *super().base_procs()]

nbdev.serve.FilterDefaults = Pages

def signature(o, eval_str=False):
    "Annotations that only a type checker can evaluate, as torch's `ModuleList` has them, stay as they are written"
    try: return inspect.signature(o, eval_str=eval_str)
    except NameError: return inspect.signature(o)

def signature_ex(o, eval_str=False, get=fastcore.docments.signature_ex):
    "Without the keyword for each event that fastai gives a callback: they are for callbacks made of functions"
    sig = get(o, eval_str=eval_str)
    return sig.replace(parameters=[p for p in sig.parameters.values() if p.name not in _events])

fastcore.docments.signature,fastcore.docments.signature_ex = signature,signature_ex

def page_name(nb): return nbpath2html(nb).with_suffix('.ipynb')

def stage(cfg, dest):
    "Put the processed notebooks into `dest`, named as links name them and with own links relative; returns their sources"
    proc,nbs = proc_nbs(n_workers=0),[] # in this process, which knows `Pages` and imports everything once
    for src in sorted(o for o in proc.rglob('*') if o.is_file()):
        rel = src.relative_to(proc)
        if src.suffix=='.ipynb': nbs.append(rel)
        out = dest/(page_name(rel) if src.suffix=='.ipynb' else rel)
        out.parent.mkdir(parents=True, exist_ok=True)
        if src.suffix!='.ipynb': shutil.copy2(src, out)
        else:
            out.write_text(staged(src.read_text(encoding='utf-8'), cfg, '../'*(len(rel.parts)-1) or './'),
                encoding='utf-8')
    return nbs

def staged(text, cfg, up):
    "A processed notebook's text with own links relative, and signatures without what only says how the page was made"
    text = re.sub(r'output-file: [\w./-]+\\n', '', text).replace('__main__.', '').replace(':NoneType=None', '=None')
    text = re.sub(r'<function (\w+) at 0x\w+>|<built-in function (\w+)>', r'\1\2', text)
    return re.sub(re.escape(cfg.doc_url) + r'(?=[\w./-]+\.html)', up, text)

def sidebar(nbs):
    "Pages in the order of their numbers, by part; tutorials after `index`, before everything else"
    def part(o):
        if len(o.parts)>1: return o.parts[0].capitalize()
        return '' if o.stem=='index' else parts[3 if o.name[3:].startswith('zoo') else int(o.name[0])]
    order = sorted(nbs, key=lambda o: (o.stem!='index', len(o.parts)==1, str(o)))
    groups = [(k, [str(page_name(o)) for o in g]) for k,g in groupby(order, part)]
    return [o for k,g in groups for o in ([dict(section=k, contents=g)] if k else g)]

def configure(cfg, nbs, dest):
    "What `_quarto.yml` leaves to be generated: all that pyproject.toml and the list of notebooks say"
    site = {'title':cfg.title, 'description':cfg.description, 'site-url':cfg.doc_url, 'repo-url':cfg.git_url,
        'repo-branch':cfg.branch}
    site['navbar'] = dict(right=[dict(icon='github', text='GitHub', href=cfg.git_url)])
    site['sidebar'] = dict(contents=sidebar(nbs))
    (dest/'nbdev.yml').write_text(yaml.safe_dump({'project': {'output-dir':'_docs'}, 'website':site}, sort_keys=False))
    (dest/'sidebar.yml').unlink(missing_ok=True)

def name_markdown(site):
    "Give the Markdown copy of `page.html` the name that links to it use, `page.html.md`"
    for o in [*site.rglob('*.llms.md'), site/'llms.txt']:
        if not o.exists(): continue
        text = o.read_text(encoding='utf-8').replace('.llms.md', '.html.md')
        o.unlink()
        o.with_name(o.name.replace('.llms.md', '.html.md')).write_text(text, encoding='utf-8')

def write_readme(cfg, site):
    "Make README.md from the Markdown copy of `index`, its pictures in `nbs/images`"
    text,images = (site/'index.html.md').read_text(encoding='utf-8'),cfg.nbs_path/'images'
    for o in images.glob('index_*'): o.unlink()
    for o in (site/'index_files').glob('*'):
        images.mkdir(exist_ok=True)
        shutil.copy2(o, images)
    text = re.sub(r'<!--.*?-->\n*', '', text, flags=re.S)
    text = re.sub(r'\]\(index_files/', '](nbs/images/', text)
    text = re.sub(r'\]\(images/', '](nbs/images/', text)
    text = re.sub(r'\]\((?:\./)?([\w./-]+\.html)\.md', rf']({cfg.doc_url}\1', text)
    (cfg.config_path/'README.md').write_text(text.rstrip()+'\n', encoding='utf-8')

class Page(HTMLParser):
    "The anchors and the links of an HTML page"
    def __init__(self, path):
        super().__init__()
        self.ids,self.links = {'', 'top'},[]
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[o] for o in ('id', 'name') if attrs.get(o)}
        self.links += [attrs[o] for o in ('href', 'src') if attrs.get(o)]

def broken_links(
    cfg, # nbdev's configuration: it knows the site's address
    site, # folder of the built site
)->list: # one line for each broken link
    "Links from page to page, to an anchor or to a file of the site, that lead nowhere; other sites are not asked"
    pages,res = {o.resolve():Page(o) for o in site.rglob('*.html')},[]
    for path,page in pages.items():
        for link in sorted(set(page.links)):
            url = link.removeprefix(cfg.doc_url)
            repo = url.removeprefix(f'{cfg.git_url}/blob/{cfg.branch}/')
            if repo!=url and not (cfg.config_path/repo.partition('#')[0]).exists():
                res.append(f'{path.relative_to(site.resolve())}: {link}')
            if re.match(r'[a-z]+:|//', url): continue
            file,_,anchor = url.partition('#')
            base = site if url!=link or file.startswith('/') else path.parent
            to = (base/unquote(file.partition('?')[0]).lstrip('/')).resolve() if file else path
            if to.is_dir(): to = to/'index.html'
            ok = to.exists() and (to not in pages or unquote(anchor) in pages[to].ids)
            if not ok: res.append(f'{path.relative_to(site.resolve())}: {link}')
    return res

def broken_readme_links(cfg):
    "Relative links of README.md that lead to no file"
    links = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', (cfg.config_path/'README.md').read_text(encoding='utf-8'))
    links = [a or b for a,b in links]
    return [f'README.md: {o}' for o in links if not re.match(r'[a-z]+:|#', o)
        and not (cfg.config_path/o.partition('#')[0]).exists()]

@call_parse
def main(
    smalldocs:bool=False, # Render the site with smalldocs also where there is Quarto
):
    "Build the documentation site and README.md from the notebooks"
    cfg = get_config(Path(__file__).parent)
    os.chdir(cfg.config_path)
    with tempfile.TemporaryDirectory() as tmp:
        src,site = Path(tmp)/'src',Path(tmp)/'src/_docs'
        nbs = stage(cfg, src)
        configure(cfg, nbs, src)
        warnings = build(src, quiet=True).warnings
        name_markdown(site)
        write_readme(cfg, site)
        if shutil.which('quarto') and not smalldocs:
            shutil.rmtree(site)
            subprocess.run(['quarto', 'render', str(src), '--no-execute'], check=True)
            name_markdown(site)
        (site/'.nojekyll').touch()
        shutil.rmtree(cfg.doc_path, ignore_errors=True)
        shutil.move(site, cfg.doc_path)
    bad = warnings + broken_links(cfg, cfg.doc_path) + broken_readme_links(cfg)
    if bad: sys.exit('\n'.join([f'{len(bad)} problems in the documentation:', *bad]))
    print(f'{len(nbs)} pages in {cfg.doc_path.name}/, and README.md')
