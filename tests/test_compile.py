'A compiled network trains as the same network does, with every trick, or the trick is refused by name'
from functools import partialmethod
import pytest, torch
from fastai.callback.tracker import SaveModelCallback
from fastai.torch_core import set_seed
from torch import nn
from cifar_fastai.callback.monitor import TrainAccuracy, ValidateEvery
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.runs.train import compile_now
from common import silent
from test_contract import make, names

compiled = nn.Module.compile
fast = 'SAM', 'MixUp', 'EMA', 'KD'
hooked = 'ManifoldMixUp', 'ShakeDrop', 'StochasticDepth', 'WeightStandardization', 'GhostBatchNorm'

@pytest.fixture(autouse=True)
def backend(monkeypatch):
    'The graphs are captured and differentiated, and run by PyTorch'
    monkeypatch.setattr(nn.Module, 'compile', partialmethod(compiled, backend='aot_eager'))
    torch._dynamo.reset()

def trained(name, compile, arch='toynet_s1_k3', **kwargs):
    set_seed(0)
    learn = cifar_learner(arch, cifar_dls('digits', fraction=0.05, bs=32), lr=0.05, compile=compile,
        cbs=[make(name)] if name else None, **kwargs)
    with silent(learn): learn.fit(2)
    return learn

@pytest.mark.parametrize('name', [None, *(n if n in fast else pytest.param(n, marks=pytest.mark.slow)
    for n in names if n not in hooked)])
def test_same_weights(name):
    arch = 'resnet20' if name=='ProgressiveResize' else 'toynet_s1_k3' # one that takes smaller images
    a,b = (trained(name, o, arch) for o in (False, True))
    assert b.model._compiled_call_impl is not None
    for (k,v),w in zip(a.model.state_dict().items(), b.model.state_dict().values()):
        assert torch.allclose(v, w, rtol=1e-3, atol=1e-4), k

@pytest.mark.parametrize('name', hooked)
def test_hooks_are_refused(name):
    with pytest.raises(UserError, match=f'{name}.*compiled network ignores.*leave compile out'): trained(name, True, 'resnet20')

def test_compile_now_leaves_no_trace():
    set_seed(0)
    learn = cifar_learner('toynet_s1_k3', cifar_dls('digits', fraction=0.05, bs=32), lr=0.05, compile=True)
    assert compile_now(learn)>0
    with silent(learn): learn.fit(2)
    for a,b in zip(learn.model.parameters(), trained(None, True).model.parameters()): assert torch.equal(a, b)

def test_no_compiler(monkeypatch):
    'What the compiler says is one sentence'
    def broken(*args, **kwargs): raise RuntimeError('no compiler\nat all')
    monkeypatch.setattr(nn.Module, 'compile', partialmethod(compiled, backend=broken))
    with pytest.raises(UserError, match='cannot be compiled .*leave compile out'): compile_now(cifar_learner('lenet',
        cifar_dls('digits', fraction=0.05, bs=32), compile=True))

def test_validate_every(tmp_path):
    'Training is the same with fewer validations, and the columns of training are there in every epoch'
    def fit(n, path):
        set_seed(0)
        learn = cifar_learner('lenet', cifar_dls('digits', fraction=0.1, bs=32), lr=0.05, cbs=[TrainAccuracy(),
            ValidateEvery(n)], path=path)
        with silent(learn): learn.fit(5, cbs=SaveModelCallback(monitor='accuracy'))
        return learn
    one,two = fit(1, tmp_path/'a'),fit(2, tmp_path/'b')
    h,g = one.recorder.history,two.recorder.history
    assert h.columns.equals(g.columns)
    for k in ('train_loss', 'train_accuracy'): assert h[k].equals(g[k])
    assert list(g.accuracy.isna())==[True, False, True, False, False]
    assert g.accuracy.dropna().equals(h.accuracy[[1, 3, 4]])
