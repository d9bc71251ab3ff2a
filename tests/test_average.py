"EMA, SWA and Lookahead beside timm's, torch's and pytorch_optimizer's, in float64; and which weights are where"
import copy
import pytest,torch
import pytorch_optimizer as po
from functools import partial
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel,update_bn
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.learner import Learner,load_learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from cifar_fastai.callback.average import EMA, Lookahead, SWA
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner,async_metrics
from cifar_fastai.callback.sam import SAM
from common import fit

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()

g = torch.Generator().manual_seed(3)
batches = [(torch.randn(6, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (6,), generator=g))
    for _ in range(5)]
sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9)

def learner(cbs):
    return async_metrics(Learner(DataLoaders(batches, batches), net(), nn.CrossEntropyLoss(), opt_func=sgd, lr=0.1,
        wd=0., cbs=cbs))

def loop(n, make_opt=None, after_step=None, after_epoch=None):
    'Plain training; returns the model'
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if make_opt: opt = make_opt(opt)
    for e in range(n):
        model.train()
        for x,y in batches:
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
            if after_step: after_step(model)
        if after_epoch: after_epoch(e, model)
    return model

def valid_loss(model):
    model.eval()
    with torch.no_grad(): return sum(nn.functional.cross_entropy(model(x), y).item() for x,y in batches)/len(batches)

def assert_close(a, b, tol=1e-12):
    a,b = (o if isinstance(o, dict) else o.state_dict() for o in (a, b))
    assert a.keys()==b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=tol, atol=tol)

def copied(m): return {k:v.clone() for k,v in m.state_dict().items()}

class Look(Callback):
    'Weights that train, and those there are when an epoch is over'
    order = 95
    def before_fit(self): self.trained,self.after = [],[]
    def after_step(self): self.trained.append(copied(self.model))
    def after_epoch(self): self.after.append(copied(self.model))

def test_ema_is_timms():
    "Weights and buffers after each epoch, and the validation loss, are those of timm's ModelEmaV3; training is as without it"
    theirs,after,losses = ModelEmaV3(net(), decay=0.9),[],[]
    def epoch(e, m): after.append(copied(theirs.module)), losses.append(valid_loss(theirs.module))
    plain = loop(3, after_step=theirs.update, after_epoch=epoch)
    learn = fit(learner([EMA(0.9, warmup=False), Look()]), 3)
    for a,b in zip(learn.look.after, after): assert_close(a, b)
    assert_close(learn.model, theirs.module)
    assert_close(learn.look.trained[-1], plain)
    assert [v[1] for v in learn.recorder.values]==pytest.approx(losses, rel=1e-6)
    assert not torch.equal(after[-1]['0.weight'], plain[0].weight)

@pytest.mark.parametrize('start,first', [(0., 0), (0.5, 2), (0.75, 3), (0.6, 2), (0.99, 3)])
def test_swa_is_torchs(start, first):
    "torch's AveragedModel from epoch `first` of 4 on, with statistics by its update_bn, after each epoch"
    theirs,after,losses = AveragedModel(net()),[],[]
    def epoch(e, m):
        if e>=first:
            theirs.update_parameters(m)
            update_bn((x for x,_ in batches), theirs)
        shown = theirs.module if e>=first else copy.deepcopy(m)
        after.append(copied(shown)), losses.append(valid_loss(shown))
    plain = loop(4, after_epoch=epoch)
    learn = fit(learner([SWA(start), Look()]), 4)
    for a,b in zip(learn.look.after, after): assert_close(a, b)
    assert_close(learn.look.trained[-1], plain)
    assert [v[1] for v in learn.recorder.values]==pytest.approx(losses, rel=1e-6)

@pytest.mark.parametrize('k,alpha', [(5, 0.5), (2, 0.8), (3, 0.), (1, 0.3)])
def test_lookahead_is_pytorch_optimizers(k, alpha):
    'Steps count on over epochs; the momentum stays'
    assert_close(fit(learner(Lookahead(k, alpha)), 3).model,
        loop(3, make_opt=lambda o: po.Lookahead(o, k=k, alpha=alpha)))

@pytest.mark.parametrize('beside,steps', [(GradientAccumulation(12), 2), (SAM(0.1), 5)])
@pytest.mark.parametrize('cb', [EMA(0.9), Lookahead(2)])
def test_counts_steps(cb, beside, steps):
    'With accumulated gradients only the steps of the optimizer count, and with SAM one a batch'
    seen = []
    fit(learner([cb, beside, Callback(after_epoch=lambda self: seen.append(cb.n))]), 1)
    assert seen==[steps]

@pytest.mark.parametrize('cb', [EMA(0.9), SWA(0.), Lookahead(2)])
def test_starts_anew(cb):
    'A second fit knows nothing of the first but its weights'
    learn = fit(learner(cb), 2)
    twin = learner(copy.deepcopy(cb))
    twin.model.load_state_dict(learn.model.state_dict())
    for l in (learn, twin):
        l.create_opt()
        fit(l, 2)
    assert_close(learn.model, twin.model, 0)

@pytest.mark.parametrize('cb', [EMA(0.9), SWA(0.)])
def test_broken_off(cb):
    'Broken off in the second epoch, the model holds the average'
    def stop(self):
        if self.epoch==1 and self.iter==2: raise KeyboardInterrupt
    learn = learner([cb, Look(), Callback(after_step=stop)])
    with pytest.raises(KeyboardInterrupt): fit(learn, 3)
    if isinstance(cb, SWA): assert_close(learn.model, learn.look.after[0], 0)
    else:
        avg = net()[0].weight.detach()
        for n,sd in enumerate(learn.look.trained[:8]): avg = avg + (1-min(0.9, (1+n)/(10+n)))*(sd['0.weight']-avg)
        torch.testing.assert_close(learn.model[0].weight.detach(), avg, rtol=1e-12, atol=1e-12)
    assert all(m.momentum==0.1 for m in learn.model.modules() if isinstance(m, nn.BatchNorm1d))

@pytest.mark.parametrize('cb', [EMA(0.9), SWA(0.)])
def test_export(cb, tmp_path):
    'An exported Learner predicts with the average, and its file holds the weights once'
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 100), nn.BatchNorm1d(100), nn.Linear(100, 10))
    learn = cifar_learner(model, cifar_dls('digits', bs=20, fraction=40/1500, val_bs=100), cbs=cb, lr=0.05,
        path=tmp_path)
    fit(learn, 2).export('e.pkl')
    assert (tmp_path/'e.pkl').stat().st_size < 1.8e6
    with pytest.warns(UserWarning): loaded = load_learner(tmp_path/'e.pkl')
    assert_close(loaded.model, learn.model, 0)
    img = learn.dls.valid_ds[0][0]
    with loaded.no_bar(), learn.no_bar():
        torch.testing.assert_close(loaded.predict(img)[2], learn.get_preds()[0][0], rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('made,said', [
    (lambda: EMA(-0.1), 'decay is -0.1'), (lambda: SWA(2), 'start is 2'), (lambda: Lookahead(0), 'k is 0'),
    (lambda: Lookahead(alpha=2), 'alpha is 2'),
    (lambda: fit(learner([EMA(), SWA()]), 1), 'each say which weights the model has after training'),
    (lambda: fit(learner([Lookahead(), Lookahead(3)]), 1), 'each pull the same weights back')])
def test_refusals(made, said):
    with pytest.raises(UserError, match=said): made()

def test_lookahead_ramp():
    'The pull of the slow weights grows with the progress of the fit; buffers are included; the beginning is left out'
    n,total,slow = 0,15,None
    def after_step(model):
        nonlocal n,slow
        fast = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
        n += 1
        if slow is not None and n%2==0:
            for i,(s,f) in enumerate(zip(slow, fast)):
                pull = 0.6*(n/total)**3
                slow[i] = pull*s + (1-pull)*f.detach()
                f.data.copy_(slow[i])
        if slow is None and n/total>=0.2: slow = [f.detach().clone() for f in fast]
    want = loop(3, after_step=after_step)
    got = fit(learner(Lookahead(2, 0.4, ramp=3, start=0.2, buffers=True)), 3).model
    assert_close(got, want)
    assert not torch.allclose(got[1].running_mean, fit(learner(Lookahead(2, 0.4, ramp=3, start=0.2)), 3).model[1].running_mean)
