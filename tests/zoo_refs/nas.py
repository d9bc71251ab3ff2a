'References of cifar_fastai.zoo.nas: networks for CIFAR put together from the cells of timm, whose own are for ImageNet'
import re,torch
from torch import nn
from . import Reference

class CellChain(nn.Module):
    'A stem, cells that read the two outputs before them, a head'
    def __init__(self, stem, cells, nf, prev_first):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem, eps=1e-3))
        self.cells,self.head,self.prev_first = nn.ModuleList(cells),nn.Linear(nf, 10),prev_first

    def forward(self, x):
        prev = x = self.stem(x)
        for c in self.cells: prev,x = x,c(prev, x) if self.prev_first else c(x, prev)
        return self.head(x.relu().mean((2,3)))

def pnasnet():
    'PNASNet-5, N=3, F=48'
    from timm.models.pnasnet import Cell
    widths = (144,144,*[240]*3,*[480]*3,*[960]*3)
    cells = [Cell(widths[i], f, widths[i+1], f, is_reduction=i in (3,6), match_prev_layer_dims=i in (4,7))
        for i,f in enumerate([48]*3 + [96]*3 + [192]*3)]
    return CellChain(144, cells, 960, prev_first=True)

def nasnet():
    'NASNet-A, 44 channels, 4 normal cells a stage, no biases'
    from timm.models.nasnet import FirstCell,NormalCell,ReductionCell1
    widths = (44,44,*[264]*4,352,*[528]*4,704,*[1056]*4)
    kinds = ([NormalCell]*4 + [ReductionCell1,FirstCell] + [NormalCell]*3 + [ReductionCell1,FirstCell] + [NormalCell]*3)
    filters = [44]*4 + [88]*5 + [176]*5
    # FirstCell takes the width of each half of its first input
    cells = [k(widths[i], f//2 if k is FirstCell else f, widths[i+1], f) for i,(k,f) in enumerate(zip(kinds, filters))]
    # the stem is as wide as the first two cells work
    for c in cells[:2]: c.conv_prev_1x1 = nn.Identity()
    return CellChain(44, cells, 1056, prev_first=False)

def fold_biases(sd):
    'timm has no biases: in front of BatchNorm a bias only moves the running mean'
    res = {k:v for k,v in sd.items() if not re.search(r'conv(2d)?\.bias$', k)}
    for k,b in sd.items():
        if k.endswith('pointwise_conv2d.bias'):
            depthwise = sd.get(k.replace('pointwise', 'depthwise'))
            if depthwise is not None: b = b + sd[k.replace('bias', 'weight')][:,:,0,0]@depthwise
            mean = k.replace('separable_', 'bn_sep_').replace('pointwise_conv2d.bias', 'running_mean')
        elif k.endswith('path_1.conv.bias'):
            b = torch.cat([b, sd[k.replace('path_1', 'path_2')]])
            mean = k.replace('path_1.conv.bias', 'final_path_bn.running_mean')
        elif k.endswith('1x1.conv.bias'): mean = k.replace('conv.bias', 'bn.running_mean')
        else: continue
        res[mean] = res[mean] - b
    return res

def rules(last, shrunk):
    'Names for `last` modules in front of the head, and where timm keeps the sampling of `prev`'
    res = [(rf'^{last+1}\.2\.', 'head.'), (r'^0\.', 'stem.'), (r'^(\d+)\.', lambda m: f'cells.{int(m[1])-1}.')]
    res += [(r'prev\.even\.', shrunk+'path_1.conv.'), (r'prev\.odd\.', shrunk+'path_2.conv.'),
        (r'prev\.norm\.', shrunk+'final_path_bn.')]
    res += [(r'\.prev\.1\.', '.conv_prev_1x1.'), (r'\.x\.1\.', '.conv_1x1.'), (r'1x1\.0\.', '1x1.conv.'),
        (r'1x1\.1\.', '1x1.bn.')]
    return res + [(r'blocks\.(\d)\.0\.', r'comb_iter_\1_left.'), (r'blocks\.(\d)\.1\.', r'comb_iter_\1_right.')]

# an operation is ReLU, separable convolution, ReLU, separable convolution: 1 and 3 have parameters
sep = [(r'(left|right)\.([13])\.2\.', lambda m: f'{m[1]}.bn_sep_{(int(m[2])+1)//2}.'),
    (r'(left|right)\.([13])\.([01])\.', lambda m: f'{m[1]}.separable_{(int(m[2])+1)//2}.{m[3]}.')]
sep += [(r'(separable_[12])\.0\.', r'\1.depthwise_conv2d.'), (r'(separable_[12])\.1\.', r'\1.pointwise_conv2d.')]
# what stands for the identity in PNASNet's cells of stride 2
strided = [(r'iter_4_right\.1\.0\.', 'iter_4_right.conv.'), (r'iter_4_right\.1\.1\.', 'iter_4_right.bn.')]

# nasnet: in float32 the rounding of its biases is larger than the tolerance on gradients, see test_zoo_train.py
references = dict(nasnet=Reference(nasnet, rules(14, '') + sep, fold_biases, random=True),
    pnasnet=Reference(pnasnet, rules(9, 'conv_prev_1x1.') + strided + sep))
