'References of cifar_fastai.zoo.hybrid'
from functools import partial
from torch import nn
from . import Reference

def mobilevit(widths, dims, expansion):
    'vit-pytorch MobileViT with the CIFAR strides'
    from vit_pytorch.mobile_vit import MV2Block,MobileViT
    w0,w1,w2,w3,w4,w5,w6 = widths
    m = MobileViT((32,32), dims, [w0,w1,w2,w2,w3,w3,w4,w4,w5,w5,w6], num_classes=10, expansion=expansion)
    m.stem[1],m.trunk[2][0] = MV2Block(w1, w2, 1, expansion),MV2Block(w4, w5, 1, expansion)
    return m

def convnext_tiny():
    'timm ConvNeXt-T with 2x2 patches'
    import timm
    m = timm.create_model('convnext_tiny', num_classes=10)
    m.stem[0] = nn.Conv2d(3, 96, 2, 2)
    return m

def poolformer(name):
    'timm PoolFormer with a stem of 2x2 patches'
    import timm
    m = timm.create_model(name, num_classes=10)
    m.stem.conv = nn.Conv2d(3, 64, 2, 2)
    return m

# stages 1 and 2 are MV2 blocks, 3 to 5 an MV2 block and a MobileViT block
mobilevit_rules = [(r'^0\.', 'conv1.'), (r'^6\.', 'to_logits.0.'), (r'^7\.1\.', 'to_logits.2.')]
mobilevit_rules += [(r'^1\.', 'stem.0.conv.'), (r'^2\.(\d)\.', lambda m: f'stem.{int(m[1])+1}.conv.')]
mobilevit_rules += [(r'^([345])\.0\.', lambda m: f'trunk.{int(m[1])-3}.0.conv.'),
    (r'^([345])\.1\.', lambda m: f'trunk.{int(m[1])-3}.1.')]
mobilevit_rules += [(r'conv\.branch\.', 'conv.'),
    (r'\.conv\.(\d)\.(\d)\.', lambda m: f'.conv.{3*int(m[1])+int(m[2])}.')]
mobilevit_rules += [(r'local\.0\.', 'conv1.'), (r'local\.1\.', 'conv2.'), (r'proj\.([01])\.', r'conv3.\1.'),
    (r'fuse\.', 'conv4.')]
mobilevit_rules += [(r'blocks\.', 'transformer.layers.'), (r'0\.branch\.0\.', '0.norm.'),
    (r'branch\.1\.qkv\.', 'to_qkv.'), (r'branch\.1\.proj\.', 'to_out.0.')]
mobilevit_rules += [(r'1\.branch\.0\.', '1.net.0.'), (r'1\.branch\.1\.0\.', '1.net.1.'),
    (r'1\.branch\.1\.2\.', '1.net.4.')]

# a stage is its two halving layers, then its blocks
convnext_rules = [(r'^0\.([01])\.', r'stem.\1.'), (r'^([123])\.([01])\.', r'stages.\1.downsample.\2.'),
    (r'^(stem\.1|stages\.\d\.downsample\.0)\.0\.', r'\1.')]
convnext_rules += [(r'^([0123])\.(\d+)\.', lambda m: f'stages.{m[1]}.blocks.{int(m[2])-2}.'), (r'^5\.', 'head.norm.'),
    (r'^6\.', 'head.fc.')]
convnext_rules += [(r'branch\.0\.', 'conv_dw.'), (r'branch\.1\.0\.', 'norm.'), (r'branch\.1\.1\.0\.', 'mlp.fc1.'),
    (r'branch\.1\.1\.2\.', 'mlp.fc2.'), (r'branch\.1\.2\.', '')]

poolformer_rules = [(r'^0\.0\.', 'stem.conv.'), (r'^([123])\.0\.', r'stages.\1.downsample.conv.'),
    (r'^5\.', 'head.norm.'), (r'^6\.', 'head.fc.')]
poolformer_rules += [(r'^([0123])\.(\d+)\.', lambda m: f'stages.{m[1]}.blocks.{int(m[2])-1}.'),
    (r'\.([01])\.branch\.0\.', lambda m: f'.norm{int(m[1])+1}.')]
poolformer_rules += [(r'\.0\.branch\.2\.0\.gamma', '.layer_scale1.scale'),
    (r'\.1\.branch\.1\.1\.gamma', '.layer_scale2.scale')]
poolformer_rules += [(r'1\.branch\.1\.0\.0\.', 'mlp.fc1.'), (r'1\.branch\.1\.0\.2\.', 'mlp.fc2.')]

def convs(*names):
    'Linear layers of these names are 1x1 convolutions over there'
    return lambda sd: {k:v[...,None,None] if k.endswith(tuple(f'{n}.weight' for n in names)) else v
        for k,v in sd.items()}

mobilevits = dict(mobilevit_s=((16,32,64,96,128,160,640), (144,192,240), 4),
    mobilevit_xs=((16,32,48,64,80,96,384), (96,120,144), 4))
mobilevits |= dict(mobilevit_xxs=((16,16,24,48,64,80,320), (64,80,96), 2))

references = {k:Reference(partial(mobilevit, *v), mobilevit_rules) for k,v in mobilevits.items()}
references |= dict(convnext_tiny=Reference(convnext_tiny, convnext_rules))
references |= {k:Reference(partial(poolformer, k), poolformer_rules, convs('mlp.fc1', 'mlp.fc2'))
    for k in ('poolformer_s12', 'poolformer_s24', 'poolformer_s36')}
