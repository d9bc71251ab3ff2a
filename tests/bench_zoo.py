"""What takes minutes to find out about the backbones, stored for the documentation: `python tests/bench_zoo.py WHAT`

- `steps`: how long a training step takes beside the network that confirms it, the same weights in both, in turns
- `deviations`: how far logits in eval mode (float32) and input gradients in train mode (float64) are from that network's
- `learns`: what a few dozen steps do to the training loss

The cheap networks come first, and what is stored already is kept."""
import json,time
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Annotated
import torch,torch.nn.functional as F
from fastcore.script import call_parse
from cifar_fastai.zoo.registry import create_model, list_models, zoo_contract
from cifar_fastai.bench import save_bench
from test_zoo import aliases,deviation,references
from test_zoo_learns import learns,protocol
from test_zoo_train import compared,gradient_deviation
from zoo_refs import copy_to

hand = 'ge_*', 'spp_*_p[ABCD]' # their references are written here, to be right and not to be fast

def gmacs(name): return float(zoo_contract()[name]['gmacs'])

def seconds(model, x, y):
    'CPU seconds of forward and backward'
    start = time.process_time()
    F.cross_entropy(model(x), y).backward()
    return time.process_time()-start

def step(name, bs=4):
    'Median seconds of both networks, and the median of their ratio, over rounds in which each goes first in turn; one more is not counted'
    torch.manual_seed(0)
    ref,ours,n = references[name],create_model(name),8 if gmacs(name)>1 else 12
    theirs = copy_to(ours, ref, ref.build())
    x,y = torch.randn(bs, 3, 32, 32),torch.randint(10, (bs,))
    for m in (ours, theirs): m.train()
    orders = [(-1)**i for i in range(n+1)]
    rounds = [[seconds(m, x, y) for m in (ours, theirs)[::o]][::o] for o in orders][1:]
    mine,other = map(median, zip(*rounds))
    return dict(seconds=mine, reference=other, ratio=median(a/b for a,b in rounds), rounds=n)

def deviations(name):
    'The relative maximum of the difference; no gradient where a side is random'
    return dict(logits=deviation(name), gradient=gradient_deviation(name) if name in compared else None)

# what: file, function of a name, names, data, settings
measures = dict(
    steps=('zoo', step, [o for o in references if not any(fnmatch(o, h) for h in hand)], 'random images',
        dict(batch=4, timed='forward and backward', clock='CPU time')),
    deviations=('deviations', deviations, list(references), 'two random images',
        dict(logits='eval mode, float32', gradient='of the input, train mode, float64')),
    learns=('learns', learns, [o for o in list_models() if o not in aliases], '256 handwritten digits',
        dict(protocol=protocol)))

@call_parse
def main(
    what:Annotated[str, dict(choices=tuple(measures))], # to measure
    minutes:float=60, # start no other backbone after that
    again:str='', # backbones to measure anew, with commas
):
    'Measure what is not stored yet'
    torch.set_num_threads(1)
    file,measure,names,data,settings = measures[what]
    path,start = Path(__file__).parents[1]/f'nbs/benchmarks/{file}.json',time.time()
    done = json.loads(path.read_text())[what] if path.exists() else {}
    for name in sorted(names, key=gmacs):
        if time.time()-start > 60*minutes: break
        if name in done and name not in again.split(','): continue
        done[name] = measure(name)
        print(name, done[name], f'{time.time()-start:.0f} s', flush=True)
        save_bench(path, data, settings=settings, **{what:done})
