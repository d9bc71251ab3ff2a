'References of cifar_fastai.zoo.transformer'
from functools import partial
from . import Reference

def timm_vit():
    'timm VisionTransformer with 4x4 patches'
    from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=384, depth=7, num_heads=8, mlp_ratio=4,
        num_classes=10)

def timm_swin(depths, dim=96, heads=(3,6,12,24)):
    'timm SwinTransformer with 2x2 patches and 4x4 windows, without its stochastic depth'
    from timm.models.swin_transformer import SwinTransformer
    return SwinTransformer(img_size=32, patch_size=2, window_size=4, embed_dim=dim, depths=depths, num_heads=heads,
        num_classes=10, drop_path_rate=0.)

def vp_cvt():
    'vit-pytorch CvT with a first convolution of 3x3'
    from vit_pytorch.cvt import CvT
    return CvT(num_classes=10, s1_emb_kernel=3)

def vp_cct():
    'vit-pytorch CCT-7/3x1, without its dropout and stochastic depth'
    from vit_pytorch.cct import cct_7
    return cct_7(img_size=32, kernel_size=3, stride=1, padding=1, positional_embedding='learnable', num_classes=10,
        attention_dropout=0., stochastic_depth_rate=0.)

timm_block = [(r'0\.branch\.0\.', 'norm1.'), (r'0\.branch\.1\.', 'attn.'), (r'1\.branch\.0\.', 'norm2.'),
    (r'1\.branch\.1\.0\.', 'mlp.fc1.'), (r'1\.branch\.1\.2\.', 'mlp.fc2.')]

vit_rules = [(r'^0\.0\.', 'patch_embed.proj.'), (r'^0\.2\.token', 'cls_token'), (r'^0\.3\.pos', 'pos_embed'),
    (r'^1\.', 'blocks.'), (r'^2\.', 'norm.'), (r'^4\.', 'head.')]

# a stage is the merging of patches, but for the first, then its blocks
swin_rules = [(r'^0\.0\.', 'patch_embed.proj.'), (r'^0\.2\.', 'patch_embed.norm.'), (r'^5\.', 'norm.'),
    (r'^7\.', 'head.fc.')]
swin_rules += [(r'^([234])\.0\.1\.', lambda m: f'layers.{int(m[1])-1}.downsample.norm.'),
    (r'^([234])\.0\.2\.', lambda m: f'layers.{int(m[1])-1}.downsample.reduction.')]
swin_rules += [(r'^1\.(\d+)\.', r'layers.0.blocks.\1.'),
    (r'^([234])\.(\d+)\.', lambda m: f'layers.{int(m[1])-1}.blocks.{int(m[2])-1}.')]
swin_rules += [(r'branch\.1\.table', 'branch.1.relative_position_bias_table')]

def by_offset(sd):
    'Our position table is (heads, offsets), theirs (offsets, heads)'
    return {k:v.T if k.endswith('bias_table') else v for k,v in sd.items()}

# a stage is its convolution and norm, then its blocks
cvt_rules = [(r'^3\.1\.', 'to_logits.2.'), (r'^([012])\.([01])\.', r'layers.\1.\2.'),
    (r'^([012])\.(\d+)\.', lambda m: f'layers.{m[1]}.2.layers.{int(m[2])-2}.')]
cvt_rules += [(r'0\.branch\.0\.0\.', '0.norm.'), (r'branch\.1\.(q|kv)\.0\.', r'to_\1.net.'),
    (r'branch\.1\.(q|kv)\.1\.', r'to_\1.net.2.'), (r'branch\.1\.proj\.', 'to_out.0.')]
cvt_rules += [(r'1\.branch\.0\.', '1.net.0.'), (r'1\.branch\.1\.0\.', '1.net.1.'), (r'1\.branch\.1\.2\.', '1.net.4.')]
cvt_rules += [(r'(^layers\.\d\.1|\.norm|\.1\.net\.0)(\.0)?\.(w|b)\w+$', lambda m: f"{m[1]}.{dict(w='g', b='b')[m[3]]}")]

def on_maps(sd):
    'Norms and MLPs over there are layers on maps'
    sd = {k:v[None,:,None,None] if k.endswith(('.g', '.b')) else v for k,v in sd.items()}
    return {k:v[...,None,None] if k.endswith(('.1.net.1.weight', '.1.net.4.weight')) else v for k,v in sd.items()}

cct_rules = [(r'^0\.0\.0\.', 'tokenizer.conv_layers.0.0.'), (r'^0\.3\.pos', 'classifier.positional_emb'),
    (r'^1\.', 'classifier.blocks.')]
cct_rules += [(r'^2\.', 'classifier.norm.'), (r'^3\.score\.', 'classifier.attention_pool.'),
    (r'^4\.', 'classifier.fc.')]
cct_rules += [(r'0\.branch\.0\.', 'pre_norm.'), (r'0\.branch\.1\.', 'self_attn.'), (r'(blocks\.\d)\.1\.', r'\1.norm1.'),
    (r'2\.branch\.0\.', 'linear1.'), (r'2\.branch\.2\.', 'linear2.')]

references = dict(vision_transformer=Reference(timm_vit, vit_rules+timm_block))
references |= dict(cvt=Reference(vp_cvt, cvt_rules, on_maps), cct_7_3x1=Reference(vp_cct, cct_rules))
swins = dict(swin_t=((2,2,6,2),), swin_s=((2,2,18,2),), swin_b=((2,2,18,2), 128, (4,8,16,32)))
references |= {k:Reference(partial(timm_swin, *v), swin_rules+timm_block, by_offset) for k,v in swins.items()}
