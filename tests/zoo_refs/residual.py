'References of cifar_fastai.zoo.residual'
import torch,torch.nn.functional as F
from functools import partial
from torch import nn
from . import Reference

# our Sequential's numbers to the names of each package; the head is `N.1.`, the stem `0.`
tv_rules = [(r'^0\.0\.', 'conv1.'), (r'^0\.1\.', 'bn1.'), (r'^5\.1\.', 'fc.'), (r'^([1-4])\.', r'layer\1.'),
    (r'shortcut\.', 'downsample.')]
tv_rules += [(r'branch\.\d\.(fc\d)\.', r'se.\1.')]
tv_rules += [(r'branch\.(\d)\.0\.', lambda m: f'conv{int(m[1])+1}.'),
    (r'branch\.(\d)\.1\.', lambda m: f'bn{int(m[1])+1}.')]

units = [(r'^([1-4])\.(\d+)\.', lambda m: f'features.stage{m[1]}.unit{int(m[2])+1}.')]
pcv_rules = [(r'^0\.0\.', 'features.init_block.conv.'), (r'^0\.1\.', 'features.init_block.bn.'),
    (r'^4\.1\.', 'output.')] + units
pcv_rules += [(r'shortcut\.0\.', 'identity_conv.conv.'), (r'shortcut\.1\.', 'identity_conv.bn.')]
pcv_rules += [(r'branch\.(\d)\.0\.', lambda m: f'body.conv{int(m[1])+1}.conv.'),
    (r'branch\.(\d)\.1\.', lambda m: f'body.conv{int(m[1])+1}.bn.')]

# a norm stands in front of its convolution: ours before the branch is their first, ours after convolution n is their n+1st
pre_units = [(r'^0\.0\.', 'features.init_block.'), (r'shortcut\.0\.', 'identity_conv.'),
    (r'\.pre\.0\.', '.body.conv1.bn.')]
pre_units += [(r'branch\.(\d)\.0\.', lambda m: f'body.conv{int(m[1])+1}.conv.'),
    (r'branch\.(\d)\.1\.', lambda m: f'body.conv{int(m[1])+2}.bn.')]
def tail(n): return [(rf'^{n}\.0\.', 'features.post_activ.bn.'), (rf'^{n+1}\.1\.', 'output.')]
wrn_rules,preact_rules = tail(4)+units+pre_units,tail(5)+units+pre_units
dropped = [(r'branch\.2\.', 'branch.1.')] # dropout stands between the two convolutions

# their last norm of a unit belongs to the unit; branch.0 is the norm in front
pyr_units = [(r'^0\.0\.', 'features.init_block.conv.'), (r'^0\.1\.', 'features.init_block.bn.'),
    (r'branch\.0\.', 'body.conv1.bn.')]
pyr_units += [(r'branch\.(\d)\.0\.', r'body.conv\1.conv.'),
    (r'branch\.(\d)\.1\.', lambda m: f'body.conv{int(m[1])+1}.bn.')]
def pyr_rules(n): return tail(4)+units+pyr_units+[(rf'body\.conv{n+1}\.', '')]

reg_rules = [(r'^0\.0\.', 'stem.conv.'), (r'^0\.1\.', 'stem.bn.'), (r'^5\.1\.', 'head.fc.'),
    (r'^([1-4])\.(\d+)\.', lambda m: f's{m[1]}.b{int(m[2])+1}.')]
reg_rules += [(r'shortcut\.0\.', 'downsample.conv.'), (r'shortcut\.1\.', 'downsample.bn.'),
    (r'branch\.\d\.(fc\d)\.', r'se.\1.')]
reg_rules += [(r'branch\.(\d)\.0\.', lambda m: f'conv{min(int(m[1]), 2)+1}.conv.'),
    (r'branch\.(\d)\.1\.', lambda m: f'conv{min(int(m[1]), 2)+1}.bn.')]

def cifar_stem(m):
    'A torchvision or timm ResNet with the CIFAR stem'
    m.conv1,m.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False),nn.Identity()
    return m

def tv_resnet(name):
    'torchvision ResNet `name` with the CIFAR stem'
    import torchvision
    return cifar_stem(getattr(torchvision.models, name)(num_classes=10))

def timm_senet(block, depths):
    'timm ResNet with squeeze and excitation and the CIFAR stem'
    from timm.models import resnet
    return cifar_stem(resnet.ResNet(getattr(resnet, block), depths, num_classes=10, block_args=dict(attn_layer='se')))

def timm_regnet(w0, wa, wm, depth, group_size, se_ratio=0.):
    'timm RegNet with stem and first two stages at stride 1'
    from timm.models.regnet import RegNet,RegNetCfg
    cfg = RegNetCfg(w0=w0, wa=wa, wm=wm, depth=depth, group_size=group_size, se_ratio=se_ratio, stem_width=64)
    m = RegNet(cfg, num_classes=10)
    for c in (m.stem, m.s1.b1.conv2, m.s1.b1.downsample, m.s2.b1.conv2, m.s2.b1.downsample): c.conv.stride = 1
    return m

def pcv(name, **kwargs):
    'pytorchcv network `name`'
    from pytorchcv.model_provider import get_model
    return get_model(name, pretrained=False, **kwargs)

def pcv_preresnet(name):
    'pytorchcv PreResNet with the CIFAR stem, its average pool as large as the map'
    m = pcv(name, num_classes=10)
    m.features.init_block,m.features.final_pool = nn.Conv2d(3, 64, 3, 1, 1, bias=False),nn.AdaptiveAvgPool2d(1)
    return m

def pcv_wrn(blocks, k):
    'pytorchcv WRN-`blocks`-`k`'
    from pytorchcv.models.wrn_cifar import get_wrn_cifar
    return get_wrn_cifar(num_classes=10, blocks=blocks, width_factor=k)

def pcv_resnext(blocks, groups, base):
    'pytorchcv ResNeXt of `blocks` layers'
    from pytorchcv.models.resnext_cifar import get_resnext_cifar
    return get_resnext_cifar(num_classes=10, blocks=blocks, cardinality=groups, bottleneck_width=base)

def relu_before(m): m.register_forward_pre_hook(lambda m,args: (F.relu(args[0]),))

def author_shake(width):
    'pytorchcv shake-shake network, its ReLUs moved to where the author has them: in front of the branches, none after the sum'
    from pytorchcv.models.shakeshakeresnet_cifar import get_shakeshakeresnet_cifar
    m = get_shakeshakeresnet_cifar(num_classes=10, blocks=26, bottleneck=False, first_stage_channels=width)
    m.features.init_block.activ = nn.Identity()
    relu_before(m.features.final_pool)
    for u in [u for s in (m.features.stage1, m.features.stage2, m.features.stage3) for u in s]:
        u.activ = nn.Identity()
        for o in ('branch1', 'branch2', 'identity_branch'): hasattr(u, o) and relu_before(getattr(u, o))
    return m

shake_rules = [(r'^0\.0\.', 'features.init_block.conv.'), (r'^0\.1\.', 'features.init_block.bn.'),
    (r'^5\.1\.', 'output.')] + units
shake_rules += [(r'branch\.a\.', 'branch1.'), (r'branch\.b\.', 'branch2.'),
    (r'shortcut\.here\.', 'identity_branch.conv1.')]
shake_rules += [(r'shortcut\.shifted\.', 'identity_branch.conv2.'), (r'shortcut\.bn\.', 'identity_branch.bn.')]
shake_rules += [(r'(branch\d)\.(\d)\.0\.', lambda m: f'{m[1]}.conv{int(m[2])+1}.conv.'),
    (r'(branch\d)\.(\d)\.1\.', lambda m: f'{m[1]}.conv{int(m[2])+1}.bn.')]

class HandGE(nn.Module):
    'Gather and excite as in the paper, no convolution in it'
    def __init__(self, nf):
        super().__init__()
        size = {256:32, 512:16, 1024:8}[nf]
        self.gather,self.bn = nn.Parameter(torch.empty(nf, 1, size, size)),nn.BatchNorm1d(nf)
        self.fc1,self.fc2 = nn.Parameter(torch.empty(nf//16, nf, 1, 1)),nn.Parameter(torch.empty(nf, nf//16, 1, 1))

    def forward(self, x):
        y = self.bn((x*self.gather[:,0]).sum((2,3)))
        return x * torch.sigmoid(F.relu(y@self.fc1[...,0,0].T)@self.fc2[...,0,0].T)[...,None,None]

class HandSPP(nn.Module):
    'Max pools as maxima over unfolded windows'
    def __init__(self, nf, sizes):
        super().__init__()
        nh,self.sizes = nf//2,sizes
        self.squeeze = nn.Sequential(nn.Conv2d(nf, nh, 1, bias=False), nn.BatchNorm2d(nh))
        self.mix = nn.Sequential(nn.Conv2d(nh*(len(sizes)+1), nf, 1, bias=False), nn.BatchNorm2d(nf))

    def forward(self, x):
        def silu(x): return x*x.sigmoid()
        def pool(x, k): return F.pad(x, [k//2]*4, value=float('-inf')).unfold(2, k, 1).unfold(3, k, 1).amax((-2,-1))
        x = silu(self.squeeze(x))
        return silu(self.mix(torch.cat([x, *[pool(x, k) for k in self.sizes]], 1)))

def resnext_and(after, blocks, groups, base, *args):
    'pytorchcv ResNeXt whose every branch ends with `after(channels, *args)`'
    m = pcv_resnext(blocks, groups, base)
    for s,nf in ((m.features.stage1, 256), (m.features.stage2, 512), (m.features.stage3, 1024)):
        for u in s:
            u.body.after = after(nf, *args)
            u.body.register_forward_hook(lambda m,i,o: m.after(o))
    return m

after_rules = [(r'branch\.3\.gather\.1\.', 'body.after.bn.'), (r'branch\.3\.gather\.0\.weight', 'body.after.gather')]
after_rules += [(r'branch\.3\.(fc\d)\.weight', r'body.after.\1'), (r'branch\.3\.', 'body.after.')] + pcv_rules

def expect_shake(sd):
    'What ShakeDrop does in eval mode, branch l of 90 times 1-l/180, said by the last norm of each unit'
    res = dict(sd)
    for s in range(1, 4):
        for u in range(1, 31):
            for o in ('weight', 'bias'):
                res[f'features.stage{s}.unit{u}.bn.{o}'] = sd[f'features.stage{s}.unit{u}.bn.{o}']*(1-((s-1)*30+u)/180)
    return res

def confirm(build, rules, random=False, convert=None, **table):
    'References of the names in `table`, each with the arguments of `build`'
    return {k:Reference(partial(build, *v), rules, convert, random) for k,v in table.items()}

references = confirm(tv_resnet, tv_rules,
    **{o:(o,) for o in ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152')})
references |= confirm(tv_resnet, tv_rules, random=True, stochastic_depth_resnet18=('resnet18',))
references |= confirm(timm_senet, tv_rules, senet=('BasicBlock', (2,2,2,2)), seresnet34=('BasicBlock', (3,4,6,3)),
    seresnet50=('Bottleneck', (3,4,6,3)))
references |= confirm(pcv, pcv_rules, resnet20=('resnet20_cifar10',))
references |= confirm(pcv_resnext, pcv_rules, resnext=(29,2,64), resnext29_8x64d=(29,8,64), resnext29_32x4d=(29,32,4))
references |= confirm(pcv_resnext, pcv_rules, **{f'spp_d{d}_pN':(d,16,8) for d in (11, 20, 29)})
references |= confirm(timm_regnet, reg_rules, regnet=(24,36.44,2.49,13,8), regnetx_400mf=(24,24.48,2.54,22,16),
    regnety_400mf=(48,27.89,2.09,16,8,0.25))
references |= confirm(pcv_preresnet, preact_rules, preact_resnet=('preresnet18',), preact_resnet34=('preresnet34',))
references |= confirm(pcv_preresnet, preact_rules, preact_resnet50=('preresnet50b',),
    preact_resnet101=('preresnet101b',))
references |= confirm(pcv_wrn, wrn_rules, wrn16_8=(16,8), wrn40_2=(40,2))
references |= confirm(pcv_wrn, dropped+wrn_rules, random=True, wideresnet=(28,10))
references |= confirm(pcv, pyr_rules(2), pyramidnet110=('pyramidnet110_a48_cifar10',))
references |= confirm(pcv, pyr_rules(3), random=True, convert=expect_shake,
    pyramidnet272=('pyramidnet272_a200_bn_cifar10',))
references |= confirm(author_shake, shake_rules, random=True, shake_resnet26_2x32d=(32,), shake_resnet26_2x64d=(64,))
references |= confirm(resnext_and, after_rules, ge_resnext29_8x64d=(HandGE,29,8,64))
references |= confirm(resnext_and, after_rules,
    **{f'spp_d11_p{k}':(HandSPP,11,16,8,v) for k,v in dict(A=[3], B=[5], C=[7], D=[3,5,7]).items()})
