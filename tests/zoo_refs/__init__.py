'Independent implementations that confirm the backbones, one module a family, each with a dict `references`.'
import importlib,pkgutil,re
from dataclasses import dataclass
import torch
from torch import nn

@dataclass(frozen=True)
class Reference:
    'A network of another package, and how the names of our tensors become the names of its tensors'
    build:callable # builds the other network for 10 classes, `num_batches_tracked` and all
    rules:list # (pattern, replacement) pairs for `re.sub`, applied in turn to each of our names
    convert:callable=None # state dict -> state dict, after the renaming, where one tensor of ours is several of theirs or is laid out another way
    random:bool=False # is the other network (or ours) random in train mode? then train-mode gradients are not compared

def renamed(sd, rules):
    'The state dict `sd` with `rules` applied to its names'
    res = {}
    for k,v in sd.items():
        for pat,rep in rules: k = re.sub(pat, rep, k)
        assert k not in res, f'the rules send two tensors to {k}'
        res[k] = v
    return res

def randomise_(model, seed=0):
    'Random BatchNorm statistics, and noise on whatever parameter starts as a constant: biases, gains, layer scales, position tables'
    g = torch.Generator().manual_seed(seed)
    def rand(t, lo, hi): t.copy_(torch.rand(t.shape, generator=g)*(hi-lo)+lo)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                rand(m.running_mean, -0.2, 0.2)
                rand(m.running_var, 0.5, 1.5)
                rand(m.weight, 0.5, 1.5)
                rand(m.bias, -0.2, 0.2)
        for p in model.parameters():
            if p.min()==p.max(): p += torch.rand(p.shape, generator=g)*0.4 - 0.2
    return model

def copy_to(ours, ref, theirs):
    'Load the weights of `ours` into `theirs`: every tensor on both sides has to be matched, with its shape'
    sd = renamed(ours.state_dict(), ref.rules)
    if ref.convert: sd = ref.convert(sd)
    theirs.load_state_dict(sd, strict=True)
    return theirs

def load_references():
    'name of a backbone -> `Reference`, from every module of this package'
    res = {}
    for m in pkgutil.iter_modules(__path__): res |= importlib.import_module(f'{__name__}.{m.name}').references
    return res
