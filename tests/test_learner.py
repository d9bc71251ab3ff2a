'`cifar_learner`: its arguments, and what it refuses'
import inspect,pytest,torch
from functools import partial
from torch import nn
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper,SGD
from cifar_fastai.core import UserError
from cifar_fastai.learner import cifar_learner
from cifar_fastai.losses import CrossEntropy

def dls(n_out=10, n=2, bs=6):
    'A few batches of noise'
    g = torch.Generator().manual_seed(0)
    bs = [(torch.rand(bs, 3, 8, 8, generator=g), torch.randint(0, n_out, (bs,), generator=g)) for _ in range(n)]
    res = DataLoaders(list(bs), list(bs))
    res.c = n_out
    return res

def net(n_out=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, n_out))

def learner(n_out=10, **kwargs): return cifar_learner(net(n_out), dls(), **{**dict(lr=0.01), **kwargs})

def fit(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kwargs)
    return learn

def test_words():
    "Optimizer and loss have fastai's names, and `opt` and `loss` are no longer arguments"
    ps = set(inspect.signature(cifar_learner).parameters)
    assert {'opt_func','loss_func'}<=ps and not {'opt','loss'}&ps
    assert ps-{'arch','channels_last','compile','init','n_out'} <= set(inspect.signature(Learner.__init__).parameters)

@pytest.mark.parametrize('opt_func', ['adamw', SGD, partial(OptimWrapper, opt=torch.optim.Adam)])
def test_opt_func(opt_func):
    learn = fit(learner(opt_func=opt_func))
    assert opt_func is SGD or isinstance(learn.opt.opt, torch.optim.Adam)

def test_loss_func():
    assert type(learner().loss_func) is CrossEntropy
    assert type(fit(learner(loss_func=CrossEntropyLossFlat())).loss_func) is CrossEntropyLossFlat

@pytest.mark.parametrize('kwargs,said', [
    (dict(opt_func='sdg'), "There is no optimizer 'sdg': did you mean 'sgd'?"),
    (dict(opt_func=None), 'opt_func is None: it must be the name of an optimizer, or a callable that takes parameters and lr.'),
    (dict(opt_func=0.1), 'opt_func is 0.1: it must be'),
    (dict(loss_func='ce'), "loss_func is 'ce': it must be a callable that takes predictions and targets."),
    (dict(loss_func=CrossEntropy), 'loss_func is the class CrossEntropy: it must be an instance, as CrossEntropy().')])
def test_refusals(kwargs, said):
    with pytest.raises(UserError) as e: learner(**kwargs)
    assert said in str(e.value)
