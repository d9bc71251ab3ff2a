'`check_trick`: our own tricks pass, and each broken promise is named'
import pytest, torch
from fastai.callback.core import Callback
from cifar_fastai.callback.sam import SAM
from cifar_fastai.check import check_trick
from cifar_fastai.core import UserError
from cifar_fastai.trick import Trick, tricks
from test_contract import arguments, names

fast = 'Cutout', 'EMA', 'LabelSmoothing', 'ShakeDrop'

@pytest.mark.parametrize('name', [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names if n!='SWA' and not tricks[n].trained])
def test_our_tricks(name):
    a = {k:v for k,v in arguments.get(name, {}).items() if k!='teacher'}
    check_trick(lambda: tricks[name](**a), off=lambda: tricks[name](**{**a, **tricks[name].off_kwargs}))

class Scale(Trick):
    'A good trick: scales the images'
    order = 11
    def __init__(self, by=0.9): self.by = by
    def before_batch(self): self.learn.xb = (self.xb[0]*self.by,)

class Decay(Callback):
    'A good callback that is no `Trick`'
    order = 61
    def after_step(self):
        with torch.no_grad(): [p.mul_(0.999) for p in self.model.parameters()]

def test_good():
    check_trick(Scale, off=lambda: Scale(1.))
    check_trick(Decay)

class Global(Scale):
    def before_batch(self): self.learn.xb = (self.xb[0]+0.1*torch.randn(self.xb[0].shape, device=self.xb[0].device),)

class Trace(Scale):
    def before_fit(self): self.learn.mine = 1

class Hook(Scale):
    def before_train(self): self.model.register_forward_hook(lambda m, i, o: o*self.by)

class Counts(Scale):
    'What it does depends on a count that is in no state'
    n = 0
    def before_batch(self):
        self.n += 1
        self.learn.xb = (self.xb[0]*(1-self.by*self.n/1000),)

class Waits(Scale):
    def before_batch(self): self.learn.xb = (self.xb[0]*(self.by if self.xb[0].mean().item()<100 else 1),)

class NotWithSAM(Scale):
    def check(self):
        if self.learn._grab_cbs(SAM): raise UserError('I am alone.')

class Random(Scale):
    'Another seed in every process'
    def before_batch(self):
        import os
        self.learn.xb = (self.xb[0]*(1+0.01*os.urandom(1)[0]/255),)

@pytest.mark.parametrize('make,off,says', [(Scale, lambda: Scale(0.5), 'Off is not off'), (lambda: Scale(1.), None, 'It does nothing'),
    (Global, None, 'global random generators'), (Trace, None, 'attributes changed'), (Hook, None, 'hooks changed'),
    (Counts, None, 'not resumed exactly'), (Waits, None, 'waits for the device'), (NotWithSAM, None, 'combined with SAM: I am alone'),
    (Random, None, 'not reproducible')])
def test_broken_promise(make, off, says):
    with pytest.raises(AssertionError) as e: check_trick(make, off)
    assert says in str(e.value)

def test_no_callback():
    with pytest.raises(UserError, match='must return a callback'): check_trick(dict)

class Draws(Scale):
    'Draws when it is created'
    seen = set()
    def __init__(self): self.by = 0.5+0.5*torch.rand(1).item()
    def before_fit(self): self.seen.add(self.by)

def test_draws_when_created():
    'Every Learner has the trick with the same numbers, wherever the generators were'
    torch.manual_seed(7)
    check_trick(Draws)
    assert len(Draws.seen)==1
