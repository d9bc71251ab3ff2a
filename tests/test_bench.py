'Benchmarks compare like with like: every loop sees each image once, with the same augmentation'
import itertools
import pytest, torch
from torch import nn
from cifar_fastai.bench import peer_loops, peer_work
from cifar_fastai.data.loaders import cifar_dls

pad,bs = 2,16

@pytest.fixture
def dls():
    'A data set whose training images are one asymmetric image'
    res = cifar_dls('digits', bs=bs, fraction=0.05, pad=pad, flip=True)
    ds = res.train_ds
    ds.x = ds.x[:1].expand(len(ds), -1, -1, -1).contiguous()
    return res

def augmented(x):
    'All crops and flips of an image with zero padding, in [0, 1]'
    padded = nn.functional.pad(x.float()/255, (pad,)*4)
    shifts = itertools.product(range(2*pad+1), repeat=2)
    crops = torch.stack([padded[:,i:i+32,j:j+32] for i,j in shifts])
    return torch.cat([crops, crops.flip(3)])

def seen_by_first_conv(f):
    'The batches that the first convolution gets while `f` runs'
    batches = []
    def hook(m, args):
        if isinstance(m, nn.Conv2d) and m.in_channels==3: batches.append(args[0].detach().as_subclass(torch.Tensor).clone())
    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try: f()
    finally: handle.remove()
    return batches

def check(batches, dls, passes=1):
    'Each image once per epoch; images are crops and flips of their own with zero padding, normalised alike'
    n,x = len(dls.train_ds),dls.train_ds.x[0]
    assert [len(b) for b in batches]==[bs]*passes*(n//bs) + [n%bs]*passes*(n%bs>0)
    assert all(b.is_contiguous(memory_format=torch.channels_last) or b.is_contiguous() for b in batches)
    norm = next(o for o in dls.train.after_batch.fs if type(o).__name__=='NormalizeImages')
    possible = (augmented(x)-torch.tensor(norm.mean).view(3, 1, 1))/torch.tensor(norm.std).view(3, 1, 1)
    seen = torch.cat(batches[::passes])
    nearest = torch.cdist(seen.flatten(1), possible.flatten(1), p=torch.inf)
    assert nearest.min(1).values.max()<0.02
    which = nearest.argmin(1)
    assert len(which.unique())>20 and 0.2<(which>=len(possible)//2).float().mean()<0.8
    assert all(len(o.unique())>5 for o in which.split(bs)) # images of a batch have random numbers of their own

def test_peers_do_the_same_work(dls):
    loops = peer_loops('toynet_s1_k3', dls)
    assert {*loops}<={*peer_work}
    for name,f in loops.items():
        if 'DataLoader, 2' in name: continue # as with none
        first,second = seen_by_first_conv(f),seen_by_first_conv(f)
        passes = 2 if 'SAM' in name else 1
        check(first, dls, passes)
        assert len(first)==len(second) and not all(torch.equal(a, b) for a,b in zip(first, second))

def test_two_workers(dls):
    loops = peer_loops('toynet_s1_k3', dls)
    check(seen_by_first_conv(loops['DataLoader, 2 workers']), dls)
