"""The backbones that no package has in full: the shape after each stage and the parameter count, from the geometry alone.

Written from the papers' tables and the descriptions in the notebooks, with nothing of ours but `model_summary`, which is what is tested."""
from itertools import pairwise
import pytest
from cifar_fastai.zoo.registry import find_model, list_models, model_summary, zoo_contract

contract = zoo_contract()
names = [n for n in list_models() if contract.get(find_model(n).name, {}).get('confirmed_by')!='outputs']

def conv(i, o, k=1, groups=1, bias=False): return i*o*k*k//groups + bias*o
def cb(*args, **kwargs): return conv(*args, **kwargs) + norm(args[1])
def norm(d): return 2*d
def linear(i, o): return i*o + o
def maps(*ends): return [(c,s,s) for c,s in ends]

def lenet(k=5, scale=1, pad=False):
    a,b,s1 = 6*scale,16*scale,32 if pad else 33-k
    s2 = s1//2 if pad else s1//2-k+1
    flat = b*(s2//2)**2
    shapes = maps((a,s1), (a,s1//2), (b,s2),
        (b,s2//2)) + [(n,) for n in (flat,120,120,84,84,10)] # behind linear layers a ReLU each
    return shapes,conv(3, a, k, bias=True) + conv(a, b, k, bias=True) + linear(flat, 120) + linear(120,
        84) + linear(84, 10)

def toynet():
    widths = 6,12,24,24,48,96,192,384,384,384,384,*[768]*11
    count = sum(cb(i, o, 3, bias=True) for i,o in pairwise((3, *widths))) + linear(768, 10)
    return maps((12,16), (24,8), (192,4), (384,2), (768,1), (768,1)) + [(10,)],count

def resnet9():
    layers = (3,64),(64,128),(128,128),(128,128),(128,256),(256,512),(512,512),(512,512)
    return maps((64,32), (128,16), (256,8), (512,4), (512,1)) + [(512,),(10,),
        (10,)],sum(cb(i, o, 3) for i,o in layers) + 5120

def airbench():
    'The whitening layer, then blocks of two convolutions with a trained bias per norm, and a linear layer without a bias'
    widths = (24,64),(64,256),(256,256)
    count = conv(3, 24, 2, bias=True) + sum(conv(i, o, 3) + conv(o, o, 3) + 2*o for i,o in widths) + 2560
    return maps((24,31), (24,31), (64,15), (256,7), (256,3), (256,1)) + [(256,), (10,), (10,)],count

def resnext29(groups, base, n, after=lambda c, s: 0):
    'Three stages of n bottlenecks; `after` counts what ends a branch of c channels on a map of side s'
    count,i = cb(3, 64, 3) + linear(1024, 10),64
    for c,s in ((256,32), (512,16), (1024,8)):
        for first in (True, *[False]*(n-1)):
            h = groups*base*c//256
            count += cb(i, h) + cb(h, h, 3, groups) + cb(h, c) + first*cb(i, c) + after(c, s)
            i = c
    return maps((64,32), (256,32), (512,16), (1024,8)) + [(10,)],count

def spp(n, pools): return resnext29(16, 8, n, lambda c,s: cb(c, c//2) + cb((pools+1)*c//2, c))
def gather_excite(c, s): return cb(c, c, s, c) + 2*conv(c, c//16)

def shake(w):
    count,i = cb(3, 16, 3) + linear(4*w, 10),16
    for c in (w, 2*w, 4*w):
        count += 2*(cb(i, c, 3) + cb(c, c, 3)) + 2*conv(i, c//2) + norm(c) + 3*4*cb(c, c, 3)
        i = c
    return maps((16,32), (w,32), (2*w,16), (4*w,8), (4*w,8)) + [(10,)],count

def dpn(depths):
    count,shapes,i = cb(3, 64, 3),[(64,32)],64
    for n,o,h,k,s in zip(depths, (256,512,1024,2048), (96,192,384,768), (16,32,24,128), (32,16,8,4)):
        for j in range(n):
            count += cb(i, h) + cb(h, h, 3, 32) + cb(h, o+k) + (j==0)*cb(i, o+k)
            i = o+(j+2)*k
        shapes.append((i,s))
    return maps(*shapes) + [(10,)],count + linear(i, 10)

def googlenet():
    'Table 1 of 1409.4842 from inception 3a on, with two convolutions of 3x3 for one of 5x5'
    table = ((64,96,128,16,32,32),(128,128,192,32,96,64),(192,96,208,16,48,64),(160,112,224,24,64,64),
        (128,128,256,24,64,64),
        (112,144,288,32,64,64),(256,160,320,32,128,128),(256,160,320,32,128,128),(384,192,384,48,128,128))
    def c(i, o, k=1): return cb(i, o, k, bias=True)
    count,i,ends = c(3, 192, 3),192,[]
    for a,r3,b,r5,d,p in table:
        count += c(i, a) + c(i, r3) + c(r3, b, 3) + c(i, r5) + c(r5, d, 3) + c(d, d, 3) + c(i, p)
        i = a+b+d+p
        ends.append(i)
    shapes = [(192,32), *[(o,32) for o in ends[:2]], (480,16), *[(o,16) for o in ends[2:7]], (832,8),
        *[(o,8) for o in ends[7:]]]
    return maps(*shapes) + [(10,)],count + linear(1024, 10)

def squeezenet():
    'A fire is squeezed first; where it has a bypass it is one layer with its expansion'
    def c(i, o, k=1): return cb(i, o, k, bias=True)
    count,i = c(3, 96, 3),96
    for s,e in ((16,64),(16,64),(32,128),(32,128),(48,192),(48,192),(64,256),(64,256)):
        count += c(i, s) + c(s, e) + c(s, e, 3)
        i = 2*e
    large = maps((96,32), (96,16), (16,16), (128,16), (128,16), (32,16), (256,16))
    middle = maps((256,8), (256,8), (48,8), (384,8), (384,8), (64,8), (512,8))
    return large + middle + maps((512,4), (512,4)) + [(10,)],count + linear(512, 10)

def pnasnet(F=48):
    def sep(k): return 2*(norm(F) + conv(F, F, k, F) + conv(F, F))
    count,prev,x,shapes = cb(3, 3*F, 3),3*F,3*F,[(3*F,32)]
    for i in range(9):
        if i in (3, 6): F *= 2
        count += sum(map(sep, (5,7,5,3,3,3))) + cb(prev, F) + cb(x, F) + (i in (3,6))*cb(F,
            F) # an identity that halves the map is a convolution
        prev,x = x,5*F
        shapes.append((x,32>>i//3))
    return maps(*shapes) + [(10,)],count + linear(x, 10)

def nasnet(F=44):
    'Every convolution has a bias but the stem, and in normal cells the narrowing of x and the first depthwise one of a pair'
    count,prev,x,shapes = cb(3, F, 3),F,F,[(F,32)]
    for i in range(14):
        halves = i in (4, 9)
        if halves: F *= 2
        def sep(k): return 2*norm(F) + conv(F, F, k, F, halves) + conv(F, F, k, F, True) + 2*conv(F, F, bias=True)
        count += sum(map(sep, (5,7,7,5,3) if halves else (5,3,5,3,3))) + cb(x, F, bias=halves) + (prev!=F)*cb(prev,
            F, bias=True)
        prev,x = x,(4 if halves else 6)*F
        shapes.append((x,32>>(i>=4)+(i>=9)))
    return maps(*shapes) + [(10,)],count + linear(x, 10)

def coatnet(depths, widths):
    def mb(i, o, s, first):
        return norm(i) + cb(i, 4*i) + cb(4*i, 4*i, 3, 4*i) + 2*conv(4*i, i//4) + cb(4*i, o) + first*conv(i, o)
    def tf(i, o, s, first):
        return norm(i) + conv(i, 3*256) + linear(256, o) + 8*(2*s-1)**2 + norm(o) + linear(o, 4*i) + linear(4*i,
            o) + first*conv(i, o)
    count = cb(3, widths[0], 3) + (depths[0]-1)*cb(widths[0], widths[0], 3) + 10*widths[-1]
    for kind,n,(i,o),s in zip((mb,mb,tf,tf), depths[1:], pairwise(widths), (8,4,2,1)):
        count += kind(i, o, s, True) + (n-1)*kind(o, o, s, False)
    return maps(*zip(widths, (16,8,4,2,1))) + [(10,)],count

geometry = dict(lenet=lenet(), ToyNet=toynet(), resnet9=resnet9(), googlenet=googlenet(), squeezenet=squeezenet(),
    pnasnet=pnasnet(), nasnet=nasnet(),
    dpn=dpn((2,2,2,2)), dpn92=dpn((3,4,20,3)), ge_resnext29_8x64d=resnext29(8, 64, 3, gather_excite),
    coatnet_0=coatnet((2,2,3,5,2), (64,96,192,384,768)), coatnet_1=coatnet((2,2,6,14,2), (64,96,192,384,768)),
    coatnet_2=coatnet((2,2,6,14,2), (128,128,256,512,1026)), coatnet_3=coatnet((2,2,6,14,2), (192,192,384,768,1536)))
geometry |= dict(airbench94=airbench(), airbench94_muon=airbench())
geometry |= {f'shake_resnet26_2x{w}d':shake(w) for w in (32, 64)}
geometry |= {f'toynet_s{s}_k{k}':lenet(k, s, True) for s in (1, 4, 16) for k in (3, 5)}
geometry |= {f'spp_d{d}_p{p}':spp(d//9, n) for d in (11, 20, 29) for p,n in dict(A=1, B=1, C=1, D=3).items()}

def test_all(): assert set(geometry)==set(names), 'a backbone is confirmed by outputs, or has its geometry here'

@pytest.mark.parametrize('name', geometry)
def test_geometry(name):
    'The shape after each stage, and the parameter count'
    s,(shapes,count) = model_summary(name),geometry[name]
    assert [o[1] for o in s.stages]==shapes
    assert s.params==count
