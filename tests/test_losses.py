'`CrossEntropy` with class weights, beside everything that changes targets; losses of others'
import copy,pickle,pytest,torch
from timm.loss import BinaryCrossEntropy as TimmBCE
from torch import nn
from fastai.callback.core import Callback
from fastai.losses import BCEWithLogitsLossFlat,CrossEntropyLossFlat,FocalLossFlat,LabelSmoothingCrossEntropyFlat
from cifar_fastai.core import UserError
from cifar_fastai.callback.distill import KD
from cifar_fastai.losses import BinaryCrossEntropy,CrossEntropy,LabelSmoothing,as_probs
from cifar_fastai.callback.mixers import RICAP, Chain, CutMix, MixUp
from cifar_fastai.callback.manifold import ManifoldMixUp
from cifar_fastai.callback.sam import SAM
from common import silent
from test_contract import our_learner
from test_learner import fit,learner,net

g = torch.Generator().manual_seed(0)
pred,labels = torch.randn(7, 5, generator=g, dtype=torch.float64),torch.tensor([0,4,2,2,1,0,3])
w = torch.tensor([0.5, 2., 1., 0., 3.], dtype=torch.float64)
probs = torch.rand(7, 5, generator=g, dtype=torch.float64).softmax(1)

@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('eps', [0., 0.1, 1.])
@pytest.mark.parametrize('weight', [None, w])
def test_labels(weight, eps, reduction):
    "For labels it is torch's, gradients too, and one-hot probabilities give what labels give"
    ours = CrossEntropy(eps, reduction, weight)
    theirs = nn.CrossEntropyLoss(weight, label_smoothing=eps, reduction=reduction)
    res = []
    for f,t in ((theirs, labels), (ours, labels), (ours, as_probs(labels, 5, torch.float64))):
        p = pred.clone().requires_grad_()
        loss = f(p, t)
        loss.sum().backward()
        res.append((loss.detach(), p.grad))
    for a in res[1:]:
        for x,y in zip(a, res[0]): torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)

@pytest.mark.parametrize('eps', [0., 0.2])
def test_probabilities(eps):
    'Written out: each class by its probability and its weight, over the sum of those'
    q = probs*(1-eps) + eps/5
    each = -(q*w*pred.log_softmax(1)).sum(1)
    for reduction,want in dict(none=each, sum=each.sum(), mean=each.sum()/(probs*w).sum()).items():
        torch.testing.assert_close(CrossEntropy(eps, reduction, w)(pred, probs), want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(CrossEntropy(eps, weight=torch.ones(5).double())(pred, probs),
        CrossEntropy(eps)(pred, probs))

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('targ', [labels, probs])
def test_precision(targ, dtype):
    'In half precision the weighted loss is computed in float32, under autocast too'
    loss,p = CrossEntropy(0.1, weight=w.float()),pred.to(dtype)
    t = targ if targ.ndim==1 else targ.to(dtype)
    want = CrossEntropy(0.1, weight=w)(p.double(), t if t.ndim==1 else t.double())
    for on in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=on): got = loss(p, t)
        assert got.dtype==torch.float32 and got.item()==pytest.approx(want.item(), rel=1e-5)

def test_buffer():
    'The weights follow the loss to a device and into a pickle; predictions on the meta device leave them as they are'
    loss = CrossEntropy(weight=[1, 2, 3.])
    assert dict(loss.named_buffers())['weight'].dtype==torch.float32
    for o in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)): assert torch.equal(o.weight, loss.weight)
    assert loss(torch.empty(2, 3, device='meta'), torch.empty(2, 3, device='meta')).is_meta
    assert torch.equal(loss.weight, torch.tensor([1., 2, 3]))
    assert loss.to('meta').weight.is_meta

@pytest.mark.parametrize('kwargs,name',
    [(dict(weight=o), 'weight') for o in ([], [-1, 1], [0, 0], [float('nan'), 1], [float('inf'), 1], 'ab', 3,
        [[1, 2]], {}, ['a', 'b'], [None])]
    + [(dict(reduction=o), 'reduction') for o in ('avg', None, 1)] + [(dict(smoothing=o), 'smoothing')
        for o in (-1, 2, 'a', None, float('nan'))])
def test_refusals(kwargs, name):
    with pytest.raises(UserError) as e: CrossEntropy(**kwargs)
    assert str(e.value).startswith(f'{name} is ')

@pytest.mark.parametrize('targ', [labels, probs])
def test_wrong_number_of_weights(targ):
    with pytest.raises(UserError, match='weight has 3 numbers, and the network has 5 outputs'):
        CrossEntropy(weight=[1, 1, 1])(pred, targ)

tricks = dict(smoothing=LabelSmoothing, mixup=MixUp, cutmix=lambda: CutMix(p=1.),
    chain=lambda: Chain(RICAP(), MixUp(0.3)), kd=lambda: KD(net()), sam=SAM)
weights = torch.linspace(0.1, 3, 10)

@pytest.mark.parametrize('names', [(n,) for n in tricks]+[('smoothing','mixup','kd','sam')])
def test_tricks_see_the_weights(names):
    'In training the loss is the weighted one of what the tricks made of the targets'
    seen = []
    def look(self):
        if self.training: seen.append((self.loss.item(), self.pred.detach(), self.yb[0]))
    learn = fit(learner(loss_func=CrossEntropy(weight=weights),
        cbs=[*(tricks[n]() for n in names), Callback(after_loss=look)]))
    assert seen
    if 'kd' in names: return
    eps = 0.1*('smoothing' in names)
    for loss,p,y in seen:
        assert loss==pytest.approx(CrossEntropy(eps, weight=weights)(p, as_probs(y, 10)).item(), rel=1e-5)

@pytest.mark.parametrize('make',
    [lambda: CrossEntropyLossFlat(weight=weights),
        lambda: nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1)])
def test_weights_of_others(make):
    "Class weights of fastai's and torch's cross entropy stay when a trick needs ours"
    def weights_after(loss, cbs):
        torch.manual_seed(0)
        return fit(learner(loss_func=loss, cbs=cbs)).model[0].weight
    plain = weights_after(make(), [])
    assert torch.allclose(weights_after(make(), [KD(net(), alpha=0.)]), plain)
    assert not torch.allclose(weights_after(CrossEntropy(), [KD(net(), alpha=0.)]), plain)

losses = dict(focal=lambda: FocalLossFlat(weight=weights),
    bce=lambda: nn.BCEWithLogitsLoss(pos_weight=weights),
    smoothed=lambda: LabelSmoothingCrossEntropyFlat(weight=weights),
    ignoring=lambda: nn.CrossEntropyLoss(ignore_index=3), mse=lambda: nn.MSELoss())
@pytest.mark.parametrize('trick', ['smoothing', 'mixup', 'chain', 'kd'])
@pytest.mark.parametrize('name', losses)
def test_other_losses_are_refused(name, trick):
    'With advice that keeps the weights'
    with pytest.raises(UserError) as e: learner(loss_func=losses[name](), cbs=tricks[trick]())
    weighted = name in ('focal', 'bce', 'smoothed')
    assert 'needs a cross entropy' in str(e.value) and ('CrossEntropy(weight=...), with the same class weights' in str(e.value))==weighted

def test_other_losses_alone():
    'Focal loss trains; binary cross entropy of labels is refused in one sentence, and trains where there is a target per output'
    fit(learner(loss_func=FocalLossFlat(weight=weights)))
    for f in (BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss()):
        learn = learner(loss_func=f)
        with pytest.raises(UserError, match='takes one target per output, and these targets are class labels'):
            fit(learn)
        for dl in learn.dls.loaders: dl[:] = [(x, as_probs(y, 10)) for x,y in dl]
        learn.metrics = []
        fit(learn)

# binary cross entropy

def wanted(threshold): return dict(shares=True) if threshold is None else dict(threshold=threshold)

@pytest.mark.parametrize('sum_classes', [False, True])
@pytest.mark.parametrize('weight', [None, w])
@pytest.mark.parametrize('threshold', [None, 0., 0.2])
@pytest.mark.parametrize('targ', [labels, probs])
def test_bce_is_that_of_timm(targ, threshold, weight, sum_classes):
    "Values and gradients; for probabilities, and for smoothed labels where nothing is thresholded"
    eps = 0.1 if targ.ndim==1 and threshold is None else 0.
    ours = BinaryCrossEntropy(eps, weight=weight, **wanted(threshold), sum_classes=sum_classes)
    theirs = TimmBCE(eps, threshold, weight, sum_classes=sum_classes)
    res = []
    for f in (ours, theirs):
        p = pred.clone().requires_grad_()
        loss = f(p, targ)
        loss.backward()
        res.append((loss.detach(), p.grad))
    for a,b in zip(*res): torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)

@pytest.mark.parametrize('eps', [0., 0.3, 1.])
@pytest.mark.parametrize('threshold', [None, 0., 0.25])
def test_bce_written_out(threshold, eps):
    'Class by class; smoothing comes last; reductions are over images'
    each = []
    for z,q in zip(pred, probs):
        loss = 0
        for zk,qk in zip(z, q):
            t = (qk if threshold is None else float(qk>threshold))*(1-eps) + eps/5
            loss -= t*torch.log(1/(1+torch.exp(-zk))) + (1-t)*torch.log(1/(1+torch.exp(zk)))
        each.append(loss)
    each = torch.stack(each)
    for reduction,want in dict(none=each, sum=each.sum(), mean=each.mean()).items():
        for summed in (True, False):
            got = BinaryCrossEntropy(eps, reduction, **wanted(threshold), sum_classes=summed)(pred, probs)
            torch.testing.assert_close(got, want/(1 if summed else 5), rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_bce_precision(dtype):
    'In half precision it is computed in float32, under autocast too; on the meta device it runs'
    loss,p,t = BinaryCrossEntropy(0.1, weight=w.float()),pred.to(dtype)*4,probs.to(dtype)
    want = BinaryCrossEntropy(0.1, weight=w)(p.double(), t.double())
    for on in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=on): got = loss(p, t)
        assert got.dtype==torch.float32 and got.item()==pytest.approx(want.item(), rel=1e-5)
    assert loss(torch.empty(2, 5, device='meta'), torch.empty(2, device='meta', dtype=torch.long)).is_meta

@pytest.mark.parametrize('kwargs,name', [(dict(threshold=o), 'threshold') for o in (1, -0.1, 'a', None, True, float('nan'))]
    + [({k:o}, k) for k in ('sum_classes', 'shares') for o in (None, 1, 'yes')] + [(dict(reduction='avg'), 'reduction')])
def test_bce_refusals(kwargs, name):
    with pytest.raises(UserError) as e: BinaryCrossEntropy(**kwargs)
    assert str(e.value).startswith(f'{name} is ')

@pytest.mark.parametrize('threshold', [0., None])
@pytest.mark.parametrize('names', [(n,) for n in tricks]+[('smoothing','mixup','kd','sam'), ('manifold','smoothing','sam')])
def test_tricks_with_bce(names, threshold):
    "In training the loss is timm's of what the tricks made of the targets, plus KD's term; validation is plain"
    seen = []
    def look(self):
        if self.training: seen.append((self.loss.item(), self.pred.detach(), self.yb[0]))
    kd = KD(net(), T=2., alpha=0.3)
    cbs = [kd if n=='kd' else ManifoldMixUp() if n=='manifold' else tricks[n]() for n in names]
    logits = []
    keep = Callback(after_loss=lambda self: logits.append(kd.logits))
    learn = fit(learner(loss_func=BinaryCrossEntropy(**wanted(threshold)), cbs=[*cbs, Callback(after_loss=look), keep]))
    assert seen
    for (loss,p,y),z in zip(seen, logits):
        q = as_probs(y, 10)
        if threshold is not None: q = (q>0).float()
        if 'smoothing' in names: q = q*0.9 + 0.01
        want = TimmBCE(0., sum_classes=True)(p, q)
        if 'kd' in names:
            a,b = (z/2).softmax(1),(p/2).softmax(1)
            want = 0.7*want + 0.3*4*(a*(a/b).log()).sum(1).mean()
        assert loss==pytest.approx(want.item(), rel=1e-4)
    x,y = (torch.cat(o) for o in zip(*learn.dls.valid))
    learn.model.eval()
    with torch.no_grad(): plain = TimmBCE(0., sum_classes=True)(learn.model(x), y)
    assert learn.validate()[0]==pytest.approx(plain.item(), rel=1e-5)

def test_bce_in_a_run():
    'Named as a loss of a configuration, with its arguments checked'
    from cifar_fastai.runs.config import RunConfig
    from cifar_fastai.runs.train import create_call
    loss = create_call(RunConfig(model='lenet', loss='BinaryCrossEntropy(shares=True, smoothing=0.1)').call('loss'))
    assert type(loss) is BinaryCrossEntropy and loss.shares and loss.smoothing==0.1
    with pytest.raises(UserError, match='threshold is 2'):
        RunConfig(model='lenet', loss='BinaryCrossEntropy(threshold=2)').call('loss')

def test_bce_learns():
    'A network learns from it, and its class is the one with the largest probability'
    learn = our_learner(loss_func=BinaryCrossEntropy())
    before = learn.validate()[0]
    with silent(learn):
        fit(learn, 3)
        preds,_,dec = learn.get_preds(with_decoded=True)
    assert learn.validate()[0]<before
    assert preds.min()>=0 and preds.max()<=1 and (preds.sum(1)-1).abs().max()>0.01 and torch.equal(dec, preds.argmax(1))
