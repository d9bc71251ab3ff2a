'Every backbone learns: a few dozen steps on 256 real images bring its training loss well under that of guessing.'
import math
from functools import cache
from statistics import mean
import pytest,torch,torch.nn.functional as F
from cifar_fastai.backbones import get_model,list_models
from cifar_fastai.data import cifar_dls

quick = {'lenet', 'shufflenetv2', 'mobilevit_xxs', 'resnet20', 'squeezenet', 'toynet_s1_k3'} # one or two of a kind
# of Adam, where 1e-3 is not it
lr = dict(shufflenetv2=3e-3, dla46=2e-3, vgg16=5e-4, vgg19=5e-4, mobilenet=3e-4, efficientnetb0=3e-4, ToyNet=3e-4)
lr |= dict(stochastic_depth_resnet18=3e-4, coatnet_1=3e-4, coatnet_2=3e-4, coatnet_3=3e-4)
bound = math.log(10)/2 # half of what guessing costs

@cache
def batches():
    '256 handwritten digits, normalised, in batches of 16'
    return [b for b,_ in zip(cifar_dls('digits', bs=16, pad=0, flip=False, device='cpu').train, range(16))]

def train(name, steps=96):
    'Training losses of `steps` steps, or fewer once the mean of the last eight is below `bound`'
    torch.manual_seed(0)
    model,losses = get_model(name),[]
    opt = torch.optim.Adam(model.parameters(), lr=lr.get(name, 1e-3))
    while len(losses)<steps and (len(losses)<8 or mean(losses[-8:])>=bound):
        x,y = batches()[len(losses)%16]
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses

@pytest.mark.parametrize('name', [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in list_models()])
def test_learns(name):
    losses = train(name)
    assert mean(losses[-8:]) < bound, f'{losses[0]:.2f} at first, {mean(losses[-8:]):.2f} in the end'
