'Mixers against torchvision and timm on the same draws, and several of them as one'
import pickle,pytest,torch
import numpy as np,torchvision.transforms.v2 as tv
from scipy import stats
from timm.data import mixup as timm_mixup
import test_contract as contract
from test_contract import fit,our_learner,plain_learner,refused
from cifar_fastai.callback import mixers
from cifar_fastai.core import UserError
from cifar_fastai.losses import LabelSmoothing,as_probs
from cifar_fastai.callback.mixers import (RICAP, Chain, CutMix, Mixer, MixUp, OneOf, ResizeMix, cut_box, cut_boxes, cutmix,
    mixup, resizemix, ricap)
from cifar_fastai.callback.sam import SAM

b,n_out = 6,10

@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    x,y = torch.rand(b, 3, 32, 24, dtype=torch.float64, generator=g),torch.randint(0, n_out, (b,), generator=g)
    return x,y,as_probs(y, n_out, x.dtype)

before = torch.arange(b).roll(1) # torchvision pairs an image with the one before it
opposite = torch.arange(b).flip(0) # timm with the one at the other end

@pytest.mark.parametrize('seed', range(8))
def test_mixup_torchvision(batch, seed):
    x,y,probs = batch
    t = tv.MixUp(alpha=0.7, num_classes=n_out)
    torch.manual_seed(seed)
    lam = t.make_params([x])['lam']
    torch.manual_seed(seed)
    tx,ty = t(x, y)
    mx,my = mixup(x, probs, before, lam)
    assert torch.allclose(mx, tx, atol=1e-12) and torch.allclose(my.float(), ty, atol=1e-6)

@pytest.mark.parametrize('seed', range(20))
def test_cutmix_torchvision(batch, seed):
    'The same box from the same numbers, and the same batch from the same box'
    x,y,probs = batch
    t = tv.CutMix(num_classes=n_out)
    torch.manual_seed(seed)
    box = t.make_params([x])['box']
    torch.manual_seed(seed)
    lam,j,i = float(t._dist.sample(())),int(torch.randint(24, (1,))),int(torch.randint(32, (1,)))
    l,top,r,bottom = box
    assert cut_box(lam, i, j, 32, 24)==(top, bottom, l, r)
    torch.manual_seed(seed)
    tx,ty = t(x, y)
    cx,cy = cutmix(x, probs, before, (top, bottom, l, r))
    assert torch.equal(cx, tx) and torch.allclose(cy.float(), ty, atol=1e-6)

@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_timm(batch, kind, seed):
    x,y,probs = batch
    t = timm_mixup.Mixup(mixup_alpha=1. if kind=='mixup' else 0., cutmix_alpha=1. if kind=='cutmix' else 0.,
        label_smoothing=0, num_classes=n_out)
    np.random.seed(seed)
    lam,is_cutmix = t._params_per_batch()
    assert is_cutmix==(kind=='cutmix')
    box,_ = timm_mixup.cutmix_bbox_and_lam(x.shape, lam) if is_cutmix else (None, None)
    np.random.seed(seed)
    tx = x.clone()
    lam = t._mix_batch(tx)
    ty = timm_mixup.mixup_target(y, n_out, lam)
    mx,my = cutmix(x, probs, opposite, box) if is_cutmix else mixup(x, probs, opposite, lam)
    assert torch.allclose(mx, tx, atol=1e-12) and torch.allclose(my.float(), ty, atol=1e-6)

@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_timm_per_image(batch, kind, seed):
    "One weight, or one box, for each image; the boxes are timm's, which has one pixel more where a side is odd"
    x,y,probs = batch
    t = timm_mixup.Mixup(mixup_alpha=1. if kind=='mixup' else 0., cutmix_alpha=1. if kind=='cutmix' else 0.,
        label_smoothing=0, num_classes=n_out, mode='elem', prob=0.7)
    np.random.seed(seed)
    lam,_ = t._params_per_elem(b)
    boxes = [timm_mixup.rand_bbox(x[0].shape, o) if o!=1 and kind=='cutmix' else (0, 0, 0, 0) for o in lam]
    np.random.seed(seed)
    tx = x.clone()
    ty = timm_mixup.mixup_target(y, n_out, t._mix_elem(tx).double())
    if kind=='mixup': mx,my = mixup(x, probs, opposite, torch.from_numpy(lam))
    else: mx,my = cutmix(x, probs, opposite, torch.tensor(boxes).T)
    assert torch.allclose(mx, tx, atol=1e-12) and torch.allclose(my, ty.to(my.dtype), atol=1e-6)
    assert len(set(my.max(1).values.tolist()))>1

@pytest.mark.parametrize('box', [(0,32,0,24), (3,4,5,6), (10,29,2,21), (31,32,0,7)])
def test_resizemix_torchvision(batch, box):
    "The patch is torchvision's resized image, the rest is untouched, the target goes by pixels"
    x,y,probs = batch
    t,bottom,l,r = box
    mx,my = resizemix(x, probs, before, box)
    want = x.clone()
    for k in range(b): want[k,:,t:bottom,l:r] = tv.functional.resize(x[k-1], [bottom-t,r-l], antialias=True)
    assert torch.allclose(mx, want, atol=1e-12)
    area = (bottom-t)*(r-l)
    for k in range(b):
        q = torch.zeros(n_out, dtype=x.dtype)
        q[y[k]] += 1-area/768
        q[y[k-1]] += area/768
        assert torch.allclose(my[k], q, atol=1e-12)

def test_draws_of_resizemix(monkeypatch):
    'A batch is mixed with probability p; the scale is uniform in its range, the place anywhere inside'
    drawn = []
    monkeypatch.setattr(mixers, 'resizemix', lambda x,probs,perm,box: drawn.append(box) or (x, probs))
    x,t = torch.zeros(2, 1, 2000, 1000),ResizeMix(p=0.7)
    for _ in range(3000): t.mix(x, None)
    assert stats.binomtest(len(drawn), 3000, 0.7).pvalue > 1e-4
    top,bottom,l,r = np.array(drawn).T
    assert stats.kstest((bottom-top)/2000, stats.uniform(0.1, 0.7).cdf).pvalue > 1e-4
    assert (abs((bottom-top)-2*(r-l))<=2).all() and (top>=0).all() and (bottom<=2000).all() and (r<=1000).all()
    for v in (top/(2000-(bottom-top)), l/(1000-(r-l))): assert stats.kstest(v, 'uniform').pvalue > 1e-4

@pytest.mark.parametrize('lam', [0., 1e-9, 0.3, 1-1e-9, 1.])
def test_boxes_are_those_of_a_batch(lam):
    'A box of each image is the one that `cut_box` gives'
    i,j = (o.ravel() for o in np.meshgrid(range(32), range(24)))
    got = cut_boxes(np.full(len(i), lam), i, j, 32, 24)
    assert [*map(tuple, got.T.tolist())]==[cut_box(lam, a, c, 32, 24) for a,c in zip(i.tolist(), j.tolist())]

def test_draws_per_image():
    'Weights follow Beta, images are mixed with probability p, centres are anywhere; draws of two batches differ'
    lam = MixUp(0.4, per_image=True).lam(torch.empty(5000, dtype=torch.float64)).numpy()
    assert stats.kstest(lam, stats.beta(0.4, 0.4).cdf).pvalue > 1e-4
    t = CutMix(1., 0.3, per_image=True)
    top,bottom,left,right = t.boxes(torch.empty(5000, 1, 200, 100)).numpy()
    area = (bottom-top)*(right-left)
    assert stats.binomtest(int((area>0).sum()), 5000, 0.3).pvalue > 1e-3
    inner = (top>0) & (bottom<200) & (area>0)
    assert abs(((top+bottom)/2)[inner].mean()-100) < 5
    assert not torch.equal(*(t.boxes(torch.empty(50, 1, 32, 32)) for _ in range(2)))

def test_new_tensors(batch):
    'Nothing is written into what was given'
    x,_,probs = batch
    kept = x.clone(),probs.clone()
    for m in (MixUp(), CutMix(p=1.), RICAP(), MixUp(per_image=True), CutMix(p=1., per_image=True), ResizeMix(p=1.),
        OneOf(MixUp(), RICAP()), Chain(CutMix(p=1.), MixUp())):
        mx,my = m.mix(x, probs)
        assert not torch.equal(mx, x)
        assert torch.equal(x, kept[0]) and torch.equal(probs, kept[1])
        assert torch.allclose(my.sum(1), torch.ones(b, dtype=my.dtype)) and (my>=0).all()

def test_areas():
    'The target of an image is how much of it there is, for every box and every point where four images meet'
    x = torch.arange(4.)[:,None,None,None].expand(4, 1, 10, 8).contiguous()
    probs,perm = torch.eye(4),torch.tensor([1, 2, 3, 0])
    def parts(x): return torch.stack([(x==k).float().mean((1,2,3)) for k in range(4)], 1)
    for box in [(0,10,0,8), (3,3,2,5), (2,9,0,1)]:
        cx,cy = cutmix(x, probs, perm, box)
        assert torch.allclose(cy, parts(cx), atol=1e-6)
    perms = [torch.tensor(p) for p in ([0,1,2,3], [1,2,3,0], [2,3,0,1], [3,0,1,2])]
    for h,w in [(0,0), (10,8), (0,5), (4,3)]:
        rx,ry = ricap(x, probs, perms, h, w, [(0,0)]*4)
        assert torch.allclose(ry, parts(rx), atol=1e-6)

def test_draws_of_ricap(monkeypatch):
    'Sizes follow Beta(0.3, 0.3), crops are anywhere inside, and the four permutations differ'
    drawn = []
    monkeypatch.setattr(mixers, 'ricap', lambda x,probs,perms,h,w,
        corners: drawn.append((perms, h, w, corners)) or (x, probs))
    x,t = torch.zeros(8, 1, 200, 100),RICAP(0.3)
    for _ in range(3000): t.mix(x, None)
    for k,n in ((1, 200), (2, 100)):
        edges = np.array([-1, 0, n//10, n//4, n//2, n-10, n-1, n])
        want = np.diff(stats.beta(0.3, 0.3).cdf(((edges+0.5)/n).clip(0, 1)))
        assert stats.chisquare(np.histogram([d[k] for d in drawn], edges+0.5)[0], 3000*want).pvalue > 1e-4
    for perms,h,w,corners in drawn[:100]:
        assert all(p.sort()[0].equal(torch.arange(8)) for p in perms) and len({tuple(p.tolist()) for p in perms})>2
        for (i,j),ph,pw in zip(corners, (h,h,200-h,200-h), (w,100-w,w,100-w)): assert 0<=i<=200-ph and 0<=j<=100-pw
    i = [d[3][0][0]/(200-d[1]) for d in drawn if d[1]<190]
    assert abs(np.mean(i)-0.5) < 0.03

def test_draws_of_cutmix(monkeypatch):
    'A batch is mixed with probability p; the part that is kept is uniform, the centre anywhere'
    drawn = []
    monkeypatch.setattr(mixers, 'cut_box', lambda lam,i,j,h,w: drawn.append((lam, i, j)) or (0, 0, 0, 0))
    x,t = torch.zeros(2, 1, 32, 24),CutMix(1., 0.3)
    for _ in range(3000): t.mix(x, torch.eye(2))
    assert stats.binomtest(len(drawn), 3000, 0.3).pvalue > 1e-4
    lam,i,j = zip(*drawn)
    assert stats.kstest(lam, 'uniform').pvalue > 1e-4
    for v,n in ((i, 32), (j, 24)): assert stats.chisquare(np.bincount(v, minlength=n)).pvalue > 1e-4

def test_p_of_one_of():
    x,probs = torch.rand(4, 1, 8, 8),torch.eye(4)
    class Mark(Mixer):
        def __init__(self, k): self.k = k
        def mix(self, x, probs): return x+self.k,probs
    def share(t, n=3000):
        t.stream.reseed(5)
        got = [round((t.mix(x, probs)[0]-x).mean().item()) for _ in range(n)]
        return [got.count(k) for k in (0,1,2)]
    for p,want in ((1., [0,.5,.5]), (0.4, [.6,.2,.2]), ((0.1,0.7), [.2,.1,.7])):
        got = share(OneOf(Mark(1), Mark(2), p=p))
        keep = [i for i in range(3) if want[i]]
        assert sum(got[i] for i in keep)==3000
        assert stats.chisquare([got[i] for i in keep], [3000*want[i] for i in keep]).pvalue > 1e-4

def test_independent_streams():
    'What one mixer of a chain draws does not move the numbers of the next'
    class Greedy(Mixer):
        def __init__(self, n): self.n = n
        def mix(self, x, probs): return x+0*sum(self.stream.py.random() for _ in range(self.n)),probs
    x,probs = torch.rand(4, 1, 8, 8),torch.eye(4)
    outs = []
    for n in (1, 50):
        t = Chain(Greedy(n), MixUp())
        t.stream.reseed(0)
        outs.append([t.mix(x, probs)[0] for _ in range(3)])
    assert all(torch.equal(a, b) for a,b in zip(*outs))

several = dict(OneOf=lambda: OneOf(MixUp(), CutMix(p=1.), RICAP(), ResizeMix(p=1.)),
    Chain=lambda: Chain(CutMix(p=1., per_image=True), OneOf(MixUp(0.5, per_image=True), RICAP(), p=(0.7,0.2))))

def test_refused_in_words_that_can_be_typed():
    for cbs in ([MixUp(), CutMix()], [RICAP(0.5), several['Chain']()], [MixUp(), MixUp(0.2)]):
        msg = refused(cbs)
        for kind in ('OneOf', 'Chain'):
            typed = f'{kind}(' + ', '.join(map(repr, cbs)) + ')'
            assert typed in msg
            assert repr(eval(typed))==typed
        assert refused([eval(typed)]) is None

@pytest.mark.parametrize('name', several)
def test_pickle(name):
    t = several[name]()
    t.stream.reseed(1)
    again = pickle.loads(pickle.dumps(t))
    assert repr(again)==repr(t)
    x,probs = torch.rand(4, 1, 8, 8),torch.eye(4)
    assert torch.equal(t.mix(x, probs)[0], again.mix(x, probs)[0])

bad_betas = [-1, 1e-9, 0.009, 1001, 1e999, 1e308, float('nan'), 'a', None, True, [1], np.ones(2), 10**400]
bad = [(lambda: CutMix(p=-0.1), 'p is -0.1'), (lambda: OneOf(), 'OneOf was given nothing'),
    (lambda: Chain(), 'Chain was given nothing'), (lambda: OneOf(MixUp(), p=2), 'p is 2'),
    (lambda: OneOf(MixUp(), p=(1,1)), 'p is (1, 1)'),
    (lambda: OneOf(MixUp(), CutMix(), p=(0.5,0.6)), 'p is (0.5, 0.6)'),
    (lambda: OneOf(MixUp(), p=(float('nan'),)), 'p is nan')]
bad += [(lambda f=f, v=v: f(v), n) for f,n in ((MixUp, 'alpha is '), (CutMix, 'beta is '), (RICAP, 'beta is '))
    for v in bad_betas]
bad += [(lambda f=f, v=v: f(p=v), 'p is ') for f in (CutMix, lambda p: OneOf(MixUp(), p=p))
    for v in (float('inf'), 'a', None, True, {}, np.ones(1), [[1]])]
bad += [(lambda k=k, v=v: k(MixUp(), v), f'{k.__name__} was given ') for k in (OneOf, Chain)
    for v in (MixUp, 3, 'MixUp()', None, [CutMix()], SAM(), 'x'*10_000)]
bad += [(lambda v=v: LabelSmoothing(v), 'eps is ') for v in (-1, 2, 'a', None, float('nan'), True)]
@pytest.mark.parametrize('f,msg', bad)
def test_bad_input(f, msg):
    with pytest.raises(UserError) as e: f()
    assert str(e.value).startswith(msg) and str(e.value).count('. ')==0 and len(str(e.value))<200

@pytest.mark.parametrize('v', [0.01, 0.1, 1000, 1000.])
def test_smallest_and_largest(v):
    'At the ends of what is accepted, draws are quick and as often above a half as below'
    t = MixUp(v)
    lams = [t.stream.py.betavariate(t.alpha, t.alpha) for _ in range(4000)]
    assert stats.binomtest(sum(o>0.5 for o in lams), 4000).pvalue > 1e-4
    if v>=0.1: assert stats.kstest(lams, stats.beta(v, v).cdf).pvalue > 1e-4

def test_numbers():
    'Numbers of numpy and torch are numbers, and shown as such'
    assert repr(OneOf(MixUp(np.float32(0.5)), CutMix(torch.tensor(2.)),
        p=[np.float64(0.25), 0.5]))=='OneOf(MixUp(alpha=0.5), CutMix(beta=2.0), p=[0.25, 0.5])'
    assert MixUp(0).off and CutMix(0).off and RICAP(0).off

# several mixers as one trick, through the contract

@pytest.fixture
def contracted(monkeypatch):
    def make(name):
        return several[name]() if name in several else dict(SAM=SAM(0.3), LabelSmoothing=LabelSmoothing(0.1))[name]
    monkeypatch.setattr(contract, 'make', make)

lifecycle = 'does_something lr_find validation_is_plain accumulates bf16 on_meta picture'.split()
@pytest.mark.parametrize('what', lifecycle)
@pytest.mark.parametrize('name', several)
def test_contract(name, what, contracted): getattr(contract, f'test_{what}')((name,) if what=='on_meta' else name)

@pytest.mark.parametrize('name', several)
def test_contract_saved(name, contracted, tmp_path):
    contract.test_resume(name, tmp_path)
    contract.test_lives_with_fastai(name, tmp_path)

@pytest.mark.parametrize('name', several)
def test_contract_left(name, contracted):
    for learner in (our_learner, plain_learner): contract.test_nothing_left(name, learner)
    contract.test_interrupt(name, 'after_loss')

@pytest.mark.parametrize('name', several)
def test_contract_by_hand(name, contracted):
    contract.test_by_hand((name,))
    contract.test_by_hand((name,'SAM','LabelSmoothing'))
    contract.test_order_of_the_list((name,'SAM','LabelSmoothing'))

@pytest.mark.parametrize('off',
    [OneOf(MixUp(), CutMix(), p=0.), OneOf(MixUp(0.), CutMix(p=0.)), Chain(RICAP(0.), MixUp(0.))])
@pytest.mark.parametrize('learner', [our_learner, plain_learner])
def test_neutral(off, learner):
    contract.assert_same(contract.state(fit(learner([off]))), contract.state(fit(learner([]))))
