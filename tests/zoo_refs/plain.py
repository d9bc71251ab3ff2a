'References of cifar_fastai.zoo.plain'
from functools import partial
from torch import nn
from . import Reference

def tv_vgg(name):
    'The features of torchvision VGG `name`, and one linear layer'
    import torchvision
    return nn.Sequential(getattr(torchvision.models, name)(num_classes=10).features, nn.Flatten(), nn.Linear(512, 10))

def vgg_rules(*depths):
    'Theirs is one sequence of convolution, norm, ReLU and, after each stage, a pool'
    start = [sum(3*d+1 for d in depths[:i]) for i in range(5)]
    return [(r'^5\.1\.', '2.'), (r'^(\d)\.(\d)\.(\d)\.', lambda m: f'0.{start[int(m[1])]+3*int(m[2])+int(m[3])}.')]

references = {k:Reference(partial(tv_vgg, f'vgg{n}_bn'), vgg_rules(*d))
    for k,n,d in (('vgg', 11, (1,1,2,2,2)), ('vgg13', 13, (2,2,2,2,2)),
        ('vgg16', 16, (2,2,3,3,3)), ('vgg19', 19, (2,2,4,4,4)))}
