"Selective backprop: the draw against numpy's, in which batches it acts, and what the selecting pass leaves alone"
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from cifar_fastai.callback.selective import SelectiveBackprop, draw_by_loss
from test_contract import fit, our_learner, plain_learner

@pytest.mark.parametrize('n,keep', [(6, 0.5), (4, 1/3), (9, 0.75), (1, 0.08)])
def test_draw(n, keep):
    "Each image, and each pair, is kept as often as by numpy's draw without replacement with these weights"
    b,many,beta = 12,6000,1/keep-1
    losses = torch.rand(b, generator=torch.Generator().manual_seed(1))
    gen,rng,p = torch.Generator().manual_seed(2),np.random.default_rng(3),((np.arange(b)+0.5)/b)**beta
    order,mine,numpys = losses.argsort().numpy(),np.zeros((b, b)),np.zeros((b, b))
    for _ in range(many):
        for o,counts in ((draw_by_loss(losses, n, beta, gen).numpy(), mine),
            (order[rng.choice(b, n, replace=False, p=p/p.sum())], numpys)):
            assert len(set(o))==n
            counts[np.ix_(o, o)] += 1
    assert abs(mine-numpys).max()/many < 5*(0.5/many)**0.5

@pytest.mark.parametrize('keep', [0.01, 0.001])
def test_draw_with_a_large_exponent(keep):
    'Weights that underflow in float32 are distinguished'
    assert draw_by_loss(torch.arange(1000.), 3, 1/keep-1, torch.Generator().manual_seed(0)).min()>900

@pytest.mark.parametrize('kwargs,kept', [(dict(start=0.5, end=0.9), [13, 13, 13, 1, 6, 13, 6, 1]),
    (dict(interrupt=0), [6, 6, 6, 1]*2), (dict(end=0.5, interrupt=3), [6, 6, 13, 1]+[13, 13, 13, 1]),
    (dict(keep=0.1, start=0.25), [13, 13, 2, 1, 2, 13, 2, 1])])
def test_when(kwargs, kept):
    seen = []
    look = Callback(after_pred=lambda self: seen.append((len(self.pred), len(self.yb[0]))) if self.training else None)
    fit(our_learner([SelectiveBackprop(**kwargs)]), cbs=look)
    assert seen==[(n, n) for n in kept]

class Ordered(Callback):
    'Calls `f` before a batch'
    def __init__(self, order, f): self.order,self.f = order,f
    def before_batch(self):
        if self.training: self.f(self)

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_selecting_pass(precision):
    'It moves no buffer and no generator, leaves modes, terms and reduction, and the gradients that follow reach all weights'
    learn = our_learner([SelectiveBackprop(interrupt=0)], precision=precision)
    trick,seen = learn.selective_backprop,[]
    def now():
        return [*learn.model.buffers(), torch.get_rng_state()],[*(m.training for m in learn.model.modules()),
            learn.loss_func.reduction, learn.loss_func.terms]
    def before(cb): cb.was = [o.clone() for o in now()[0]],now()[1]
    def after(cb):
        assert all(torch.equal(a, b) for a,b in zip(first.was[0], now()[0])) and first.was[1]==now()[1]
    first = Ordered(trick.order-0.5, before)
    look = Callback(before_step=lambda cb: seen.append(all(p.grad.any() for p in cb.model.parameters())))
    fit(learn, 1, cbs=[first, Ordered(trick.order+0.5, after), look])
    assert len(seen)==4 and all(seen[:3])

def test_accumulation_counts_kept_images():
    steps = []
    look = Callback(after_step=lambda self: steps.append(self.train_iter))
    fit(our_learner([SelectiveBackprop(interrupt=0), GradientAccumulation(12)]), 1, cbs=look)
    assert steps==[1]

def test_frozen_batchnorm():
    'A layer that is in evaluation mode by itself stays in it'
    learn = plain_learner([SelectiveBackprop(interrupt=0)])
    norms,modes = [m for m in learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d)],[]
    freeze = Callback(before_batch=lambda self: norms[0].eval(), after_pred=lambda self: modes.append([m.training for m in norms]))
    freeze.order = 0
    fit(learn, 1, cbs=freeze)
    assert modes[0]==[False, *[True]*(len(norms)-1)]
