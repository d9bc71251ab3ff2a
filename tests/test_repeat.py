"Repeated augmentation: which images an epoch has, and how copies differ"
import pytest, torch
from fastai.callback.core import Callback
from timm.data.distributed_sampler import RepeatAugSampler
from cifar_fastai.augment.autoaugment import RandAugment
from cifar_fastai.augment.geometry import Flip
from cifar_fastai.augment.repeat import RepeatedAugment
from cifar_fastai.callback.mixers import MixUp
from cifar_fastai.callback.monitor import ImagesPerSecond, TrainAccuracy
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from test_contract import fit, net, our_learner

def epoch(*cbs, bs=12, n=1, **kwargs):
    'The training batches of `n` epochs, of 36 images'
    dls = cifar_dls('digits', bs=bs, fraction=40/1500, drop_last=True, **kwargs)
    learn,seen = cifar_learner(net(), dls, cbs=cbs),[]
    look = Callback(before_batch=lambda self: seen.append((self.xb[0], self.yb[0])) if self.training else None)
    look.order = 90
    fit(learn, n, cbs=look)
    return seen

def counts(batches): return torch.cat([x for x,_ in batches]).flatten(1).unique(dim=0, return_counts=True)[1].tolist()

@pytest.mark.parametrize('k', [2, 3, 4])
def test_same_size_as_timm(k):
    "An epoch of `same_size` has as many steps, images, and images `k` times, as timm's sampler on one process"
    seen,plain = epoch(RepeatedAugment(k, True), pad=0),epoch(pad=0)
    sampler = list(RepeatAugSampler(range(36), num_replicas=1, rank=0, num_repeats=k, selected_round=0))
    assert counts(seen)==torch.tensor(sampler).unique(return_counts=True)[1].tolist()==[k]*(36//k)
    assert [len(x) for x,_ in seen]==[len(x) for x,_ in plain]
    for (x,y),(p,q) in zip(seen, plain): # the images that begin each batch without it
        assert torch.equal(x[::k], p[:12//k]) and torch.equal(y, q[:12//k].repeat_interleave(k))

@pytest.mark.parametrize('k', [2, 3])
def test_larger(k):
    "Batches are `k` times as large, of the images that they have without it"
    for (x,y),(p,q) in zip(epoch(RepeatedAugment(k), pad=0), epoch(pad=0)):
        assert torch.equal(x, p.repeat_interleave(k, 0)) and torch.equal(y, q.repeat_interleave(k))
        assert x.is_contiguous(memory_format=torch.channels_last)

@pytest.mark.parametrize('cbs,kwargs', [((), dict(pad=4)), ((RandAugment(),), dict(pad=0)), ((Flip(),), dict(pad=0))])
def test_copies_differ(cbs, kwargs):
    x,_ = epoch(RepeatedAugment(2), *cbs, **kwargs)[0]
    assert 2 < (x[::2]!=x[1::2]).flatten(1).any(1).sum() <= len(x)//2

def test_alternating_flips_are_those_of_the_image():
    for x,_ in epoch(RepeatedAugment(2), Flip(alternate=True), pad=0, n=2): assert torch.equal(x[::2], x[1::2])

def test_counted():
    'Monitors count copies, mixers mix them'
    learn = our_learner([RepeatedAugment(3), TrainAccuracy(), ImagesPerSecond(), MixUp()])
    ends = {}
    look = Callback(after_train=lambda self: ends.update(acc=learn.train_accuracy.n, ips=learn.images_per_second.n))
    fit(learn, 1, cbs=look)
    assert ends==dict(acc=120, ips=120)
