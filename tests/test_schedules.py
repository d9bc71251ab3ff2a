'Every fit policy is the torch scheduler of the same shape, value for value, an epoch and a batch at a time'
import warnings
import numpy as np,pytest,torch
from functools import partial
from torch import nn
from torch.optim.lr_scheduler import (ChainedScheduler,CosineAnnealingLR,CosineAnnealingWarmRestarts,CyclicLR,LinearLR,MultiStepLR,
    SequentialLR)
from fastai.callback.core import Callback
from fastai.test_utils import synth_learner
from cifar_fastai.core import UserError
from cifar_fastai.schedules import PolicyScheduler,policies,policy_values

def torch_values(make, n_epoch, lr, n_iter, by):
    'The rates of every batch by `make(opt, k)`, a scheduler that is stepped `k` times an epoch'
    k = n_iter if by=='batch' else 1
    opt = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of SequentialLR, about itself
        sched,res = make(opt, k),[]
        for _ in range(n_epoch*k):
            res += [opt.param_groups[0]['lr']]*(n_iter//k)
            opt.step()
            sched.step()
    return res

def multistep(opt, k, milestones, gamma): return MultiStepLR(opt, [m*k for m in milestones], gamma)
def cosine(opt, k, n, lr_min): return CosineAnnealingLR(opt, n*k, lr_min)
def restarts(opt, k, T_0, T_mult, lr_min): return CosineAnnealingWarmRestarts(opt, T_0*k, T_mult, lr_min)
def triangular(opt, k, n, up): return CyclicLR(opt, 0., opt.param_groups[0]['lr'], up*k, (n-up)*k, cycle_momentum=False)

def warmup_multistep(opt, k, warmup, start, milestones, gamma):
    return SequentialLR(opt, [LinearLR(opt, start, total_iters=warmup*k), MultiStepLR(opt, [(m-warmup)*k for m in milestones], gamma)], [warmup*k])

def early_multistep(opt, k, warmup, start, milestones, gamma):
    'Milestones within the warmup too'
    return ChainedScheduler([LinearLR(opt, start, total_iters=warmup*k), MultiStepLR(opt, [m*k for m in milestones], gamma)], opt)

def warmcosine(opt, k, n, warmup, start, lr_min):
    return SequentialLR(opt, [LinearLR(opt, start, total_iters=warmup*k), CosineAnnealingLR(opt, (n-warmup)*k, lr_min)], [warmup*k])

# policy, epochs, what the user asks for, and torch's scheduler of that shape
shapes = [ # chkstyle: ignore-node
    ('multistep', 200, dict(), partial(multistep, milestones=[60,120,160], gamma=0.2)),
    ('multistep', 10, dict(milestones=[7,3], gamma=0.1), partial(multistep, milestones=[3,7], gamma=0.1)),
    ('cosine', 30, dict(), partial(cosine, n=30, lr_min=0.)),
    ('cosine', 7, dict(lr_min=0.01), partial(cosine, n=7, lr_min=0.01)),
    ('warmup_multistep', 200, dict(), partial(warmup_multistep, warmup=20, start=1/3, milestones=[60,120,160], gamma=0.5)),
    ('warmup_multistep', 12, dict(warmup=3, start=0.1, milestones=[5,9], gamma=0.3), partial(warmup_multistep, warmup=3, start=0.1, milestones=[5,9], gamma=0.3)),
    ('warmup_multistep', 12, dict(warmup=6, milestones=[2,9]), partial(early_multistep, warmup=6, start=1/3, milestones=[2,9], gamma=0.5)),
    ('warmcosine', 300, dict(), partial(warmcosine, n=300, warmup=20, start=0.01, lr_min=0.)),
    ('warmcosine', 9, dict(warmup=2, start=0.5, lr_min=1e-3), partial(warmcosine, n=9, warmup=2, start=0.5, lr_min=1e-3)),
    ('cosine_restarts', 310, dict(), partial(restarts, T_0=10, T_mult=2, lr_min=1e-4)),
    ('cosine_restarts', 50, dict(T_0=2, T_mult=3, lr_min=0.), partial(restarts, T_0=2, T_mult=3, lr_min=0.)),
    ('cosine_restarts', 20, dict(T_0=4, T_mult=1), partial(restarts, T_0=4, T_mult=1, lr_min=1e-4)),
    ('triangular', 50, dict(), partial(triangular, n=50, up=15)),
    ('triangular', 9, dict(up=2), partial(triangular, n=9, up=2))]
ids = [f'{p} {n} {shape}' for p,n,shape,_ in shapes]

@pytest.mark.parametrize('by', ['epoch', 'batch'])
@pytest.mark.parametrize('policy,n,shape,make', shapes, ids=ids)
def test_is_torchs(policy, n, shape, make, by):
    "Over 10 batches an epoch, as near as float64 goes beside torch's running products"
    ours,theirs = (f(n, n_iter=10, by=by) for f in (partial(policy_values, policy, lr=0.3, **shape), partial(torch_values, make, lr=0.3)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)

def test_every_policy_is_compared(): assert {s[0] for s in shapes} == set(policies)

@pytest.mark.parametrize('by', ['epoch', 'batch'])
@pytest.mark.parametrize('policy,n,shape,make', [s for s in shapes if s[1]<13], ids=[i for i,s in zip(ids, shapes) if s[1]<13])
def test_fit(policy, n, shape, make, by):
    'What the optimizer gets in a fit, through the `fit_*` of the policy, for a Learner with two groups too'
    learn,seen = synth_learner(n_trn=3, splitter=lambda m: [[m.a], [m.b]]),[]
    learn.add_cb(Callback(before_step=lambda self: seen.append([h['lr'] for h in self.opt.hypers])))
    with learn.no_bar(), learn.no_logging(): getattr(learn, f'fit_{policy}')(n, slice(0.1, 0.3), by=by, **shape)
    for group,lr in enumerate((0.1, 0.3)):
        np.testing.assert_allclose([s[group] for s in seen], torch_values(make, n, lr, 3, by), rtol=1e-9, atol=1e-13)
    assert not learn.cbs.filter(lambda c: isinstance(c, PolicyScheduler))

@pytest.mark.parametrize('fit,kwargs,said', [
    ('warmup_multistep', dict(warmup=-1), 'warmup is -1: it must be a number in [0, 4].'),
    ('warmup_multistep', dict(start=2), 'start is 2: it must be a number in [0, 1].'),
    ('warmcosine', dict(warmup=5), 'warmup is 5: it must be a number in [0, 4].'),
    ('cosine_restarts', dict(T_0=0), 'T_0 is 0'),
    ('cosine_restarts', dict(T_mult=0.5), 'T_mult is 0.5: it must be a number in [1, inf).'),
    ('triangular', dict(up=9), 'up is 9: it must be a number in [0, 4].'),
    ('cosine', dict(by='step'), "by is 'step': it must be 'epoch' or 'batch'.")])
def test_refusals(fit, kwargs, said):
    'A shape that makes no sense is refused before anything happens'
    learn = synth_learner(n_trn=3, cbs=Callback(before_fit=lambda self: pytest.fail('the fit began')))
    with pytest.raises(UserError) as e: getattr(learn, f'fit_{fit}')(4, 0.1, **kwargs)
    assert said in str(e.value)

def test_short_fits():
    'One epoch, and a warmup as long as the fit, give finite rates'
    for p in policies:
        for by in ('epoch', 'batch'): assert np.isfinite(policy_values(p, 1, by=by)).all()
    for p in ('warmup_multistep', 'warmcosine'): assert max(policy_values(p, 4, warmup=4, by='batch')) < 0.1
