'References of cifar_fastai.zoo.multipath'
from functools import partial
from torch import nn
from . import Reference

def tv_densenet(growth, stem):
    'torchvision DenseNet-121 with the CIFAR stem'
    from torchvision.models import DenseNet
    m = DenseNet(growth, (6,12,24,16), stem, num_classes=10)
    m.features.conv0 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
    for n in ('norm0', 'relu0', 'pool0'): delattr(m.features, n)
    return m

def timm_dla(name):
    'timm DLA with a 3x3 stem and the CIFAR strides'
    import timm
    m = timm.create_model(name, num_classes=10)
    m.base_layer[0] = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    m.level1[0].stride,m.level2.downsample = (1,1),nn.Identity()
    first = m.level2.tree1
    (first.conv2 if hasattr(first, 'conv3') else first.conv1).stride = (1,1)
    return m

def pcv_rir():
    'pytorchcv RiR'
    from pytorchcv.model_provider import get_model
    return get_model('rir_cifar10', pretrained=False)

dense_rules = [(r'^0\.', 'features.conv0.'), (r'^8\.0\.', 'features.norm5.'), (r'^9\.1\.', 'classifier.')]
dense_rules += [(r'^([1357])\.(\d+)\.new\.',
    lambda m: f'features.denseblock{(int(m[1])+1)//2}.denselayer{int(m[2])+1}.'),
    (r'^([246])\.', lambda m: f'features.transition{int(m[1])//2}.')]
dense_rules += [(r'(layer\d+)\.0\.0\.', r'\1.norm1.'), (r'(layer\d+)\.1\.', r'\1.conv1.'),
    (r'(layer\d+)\.2\.0\.', r'\1.norm2.'), (r'(layer\d+)\.3\.', r'\1.conv2.')]
dense_rules += [(r'(transition\d)\.0\.0\.', r'\1.norm.'), (r'(transition\d)\.1\.', r'\1.conv.')]

# the shortcut of the first block of a tree belongs to the tree over there
dla_rules = [(r'^0\.', 'base_layer.'), (r'^([12])\.', lambda m: f'level{int(m[1])-1}.'),
    (r'^([3-6])\.', lambda m: f'level{int(m[1])-1}.'), (r'^7\.1\.', 'fc.')]
dla_rules += [(r'first\.shortcut\.\d\.', 'project.'), (r'first\.', 'tree1.'), (r'second\.', 'tree2.'),
    (r'root\.0\.', 'root.conv.'), (r'root\.1\.', 'root.bn.')]
dla_rules += [(r'branch\.(\d)\.0\.', lambda m: f'conv{int(m[1])+1}.'),
    (r'branch\.(\d)\.1\.', lambda m: f'bn{int(m[1])+1}.')]

def conv_head(sd):
    'The classifier over there is a 1x1 convolution'
    return {k:v[...,None,None] if k=='fc.weight' else v for k,v in sd.items()}

rir_rules = [(r'^0\.0\.', 'features.init_block.*_conv.conv.'), (r'^0\.1\.', 'features.init_block.*_conv.bn.'),
    (r'^4\.0\.', 'output.final_conv.conv.'), (r'^4\.1\.', 'output.final_conv.bn.')]
rir_rules += [(r'^([123])\.(\d)\.', lambda m: f'features.stage{m[1]}.unit{int(m[2])+1}.')]
rir_rules += [(r'branch\.', '*_conv.'), (r'shortcut\.1\.', 'identity_conv.'), (r'act\.0\.', '*_postactiv.bn.')]

def two_streams(sd):
    'Both streams are one tensor here and two there: rows and columns of a weight belong to the residual stream, then to the transient one'
    res = {}
    for k,v in sd.items():
        if '*' not in k: res[k] = v
        elif '.unit' in k and v.ndim==4:
            for stream,rows in zip(('res', 'trans'), v.chunk(2)):
                for source,w in zip(('res', 'trans'), rows.chunk(2, 1)):
                    res[k.replace('*', f"{source}_{'pass' if source==stream else 'cross'}")] = w
        else:
            for stream,w in zip(('res', 'trans'), v.chunk(2) if v.ndim else (v,v)): res[k.replace('*', stream)] = w
    return res

references = dict(densenet=Reference(partial(tv_densenet, 12, 24), dense_rules),
    densenet121=Reference(partial(tv_densenet, 32, 64), dense_rules))
references |= dict(dla=Reference(partial(timm_dla, 'dla34'), dla_rules, conv_head),
    dla46=Reference(partial(timm_dla, 'dla46_c'), dla_rules, conv_head))
references |= dict(rir=Reference(pcv_rir, rir_rules, two_streams))
