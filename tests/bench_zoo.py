"""How long a training step of each backbone takes beside the independent network that confirms it: `python tests/bench_zoo.py`

Both have the same weights; CPU time of one thread, forward and backward, in turns. Results that the file has already are kept."""
import json,time
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
import torch,torch.nn.functional as F
from fastcore.script import call_parse
from cifar_fastai.backbones import get_model,zoo_contract
from cifar_fastai.bench import save_bench
from zoo_refs import copy_to,load_references

hand = 'ge_*', 'spp_*_p[ABCD]' # their references are written here, to be right and not to be fast

def step(model, x, y):
    'CPU seconds of forward and backward'
    start = time.process_time()
    F.cross_entropy(model(x), y).backward()
    return time.process_time()-start

def compare(name, ref, bs, n):
    'Median seconds of both, and the median of their ratio, over `n` rounds after one that is not counted'
    torch.manual_seed(0)
    ours = get_model(name)
    theirs = copy_to(ours, ref, ref.build())
    x,y = torch.randn(bs, 3, 32, 32),torch.randint(10, (bs,))
    for m in (ours, theirs): m.train()
    rounds = [(step(ours, x, y), step(theirs, x, y)) for _ in range(n+1)][1:]
    mine,other = map(median, zip(*rounds))
    return dict(seconds=mine, reference=other, ratio=median(a/b for a,b in rounds), rounds=n)

@call_parse
def main(
    path:str=str(Path(__file__).parents[1]/'nbs/benchmarks/zoo.json'), # results
    bs:int=4, # images a batch
    n:int=7, # rounds
    minutes:float=60, # start no other backbone after that; the cheap ones come first
    again:str='', # backbones to measure anew, with commas
):
    'Measure the backbones that have a reference'
    torch.set_num_threads(1)
    path,start,gmacs = Path(path),time.time(),{k:float(r['gmacs']) for k,r in zoo_contract().items()}
    path.parent.mkdir(exist_ok=True)
    done = json.loads(path.read_text())['steps'] if path.exists() else {}
    for name,ref in sorted(load_references().items(), key=lambda o: gmacs[o[0]]):
        if time.time()-start > 60*minutes: break
        if any(fnmatch(name, o) for o in hand) or name in done and name not in again.split(','): continue
        done[name] = compare(name, ref, bs, n)
        print(name, f"{done[name]['ratio']:.2f}", flush=True)
        save_bench(path, 'random images', settings=dict(batch=bs, timed='forward and backward', clock='CPU time'), steps=done)
