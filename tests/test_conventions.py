'The house rules that a test can hold: order of the notebooks, short cells, documented signatures, clean outputs, tidy tree'
import ast, importlib, inspect, json, re, subprocess
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
import pytest
from fastcore.docments import docments
from cifar_fastai._modidx import d as index

root,pkg = Path(__file__).parents[1],'cifar_fastai'
top_level = '''nbs cifar_fastai settings.ini setup.py tests README.md pyproject.toml MANIFEST.in LICENSE CHANGELOG.md CONTRIBUTING.md
    .ci .github .gitignore .gitattributes'''.split()
exports = 'export', 'exporti', 'exports'

class Nb:
    "A notebook: its cells, the module it makes, and where it stands among the others"
    def __init__(self, path):
        self.path,self.cells = path,json.loads(path.read_text(encoding='utf-8'))['cells']
        self.code = [o for o in self.cells if o['cell_type']=='code']
        self.number = int(m[1]) if (m := re.match(r'(\d\d)_', path.name)) else None
        self.module = next((m[1] for o in self.code if (m := re.search(r'^#\| *default_exp +(\S+)', src(o), re.M))),
            None)
    @property
    def exported(self): return [o for o in self.code if directives(o) & {*exports}]
    @property
    def outputs(self): return [o for c in self.code for o in c['outputs']]
    def __repr__(self): return str(self.path.relative_to(root))

def src(cell): return ''.join(cell['source'])
def directives(cell): return {m[1] for m in re.finditer(r'^#\| *(\w+)', src(cell), re.M)}
def where(nb, cell): return f"{nb} cell {cell['id']}"
def none(bad): assert not bad, '\n'.join(map(str, ['', *bad]))

nbs = [Nb(o) for o in sorted((root/'nbs').rglob('*.ipynb')) if not any(p[0] in '._' for p in o.relative_to(root).parts)]
makers = {o.module:o for o in nbs if o.module}

def internal_imports(tree):
    "The modules of the package that `tree` imports, at module level or inside a function"
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): yield from (a.name for a in o.names if a.name.split('.')[0]==pkg)
        elif isinstance(o, ast.ImportFrom) and o.level: yield '.'*o.level + (o.module or '')
        elif isinstance(o, ast.ImportFrom) and o.module.split('.')[0]==pkg:
            of = o.module.removeprefix(pkg).lstrip('.')
            yield from [o.module] if of in makers else (f'{o.module}.{a.name}' for a in o.names)

def is_package(name): return name==f'{pkg}.__version__' or (root/name.replace('.', '/')/'__init__.py').exists()

def test_imports_go_down():
    "Exported cells import modules of lower-numbered notebooks only, by absolute names"
    bad = []
    for nb in nbs:
        for cell in nb.exported:
            for name in internal_imports(ast.parse(src(cell))):
                maker = makers.get(name.removeprefix(f'{pkg}.'))
                ok = is_package(name) or maker and nb.number is not None and maker.number<nb.number
                if not ok:
                    bad.append(f"{where(nb, cell)}: imports "
                        f"{name}{f', which {maker} makes' if maker else ': no such module'}")
    none(bad)

def test_a_notebook_a_module():
    "A notebook makes the module it is named after, and every module but `all`, a list of imports, has its notebook"
    none([f'{o}: makes {o.module}' for o in nbs if o.module and o.path.stem!=f'{o.number:02}_{o.module}'])
    none([f'{o}: no title and one-line description' for o in nbs if not re.match(r'# .+\n> .+', src(o.cells[0]))])
    have = {'.'.join(o.relative_to(root/pkg).with_suffix('').parts) for o in (root/pkg).rglob('*.py') if o.name[0]!='_'}
    none([f'cifar_fastai.{o}: no notebook makes it' for o in have-{'all', *makers}])

def test_cells_are_short():
    "Forty lines at most"
    none([f'{where(nb, o)}: {n} lines' for nb in nbs for o in nb.exported if (n := len(src(o).splitlines())-1)>40])

def test_lines_are_short():
    "A hundred and twenty characters at most"
    none([f'{where(nb, c)}: {len(l)} characters' for nb in nbs for c in nb.exported for l in src(c).splitlines() if len(l)>120])

def test_outputs_are_stored():
    "Every notebook shows something, and none shows an error"
    none([f'{o}: no stored output' for o in nbs if o.code and not o.outputs])
    none([f"{nb}: {o['ename']}" for nb in nbs for o in nb.outputs if o['output_type']=='error'])

@cache
def public():
    "What the library exports under public names: functions, classes, constructors, methods, but for those that a base class documents"
    res = {}
    for mod,syms in index['syms'].items():
        for name in syms:
            path = name.removeprefix(f'{mod}.').split('.')
            if not all(o[0]!='_' or o=='__init__' for o in path): continue
            o = importlib.import_module(mod)
            for p in path: owner,o = o,getattr(o, p)
            inherited = inspect.isclass(owner) and p!='__init__' and any(hasattr(b, p) for b in owner.__bases__)
            if not inherited: res[name] = getattr(o, '__func__', o)
    return res

def own_parameters(o):
    "Names of the parameters that a function, or the fields that a dataclass, itself declares"
    if is_dataclass(o): return [f for f in o.__dataclass_fields__ if f in vars(o).get('__annotations__', {})]
    if inspect.isclass(o) or not inspect.isfunction(f := inspect.unwrap(o)): return []
    c = f.__code__
    return [p for p in c.co_varnames[:c.co_argcount+c.co_kwonlyargcount] if p not in ('self', 'cls')]

def test_docments():
    "Every parameter of a public signature of two or more is documented beside it"
    def missing(o):
        return [p for p in own if not docments(inspect.unwrap(o)).get(p)] if len(own := own_parameters(o))>1 else []
    none([f"{name}: {', '.join(m)}" for name,o in public().items() if (m := missing(o))])

def test_docstrings():
    "Every public function and class says what it is"
    def at_top(name, o):
        return name.rpartition('.')[0] in index['syms'] and (inspect.isclass(o) or inspect.isfunction(o))
    none([name for name,o in public().items() if at_top(name, o) and not o.__doc__])

def tracked():
    if not (root/'.git').exists(): pytest.skip('not a git checkout: what is tracked is not known')
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True,
        check=True).stdout.split('\0')
    return [o for o in names if o and (root/o).exists()]

def texts(path):
    "The text of a file; of a notebook, its sources and its outputs without pictures"
    if path.suffix!='.ipynb': return [path.read_text(encoding='utf-8')]
    nb = Nb(path)
    shown = [v for o in nb.outputs for k,v in {**o, **o.get('data', {})}.items() if k not in ('data', 'metadata')
        and not k.startswith('image/p')]
    return [src(o) for o in nb.cells] + [json.dumps(o) for o in shown]

def test_no_local_paths():
    "Neither files nor stored outputs name a place on somebody's machine"
    bad = []
    for name in tracked():
        if (root/name).suffix in ('.png', '.jpg', '.gif', '.tgz', '.gz', '.npz', '.safetensors'): continue
        places = 'root|work|home|Users' if name.startswith('tests/') else 'root|work|home|Users|tmp' # tests try paths out of an archive
        bad += [f'{name}: {o}' for t in texts(root/name) for o in re.findall(rf'(?<![\w.*-])/(?:{places})/[\w.-]*', t)]
    none(bad)

def test_top_level():
    "Nothing lies at the top but what has its place there"
    none({o.split('/')[0] for o in tracked()} - {*top_level})

# -- names

replaced = 'CutMix Flip GradientClip Lookahead MixUp RandomCrop RandomErasing RandomResizedCrop'.split() # tricks that replace a name of fastai's

def star(module):
    "What `from module import *` defines"
    res = {}
    exec(f'from {module} import *', res)
    return {k:v for k,v in res.items() if k!='__builtins__'}

def test_names_of_all():
    "What a user needs, and nothing of fastai's is shadowed but by the tricks that replace it"
    fastai,ours = star('fastai.vision.all'),star('cifar_fastai.all')
    assert sorted(k for k in ours if k in fastai and ours[k] is not fastai[k])==replaced
    assert len([k for k in ours if k not in fastai])+len(replaced)<=140
    assert set(star('cifar_fastai.trick')['tricks'])<=set(ours), 'every trick is there'
    assert {'study', 'load_study', 'cifar_dls', 'cifar_learner'}<=set(ours), 'what README.md shows is there'

def test_orders_are_named():
    "The positions of all callbacks are in the table of the training step"
    from cifar_fastai.loop import ManagedCallback
    from cifar_fastai.trick import step_order
    cbs = [o for o in public().values() if inspect.isclass(o) and issubclass(o, ManagedCallback) and 'order' in vars(o)]
    assert len(cbs)>10
    none([f'{o.__name__}: {o.order}' for o in cbs if o.order not in step_order.values()])
