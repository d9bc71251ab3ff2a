'''Writes `cifar_fastai/registry.json`: names, parameters and defaults of what a run configuration can name.

With this table names and arguments are checked before torch is imported. A test compares it with the registries.'''
import inspect, json
from pathlib import Path
from fastai.callback.schedule import Learner
from cifar_fastai.callback.mixers import Chain, OneOf
from cifar_fastai.losses import losses
from cifar_fastai.optimizers import optimizers
from cifar_fastai.schedules import policies
from cifar_fastai.trick import tricks
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

def entry(f, drop=(), **defaults): return dict(doc=doc(f), params=params(f, drop, **defaults))

def table()->dict:
    "Kind -> name -> doc and params"
    fit,steps = ('lr', 't', 'n_epoch'),('params', 'lr', 'weight_decay')
    schedules = {k:entry(f, fit) for k,f in policies.items()}
    schedules['onecycle'] = entry(Learner.fit_one_cycle,
        ('self', 'n_epoch', 'lr_max', 'wd', 'cbs', 'reset_opt', 'start_epoch'))
    return dict(trick={k:entry(o) for k,o in sorted([*tricks.items(), ('OneOf', OneOf), ('Chain', Chain)])},
        optimizer={k:entry(cls, steps, **defaults) for k,(cls,defaults) in optimizers.items()}, schedule=schedules,
        loss={k:entry(o) for k,o in losses.items()}, init={k:{} for k in inits},
        backbone={k:dict(doc=backbones[k].paper) for k in list_models()})

if __name__=='__main__':
    path = Path(__file__).parents[1]/'cifar_fastai/registry.json'
    path.write_text(json.dumps(table(), indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
