'Backbones that test_zoo compares in eval mode only: once dropout is off, their train-mode gradients are those of the other package too.'
import pytest,torch
from torch import nn
from cifar_fastai.backbones import get_model
from cifar_fastai.regularize import StochasticDepthLayer
from zoo_refs import copy_to,load_references,randomise_

def without_dropout(model):
    'Every dropout of `model` switched off, stochastic depth too'
    for m in model.modules():
        if isinstance(m, (nn.Dropout, StochasticDepthLayer)): m.p = 0.
    return model

# double precision: the rounding of NASNet's biases, which BatchNorm over two images amplifies, hides nothing
@pytest.mark.parametrize('name', ['efficientnetb0', 'nasnet', *[pytest.param(n, marks=pytest.mark.slow) for n in ('inceptionv3', 'inceptionv4', 'inception_resnet_v2')]])
def test_train_gradient(name):
    'The same input gradient in train mode'
    torch.manual_seed(0)
    ref,ours = load_references()[name],randomise_(get_model(name)).double()
    theirs = copy_to(ours, ref, ref.build().double())
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    grads = []
    for m in (ours, theirs):
        xi = x.clone().requires_grad_()
        without_dropout(m.train())(xi).square().sum().backward()
        grads.append(xi.grad)
    assert (grads[0]-grads[1]).abs().max() < 1e-9*grads[1].abs().max()
