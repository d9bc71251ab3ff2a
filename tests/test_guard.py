'Fits that blow up end with an error that says where, at little cost, and leave what was sound'
import math
import pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip as FastaiClip
from fastai.torch_core import set_seed
from cifar_fastai.checkpoint import Checkpoint,load_tree
from cifar_fastai.core import UserError
from cifar_fastai.data import cifar_dls
from cifar_fastai.guard import GradientClip,NonFiniteLoss,StopOnNonFinite
from cifar_fastai.learner import cifar_learner

class Spoil(Callback):
    "Makes the loss `value` in one batch, for the weights too"
    order = -5
    def __init__(self, epoch, batch, value): self.at,self.value = (epoch, batch),value
    def after_loss(self):
        if self.training and (self.epoch, self.iter)==self.at: self.learn.loss_grad,self.learn.loss = self.loss_grad*self.value,self.loss*self.value

def learner(cbs):
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))
    return cifar_learner(model, cifar_dls('digits', bs=10, fraction=60/1500, val_bs=100), cbs=cbs, lr=0.01)

def fit(learn, n=3):
    set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn

def messages(cbs):
    with pytest.raises(NonFiniteLoss) as e: fit(learner(cbs))
    return str(e.value)

@pytest.mark.parametrize('every', [1, 4, 100])
@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('batch', [0, 2, 5])
def test_says_where(every, value, batch):
    'Epoch, batch, what it became and the last finite loss, however often one looks'
    losses = []
    plain = learner(Callback(after_batch=lambda self: losses.append(self.loss.item()) if self.training else None))
    fit(plain)
    message = messages([Spoil(1, batch, value), StopOnNonFinite(every)])
    assert message.startswith(f'The loss became {value} in batch {batch+1} of epoch 2; the last finite one was {losses[6+batch-1]:.4g}:')

def test_from_the_start(): assert 'in batch 1 of epoch 1; it was so from the start' in messages([Spoil(0, 0, math.nan), StopOnNonFinite()])

def test_checkpoint_is_intact(tmp_path):
    'The last checkpoint is that of the last sound epoch'
    messages([Spoil(1, 3, math.nan), StopOnNonFinite(), Checkpoint(tmp_path/'c')])
    sd = load_tree(tmp_path/'c')
    assert sd['epoch']==1 and all(v.isfinite().all() for v in sd['model'].values())

def test_sound_fits_are_left_alone():
    'Nothing changes, and the loss is fetched a chunk at a time'
    looks = []
    class Count(StopOnNonFinite):
        def _look(self):
            looks.append(len(self.losses))
            super()._look()
    a,b = fit(learner(Count(4))),fit(learner(None))
    for x,y in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(x, y)
    assert looks==[4, 2]*3

def test_on_meta():
    'No look at all where there are no numbers'
    learn = learner(StopOnNonFinite(1))
    learn.dls.to('meta')
    learn.model.to('meta')
    fit(learn)

@pytest.mark.parametrize('norm', [0.1, 0.5, 100.])
def test_clip_is_fastais(norm):
    for a,b in zip(*(fit(learner(c(norm))).model.parameters() for c in (GradientClip, FastaiClip))): assert torch.equal(a, b)

@pytest.mark.parametrize('made,said', [(lambda: GradientClip(-1), 'max_norm is -1'), (lambda: StopOnNonFinite(0), 'every is 0')])
def test_refusals(made, said):
    with pytest.raises(UserError, match=said): made()
