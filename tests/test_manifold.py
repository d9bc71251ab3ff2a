'`ManifoldMixUp`: where networks of all kinds are mixed, the draws, and a loop without hooks'
import copy
import pytest,timm,torch,torchvision
from scipy import stats
from torch import nn
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from cifar_fastai.callback.manifold import ManifoldMixUp, mixing_layers
from cifar_fastai.callback.sam import SAM
from cifar_fastai.core import UserError
from cifar_fastai.learner import cifar_learner
from cifar_fastai.zoo.registry import create_model
from common import fit
from test_contract import net, our_learner, plain_learner

def tv(name): return lambda: getattr(torchvision.models, name)(num_classes=10)
def zoo(name): return lambda: create_model(name, 10)
def tm(name, **kwargs): return lambda: timm.create_model(name, num_classes=10, **kwargs)

known = {'resnet34':(zoo('preact_resnet34'), ['1', '2']), 'wrn40_2':(zoo('wrn40_2'), ['1', '2']), 'test':(net, ['1']),
    'lenet':(zoo('lenet'), ['0', '2']), 'pyramidnet110':(zoo('pyramidnet110'), ['1', '2']),
    'vit':(zoo('vision_transformer'), ['1.0', '1.1', '1.2', '1.3']),
    'cvt':(zoo('cvt'), ['0', '1']),
    'torchvision resnet':(tv('resnet18'), ['layer1', 'layer2']), 'timm resnet':(tm('resnet18'), ['layer1', 'layer2']),
    'timm vit':(tm('vit_tiny_patch16_224', img_size=32, patch_size=8), [f'blocks.{i}' for i in range(6)]),
    'torchvision vgg':(tv('vgg11'), [f'features.{i}' for i in (0, 3, 6, 8)]),
    'wrapped':(lambda: nn.Sequential(nn.Identity(), torchvision.models.resnet18()), ['1.layer1', '1.layer2'])}

@pytest.mark.parametrize('name', known)
def test_where(name):
    make,want = known[name]
    with torch.device('meta'): assert list(mixing_layers(make()))==want

others = {o:zoo(o) for o in 'densenet121 dla46 dpn92 googlenet inceptionv3 xception mobilenetv2 shufflenetv2 squeezenet '
    'swin_t cct_7_3x1 coatnet_0 convnext_tiny poolformer_s12 mobilevit_xxs resnet9 airbench94 toynet_s4_k3 vgg16 '
    'spp_d11_pA rir'.split()}
others |= {f'torchvision {o}':tv(o) for o in ('densenet121', 'mobilenet_v2', 'shufflenet_v2_x0_5', 'swin_t')}
others |= {f'timm {o}':tm(o) for o in ('convnext_atto', 'efficientnet_b0', 'regnetx_002')}

@pytest.mark.parametrize('name', [*others, *known])
def test_nothing_passes_by(name):
    'Once all images have the same features at such a layer, the network gives the same for all: no path leads around it'
    make = others[name] if name in others else known[name][0]
    set_seed(0)
    model = make().double().eval()
    layers,x = mixing_layers(model),torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert layers
    with torch.no_grad():
        a,b = model(x)
        spread = (a-b).norm()
        assert spread>1e-13*a.norm()
        for k,m in layers.items():
            calls = []
            h = m.register_forward_hook(lambda m, i, o: calls.append(1) or o[:1].expand_as(o).clone())
            a,b = model(x)
            h.remove()
            assert len(calls)==1, k
            assert (a-b).norm()<=1e-6*spread, k

@pytest.mark.parametrize('name', ['nasnet', 'pnasnet'])
def test_no_stages(name):
    'Where paths lead around every module, the network is refused'
    with torch.device('meta'): assert mixing_layers(create_model(name, 10))=={}
    with pytest.raises(UserError, match='finds no stages in this CellNet: use MixUp'): cifar_learner(name,
        our_learner().dls, cbs=ManifoldMixUp())

@pytest.mark.parametrize('depth', range(3))
def test_without_hooks(depth):
    'The gradient is that of the parts of the network applied one after another, with the mixing between them'
    names = ['', '0', '1']
    learn = plain_learner([ManifoldMixUp(0.7, layers=[names[depth]])])
    model,seen = copy.deepcopy(learn.model).train(),[]
    def look(self):
        t = learn.manifold_mix_up
        seen.append((t.lam, t.pairs, [p.grad.clone() for p in learn.model.parameters()], torch.get_rng_state()))
    x,y = learn.dls.train[0]
    states = []
    learn.add_cbs([Callback(before_batch=lambda self: states.append(torch.get_rng_state())), Callback(after_backward=look)])
    fit(learn)
    lam,perm,grads,_ = seen[0]
    torch.set_rng_state(states[0])
    def mix(o): return o*lam + o[perm]*(1-lam)
    for i,m in enumerate(model):
        if depth==0 and i==0: x = mix(x)
        x = m(x)
        if depth==i+1: x = mix(x)
    loss = lam*nn.functional.cross_entropy(x, y) + (1-lam)*nn.functional.cross_entropy(x, y[perm])
    for a,b in zip(grads, torch.autograd.grad(loss, model.parameters())): assert torch.allclose(a, b, atol=1e-12)

def test_draws():
    'Depths are uniform, weights follow Beta, and a second pass mixes as the first'
    t = ManifoldMixUp(0.5)
    learn = our_learner([t])
    drawn = []
    for i in range(3000):
        t.stream.rekey(0, i)
        t.mix(torch.zeros(4, 1), torch.eye(4))
        drawn.append((t.depth, t.lam))
    counts = [sum(d==k for d,_ in drawn) for k in ('', '1')]
    assert sum(counts)==3000 and stats.chisquare(counts).pvalue > 1e-4
    assert stats.kstest([v for _,v in drawn], stats.beta(0.5, 0.5).cdf).pvalue > 1e-4
    seen = []
    learn = our_learner([ManifoldMixUp(), SAM(), Callback(after_pred=lambda self: self.training and seen.append(
        (self.manifold_mix_up.depth, self.manifold_mix_up.lam, self.manifold_mix_up.pairs.tolist())))])
    fit(learn)
    assert len(seen)>=6 and seen[::2]==seen[1::2] and len({o[1] for o in seen})==len(seen)//2

class Two(nn.Module):
    'A network with a module that it does not use, and one that gives a tuple'
    def __init__(self):
        super().__init__()
        self.body,self.unused,self.pair,self.head = net()[:3],nn.Linear(2, 2),nn.LSTM(8, 8),nn.Linear(8, 10)
    def forward(self, x): return self.head(self.pair(self.body(x).flatten(1))[0])

@pytest.mark.parametrize('layer,why', [('unused', 'was to mix at unused, which the network did not use'),
    ('pair', 'cannot mix the output of pair: it must be a tensor')])
def test_layers_that_cannot_be_mixed(layer, why):
    learn = cifar_learner(Two(), our_learner().dls, cbs=ManifoldMixUp(layers=[layer]))
    with pytest.raises(UserError, match=why): fit(learn)
    assert not any(m._forward_hooks for m in learn.model.modules())

@pytest.mark.parametrize('v', ['1', [], (), [1], 3, {'a':1}, [None], True])
def test_bad_layers(v):
    with pytest.raises(UserError, match='layers is .*: it must be names of modules'): ManifoldMixUp(layers=v)
