'Train-mode gradients of backbones are those of the other package, once dropout and stochastic depth are off.'
import pytest,torch
from torch import nn
from cifar_fastai.zoo.registry import create_model
from cifar_fastai.zoo.shake import StochasticDepthLayer
from test_zoo import references,rel,up_to
from zoo_refs import copy_to,randomise_

# random only by dropout and stochastic depth
without_noise = {'efficientnetb0', 'nasnet', 'inceptionv3', 'inceptionv4', 'inception_resnet_v2', 'wideresnet',
    'stochastic_depth_resnet18'}
compared = [n for n,r in references.items() if not r.random or n in without_noise]

def without_dropout(model):
    'Every dropout of `model` switched off, stochastic depth too'
    for m in model.modules():
        if isinstance(m, (nn.Dropout, StochasticDepthLayer)): m.p = 0.
    return model

# float64: where the map is 1x1, BatchNorm has two values a channel, and float32 gradients would be rounding
def gradient_deviation(name):
    'How far the input gradient in train mode is from that of the other package with the same weights'
    torch.manual_seed(0)
    ref,ours = references[name],randomise_(create_model(name)).double()
    theirs = copy_to(ours, ref, ref.build().double())
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    grads = []
    for m in (ours, theirs):
        xi = x.clone().requires_grad_()
        (without_dropout(m) if name in without_noise else m).train()(xi).square().sum().backward()
        grads.append(xi.grad)
    return rel(*grads)

@pytest.mark.parametrize('name', up_to(0.25, compared))
def test_train_gradient(name):
    'The same input gradient in train mode'
    assert gradient_deviation(name) < 1e-6
