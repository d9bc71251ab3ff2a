"Optimizers that torch has not, equal to pytorch_optimizer's in float64; every optimizer by name in a Learner"
import copy,pytest,torch
from functools import partial
import pytorch_optimizer as po
from torch import nn
from fastai.torch_core import set_seed
from cifar_fastai.checkpoint import learner_state,load_learner_state
from cifar_fastai.core import UserError
from cifar_fastai.data import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.optimizers import AdaBound,AdaBoundW,LARS,Lion,create_opt_func,optimizers

class TheirAdaBound(po.AdaBound):
    "pytorch_optimizer's, without the 1e-15 that it adds to the second moment and the paper does not"
    apply_ams_bound = staticmethod(partial(po.AdaBound.apply_ams_bound, exp_avg_sq_eps=0.))
    apply_ams_bound_foreach = staticmethod(partial(po.AdaBound.apply_ams_bound_foreach, exp_avg_sq_eps=0.))

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4*36, 5)).double()

g = torch.Generator().manual_seed(1)
xs,ys = torch.randn(12, 6, 3, 8, 8, generator=g, dtype=torch.float64),torch.randint(0, 5, (12, 6), generator=g)

def run(make, lr, n=12):
    'After `n` steps with two groups, under a warmup and a fall of the learning rate'
    model = net()
    ps = list(model.parameters())
    opt = make([dict(params=ps[:1]), dict(params=ps[1:])], lr=lr)
    for i in range(n):
        for o in opt.param_groups: o['lr'] = lr*(0.5 if i==0 else 1. if i<8 else 0.1)
        opt.zero_grad()
        nn.functional.cross_entropy(model(xs[i]), ys[i]).backward()
        opt.step()
    return ps,opt

@pytest.mark.parametrize('wd', [0., 0.02])
@pytest.mark.parametrize('ours,theirs,lr', [
    (AdaBound, lambda p, **kw: TheirAdaBound(p, weight_decouple=False, **kw), 0.01),
    (AdaBoundW, TheirAdaBound, 0.01), (LARS, po.LARS, 3.), (Lion, po.Lion, 0.01)])
def test_is_pytorch_optimizers(ours, theirs, lr, wd):
    (a,oa),(b,ob) = (run(lambda p, **kw: f(p, weight_decay=wd, **kw), lr) for f in (ours, theirs))
    start = list(net().parameters())
    for x,y,z in zip(a, b, start):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
        assert (x-z).abs().max() > 1e-3
    for x,y in zip(a, b):
        for k in ours.states: torch.testing.assert_close(oa.state[x][k], ob.state[y][k], rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize('ours,theirs,kw', [
    (AdaBoundW, TheirAdaBound, dict(final_lr=0.02, gamma=0.5, betas=(0.8, 0.9), eps=1e-4)),
    (LARS, po.LARS, dict(momentum=0.5, trust_coefficient=0.02)), (Lion, po.Lion, dict(betas=(0.7, 0.8)))])
def test_parameters(ours, theirs, kw):
    'Other parameters than the defaults; the tight bounds of AdaBound bind'
    (a,_),(b,_) = (run(lambda p, **k: f(p, **k, **kw), 0.05) for f in (ours, theirs))
    for x,y in zip(a, b): torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)

def test_late_parameters():
    'A parameter that gets its first gradient later is corrected for its own start'
    def last(first):
        a,b = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
        opt = AdaBound([a, b], lr=0.1)
        for i in range(3):
            a.grad,b.grad = torch.ones_like(a),torch.ones_like(b) if i>=first else None
            opt.step()
        return a,b
    a,_ = last(0)
    _,b = last(2)
    fresh = nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt = AdaBound([fresh], lr=0.1)
    fresh.grad = torch.ones_like(fresh)
    opt.step()
    assert torch.equal(b, fresh) and not torch.equal(a, b)

def test_groups():
    'Groups with rates of their own keep their own `base_lr`'
    a,b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = AdaBound([dict(params=[a], lr=0.1), dict(params=[b])], lr=0.01)
    assert [g['base_lr'] for g in opt.param_groups]==[0.1, 0.01]

def learner(name, **kw):
    set_seed(0)
    dls = cifar_dls('digits', bs=13, fraction=40/1500, val_bs=100)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4*64, 10))
    return cifar_learner(model, dls, opt_func=name, lr=0.01, **kw)

def fit(learn, n=1):
    set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit_cosine(n, 0.01, by='batch')
    return learn

@pytest.mark.parametrize('name', optimizers)
def test_in_a_learner(name):
    'By name, with norms and biases left undecayed, on the meta device, and on from a saved state'
    learn = fit(learner(name, wd_bn_bias=False))
    assert [h['wd'] for h in learn.opt.hypers]==[5e-4, 0.]
    on_meta = learner(name)
    on_meta.dls.to('meta')
    on_meta.model.to('meta')
    fit(on_meta)
    learn = fit(learner(name))
    other = learner(name)
    other.create_opt()
    load_learner_state(other, copy.deepcopy(learner_state(learn)))
    for l in (learn, other): fit(l)
    for a,b in zip(learn.model.state_dict().values(), other.model.state_dict().values()): assert torch.equal(a, b)

@pytest.mark.parametrize('name', optimizers)
def test_closure(name):
    "As torch's: a closure is evaluated with gradients, and its loss returned"
    w = nn.Parameter(torch.ones(2, 2))
    opt = create_opt_func(name)([w], lr=0.01)
    def closure():
        loss = w.square().sum()
        loss.backward()
        return loss
    assert opt.opt.step(closure)==4. and w.sum()<4

@pytest.mark.parametrize('make,said', [
    (lambda p: AdaBound(p, final_lr=-1), 'final_lr is -1'), (lambda p: AdaBound(p, gamma=-1), 'gamma is -1'),
    (lambda p: LARS(p, momentum=2), 'momentum is 2'), (lambda p: Lion(p, weight_decay=-1), 'weight_decay is -1'),
    (lambda p: create_opt_func('loin'), "There is no optimizer 'loin': did you mean 'lion'")])
def test_refusals(make, said):
    with pytest.raises(UserError) as e: make([nn.Parameter(torch.ones(1))])
    assert said in str(e.value)
