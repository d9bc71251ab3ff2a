'References of cifar_fastai.zoo.inception'
from torch import nn
from . import Reference

# names of ours: layer of the network, branch, layer of the branch, (branch of a fork, 0,) 0 for the convolution and 1 for BatchNorm
part = ('conv','bn')

def tv_inceptionv3():
    'torchvision inception_v3, stem at stride 1 and without pools'
    from torchvision.models import inception_v3
    m = inception_v3(num_classes=10, aux_logits=False, init_weights=False)
    m.Conv2d_1a_3x3.conv.stride,m.maxpool1,m.maxpool2 = 1,nn.Identity(),nn.Identity()
    return m

tv_layers = ['Conv2d_'+o for o in ('1a_3x3','2a_3x3','2b_3x3','3b_1x1','4a_3x3')] + ['Mixed_'+o
    for o in ('5b','5c','5d','6a','6b','6c','6d','6e','7a','7b','7c')]
# a name that ends in _ is numbered by the layer
a,b = ('branch1x1','branch5x5_','branch3x3dbl_','branch_pool'),('branch3x3','branch3x3dbl_')
c,d = ('branch1x1','branch7x7_','branch7x7dbl_','branch_pool'),('branch3x3_','branch7x7x3_')
e = ('branch1x1','branch3x3_','branch3x3dbl_','branch_pool')
tv_branches = dict(zip(tv_layers[5:], (a,a,a,b,c,c,c,c,d,e,e)))

def tv_name(m):
    layer,branch,step,fork,what = m.groups()
    name = tv_branches[tv_layers[int(layer)]][int(branch)]
    number = f'{int(step)+1}' if name.endswith('_') else ''
    return f'{tv_layers[int(layer)]}.{name}{number}{"ab"[int(fork)] if fork else ""}.{part[int(what)]}.'

v3 = [(r'^16\.2\.', 'fc.'), (r'^(\d+)\.(\d)\.(\d)\.(?:(\d)\.0\.)?([01])\.', tv_name),
    (r'^(\d)\.([01])\.', lambda m: f'{tv_layers[int(m[1])]}.{part[int(m[2])]}.')]

def timm_inceptionv4():
    'timm inception_v4, stem at stride 1'
    import timm
    m = timm.create_model('inception_v4', num_classes=10)
    f = m.features
    f[0].conv.stride = f[3].maxpool.stride = f[3].conv.conv.stride = f[5].conv.conv.stride = f[5].maxpool.stride = 1
    return m

def timm_branch(m):
    'Branch 0 of one convolution has no number for its layer'
    layer,branch,step,fork,what = m.groups()
    step = f'_{step}{"ab"[int(fork)]}' if fork else f'.{step}'
    return f'{layer}branch{branch}{step}.{part[int(what)]}.'

timm_rules = [(r'^((?:features\.\d+|mixed_..|repeat(?:_\d)?\.\d+|block8)\.)(\d)\.(\d)\.(?:(\d)\.0\.)?([01])\.',
    timm_branch), (r'^(?!features\.(?:4|18)\.|mixed_7a)(.*branch0)\.0\.', r'\1.')]
# the two stem modules of a pool and a convolution have no branches; the third module's second branch forks, so that its layers are numbered with an underscore
v4 = [(r'^22\.2\.', 'last_linear.'), (r'^(\d)', r'features.\1'),
    (r'^features\.([012])\.([01])\.', lambda m: f'features.{m[1]}.{part[int(m[2])]}.')]
v4 += [(r'^features\.(3\.1|5\.0)\.0\.([01])\.', lambda m: f'features.{m[1][0]}.conv.{part[int(m[2])]}.')] + timm_rules
v4 += [(r'^(features\.(?:19|20|21)\.branch[12])\.', r'\1_')]

def timm_inception_resnet_v2():
    'timm inception_resnet_v2, stem at stride 1'
    import timm
    m = timm.create_model('inception_resnet_v2', num_classes=10)
    m.conv2d_1a.conv.stride = m.maxpool_3a.stride = m.maxpool_5a.stride = 1
    return m

ir_layers = ['conv2d_1a', 'conv2d_2a', 'conv2d_2b', 'maxpool_3a', 'conv2d_3b', 'conv2d_4a', 'maxpool_5a',
    'mixed_5b'] + [f'repeat.{i}' for i in range(10)]
ir_layers += ['mixed_6a'] + [f'repeat_1.{i}' for i in range(20)] + ['mixed_7a'] + [f'repeat_2.{i}'
    for i in range(9)] + ['block8', 'conv2d_7b']
ir = [(r'^51\.2\.', 'classif.'), (r'branch\.1\.', 'conv2d.'), (r'branch\.0\.', ''),
    (r'^(\d+)\.', lambda m: ir_layers[int(m[1])]+'.')]
ir += [(r'^(conv2d_..)\.([01])\.', lambda m: f'{m[1]}.{part[int(m[2])]}.')] + timm_rules

references = dict(inceptionv3=Reference(tv_inceptionv3, v3, random=True),
    inceptionv4=Reference(timm_inceptionv4, v4, random=True),
    inception_resnet_v2=Reference(timm_inception_resnet_v2, ir, random=True))
