'`CrossEntropy` with class weights, beside everything that changes targets; losses of others'
import copy,pickle,pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.losses import BCEWithLogitsLossFlat,CrossEntropyLossFlat,FocalLossFlat,LabelSmoothingCrossEntropyFlat
from cifar_fastai.core import UserError
from cifar_fastai.callback.distill import KD
from cifar_fastai.losses import CrossEntropy,LabelSmoothing,as_probs
from cifar_fastai.callback.mixers import RICAP, Chain, CutMix, MixUp
from cifar_fastai.callback.sam import SAM
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

losses = dict(focal=lambda: FocalLossFlat(weight=weights), bce_flat=lambda: BCEWithLogitsLossFlat(),
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
