'''Writes `cifar_fastai/registry.json`: names, parameters and defaults of what a run configuration can name.

With this table names and arguments are checked before torch is imported. Ranges are those that the constructors themselves
check: the sentence with which each refuses a number far out of range states it. A test compares the table with the registries.'''
import inspect, json, re
from functools import partial
from pathlib import Path
from fastai.callback.schedule import Learner
from fastcore.docments import docments
from cifar_fastai.callback.mixers import Chain, OneOf
from cifar_fastai.core import UserError
from cifar_fastai.losses import losses
from cifar_fastai.optimizers import create_opt_func, optimizers
from cifar_fastai.schedules import policies
from cifar_fastai.trick import training_step, tricks
from cifar_fastai.zoo.registry import backbones, inits, list_models

def doc(o): return (inspect.getdoc(o) or '').split('\n')[0]

def params(
    f, # a function or class
    drop=(), # parameters that a configuration does not give
    **defaults # instead of those of the signature
)->dict: # name -> default, None without one; `*` for any number of positional arguments
    "The parameters of `f`"
    res = {}
    for p in inspect.signature(f).parameters.values():
        if p.name in drop or p.kind==p.VAR_KEYWORD: continue
        default = defaults.get(p.name, None if p.default is p.empty else p.default)
        res['*' if p.kind==p.VAR_POSITIONAL else p.name] = list(default) if isinstance(default, tuple) else default
    return res

_range = re.compile(r'it must be (a number|an integer) in ([\[(])(.+), (.+)([\])])\.$')

def bound(s): return None if 'inf' in s else float(s) if set('.e') & {*s} else int(s)

def ranges(
    make, # called with one parameter by name
    params:dict, # name -> default
)->dict: # name -> keyword arguments of `check_range`
    "The ranges that `make` checks"
    res = {}
    for k,default in params.items():
        if isinstance(default, bool) or not isinstance(default, (int, float)): continue
        try: make(**{k:1e300})
        except UserError as e:
            if m := str(e).startswith(f'{k} is ') and _range.search(str(e)):
                kind,left,lo,hi,right = m.groups()
                flags = dict(above=left=='(', below=right==')', whole=kind=='an integer')
                res[k] = dict(lo=bound(lo), hi=bound(hi)) | {a:True for a,on in flags.items() if on}
        except Exception: continue # it cannot be made without other arguments
    return res

def entry(f, drop=(), make=(), **new):
    "A row of the table; each of `make` takes one parameter by name, and ranges are those on which all agree"
    ps = params(f, drop, **new)
    first,*others = [ranges(o, ps) for o in make] or [{}]
    defaults = [o for o in ps.values() if isinstance(o, float) and o%1] # a bound may be another parameter
    found = {k:v for k,v in first.items() if all(o.get(k)==v for o in others) and not {v['lo'], v['hi']} & {*defaults}}
    signature = inspect.signature(f).parameters.values()
    named = [p.name for p in signature if p.kind==p.KEYWORD_ONLY and p.name in ps]
    return dict(doc=doc(f), params=ps) | {k:v for k,v in dict(named=named, ranges=found).items() if v}

_steps = {int(n):f'{name}: {why}' if why else name
    for name,n,why in re.findall(r'^ +(\w+) +(\d+)(?: +# (.*))?', training_step, re.M)}

def trick(o):
    "The row of a trick: also its step, group and comments, what switches it off, and its parameter for another network"
    trained = getattr(o, 'trained', None)
    row = entry(o, make=[partial(o, 'lenet') if trained else o])
    docs = {k:v for k,v in docments(o).items() if k in row['params'] and v}
    if '*' in row['params']: docs['*'] = docments(o)['mixers']
    own = dict(step=_steps.get(o.order), docs=docs, group=o.group, conflict=o.conflict, off=o.off_kwargs, trained=trained)
    return row | {k:v for k,v in own.items() if v}

def optimizer(name, cls, defaults):
    "The row of an optimizer, with the parameters that `create_opt_func` adds to its own"
    make = partial(create_opt_func, name)
    row,own = entry(cls, ('params', 'lr', 'weight_decay'), [make], **defaults),entry(create_opt_func, ('name',), [make])
    res = {k:row.get(k, {}) | own.get(k, {}) for k in ('params', 'ranges')}
    return dict(doc=row['doc']) | {k:v for k,v in res.items() if v}

def costs()->dict:
    "What was measured, and trick -> time of an epoch relative to plain training, from the stored benchmark"
    b = json.loads((Path(__file__).parents[1]/'nbs/benchmarks/bench.json').read_text())
    s,m = b['settings'],b['machine']
    what = f"{s['model']}, batch size {s['bs']}, {m['device']}, {m['threads']} thread"
    return dict(what=what, ratio={k:round(b['tricks'][k]['ratio'], 2) for k in sorted(tricks) if k in b['tricks']})

def table()->dict:
    "Kind -> name -> doc and params; and what tricks cost"
    fit = 'lr', 't', 'n_epoch'
    schedules = {k:entry(f, fit, [partial(f, lr, 0., n) for lr,n in ((0.1, 10), (0.2, 20))]) for k,f in policies.items()}
    schedules['onecycle'] = entry(Learner.fit_one_cycle,
        ('self', 'n_epoch', 'lr_max', 'wd', 'cbs', 'reset_opt', 'start_epoch'))
    named = sorted([*tricks.items(), ('OneOf', OneOf), ('Chain', Chain)])
    return dict(trick={k:trick(o) for k,o in named},
        optimizer={k:optimizer(k, cls, defaults) for k,(cls,defaults) in optimizers.items()},
        schedule=schedules,
        loss={k:entry(o, make=[o]) for k,o in losses.items()}, init={k:{} for k in inits},
        backbone={k:dict(doc=backbones[k].paper) for k in list_models()}, cost=costs())

if __name__=='__main__':
    path = Path(__file__).parents[1]/'cifar_fastai/registry.json'
    path.write_text(json.dumps(table(), indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
