"AugMix: against torchvision's operations with given draws, the distributions of its draws, and timm's consistency loss"
import numpy as np, pytest, torch, torchvision.transforms.v2 as tv
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp as FastaiMixUp
from timm.loss import JsdCrossEntropy
from cifar_fastai.callback.augmix import AugMix, js_divergence, mix_chains
from cifar_fastai.augment.pixels import operation_index, operations
from cifar_fastai.callback.distill import KD
from cifar_fastai.callback.mixers import MixUp, OneOf
from cifar_fastai.callback.monitor import ImagesPerSecond, TrainAccuracy
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from test_contract import fit, our_learner, plain_learner

digits = cifar_dls('digits').train_ds.x

def test_draws():
    'Operations, depths, magnitudes and weights are distributed as in the paper and its code'
    t,rng,n = AugMix(severity=10.),np.random.default_rng(0),30000
    ops,m = t.draw(rng, n, 32, 32)
    assert np.bincount((ops>0).sum(0))[1:]/n==pytest.approx(1/3, abs=0.015)
    assert (np.diff((ops>0).astype(int), axis=0)<=0).all()
    names = 'AutoContrast Equalize Posterize Rotate Solarize ShearX ShearY TranslateX TranslateY'.split()
    used,counts = np.unique(ops[ops>0], return_counts=True)
    assert {operations[o] for o in used}=={*names}
    assert counts/counts.sum()==pytest.approx(1/9, abs=0.01)
    def of(name): return m[ops==operation_index[name]]
    for k,values in dict(Posterize=range(1, 5), Rotate=range(30), TranslateX=range(11), Solarize=range(1, 257)).items():
        assert {*of(k)}<={*values} and len({*of(k)})>=len(values)-3, k
    assert 0.003<=of('ShearX').min()<0.004 and 0.299<of('ShearY').max()<0.3
    w = np.concatenate([_weights(t, i) for i in range(10)], 1)
    assert np.allclose(w.sum(0), 1, atol=1e-6) and (w>=0).all()
    assert w[0].mean()==pytest.approx(1/2, abs=0.01) and w[0].var()==pytest.approx(1/12, abs=0.003) # uniform
    assert w[1:].mean(1)==pytest.approx(1/6, abs=0.01)
    share = w[1]/w[1:].sum(0) # of a Dirichlet with three ones: Beta(1, 2)
    assert share.mean()==pytest.approx(1/3, abs=0.01) and share.var()==pytest.approx(1/18, abs=0.003)

def _weights(t, i):
    t.stream.rekey(i)
    return t.weights(3000)

def test_severity():
    _,m = AugMix(severity=1.).draw(np.random.default_rng(0), 5000, 32, 32)
    ops,m3 = AugMix(depth=5).draw(np.random.default_rng(0), 5000, 32, 32)
    assert ops.shape==(5,5000) and (ops>0).all() and m3[ops==operation_index['Rotate']].max()==8
    assert m[m<200].max()==4 and {*m[(m>4)]}=={*range(231, 255)} # bits, and thresholds

@pytest.mark.parametrize('transform', ['Rotate', 'Posterize', 'AutoContrast', 'Equalize'])
def test_one_operation_as_torchvision(transform, monkeypatch):
    "torchvision's mix of the same chains with the same weights, which it cuts off to bytes"
    t,x = AugMix(width=2, depth=1, jsd=0.),digits[:6]
    i,m = operation_index[transform],dict(Rotate=9., Posterize=3.).get(transform, 0.)
    monkeypatch.setattr(AugMix, 'draw', lambda self, rng, b, h, w: (np.full((1,b), i), np.full((1,b), m)))
    monkeypatch.setattr('cifar_fastai.augment.autoaugment._has_sign', np.zeros(20, bool))
    w = torch.from_numpy(t.weights(6))
    monkeypatch.setattr(AugMix, 'weights', lambda self, b: w.numpy())
    theirs = tv.AugMix(mixture_width=2, chain_depth=1, interpolation=tv.InterpolationMode.NEAREST)
    theirs._get_random_item = lambda space: (transform, (lambda *_: None if m==0 else [m]*10, False))
    draws = iter([torch.stack([w[0], 1-w[0]], 1), (w[1:]/(1-w[0])).T])
    theirs._sample_dirichlet = lambda _: next(draws)
    assert (t.augment(x).float()-theirs(x).float()).abs().max()<=1

def test_mix():
    x = torch.full((2,3,4,4), 200, dtype=torch.uint8)
    chains = torch.stack([x//2, torch.zeros_like(x)])
    assert mix_chains(x, chains, torch.tensor([[1., .5], [0., .25], [0., .25]]))[:,0,0,0].tolist()==[200, 125]
    assert mix_chains(x+55, torch.stack([x+55]*2), torch.full((3,2), 1/3)).unique().tolist()==[255]

@pytest.mark.parametrize('smoothing', [0., 0.1])
def test_loss_as_timm(smoothing):
    logits = torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = torch.arange(7)
    want = JsdCrossEntropy(num_splits=3, alpha=12, smoothing=smoothing)(logits.flatten(0, 1), y.repeat(3))
    ours = torch.nn.functional.cross_entropy(logits[0], y, label_smoothing=smoothing) + 12*js_divergence(logits)
    assert torch.allclose(ours, want)
    a,b = (torch.autograd.grad(o, logits)[0] for o in (ours, want))
    assert torch.allclose(a, b, atol=1e-6)
    each = js_divergence(logits, 'none')
    assert each.shape==(7,) and torch.allclose(js_divergence(logits, 'sum'), each.sum())

def test_certain_predictions_have_a_gradient():
    logits = (torch.eye(3)[:,None]*500).requires_grad_()
    js_divergence(logits).backward()
    assert logits.grad.isfinite().all()

def test_batch_is_seen_as_without_views():
    'Labels, predictions, monitors and a teacher see the images; the network sees all views'
    class Net(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return torch.zeros(len(x), 10)
    sizes,seen,ends = [],[],{}
    learn = our_learner([AugMix(), TrainAccuracy(), ImagesPerSecond(), KD(Net())])
    def add(cb): seen.append((len(cb.xb[0]), len(cb.pred), len(cb.yb[0]))) if cb.training else None
    look = Callback(after_pred=add,
        after_train=lambda cb: ends.update(acc=learn.train_accuracy.n, ips=learn.images_per_second.n))
    look.order = 90
    fit(learn, 1, cbs=look)
    assert sizes==[13, 13, 13, 1] and seen==[(39, 13, 13)]*3+[(3, 1, 1)] and ends==dict(acc=40, ips=40)

@pytest.mark.parametrize('mixer', [MixUp, lambda: OneOf(MixUp()), FastaiMixUp])
def test_mixers_are_refused(mixer):
    with pytest.raises(UserError, match='or leave the mixer out'): fit(plain_learner([AugMix(), mixer()]))
    for cbs in ([AugMix(width=0), mixer()], [AugMix(jsd=0.), mixer()]): our_learner(cbs)

def test_other_losses():
    'Without the consistency loss any loss will do'
    for t,ok in ((AugMix(jsd=0.), True), (AugMix(), False)):
        learn = our_learner(loss_func=torch.nn.MultiMarginLoss())
        learn.add_cb(t)
        if ok: fit(learn, 1)
        else:
            with pytest.raises(UserError, match='needs a cross entropy'): fit(learn, 1)
