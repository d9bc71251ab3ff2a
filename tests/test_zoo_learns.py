'Every backbone learns: a few dozen steps on 256 real images bring its training loss well under that of guessing.'
import math
from functools import cache
from statistics import mean
import pytest,torch,torch.nn.functional as F
from cifar_fastai.backbones import get_model,list_models,zoo_contract
from cifar_fastai.data import cifar_dls

quick = {'lenet', 'shufflenetv2', 'mobilevit_xxs', 'resnet20', 'squeezenet', 'toynet_s1_k3'} # one or two of a kind
# of Adam, where 1e-3 is not it
lr = dict(shufflenetv2=3e-3, dla46=2e-3, vgg16=5e-4, vgg19=5e-4, mobilenet=3e-4, efficientnetb0=3e-4, ToyNet=3e-4)
lr |= dict(stochastic_depth_resnet18=3e-4, coatnet_1=3e-4, coatnet_2=3e-4, coatnet_3=3e-4)
bound = math.log(10)/2 # half of what guessing costs
protocol = 'Adam without decay or schedule; at most 96 steps over the same 256 images, fewer once the mean training loss of the last 128 images is below half of ln 10'

@cache
def batches(bs):
    '256 handwritten digits, normalised, in batches of `bs`'
    return [b for b,_ in zip(cifar_dls('digits', bs=bs, pad=0, flip=False, device='cpu').train, range(256//bs))]

def learns(name, steps=96):
    'Training loss of the first batch and of the last 128 images, with the settings; expensive networks see 8 images a step, others 16'
    torch.manual_seed(0)
    bs = 8 if float(zoo_contract()[name]['gmacs'])>1 else 16
    model,losses,n,rate = get_model(name),[],128//bs,lr.get(name, 1e-3)
    opt = torch.optim.Adam(model.parameters(), lr=rate)
    while len(losses)<steps and (len(losses)<n or mean(losses[-n:])>=bound):
        x,y = batches(bs)[len(losses)%(256//bs)]
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return dict(first=losses[0], last=mean(losses[-n:]), steps=len(losses), batch=bs, lr=rate)

@pytest.mark.parametrize('name', [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in list_models()])
def test_learns(name):
    o = learns(name)
    assert o['last'] < bound, f"{o['first']:.2f} at first, {o['last']:.2f} in the end"
