'Every backbone learns: a few dozen steps on 256 real images bring its training loss well under that of guessing.'
import math
from functools import cache
from statistics import mean
import pytest,torch,torch.nn.functional as F
from cifar_fastai.zoo.registry import create_model, list_models
from cifar_fastai.data.loaders import cifar_dls

quick = {'lenet', 'shufflenetv2', 'mobilevit_xxs', 'resnet20', 'squeezenet', 'toynet_s1_k3'} # one or two of a kind
# of Adam, where 1e-3 is not it
lr = dict(shufflenetv2=3e-3, dla46=2e-3, vgg16=5e-4, vgg19=5e-4, mobilenet=3e-4, efficientnetb0=3e-4, ToyNet=3e-4)
lr |= dict(stochastic_depth_resnet18=3e-4, coatnet_1=3e-4, coatnet_2=3e-4, coatnet_3=3e-4)
lr |= dict(vision_transformer=1e-4, cct_7_3x1=4e-4, swin_s=3e-4, swin_b=3e-4) # without warmup
# images a step, where the gradients of 16 are too noisy for attention between all patches
bs = dict(vision_transformer=64, cct_7_3x1=64)
bound = math.log(10)/2 # half of what guessing costs
protocol = 'Adam without decay or schedule; at most 96 steps over the same batches of 256 images in all, fewer once the mean training loss of the last 8 steps is below half of ln 10'

@cache
def batches(bs=16):
    '256 handwritten digits, normalised, in batches of `bs`'
    return [b for b,_ in zip(cifar_dls('digits', bs=bs, pad=0, flip=False, device='cpu').train, range(256//bs))]

def learns(name, steps=96):
    'Training loss of the first step, the mean of the last 8, how many there were, and the settings'
    torch.manual_seed(0)
    size,rate = bs.get(name, 16),lr.get(name, 1e-3)
    model,losses = create_model(name),[]
    opt = torch.optim.Adam(model.parameters(), lr=rate)
    while len(losses)<steps and (len(losses)<8 or mean(losses[-8:])>=bound):
        x,y = batches(size)[len(losses)%(256//size)]
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return dict(first=losses[0], last=mean(losses[-8:]), steps=len(losses), batch=size, lr=rate)

@pytest.mark.parametrize('name', [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in list_models()])
def test_learns(name):
    o = learns(name)
    assert o['last'] < bound, f"{o['first']:.2f} at first, {o['last']:.2f} in the end"
