'References of cifar_fastai.zoo.mobile'
from itertools import accumulate
from torch import nn
from . import Reference

def timm_mobile(name, **kwargs):
    'timm network `name` with the stem at stride 1'
    import timm
    m = timm.create_model(name, num_classes=10, **kwargs)
    m.conv_stem.stride = 1
    return m

def tv_mobilenetv2():
    'torchvision mobilenet_v2, stem and second stage at stride 1, no dropout'
    from torchvision.models import mobilenet_v2
    m = mobilenet_v2(num_classes=10, dropout=0.)
    m.features[0][0].stride = m.features[2].conv[1][0].stride = 1
    return m

def tv_shufflenetv2():
    'torchvision shufflenet_v2_x0_5, stem at stride 1, no max-pool'
    from torchvision.models import shufflenet_v2_x0_5
    m = shufflenet_v2_x0_5(num_classes=10)
    m.conv1[0].stride,m.maxpool = 1,nn.Identity()
    return m

def timm_xception():
    'timm legacy_xception, stem at stride 1 with padding, third block at stride 1'
    import timm
    m = timm.create_model('legacy_xception', num_classes=10)
    m.conv1.stride,m.conv1.padding,m.conv2.padding = 1,1,1
    m.block3.skip.stride = m.block3.rep[-1].stride = 1
    return m

def bn_conv(ours, conv, bn): return [(rf'{ours}\.0\.', rf'\1{conv}.'), (rf'{ours}\.1\.', rf'\1{bn}.')]

# timm's stages count from 0, ours from 1
timm_ends = [(r'^0\.0\.', 'conv_stem.'), (r'^0\.1\.', 'bn1.'),
    (r'^(\d)\.(\d)\.(?=.*\.)', lambda m: f'blocks.{int(m[1])-1}.{m[2]}.')]
mobilenet = timm_ends + [(r'^6\.1\.', 'classifier.')] + bn_conv(r'^(blocks\.\d\.\d\.)0', 'conv_dw',
    'bn1') + bn_conv(r'^(blocks\.\d\.\d\.)1', 'conv_pw', 'bn2')

# 8 is the 1x1 convolution, 9 the head; the first block has no expansion
b0 = [(r'branch\.', ''), (r'^8\.0\.', 'conv_head.'), (r'^8\.1\.', 'bn2.'), (r'^9\.2\.', 'classifier.')] + timm_ends
b0 += bn_conv(r'^(blocks\.0\.0\.)0', 'conv_dw', 'bn1') + bn_conv(r'^(blocks\.0\.0\.)2', 'conv_pw', 'bn2')
b0 += bn_conv(r'^(blocks\.[1-6]\.\d\.)0', 'conv_pw', 'bn1') + bn_conv(r'^(blocks\.[1-6]\.\d\.)1', 'conv_dw',
    'bn2') + bn_conv(r'^(blocks\.[1-6]\.\d\.)3', 'conv_pwl', 'bn3')
b0 += [(r'\.\d\.fc1\.', '.se.conv_reduce.'), (r'\.\d\.fc2\.', '.se.conv_expand.')]

# torchvision numbers the blocks through
first = list(accumulate((1,1,2,3,4,3,3)))
v2 = [(r'branch\.', ''), (r'^0\.', 'features.0.'), (r'^8\.', 'features.18.'), (r'^9\.1\.', 'classifier.1.')]
v2 += [(r'^(\d)\.(\d)\.', lambda m: f'features.{first[int(m[1])-1]+int(m[2])}.conv.')]
v2 += [(r'^(features\.1\.conv)\.1\.(\d)\.', lambda m: f'{m[1]}.{int(m[2])+1}.'),
    (r'\.conv\.2\.(\d)\.', lambda m: f'.conv.{int(m[1])+2}.')]

# our branch counts a ReLU and a separable convolution, timm's ReLU, the two convolutions, BatchNorm: 1, 3, 5 become 1, 4, 7, and without the first ReLU 0, 2 become 0, 3
sep = [(r'^(block\d+)\.branch\.(\d)\.', lambda m: f'{m[1]}.rep.{int(m[2])%2+int(m[2])//2*3}.')]
sep += [(r'(rep\.\d|conv[34])\.0\.', r'\1.conv1.'), (r'(rep\.\d|conv[34])\.1\.', r'\1.pointwise.'),
    (r'conv([34])\.2\.', r'bn\1.')]
sep += [(r'rep\.(\d)\.2\.', lambda m: f'rep.{int(m[1])+1}.')]
# the middle blocks are 4.0 to 4.7
xception = [(r'^0\.(\d)\.0\.', lambda m: f'conv{int(m[1])+1}.'), (r'^0\.(\d)\.1\.', lambda m: f'bn{int(m[1])+1}.'),
    (r'^7\.1\.', 'fc.')]
xception += [(r'^6\.([02])\.', lambda m: f'conv{3+int(m[1])//2}.'), (r'^5\.', 'block12.'),
    (r'^4\.(\d)\.', lambda m: f'block{int(m[1])+4}.'), (r'^([123])\.', r'block\1.')]
xception += [(r'shortcut\.0\.', 'skip.'), (r'shortcut\.1\.', 'skipbn.')] + sep

# ConvBNAct has its ReLU inside; theirs is a module of the branch
shuffle = [(r'^0\.', 'conv1.'), (r'^4\.', 'conv5.'), (r'^5\.1\.', 'fc.'),
    (r'^([123])\.', lambda m: f'stage{int(m[1])+1}.')]
shuffle += [(r'left\.(\d)\.(\d)\.', lambda m: f'branch1.{2*int(m[1])+int(m[2])}.'), (r'right\.0\.', 'branch2.'),
    (r'right\.(\d)\.(\d)\.', lambda m: f'branch2.{1+2*int(m[1])+int(m[2])}.')]

references = dict(mobilenet=Reference(lambda: timm_mobile('mobilenetv1_100', act_layer='relu'), mobilenet),
    mobilenetv2=Reference(tv_mobilenetv2, v2),
    efficientnetb0=Reference(lambda: timm_mobile('efficientnet_b0'), b0, random=True),
    xception=Reference(timm_xception, xception))
references['shufflenetv2'] = Reference(tv_shufflenetv2, shuffle)
