'Fits that blow up end with an error that says where, at little cost, and leave what was sound'
import copy, math
import pytest,timm,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip as FastaiClip
from fastai.learner import Learner, load_learner
from fastai.torch_core import set_seed
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.serialize import load_tree
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.callback.monitor import AGC, GradientClip, NonFiniteLoss, StopOnNonFinite
from cifar_fastai.learner import cifar_learner
from common import fit_of

class Spoil(Callback):
    "Makes the loss `value` in one batch, for the weights too"
    order = -5
    def __init__(self, epoch, batch, value): self.at,self.value = (epoch, batch),value
    def after_loss(self):
        if self.training and (self.epoch, self.iter)==self.at:
            self.learn.loss_grad,self.learn.loss = self.loss_grad*self.value,self.loss*self.value

def learner(cbs):
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))
    return cifar_learner(model, cifar_dls('digits', bs=10, fraction=60/1500, val_bs=100), cbs=cbs, lr=0.01)

fit = fit_of(3, seed=1)

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
    assert message.startswith(f'The loss became {value} in batch {batch+1} of epoch 2; the last finite '
        f'loss was {losses[6+batch-1]:.4g}:')

def test_from_the_start():
    assert 'in batch 1 of epoch 1; from the start' in messages([Spoil(0, 0, math.nan), StopOnNonFinite()])

def test_checkpoint_is_intact(tmp_path):
    'The last checkpoint is that of the last sound epoch'
    messages([Spoil(1, 3, math.nan), StopOnNonFinite(), Checkpoint(tmp_path/'c')])
    sd = load_tree(tmp_path/'c')
    assert sd['epoch']==1 and all(v.isfinite().all() for v in sd['model'].values())

@pytest.mark.parametrize('lr', [1e4, 1e25])
def test_a_fit_that_blows_up(lr, tmp_path):
    'A real fit on digits, sound at first, then with a learning rate that is far too large: the checkpoint is that of the last sound epoch, to the byte'
    kept = []
    keep = Callback(after_epoch=lambda self: kept.append((tmp_path/'c').read_bytes()))
    keep.order = Checkpoint.order+1
    set_seed(0)
    learn = cifar_learner('resnet20', cifar_dls('digits', bs=10, fraction=60/1500, val_bs=100), lr=0.01,
        cbs=[Checkpoint(tmp_path/'c'), keep])
    fit(learn, 2)
    with pytest.raises(NonFiniteLoss,
        match='in batch [1-6] of epoch [1-9]; .*: try a lower'), learn.no_bar(), learn.no_logging():
        learn.fit(30, lr)
    assert (tmp_path/'c').read_bytes()==kept[-1]
    assert all(v.isfinite().all() for v in load_tree(tmp_path/'c')['model'].values())

class SpoilWeights(Callback):
    'Makes weights or statistics infinite in the last step of an epoch, whose loss was finite'
    order = -5
    def __init__(self, what): self.what = what
    def after_step(self):
        if self.iter==self.n_iter-1 and self.epoch==1: self.what(self.model).fill_(math.inf)

@pytest.mark.parametrize('what', [lambda m: m[3].weight.data, lambda m: m[1].running_var])
def test_spoiled_by_the_last_step(what, tmp_path):
    'A finite loss does not hide weights that are not; a mask may hold infinity'
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4*30*30, 10))
    model.register_buffer('mask', torch.tensor(-math.inf))
    learn = cifar_learner(model, cifar_dls('digits', bs=10, fraction=60/1500, val_bs=100),
        cbs=[SpoilWeights(what), Checkpoint(tmp_path/'c')], lr=0.01)
    with pytest.raises(NonFiniteLoss,
        match='The weights became NaN or infinite in batch 6 of epoch 2; the last finite loss was'):
        fit(learn)
    sd = load_tree(tmp_path/'c')
    assert sd['epoch']==1 and what(learn.model).isinf().all() and not any(v.isinf().any() for k,v in sd['model'].items()
        if k!='mask')

def test_on_by_default(tmp_path):
    'Every Learner of this library has one, once, whatever its user lists, after export too, and until it is taken off'
    def stops(learn): return [cb for cb in learn.cbs if isinstance(cb, StopOnNonFinite)]
    own = StopOnNonFinite(1)
    learn = learner(None)
    assert len(stops(learn))==1 and stops(learner([own]))==[own] and stops(learner(own))==[own]
    with pytest.raises(NonFiniteLoss): fit(learner(Spoil(0, 2, math.nan)))
    learn.path = tmp_path
    learn.export('m.pkl')
    loaded = load_learner(tmp_path/'m.pkl')
    assert len(stops(loaded))==1 and stops(loaded)[0].every==100
    learn.remove_cb(StopOnNonFinite)
    learn.add_cb(Spoil(0, 2, math.nan))
    assert not stops(fit(learn))

def test_lr_find_may_diverge():
    'What `lr_find` does on purpose is not stopped, NaN neither, and the next fit is watched again'
    learn = learner([StopOnNonFinite(1), Spoil(1, 2, math.nan)])
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=30, end_lr=1e6, stop_div=False, show_plot=False)
    assert not torch.stack(learn.recorder.losses).isfinite().all()
    with pytest.raises(NonFiniteLoss): fit(learn)
    assert not learn.stop_on_non_finite.losses

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
    for a,b in zip(*(fit(learner(c(norm))).model.parameters() for c in (GradientClip, FastaiClip))):
        assert torch.equal(a, b)

@pytest.mark.parametrize('clip', [0.01, 0.3])
def test_agc_is_timms(clip):
    'Convolutions, norms, biases, a layer of zeros, a gradient of zeros; the last linear layer is excluded'
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 7), nn.Linear(7, 10)).double()
    nn.init.zeros_(net[2].weight[:4].data)
    grads = [torch.randn_like(p)*(0.01 if i%2 else 1) for i,p in enumerate(net.parameters())]
    grads[0][3] = 0
    twin,cb = copy.deepcopy(net),AGC(clip)
    for m in (net, twin):
        for p,g in zip(m.parameters(), grads): p.grad = g.clone()
    cb.learn = Learner(learner(None).dls, net, nn.CrossEntropyLoss())
    cb.before_step()
    timm.utils.agc.adaptive_clip_grad([*twin.parameters()][:-2], clip)
    for a,b in zip(net.parameters(), twin.parameters()): torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)
    assert torch.equal(net[-1].weight.grad, grads[-2]) and not torch.equal(net[0].weight.grad, grads[0])

@pytest.mark.parametrize('made,said',
    [(lambda: GradientClip(-1), 'max_norm is -1'), (lambda: StopOnNonFinite(0), 'every is 0')])
def test_refusals(made, said):
    with pytest.raises(UserError, match=said): made()
