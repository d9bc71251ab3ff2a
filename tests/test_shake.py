'Branches of residual networks, disturbed at random by tricks: how often, by how much, where, and never in evaluation'
import pytest,torch
from functools import partial
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from cifar_fastai.zoo.registry import create_model
from cifar_fastai.core import UserError
from cifar_fastai.zoo.layers import PreActResidual, Residual
from cifar_fastai.learner import async_metrics
from cifar_fastai.zoo.shake import ShakeDropLayer
from cifar_fastai.callback.sam import SAM
from cifar_fastai.zoo.shake import ShakeDrop, StochasticDepth
from common import fit

class Ones(nn.Module):
    'A branch of ones, which its weight multiplies'
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
    def forward(self, x): return torch.ones_like(x)*self.w

class Blocks(nn.Module):
    'Four blocks, plain and pre-activation; gives what each branch adds to each image'
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Residual(Ones()), PreActResidual(nn.Identity(), Ones()), Residual(Ones()),
            Residual(Ones())])
    def forward(self, x): return torch.stack([b(x*0).mean((1,2,3)) for b in self.blocks], 1)

sgd = partial(OptimWrapper, opt=torch.optim.SGD)

def learner(cbs, model=None, loss=nn.CrossEntropyLoss(), n=8000):
    set_seed(0)
    dls = DataLoaders(*[[(torch.rand(n, 1, 2, 2), torch.zeros(n, dtype=torch.long))]]*2)
    return async_metrics(Learner(dls, Blocks() if model is None else model, loss, lr=0., opt_func=sgd, cbs=cbs))


def factors(cb):
    'What a batch has: the factor of every branch (images, blocks), and the mean factor of its gradient (blocks)'
    seen = []
    class Look(Callback):
        def after_backward(self):
            seen.extend([self.pred.detach(), torch.stack([p.grad for p in self.model.parameters()])])
    fit(learner([cb, Look()], loss=lambda p, y: p.mean(0).sum()))
    return seen

def near(a, b, tol=0.03):
    return torch.allclose(torch.as_tensor(a, dtype=torch.float), torch.as_tensor(b, dtype=torch.float),
        atol=tol, rtol=0)

ps = torch.tensor([0.15, 0.3, 0.45, 0.6]) # rising to 0.6 over four blocks

def test_stochastic_depth():
    'Dropped as often as the paper says, the rest divided so that the mean is that of evaluation'
    out,grad = factors(StochasticDepth(0.6))
    assert near((out==0).float().mean(0), ps)
    for o,p in zip(out.T, ps): assert near(o[o!=0], 1/(1-p), 1e-5)
    assert near(out.mean(0), torch.ones(4)) and near(grad, torch.ones(4))

@pytest.mark.parametrize('alpha,beta', [((-1.,1.), (0.,1.)), ((0.,1.), (-1.,1.)), ((-0.5,1.), (1.,1.))])
def test_shake_drop(alpha, beta):
    'Shaken as often as the paper says, by factors of the stated ranges; the mean is that of evaluation, the gradient has factors of its own'
    out,grad = factors(ShakeDrop(0.6, alpha, beta))
    for k,p in enumerate(ps):
        mean = 1-p + p*sum(alpha)/2
        f = out[:,k]*mean
        shaken = f[(f-1).abs()>1e-5]
        assert near(len(shaken)/len(f), p) and near(f.mean(), mean) and near(grad[k]*mean, 1-p + p*sum(beta)/2)
        assert near(shaken.min(), alpha[0]) and near(shaken.max(), alpha[1]) and near(shaken.mean(), sum(alpha)/2, 0.05)

@pytest.mark.parametrize('cb', [StochasticDepth, ShakeDrop])
def test_is_gone(cb):
    'Evaluation, and the network after the fit, have undisturbed branches; hooks are gone after an interrupt too'
    outs = []
    learn = learner([cb(0.6), Callback(after_pred=lambda self: outs.append(None if self.training else self.pred))])
    fit(learn)
    assert outs[0] is None and torch.equal(outs[1], torch.ones(8000, 4))
    def stop(self): raise KeyboardInterrupt
    learn = learner([cb(0.6), Callback(after_loss=stop)])
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert not any(m._forward_hooks for m in learn.model.modules())
    assert torch.equal(learn.model(torch.rand(2, 1, 2, 2)), torch.ones(2, 4))

def test_own_images():
    'Every image and every block has numbers of its own, and every batch'
    out,_ = factors(ShakeDrop(0.6))
    assert len(out.unique(dim=0))>4000
    assert torch.corrcoef(out.T).fill_diagonal_(0).abs().max()<0.05

@pytest.mark.parametrize('cb', [StochasticDepth, ShakeDrop])
@pytest.mark.parametrize('same', [True, False])
def test_sam(cb, same):
    'Both passes of SAM see the same disturbance, unless they are asked to differ'
    preds = []
    fit(learner([cb(0.6), SAM(0., same_rng=same),
        Callback(after_pred=lambda self: preds.append(self.pred.detach()) if self.training else None)]))
    assert len(preds)==2 and torch.equal(*preds)==same

@pytest.mark.parametrize('name', ['resnet20', 'preact_resnet', 'coatnet_0', 'convnext_tiny'])
def test_on_backbones(name):
    'Families with residual branches have them hooked; the network is in the end as it was'
    model = create_model(name, 10)
    n = sum(isinstance(m, Residual) for m in model.modules())
    x,learn = torch.rand(2, 3, 32, 32),learner(ShakeDrop(), model)
    with learn.shake_drop.train_context():
        assert sum(len(m._forward_hooks) for m in model.modules())==n>0
        with torch.no_grad():
            assert not torch.equal(model.train()(x), model(x)) and torch.equal(model.eval()(x), model(x))
    assert not any(m._forward_hooks for m in model.modules())

@pytest.mark.parametrize('model,cbs,said', [
    (nn.Linear(2, 2), ShakeDrop(), 'this Linear has none'),
    (nn.Linear(2, 2), StochasticDepth(), 'this Linear has none'),
    (Blocks(), [ShakeDrop(), StochasticDepth()], 'both disturb the residual branches')])
def test_refused_before_training(model, cbs, said):
    with pytest.raises(UserError, match=said): fit(learner(cbs, model))

def test_layers_of_its_own():
    'A network that carries ShakeDrop in itself is not shaken twice'
    model = Blocks()
    model.blocks[0].branch = nn.Sequential(Ones(), ShakeDropLayer(0.5))
    with pytest.raises(UserError, match='has ShakeDropLayer.* in its branches already'):
        fit(learner(StochasticDepth(), model))

@pytest.mark.parametrize('made,said',
    [(lambda: ShakeDrop(1.2), 'p is 1.2'), (lambda: ShakeDrop(1.), 'expected factor'),
        (lambda: StochasticDepth(1.), 'expected factor'),
        (lambda: ShakeDrop(alpha=(1,0)),
            r'alpha is \(1, 0\): it must be two numbers in \[-10, 10\], the smaller one first')])
def test_refused_when_made(made, said):
    with pytest.raises(UserError, match=said): made()
