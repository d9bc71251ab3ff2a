'SAM beside what changes how a gradient comes about: accumulation, a gradient scaler, several processes.'
import copy,os,socket
import pytest,torch
import torch.distributed as dist
from functools import partial
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation,GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from cifar_fastai.callback.average import EMA
from cifar_fastai.learner import async_metrics
from cifar_fastai.callback.mixers import MixUp
from cifar_fastai.callback.sam import ASAM, SAM, LookSAM
from common import fit

sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9)

def net(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def batches(n=4, bs=6, dtype=torch.float64, seed=3):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(bs, 4, generator=g, dtype=dtype), torch.randint(0, 3, (bs,), generator=g)) for _ in range(n)]

def learner(bs, model, cbs):
    learn = Learner(DataLoaders(bs, bs), model, nn.CrossEntropyLoss(), opt_func=sgd, lr=0.1, wd=0., cbs=cbs)
    return async_metrics(learn)


def sam_grads(model, x, y, rho, scale=1.):
    'The second gradient of SAM by hand; weights and buffers as after the first pass'
    ps = list(model.parameters())
    g = torch.autograd.grad(nn.functional.cross_entropy(model(x), y)*scale, ps)
    w,b = [p.detach().clone() for p in ps],[o.clone() for o in model.buffers()]
    norm = sum(o.square().sum() for o in g).sqrt()
    with torch.no_grad(): [p.add_(rho*o/norm) for p,o in zip(ps, g)]
    g = torch.autograd.grad(nn.functional.cross_entropy(model(x), y)*scale, ps)
    with torch.no_grad():
        [p.copy_(o) for p,o in zip(ps, w)]
        [p.copy_(o) for p,o in zip(model.buffers(), b)]
    return g

def step(model, grads, velocity, lr=0.1, momentum=0.9):
    with torch.no_grad():
        for i,(p,g) in enumerate(zip(model.parameters(), grads)):
            velocity[i] = g.clone() if i not in velocity else momentum*velocity[i]+g
            p.sub_(lr*velocity[i])

def assert_close(a, b, tol=1e-10):
    for (k,x),y in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.allclose(x, y, rtol=tol, atol=tol), k

def test_accumulation():
    'Each small batch is perturbed by its own gradient; the second gradients add up to one step'
    set_seed(0)
    model = net().double()
    hand,velocity,bs = copy.deepcopy(model),{},batches()
    fit(learner(bs, model, [SAM(0.2), GradientAccumulation(12)]))
    for two in (bs[:2], bs[2:]):
        gs = [sam_grads(hand, x, y, 0.2, scale=len(y)/12) for x,y in two]
        step(hand, [a+b for a,b in zip(*gs)], velocity)
    assert_close(model, hand)

def test_every_counts_steps():
    'The micro-batches of an accumulated step are all of one kind'
    set_seed(0)
    model = net().double()
    hand,velocity,bs = copy.deepcopy(model),{},batches(6)
    fit(learner(bs, model, [SAM(0.2, every=2), GradientAccumulation(12)]))
    for i,two in enumerate((bs[:2], bs[2:4], bs[4:])):
        gs = [sam_grads(hand, x, y, 0. if i==1 else 0.2, scale=len(y)/12) for x,y in two]
        step(hand, [a+b for a,b in zip(*gs)], velocity)
    for (k,x),y in zip(model.named_parameters(), hand.parameters()):
        assert torch.allclose(x, y, rtol=1e-10, atol=1e-10), k

def test_looksam_of_another_library():
    'On a network of one tensor, where norms over the tensor are norms over all, LookSAM is that of pytorch-optimizer'
    from pytorch_optimizer import LookSAM as Other
    set_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    other,bs = copy.deepcopy(model),batches(7)
    fit(learner(bs, model, [LookSAM(3, rho=0.2, alpha=0.6)]))
    opt = Other(other.parameters(), torch.optim.SGD, rho=0.2, k=3, alpha=0.6, lr=0.1, momentum=0.9)
    for x,y in bs:
        def loss():
            opt.zero_grad()
            nn.functional.cross_entropy(other(x), y).backward()
        loss()
        if opt.get_step()%3: opt.second_step(zero_grad=True) # its `step` would take the gradient twice
        else: opt.step(loss)
    assert_close(model, other, tol=1e-6) # it adds 1e-8 to the norm

def test_looksam_accumulates():
    'What is reused after an accumulated step is the sum over its small batches; each later one adds its share'
    set_seed(0)
    model = net().double()
    hand,velocity,bs = copy.deepcopy(model),{},batches(4)
    fit(learner(bs, model, [LookSAM(2, rho=0.2, alpha=0.6), GradientAccumulation(12)]))
    def flat(gs): return torch.cat([g.flatten() for g in gs])
    def plain(x, y): return torch.autograd.grad(nn.functional.cross_entropy(hand(x), y)*len(y)/12, [*hand.parameters()])
    kept = total = 0
    for x,y in bs[:2]:
        buffers = [b.clone() for b in hand.buffers()]
        a = flat(plain(x, y))
        [b.copy_(o) for b,o in zip(hand.buffers(), buffers)]
        b = flat(sam_grads(hand, x, y, 0.2, scale=len(y)/12))
        kept,total = kept + b-(a@b)/(a@a)*a,total+b
    sizes = [p.numel() for p in hand.parameters()]
    def parts(v): return [o.view_as(p) for o,p in zip(v.split(sizes), hand.parameters())]
    step(hand, parts(total), velocity)
    total = 0
    for x,y in bs[2:]:
        a = flat(plain(x, y))
        total = total + a + 0.6*a.norm()/kept.norm()*kept
    step(hand, parts(total), velocity)
    assert_close(model, hand)

def test_clip_sees_the_second_gradient():
    'Gradient clipping acts on the second gradient only'
    set_seed(0)
    model = net().double()
    hand,velocity,bs = copy.deepcopy(model),{},batches()
    fit(learner(bs, model, [SAM(0.2), GradientClip(0.1)]))
    for x,y in bs:
        g = sam_grads(hand, x, y, 0.2)
        norm = sum(o.square().sum() for o in g).sqrt()
        assert norm>0.1
        step(hand, [o*(0.1/(norm+1e-6)) for o in g], velocity)
    assert_close(model, hand)

@pytest.mark.parametrize('cls', [SAM, ASAM])
def test_scaler(cls):
    'Under a gradient scaler the result does not depend on the scale'
    ends = []
    for scale in (2.**4, 2.**10):
        set_seed(0)
        model = net()
        fit(learner(batches(dtype=torch.float32), model, cls(0.2)).to_fp16(init_scale=scale))
        ends.append(model)
    set_seed(0)
    assert not torch.equal(ends[0][0].weight, net()[0].weight)
    assert_close(*ends, tol=2e-3)

class Watch(Callback):
    'Keeps the scale after each batch'
    order = 200
    def before_fit(self): self.scales = []
    def after_batch(self):
        if self.training: self.scales.append(self.learn.scaler.get_scale())

def test_overflow_skips_the_step():
    'A gradient that overflows leaves weights and momentum alone, bitwise, and the scaler backs off'
    set_seed(0)
    model,watch = net(),Watch()
    before = copy.deepcopy(model)
    learn = learner(batches(2, dtype=torch.float32), model, [SAM(0.2), watch]).to_fp16(init_scale=2.**127)
    fit(learn)
    assert watch.scales==[2.**126, 2.**125]
    assert all(torch.equal(a, b) for a,b in zip(model.parameters(), before.parameters()))
    assert all(b.isfinite().all() for b in model.buffers()) and not learn.opt.opt.state

def small(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()

def _process(rank, port, cbs, out):
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    set_seed(0)
    model = small()
    learn = learner(batches(3, seed=rank), DistributedDataParallel(model), cbs)
    learn.dls = DataLoaders(learn.dls.train, [])
    learn.dls.c = 3
    set_seed(rank) # each draws its own random numbers
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    torch.save(model.state_dict(), out+str(rank))
    dist.destroy_process_group()

def two_processes(cbs, out):
    'The weights of both replicas after a fit'
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, cbs, str(out)), nprocs=2)
    return [torch.load(f'{out}{i}') for i in (0, 1)]

@pytest.mark.parametrize('sync', [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes(sync, tmp_path):
    'Under DDP each process perturbs by its own gradient, or all by the mean; the second gradients are averaged'
    set_seed(0)
    hand,velocity = small(),{}
    for pair in [*zip(batches(3, seed=0), batches(3, seed=1))]*2:
        if sync: gs = _synchronised(hand, pair, 0.2)
        else: gs = [sam_grads(hand, x, y, 0.2) for x,y in pair]
        step(hand, [(a+b)/2 for a,b in zip(*gs)], velocity)
    for w in two_processes(SAM(0.2, sync=sync), tmp_path/'w'):
        for k,v in w.items(): assert torch.allclose(v, hand.state_dict()[k], rtol=1e-10), k

@pytest.mark.slow
def test_replicas_stay_equal(tmp_path):
    'With other images, partners and shares in each process, mixed, clipped, averaged and at the worst point nearby, both replicas stay the same, bitwise'
    a,b = two_processes([MixUp(), SAM(0.2), GradientClip(0.5), EMA(0.9)], tmp_path/'w')
    set_seed(0)
    start = small().state_dict()
    for k in a: assert torch.equal(a[k], b[k]) and not torch.equal(a[k], start[k]), k

def _synchronised(model, pair, rho):
    'Both second gradients at the point that the mean of the first ones leads to'
    ps = list(model.parameters())
    def grads(): return [torch.autograd.grad(nn.functional.cross_entropy(model(x), y), ps) for x,y in pair]
    g = [(a+b)/2 for a,b in zip(*grads())]
    w,norm = [p.detach().clone() for p in ps],sum(o.square().sum() for o in g).sqrt()
    with torch.no_grad(): [p.add_(rho*o/norm) for p,o in zip(ps, g)]
    res = grads()
    with torch.no_grad(): [p.copy_(o) for p,o in zip(ps, w)]
    return res
