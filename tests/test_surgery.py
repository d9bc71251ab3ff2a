"Layers that are changed while a network trains: the weights inside and outside of training, frozen layers, averages"
import copy, pytest, timm, torch
from torch import nn
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from cifar_fastai.callback.average import EMA, SWA
from cifar_fastai.callback.surgery import GhostBatchNorm, WeightStandardization, ghost_batch_norm, standardize_weight
from cifar_fastai.callback.whiten import Whiten
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.zoo.registry import create_model
from common import fit
from test_contract import our_learner

def convs(model): return [m for m in model.modules() if isinstance(m, nn.Conv2d)]

@pytest.mark.parametrize('shape', [(8, 3, 3, 3), (6, 1, 3, 3), (4, 5, 1, 1)])
def test_is_timms(shape):
    'The weights that a standardized convolution of timm uses'
    torch.manual_seed(0)
    o,i,k,_ = shape
    groups = o if i==1 else 1
    conv = timm.layers.StdConv2d(i*groups, o, k, groups=groups, padding=1, eps=1e-5).double()
    x,w = torch.randn(2, i*groups, 6, 6, dtype=torch.float64),standardize_weight(conv.weight)
    torch.testing.assert_close(nn.functional.conv2d(x, w, conv.bias, padding=1, groups=groups), conv(x), rtol=1e-9, atol=1e-9)

def assert_standardized(model, tol=0.02):
    for m in convs(model):
        w = m.weight.detach().flatten(1)
        torch.testing.assert_close(w.mean(1), torch.zeros(len(w)), atol=1e-5, rtol=0)
        torch.testing.assert_close(w.std(1, correction=0), torch.ones(len(w)), atol=tol, rtol=0)

@pytest.mark.parametrize('cbs', [[], [EMA(0.9)], [SWA(0.)]], ids=['alone', 'EMA', 'SWA'])
def test_after_the_fit(cbs):
    'The network is a plain one with standardized weights, and validation inside the fit is its own'
    learn = our_learner([WeightStandardization(), *copy.deepcopy(cbs)])
    fit(learn, 3, seed=1)
    assert_standardized(learn.model)
    assert all('forward' not in vars(m) for m in learn.model.modules())
    assert learn.validate()[0]==pytest.approx(learn.recorder.values[-1][1], rel=1e-6)

def test_trains_on_the_same_weights():
    'Validation between epochs, and inference in one, do not disturb the weights that are trained'
    class Look(Callback):
        def after_pred(self):
            if self.training: self.learn.get_preds()
    seen = []
    for cbs in ([], [Look()]):
        learn = our_learner([WeightStandardization()])
        norms = []
        learn.add_cb(Callback(after_batch=lambda self: norms.append([m.weight.norm().item() for m in convs(self.model)])
            if self.training else None))
        fit(learn, 2, seed=1, cbs=cbs)
        seen.append((norms, [m.weight.clone() for m in convs(learn.model)]))
    assert seen[0][0]==seen[1][0] and all(map(torch.equal, seen[0][1], seen[1][1]))
    first = [o[0] for o in seen[0][0]]
    assert max(first)/min(first)<1.2 # not those of validation, whose norm is that of 27 ones

def test_left_as_they_are():
    'Convolutions that are frozen, whitened, or have one weight per channel'
    dls = cifar_dls('digits', bs=20, fraction=0.05)
    net = nn.Sequential(nn.Conv2d(3, 24, 2), nn.Conv2d(24, 24, 1, groups=24), nn.Conv2d(24, 8, 3), nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    net[3].weight.requires_grad_(False)
    frozen,single = net[3].weight.clone(),net[1].weight.clone()
    learn = cifar_learner(net, dls, cbs=[Whiten(50), WeightStandardization()], lr=0.01, channels_last=False)
    fit(learn, 2)
    assert torch.equal(net[0].weight[:12], -net[0].weight[12:]) and net[0].weight.requires_grad
    assert torch.equal(net[3].weight, frozen)
    assert not torch.equal(net[1].weight, single) and net[1].weight.abs().min()>1e-3
    assert_standardized(net[2])

def test_stored_weights(tmp_path):
    'The weights of a fit, loaded into a new network of that name, compute the same'
    set_seed(0)
    learn = cifar_learner('resnet20', cifar_dls('digits', bs=20, fraction=0.05), cbs=WeightStandardization(), lr=0.05, path=tmp_path)
    fit(learn)
    net = create_model('resnet20', 10).to(memory_format=torch.channels_last) # as the Learner's: bitwise the same
    net.load_state_dict(learn.model.state_dict())
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(net.eval()(x), learn.model.eval()(x))
    fit(learn) # the same function, up to eps
    assert_standardized(learn.model)

# ghost batch normalisation

@pytest.mark.parametrize('b,parts', [(1, [1]), (7, [7]), (8, [4, 4]), (11, [6, 5]), (13, [5, 4, 4])])
def test_parts(b, parts):
    'None smaller than the size, as equal as possible; the running statistics are those of small batches in turn'
    bn = nn.BatchNorm2d(3).double()
    twin = copy.deepcopy(bn)
    x = torch.randn(b, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = ghost_batch_norm(bn, x, 4)
    torch.testing.assert_close(y, torch.cat([twin(o) for o in x.split(parts)]))
    for u,v in zip(bn.buffers(), twin.buffers()): torch.testing.assert_close(u, v)

def test_running_mean_is_the_papers():
    'Algorithm 1: the old mean weighs (1-m)^n, that of part i of n m(1-m)^(n-1-i)'
    bn,x = nn.BatchNorm1d(2, momentum=0.3).double(),torch.randn(12, 2, dtype=torch.float64)
    bn.running_mean += 5
    ghost_batch_norm(bn, x, 4)
    want = 0.7**3*5 + sum(0.3*0.7**(2-i)*o.mean(0) for i,o in enumerate(x.split(4)))
    torch.testing.assert_close(bn.running_mean, want)

def test_layers_in_evaluation_mode():
    'A frozen BatchNorm in evaluation mode, and validation, use the running statistics of the plain layer'
    class Frozen(Callback):
        order = -5
        def before_train(self): self.model[0][1].eval()
    learn = our_learner([GhostBatchNorm(4), Frozen()])
    before = [b.clone() for b in learn.model[0][1].buffers()]
    fit(learn, 2)
    assert all(map(torch.equal, before, learn.model[0][1].buffers()))
    assert learn.validate()[0]==pytest.approx(learn.recorder.values[-1][1], rel=1e-6)

def test_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with pytest.raises(UserError, match='WeightStandardization needs a network with convolutions'):
        cifar_learner(net, cifar_dls('digits', fraction=0.02), cbs=WeightStandardization())
    with pytest.raises(UserError, match='GhostBatchNorm needs a network with BatchNorm'):
        cifar_learner(net, cifar_dls('digits', fraction=0.02), cbs=GhostBatchNorm())
