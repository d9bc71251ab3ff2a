'The noise of residual branches: its mean, its independence, its gradient, where it is drawn'
import copy,pickle
import pytest,torch
from torch import nn
from cifar_fastai.core import UserError
from cifar_fastai.zoo.layers import ConvBNAct, Residual
from cifar_fastai.zoo.shake import ShakeDropLayer, ShakeShakeLayer, StochasticDepthLayer
from cifar_fastai.zoo.shake import linear_decay, regularize_branches, shake_drop, shake_shake, stochastic_depth

def gen(seed=0): return torch.Generator().manual_seed(seed)

def other(x): return -0.5*x # the second branch of shake-shake

# name -> function of (x, training, generator)
noises = dict(depth=lambda x,t=True,g=None: stochastic_depth(x, 0.3, t, g), drop=lambda x,t=True,
    g=None: shake_drop(x, 0.4, training=t, generator=g),
    drop_skewed=lambda x,t=True,g=None: shake_drop(x, 0.4, (0,0.5), (0.5,2), t, g), shake=lambda x,t=True,
    g=None: shake_shake(x, other(x), t, g))
layers = [StochasticDepthLayer(0.3), ShakeDropLayer(0.3), ShakeShakeLayer(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))]

def factors(f, n=20000):
    'What each of `n` images of ones is multiplied by: forward, and its gradient'
    x = torch.ones(n, 1, dtype=torch.double, requires_grad=True)
    y = f(x, True, gen())
    y.sum().backward()
    return y.detach()[:,0],x.grad[:,0]

def near(sample, mean):
    'Is the mean of `sample` within five standard errors of `mean`?'
    return abs(sample.mean()-mean) < 5*sample.std()/len(sample)**0.5

@pytest.mark.parametrize('name', noises)
def test_mean_is_eval(name):
    f = noises[name]
    assert near(factors(f)[0], f(torch.ones(1, 1, dtype=torch.double), False).item())

def test_mean_of_the_gradient():
    'From the papers: 1-p+p/2 for beta in (0,1); half of each branch for shake-shake'
    assert near(factors(noises['drop'])[1], 0.6+0.4*0.5)
    assert near(factors(noises['drop_skewed'])[1], 0.6+0.4*1.25)
    assert near(factors(noises['shake'])[1], 0.5+0.5*-0.5)

@pytest.mark.parametrize('name', noises)
def test_per_image(name):
    'One number an image: the same for all its elements, another for the next image'
    y = noises[name](torch.ones(64, 3, 4, 4), True, gen())
    assert torch.equal(y, y[:,:1,:1,:1].expand_as(y))
    assert len(y[:,0,0,0].unique()) > (1 if name=='depth' else 10)

@pytest.mark.parametrize('name', ['drop', 'drop_skewed', 'shake'])
def test_backward_is_independent(name):
    fwd,bwd = factors(noises[name])
    shaken = fwd!=1 # a kept image has the factor 1 both ways
    assert (bwd[~shaken]==1).all()
    r = torch.corrcoef(torch.stack([fwd[shaken], bwd[shaken]]))[0,1]
    assert abs(r) < 5/shaken.sum()**0.5

def test_chance_of_a_shake():
    assert near((factors(noises['drop'])[0]!=1).double(), 0.4)
    assert near((factors(noises['depth'])[0]==0).double(), 0.3)

def test_shake_drop_by_hand():
    'A loop over images, its gradient written out'
    x,w = torch.randn(16, 3, 2, 2, generator=gen(1)),torch.randn(16, 3, 2, 2, generator=gen(2))
    x.requires_grad_()
    y = shake_drop(x, 0.5, generator=gen())
    (y*w).sum().backward()
    g = gen()
    b,alpha = torch.empty(16).bernoulli_(0.5, generator=g),torch.empty(16).uniform_(-1, 1, generator=g)
    beta = torch.empty(16).uniform_(0, 1, generator=g)
    for i in range(16):
        assert torch.equal(y[i], x[i]*(alpha[i] if b[i] else 1.))
        assert torch.equal(x.grad[i], w[i]*(beta[i] if b[i] else 1.))

def test_shake_shake_by_hand():
    a,b,w = torch.randn(3, 16, 5, generator=gen(1)).unbind()
    a.requires_grad_()
    b.requires_grad_()
    y = shake_shake(a, b, generator=gen())
    (y*w).sum().backward()
    g = gen()
    alpha,beta = torch.rand(16, generator=g),torch.rand(16, generator=g)
    for i in range(16):
        assert torch.equal(y[i], a[i]*alpha[i] + b[i]*(1-alpha[i]))
        assert torch.equal(a.grad[i], w[i]*beta[i]) and torch.equal(b.grad[i], w[i]*(1-beta[i]))

@pytest.mark.parametrize('p', [0., 0.2, 1.])
def test_stochastic_depth_is_torchvisions(p):
    from torchvision.ops import stochastic_depth as theirs
    x = torch.randn(32, 3, 2, 2)
    torch.manual_seed(0)
    want = theirs(x, p, 'row')
    torch.manual_seed(0)
    assert torch.allclose(stochastic_depth(x, p), want)

@pytest.mark.parametrize('name', noises)
def test_generator(name):
    'With a generator, torch\'s own is not touched, and the same state gives the same noise'
    f,x,state = noises[name],torch.randn(32, 3),torch.get_rng_state()
    assert torch.equal(f(x, True, gen()), f(x, True, gen()))
    assert not torch.equal(f(x, True, gen()), f(x, True, gen(1)))
    assert torch.equal(torch.get_rng_state(), state)

@pytest.mark.parametrize('name', noises)
def test_on_the_device_of_the_input(name):
    'On meta there is nothing to draw: a number drawn on the CPU would show in its generator'
    state,x = torch.get_rng_state(),torch.randn(4, 3, 2, 2, device='meta', requires_grad=True)
    y = noises[name](x)
    y.sum().backward()
    assert y.device.type==x.grad.device.type=='meta' and y.shape==x.shape
    assert torch.equal(torch.get_rng_state(), state)

@pytest.mark.parametrize('name', noises)
def test_out_of_place(name):
    x = torch.randn(8, 3)
    kept = x.clone()
    with torch.autograd.set_detect_anomaly(True): noises[name](x.requires_grad_()).add_(1).sum().backward()
    assert torch.equal(x, kept)

@pytest.mark.parametrize('layer', layers, ids=lambda o: type(o).__name__)
def test_layers(layer):
    'Pickles, works in low precision, is silent in eval mode'
    x = torch.randn(8, 3, 4, 4)
    with torch.autocast('cpu', torch.bfloat16):
        y = layer.train()(layers[-1].a(x))
        assert y.dtype==torch.bfloat16
        y.float().sum().backward()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer).eval()))
    assert torch.equal(twin(x), twin(x)) and not torch.equal(layer(x), layer(x))

def test_linear_decay():
    'p_l = 1 - l/L (1-p_L) survives, in the paper\'s words'
    assert linear_decay(0.5, 54)==pytest.approx([1-(1-l/54*(1-0.5)) for l in range(1, 55)])
    net = nn.Sequential(*[Residual(nn.Sequential(ConvBNAct(4, 4))) for _ in range(5)])
    assert regularize_branches(net, 0.5, ShakeDropLayer) is net
    assert [m.branch[-1].p for m in net]==pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])

@pytest.mark.parametrize('f', [StochasticDepthLayer, ShakeDropLayer, lambda p: stochastic_depth(torch.ones(1, 1), p),
    lambda p: shake_drop(torch.ones(1, 1), p)])
def test_bad_p(f):
    for p in (-0.1, 1.1, 'a'):
        with pytest.raises(UserError, match='p is'): f(p)
