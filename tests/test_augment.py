'Pixel augmentation and occlusion: every operation against torchvision, every draw by statistics, and their place in the step'
import math,pickle,random
from collections import Counter
import numpy as np,torchvision.transforms.v2 as tv,torchvision.transforms.v2.functional as T
import pytest,torch
from scipy import stats
from timm.data.random_erasing import RandomErasing as TimmErasing
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders,TfmdDL
from fastai.data.transforms import IntToFloatTensor,Normalize
from fastai.learner import Learner
from fastai.torch_core import TensorImage
from cifar_fastai.augment.pixels import *
from cifar_fastai.augment.geometry import *
from cifar_fastai.augment.autoaugment import *
from cifar_fastai.augment.occlusion import *
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import CropFlip, cifar_dls
from test_contract import fit,our_learner,plain_learner

def images(n=6, h=32, w=32, c=3):
    'Noise, a ramp, one colour, a dark image, and real digits'
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, c, h, w), generator=g, dtype=torch.uint8)
    x[1:2],x[2:3] = torch.linspace(0, 255, h*w).view(h, w).byte(),77
    x[3:4] //= 9
    if n>4 and (h,w,c)==(32,32,3): x[4:] = cifar_dls('digits', bs=8).train_ds.x[:n-4]
    return x

def shear(x, m, axis):
    s = [0., 0.]
    s[axis] = math.degrees(math.atan(m))
    return T.affine(x, 0., [0, 0], 1., s, center=[0, 0])

# name -> torchvision's operation on one image
reference = dict(Identity=lambda x,m: x, ShearX=lambda x,m: shear(x, m, 0), ShearY=lambda x,m: shear(x, m, 1),
    TranslateX=lambda x,m: T.affine(x, 0., [int(m), 0], 1., [0., 0.]), TranslateY=lambda x,
    m: T.affine(x, 0., [0, int(m)], 1., [0., 0.]),
    Rotate=T.rotate, Brightness=lambda x,m: T.adjust_brightness(x, 1+m), Color=lambda x,m: T.adjust_saturation(x, 1+m),
    Contrast=lambda x,m: T.adjust_contrast(x, 1+m), Sharpness=lambda x,m: T.adjust_sharpness(x, 1+m),
    Posterize=lambda x,m: T.posterize(x, int(m)), Solarize=T.solarize, AutoContrast=lambda x,m: T.autocontrast(x),
    Equalize=lambda x,m: T.equalize(x), Invert=lambda x,m: T.invert(x))
signed = 'ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness'.split()

def test_every_operation_is_here(): assert [*reference]==operations

def levels(name):
    'Every published magnitude of an operation, both signs, weak and wide'
    ms = {float(m) for k in (dict(n=10), dict(n=31), dict(n=31, wide=True)) for m in magnitudes(**k)[name]}
    return sorted(ms | {-m for m in ms} if name in signed else ms)

@pytest.mark.parametrize('name', operations)
def test_operation(name):
    'Equal to torchvision on the same image and magnitude, to one grey level, and nearly always exactly'
    x = images()
    for m in levels(name)[::2 if len(levels(name))>60 else 1]:
        got = apply_operations(x, [name]*len(x), [m]*len(x)).int()
        want = torch.stack([reference[name](o, m) for o in x]).int()
        assert (got-want).abs().max()<=1, m
        assert (got!=want).float().mean()<0.1, m

@pytest.mark.parametrize('h,w,c', [(24,40,3), (33,17,1), (3,5,3)])
def test_other_shapes(h, w, c):
    x = images(4, h, w, c)
    for name in set(operations)-{'ShearX','ShearY'}:
        m = dict(Posterize=3, Solarize=100, TranslateX=5, TranslateY=-2, Rotate=25).get(name, 0.4)
        got,want = apply_operations(x, [name]*4, [m]*4).int(),torch.stack([reference[name](o, m) for o in x]).int()
        assert (got-want).abs().max()<=1, name

def test_shear_of_other_shapes():
    'A pixel on the border of two may come from either, since rounding differs; nothing else does'
    x = images(1, 24, 40)
    for name in ('ShearX','ShearY'):
        for m in levels(name):
            got,want = apply_operations(x, [name], [m]),reference[name](x[0], m)[None]
            rise = (torch.arange(24 if name=='ShearX' else 40)+0.5)*m
            tie = ((rise-rise.round()).abs()-0.5).abs()<1e-4
            tie = tie[:,None] if name=='ShearX' else tie[None]
            assert not ((got!=want).any(1)[0] & ~tie).any(), m

def test_every_image_its_own():
    'Images keep their places, whatever the operations; nothing is written into what was given'
    x = images(60)
    x[6:] = torch.randint(0, 256, x[6:].shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    rng,kept = np.random.default_rng(0),x.clone()
    ops = rng.choice(operations, 60)
    ms = np.array([rng.choice(levels(o)) for o in ops])
    got = apply_operations(x, ops, ms)
    for o,k,m,g in zip(x, ops, ms, got): assert (g.int()-reference[k](o, float(m)).int()).abs().max()<=1, k
    assert torch.equal(x, kept)

def test_fill():
    x = images(2)
    got = apply_operations(x, ['Rotate']*2, [40, 40], fill=128)
    assert torch.equal(got, torch.stack([T.rotate(o, 40., fill=128) for o in x]))

@pytest.mark.parametrize('name', ['cifar10', 'svhn', 'imagenet'])
def test_policies(name):
    "The sub-policies are torchvision's"
    def bare(subs, none): return [[(k, p, 0 if none and m is None else m) for k,p,m in sub] for sub in subs]
    want = tv.AutoAugment()._get_policies(tv.AutoAugmentPolicy(name))
    assert bare(autoaugment_policies[name], False)==bare(want, True)

@pytest.mark.parametrize('wide,n,space',
    [(False, 10, tv.AutoAugment), (False, 31, tv.RandAugment), (True, 31, tv.TrivialAugmentWide)])
def test_magnitudes(wide, n, space):
    for k,(scale,_) in space._AUGMENTATION_SPACE.items():
        for h,w in ((32,32), (48,20)):
            want = scale(n, h, w)
            if want is None: continue
            want = want.double().numpy()*(255 if k=='Solarize' else 1)
            got = magnitudes(n, h, w, wide)[k]
            assert np.allclose(got, np.trunc(want) if k[:5]=='Trans' else want, atol=1e-4), k

# probabilities and magnitudes

def drawn(t, n=20000):
    t.stream.reseed(3)
    ops,ms = zip(*t.rounds(n, 32, 32))
    return np.array(operations)[np.array(ops)],np.array(ms)

def fits(counts, ps): assert stats.chisquare(counts, np.array(ps)*sum(counts)).pvalue > 1e-4

def test_draws_of_autoaugment():
    'A sub-policy uniformly, each operation with its probability, its magnitude, and half of the signs'
    ops,ms = drawn(AutoAugment())
    scale,want = magnitudes(10),Counter()
    for sub in autoaugment_policies['cifar10']:
        (a,p,i),(b,q,j) = sub
        for x,px in (((a, scale[a][i]), p), (('Identity', None), 1-p)):
            for y,py in (((b, scale[b][j]), q), (('Identity', None), 1-q)): want[x,y] += px*py/25
    def key(o, m): return (o, None) if o=='Identity' else (o, scale[o][np.abs(scale[o]-abs(m)).argmin()])
    got = Counter((key(a, m), key(b, n)) for a,b,m,n in zip(*ops, *ms))
    assert not set(got)-{k for k,v in want.items() if v>0}
    often = [k for k,v in want.items() if v*len(ops[0])>20]
    fits([got[k] for k in often], np.array([want[k] for k in often])/sum(want[k] for k in often))
    for k in signed:
        m = ms[(ops==k) & (ms!=0)]
        if len(m): assert stats.binomtest(int((m<0).sum()), len(m), 0.5).pvalue > 1e-4
    assert (ms[~np.isin(ops, signed)]>=0).all()

def test_draws_of_randaugment():
    ops,ms = drawn(RandAugment(3, 12))
    assert ops.shape==(3,20000)
    for o in ops: fits([*Counter(o).values()], [1/14]*14)
    assert stats.chi2_contingency(np.array([[((ops[0]==a)&(ops[1]==b)).sum() for a in set(ops[0])]
        for b in set(ops[1])])).pvalue > 1e-4
    for k in set(ops[0]): assert np.allclose(np.abs(ms[ops==k]), magnitudes(31)[k][12])

def test_draws_of_trivialaugment():
    ops,ms = drawn(TrivialAugment(), 60000)
    fits([*Counter(ops[0]).values()], [1/14]*14)
    fits(np.histogram(np.abs(ms[ops=='Rotate']), np.linspace(-2.25, 137.25, 32))[0], [1/31]*31)
    fits(np.histogram(ms[ops=='Solarize'], np.linspace(-4.25, 259.25, 32))[0], [1/31]*31)

@pytest.mark.parametrize('t', [AutoAugment(p=0.3), RandAugment(p=0.3), TrivialAugment(p=0.3)])
def test_p_of_a_policy(t):
    'A part p of the images goes through it; the others are left alone in all rounds'
    ops,_ = drawn(t)
    whole,_ = drawn(type(t)())
    alone,base = (ops=='Identity').all(0).mean(),(whole=='Identity').all(0).mean()
    assert abs(alone-(0.7+0.3*base)) < 0.02

def test_new_numbers_for_every_batch():
    'One seed, one sequence; batches differ'
    x,t = images(),AutoAugment()
    def three():
        t.stream.reseed(1)
        return [t.augment(x) for _ in range(3)]
    a,b = three(),three()
    assert all(torch.equal(i, j) for i,j in zip(a, b)) and not torch.equal(a[0], a[1])

# crop and flip

@pytest.mark.parametrize('mode', ['zeros', 'reflect'])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_crop(mode, dtype):
    "Every window is torchvision's, and all are equally likely"
    x = images(1).to(dtype).expand(4000, -1, -1, -1)
    got = RandomCrop(2, mode).augment(x)
    padded = T.pad(x[0], [2], padding_mode='constant' if mode=='zeros' else mode)
    windows = torch.stack([padded[:,i:i+32,j:j+32] for i in range(5) for j in range(5)])
    hit = (got[:,None,:,::5,::5]==windows[None,:,:,::5,::5]).flatten(2).all(2)
    assert (hit.sum(1)==1).all()
    assert all(torch.equal(got[i], windows[hit[i].int().argmax()]) for i in range(0, 4000, 100))
    fits(hit.sum(0).numpy(), [1/25]*25)

def test_flip():
    x = images().repeat(500, 1, 1, 1)
    got = Flip(0.3).augment(x)
    flipped = (got==x.flip(3)).flatten(1).all(1)
    assert ((got==x).flatten(1).all(1)|flipped).all()
    noise = torch.arange(len(x))%6==0
    assert stats.binomtest(int(flipped[noise].sum()), int(noise.sum()), 0.3).pvalue > 1e-4

def test_alternating_flip():
    'Each image is seen both ways in two epochs, in any order of the images, after a shuffle and in a crop of the loader'
    digits = cifar_dls('digits', bs=50, pad=0)
    learn = Learner(digits, nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), nn.CrossEntropyLoss(),
        cbs=Flip(alternate=True))
    seen = []
    learn.add_cb(Callback(before_batch=lambda self: seen.append((self.epoch, self.xb[0])) if self.training else None))
    fit(learn, 4)
    epochs = [torch.cat([x for e,x in seen if e==k]) for k in range(4)]
    def rows(x): return {o.tobytes() for o in x.numpy()}
    both = rows(epochs[0])|rows(epochs[1])
    assert rows(epochs[0])==rows(epochs[2]) and rows(epochs[1])==rows(epochs[3])
    assert len(both) > 1.9*len(rows(epochs[0]))
    stored = rows(cifar_dls('digits', bs=2000, pad=0).train.new(shuffle=False).one_batch()[0])
    assert abs(np.mean([o.tobytes() in stored for o in epochs[0].numpy()])-0.5) < 0.06

def test_hash():
    'Equal pixels, equal numbers, which are uniform, and others under another key'
    x = cifar_dls('digits', bs=8).train_ds.x
    a,b = pixel_hash(x, 5),pixel_hash(x, 6)
    assert torch.equal(a, pixel_hash(x.contiguous(), 5)) and torch.equal(a[3:4], pixel_hash(x[3:4], 5))
    for u in (a, b): assert stats.kstest(u.numpy(), 'uniform').pvalue > 1e-4
    assert abs(np.corrcoef(a<0.5, b<0.5)[0,1]) < 0.12
    f = torch.rand(500, 3, 8, 8, generator=torch.Generator().manual_seed(0))-0.5
    assert stats.kstest(pixel_hash(f).numpy(), 'uniform').pvalue > 1e-4

@pytest.mark.parametrize('h,w', [(32,32), (20,28)])
def test_resized_crop(h, w):
    'Equal to torchvision, for bytes to one grey level, for floats exactly'
    x,g = images(40, h, w),torch.Generator().manual_seed(0)
    boxes = draw_boxes(40, h, w, (0.05,1), (0.3,3.3), generator=g)
    got,exact = resized_crop(x, *boxes),resized_crop(x.double(), *boxes)
    for k,box in enumerate(zip(*(o.int().tolist() for o in boxes))):
        assert (got[k].int()-T.resized_crop(x[k], *box, [h,w], antialias=False).int()).abs().max()<=1
        assert torch.allclose(exact[k], T.resized_crop(x[k].double(), *box, [h,w], antialias=False), atol=1e-9)

def test_resized_crop_draws():
    "Boxes as large and as tall as torchvision's"
    t = tv.RandomResizedCrop(32, (0.2,0.7), (0.5,2.))
    torch.manual_seed(0)
    ps = [t.make_params([torch.zeros(3, 32, 32)]) for _ in range(1500)]
    ours = draw_boxes(8000, 32, 32, (0.2,0.7), (0.5,2.), generator=torch.Generator().manual_seed(1))
    for theirs,own in zip(zip(*((p['top'], p['left'], p['height'], p['width']) for p in ps)), ours):
        assert stats.ks_2samp(theirs, own.numpy()).pvalue > 1e-4

# occlusion

def hole(o):
    'Top, left, height and width of the zeros in an image of ones'
    rows,cols = (o[0]==0).any(1).nonzero(),(o[0]==0).any(0).nonzero()
    return (rows[0].item(), cols[0].item(), len(rows), len(cols)) if len(rows) else (0, 0, 0, 0)

def test_erase():
    "A box of zeros, torchvision's"
    x = torch.rand(30, 3, 20, 28, generator=torch.Generator().manual_seed(0))+1
    boxes = draw_boxes(30, 20, 28, (0.02,0.4), (0.3,3.3), generator=torch.Generator().manual_seed(0))
    got = erase(x, *boxes)
    for o,g,box in zip(x, got, zip(*(b.int().tolist() for b in boxes))):
        assert torch.equal(g, T.erase(o, *box, torch.zeros(1)))

def test_draws_of_erasing():
    "A part p of the images; boxes as large, as tall and where timm's and torchvision's are"
    n,x = 6000,torch.ones(6000, 1, 32, 32)
    t = RandomErasing(0.4)
    holes = np.array([hole(o) for o in t.occlude(x)])
    on = holes[:,2]>0
    assert stats.binomtest(int(on.sum()), n, 0.4).pvalue > 1e-4
    assert all(hole(o)[2] for o in RandomErasing(1.).occlude(x[:2000])), 'a box that does not fit is drawn again'
    timm = TimmErasing(1., 0.02, 0.4, 0.3, device='cpu')
    random.seed(0)
    theirs = np.array([hole(o) for o in timm(torch.ones(1500, 1, 32, 32))])
    torch.manual_seed(0)
    other = tv.RandomErasing(1., (0.02,0.4), (0.3,1/0.3))
    second = np.array([[p[k] for k in 'ijhw'] for p in (other.make_params([x[0]]) for _ in range(1500))])
    for o in (theirs, second):
        for k in range(4): assert stats.ks_2samp(o[:,k], holes[on][:,k]).pvalue > 1e-4

def test_uniform_aspect():
    'With `log_aspect=False`, boxes by the rule of the paper: the aspect itself is uniform'
    n,rng = 6000,random.Random(0)
    def box():
        while True:
            area,aspect = rng.uniform(0.02, 0.4)*1024,rng.uniform(0.3, 1/0.3)
            h,w = round((area*aspect)**0.5),round((area/aspect)**0.5)
            if h<=32 and w<=32: return rng.randint(0, 32-h),rng.randint(0, 32-w),h,w
    theirs = np.array([box() for _ in range(n)])
    def ours(**kw): return np.array([hole(o) for o in RandomErasing(1., **kw).occlude(torch.ones(n, 1, 32, 32))])
    uniform,log = ours(log_aspect=False),ours()
    for k in range(4): assert stats.ks_2samp(theirs[:,k], uniform[:,k]).pvalue > 1e-4
    for k in (2, 3): assert stats.ks_2samp(theirs[:,k], log[:,k]).pvalue < 1e-9

def test_cutout_is_the_papers(): assert (Cutout().length,Cutout().holes)==(16, 1)

def test_draws_of_cutout():
    'The centre is anywhere, so a hole at the border is cut off'
    n,side = 20000,7
    x = Cutout(side).occlude(torch.ones(n, 1, 8, 12))
    for axis,size in ((1, 8), (2, 12)):
        start = torch.stack([(o[0]==0).any(2-axis) for o in x])
        got = Counter(map(tuple, start.int().tolist()))
        want = Counter(tuple(int(c-side//2<=i<c-side//2+side) for i in range(size)) for c in range(size))
        assert set(got)==set(want)
        fits([got[k] for k in want], [v/size for v in want.values()])
    two = Cutout(4, holes=2).occlude(torch.ones(2000, 1, 32, 32))
    assert ((two==0).flatten(1).sum(1)>16).float().mean()>0.7

# where in the step

class Look(Callback):
    'Keeps the first training batch and the pipeline that it came through'
    order = 12
    def before_batch(self):
        if self.training and not self.iter:
            self.batch,self.pipe = self.xb[0],[type(t).__name__ for t in self.dl.after_batch.fs]

def test_before_normalisation():
    'On the bytes, before crop, flip and normalisation; gone afterwards, also when the fit breaks off, and off in validation'
    class Spy(TrivialAugment):
        def augment(self, x):
            assert x.dtype==torch.uint8
            return super().augment(x)
    look = Look()
    learn = fit(our_learner([Spy(), look]), 1)
    assert look.pipe==['_Before', 'CropFlip', 'NormalizeImages'] and len(learn.dls.train.after_batch.fs)==2
    x = learn.dls.train.one_batch()[0]
    assert x.is_contiguous(memory_format=torch.channels_last) and look.batch.is_contiguous(memory_format=torch.channels_last)

@pytest.mark.parametrize('order', [0, 1])
def test_order_of_pixel_tricks(order):
    'Policy, crop, flip: whatever the list says'
    cbs,calls = [Flip(), RandomCrop(), AutoAugment()],[]
    for t in cbs: t.augment = lambda x,t=t: calls.append(type(t).__name__) or x
    fit(our_learner(cbs[::-1] if order else cbs), 1)
    assert calls[:3]==['AutoAugment', 'RandomCrop', 'Flip']

@pytest.mark.parametrize('t,pad,flip',
    [(RandomCrop(3), 0, True), (RandomResizedCrop(), 0, True), (Flip(), 4, 0), (Flip(alternate=True), 4, 0),
        (RandomCrop(0), 4, True)])
def test_in_place_of_the_loaders_own(t, pad, flip):
    "A loader's own crop is off while ours is on, its flip while ours is; both are back after the fit"
    dls,seen = cifar_dls('digits', bs=500, pad=4, flip=True),[]
    own = dls.train.after_batch[0]
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), nn.CrossEntropyLoss(), cbs=t)
    learn.add_cb(Callback(before_batch=lambda self: seen.append((own.pad, own.flip)) if self.training else None))
    fit(learn, 1)
    assert isinstance(own, CropFlip) and set(seen)=={(pad, flip)} and (own.pad, own.flip)==(4, True)

def test_ordinary_loader():
    'In front of IntToFloatTensor in a pipeline of fastai, which still gets its type'
    x = images(20)
    dl = TfmdDL([(TensorImage(o), i%10) for i,o in enumerate(x)], bs=10,
        after_batch=[IntToFloatTensor(), Normalize.from_stats([0.5]*3, [0.25]*3, cuda=False)])
    look = Look()
    learn = Learner(DataLoaders(dl, dl), nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), nn.CrossEntropyLoss())
    learn.add_cbs([AutoAugment(), RandomCrop(), Flip(alternate=True), Cutout(), look])
    fit(learn, 1)
    assert look.pipe==['_Before']*3+['IntToFloatTensor', 'Normalize'] and look.batch.dtype==torch.float32
    assert len(dl.after_batch.fs)==2

def test_floats():
    'Floats from 0 to 1 are bytes; normalised ones are refused by a policy, before a step, and by no other trick'
    x,t = images(),TrivialAugment()
    t.stream.reseed(0)
    want = t.augment(x)
    t.stream.reseed(0)
    assert torch.equal(t.augment(x/255), want/255)
    normalised = [(o*4-2, y) for o,y in plain_learner([]).dls.train]
    def learner(cb):
        learn = plain_learner([cb])
        learn.dls.train[:] = normalised
        return learn
    for cb in (AutoAugment(), RandAugment()):
        learn = learner(cb)
        before = [p.clone() for p in learn.model.parameters()]
        with pytest.raises(UserError, match=r'works on bytes, or floats in \[0, 1\]'): fit(learn, 1)
        assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    for cb in (RandomCrop(), Flip(), RandomResizedCrop(), Cutout(), RandomErasing()): fit(learner(cb), 1)

def test_seen_batch():
    'show_batch sees what a trick does'
    learn = our_learner([Cutout(30)])
    x,_ = learn.seen_batch()
    assert (x==0).float().mean()>0.2

typed = [AutoAugment('svhn'), RandAugment(1, 3), TrivialAugment(), RandomCrop(2, 'reflect'), RandomResizedCrop((0.5,1)),
    Flip(alternate=True), Cutout(4),
    RandomErasing(log_aspect=False)]
@pytest.mark.parametrize('t', typed)
def test_repr_and_pickle(t): assert repr(eval(repr(t)))==repr(t)==repr(pickle.loads(pickle.dumps(t)))

bad = [(lambda: AutoAugment('cifar'), "There is no policy 'cifar'"), (lambda: AutoAugment(p=2), 'p is 2'),
    (lambda: TrivialAugment(fill=300), 'fill is 300'),
    (lambda: RandAugment(m=31), 'm is 31'), (lambda: RandAugment(-1), 'n is -1'),
    (lambda: RandAugment(1.5), 'n is 1.5'), (lambda: RandomCrop(-1), 'pad is -1'),
    (lambda: RandomCrop(1.5), 'pad is 1.5'), (lambda: RandomCrop(mode='x'), "There is no padding 'x'"),
    (lambda: Flip(-0.5), 'p is -0.5'),
    (lambda: RandomResizedCrop((1,0.5)), 'area is (1, 0.5)'),
    (lambda: RandomResizedCrop(aspect=(0,1)), 'aspect is (0, 1)'), (lambda: Cutout(-1), 'length is -1'),
    (lambda: Cutout(8.5), 'length is 8.5'), (lambda: Cutout(8, -1), 'holes is -1'),
    (lambda: RandomErasing(1.2), 'p is 1.2'),
    (lambda: RandomErasing(area=0.3), 'area is 0.3: it must be two numbers in [0, 1], the smaller one first.'),
    (lambda: RandomErasing(log_aspect='no'), "log_aspect is 'no': it must be True or False."),
    (lambda: Flip(alternate='no'), "alternate is 'no': it must be True or False."),
    (lambda: RandAugment(1000000), 'n is 1000000: it must be an integer in [0, 30].'),
    (lambda: Cutout(holes=10**30), 'holes is 1000'), (lambda: RandomCrop(100000), 'pad is 100000')]
@pytest.mark.parametrize('f,msg', bad)
def test_bad_input(f, msg):
    with pytest.raises(UserError) as e: f()
    assert str(e.value).startswith(msg)

@pytest.mark.parametrize('t,msg',
    [(Cutout(33), 'length is 33'), (RandomCrop(32, 'reflect'), 'pad is 32'), (RandomCrop(33), 'pad is 33')])
@pytest.mark.parametrize('learner', [our_learner, plain_learner])
def test_too_large(t, msg, learner):
    'What does not fit the image is refused before a step; where the loader has the images, before the fit begins'
    learn = learner([])
    learn.add_cb(t)
    before,events = [p.clone() for p in learn.model.parameters()],[]
    learn.add_cb(Callback(before_fit=lambda self: events.append(1)))
    with pytest.raises(UserError, match=msg): fit(learn, 1)
    assert all(torch.equal(a, b)
        for a,b in zip(before, learn.model.parameters())) and bool(events)==(learner is plain_learner)
