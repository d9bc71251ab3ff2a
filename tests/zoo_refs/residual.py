'References of cifar_fastai.zoo.residual'
from torch import nn
from . import Reference

def cifar_stem(m):
    'A torchvision ResNet with the CIFAR stem'
    m.conv1,m.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False),nn.Identity()
    return m

# our Sequential's numbers to torchvision's names
tv_rules = [(r'^0\.0\.', 'conv1.'), (r'^0\.1\.', 'bn1.'), (r'^5\.1\.', 'fc.'), (r'^([1-4])\.', r'layer\1.'), (r'shortcut\.', 'downsample.')]
tv_basic = [(r'branch\.0\.0\.', 'conv1.'), (r'branch\.0\.1\.', 'bn1.'), (r'branch\.1\.0\.', 'conv2.'), (r'branch\.1\.1\.', 'bn2.')]
pcv_rules = [(r'^0\.0\.', 'features.init_block.conv.'), (r'^0\.1\.', 'features.init_block.bn.'), (r'^4\.1\.', 'output.')]
pcv_rules += [(r'^([1-3])\.(\d)\.', lambda m: f'features.stage{m[1]}.unit{int(m[2])+1}.')]
pcv_rules += [(r'shortcut\.0\.', 'identity_conv.conv.'), (r'shortcut\.1\.', 'identity_conv.bn.')]
pcv_rules += [(r'branch\.(\d)\.0\.', lambda m: f'body.conv{int(m[1])+1}.conv.'), (r'branch\.(\d)\.1\.', lambda m: f'body.conv{int(m[1])+1}.bn.')]

def tv_resnet(name):
    'torchvision ResNet `name` with the CIFAR stem'
    import torchvision
    return cifar_stem(getattr(torchvision.models, name)(num_classes=10))

def pcv(name):
    'pytorchcv network `name`'
    from pytorchcv.model_provider import get_model
    return get_model(name, pretrained=False)

references = dict(resnet18=Reference(lambda: tv_resnet('resnet18'), tv_rules+tv_basic),
    resnet20=Reference(lambda: pcv('resnet20_cifar10'), pcv_rules))
