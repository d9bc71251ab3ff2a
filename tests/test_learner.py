'`cifar_learner`: its arguments, and what it refuses'
import inspect,pytest,torch
import fastai.callback.mixup as fm,fastai.vision.augment as fv
from functools import partial
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score,accuracy,error_rate,top_k_accuracy
from fastai.optimizer import OptimWrapper,SGD
from fastai.torch_core import set_seed
from fastcore.foundation import L
from cifar_fastai.core import UserError
from cifar_fastai.callback.distill import KD
from cifar_fastai.learner import cifar_learner
from cifar_fastai.losses import CrossEntropy,LabelSmoothing,as_probs
from cifar_fastai.callback.mixers import RICAP, CutMix, MixUp, OneOf
from cifar_fastai.callback.monitor import TrainAccuracy
from cifar_fastai.callback.sam import SAM
from cifar_fastai.trick import Trick
from common import fit

def dls(n_out=10, n=2, bs=6):
    'A few batches of noise'
    g = torch.Generator().manual_seed(0)
    bs = [(torch.rand(bs, 3, 8, 8, generator=g), torch.randint(0, n_out, (bs,), generator=g)) for _ in range(n)]
    res = DataLoaders(list(bs), list(bs))
    res.c = n_out
    return res

def net(n_out=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, n_out))

def learner(n_out=10, **kwargs): return cifar_learner(net(n_out), dls(), **{**dict(lr=0.01), **kwargs})


def test_words():
    "Optimizer and loss have fastai's names, and `opt` and `loss` are no longer arguments"
    ps = set(inspect.signature(cifar_learner).parameters)
    assert {'opt_func','loss_func'}<=ps and not {'opt','loss'}&ps
    assert ps-{'arch','channels_last','compile','init','n_out','precision'} <= set(inspect.signature(Learner.__init__).parameters)

@pytest.mark.parametrize('opt_func', ['adamw', SGD, partial(OptimWrapper, opt=torch.optim.Adam)])
def test_opt_func(opt_func):
    learn = fit(learner(opt_func=opt_func))
    assert opt_func is SGD or isinstance(learn.opt.opt, torch.optim.Adam)

def test_loss_func():
    assert type(learner().loss_func) is CrossEntropy
    assert type(fit(learner(loss_func=CrossEntropyLossFlat())).loss_func) is CrossEntropyLossFlat

@pytest.mark.parametrize('kwargs,said', [
    (dict(opt_func='sdg'), "There is no optimizer 'sdg': did you mean 'sgd'?"),
    (dict(opt_func=None), 'opt_func is None: it must be the name of an optimizer, or a '
        'callable that takes parameters and lr.'),
    (dict(opt_func=0.1), 'opt_func is 0.1: it must be'),
    (dict(loss_func='ce'), "loss_func is 'ce': it must be a callable that takes predictions and targets."),
    (dict(loss_func=CrossEntropy), 'loss_func is the class CrossEntropy: it must be an instance, as CrossEntropy().')])
def test_refusals(kwargs, said):
    with pytest.raises(UserError) as e: learner(**kwargs)
    assert said in str(e.value)

# what is not a callback

class Thing: name,order = 'thing',0
not_callbacks = [fv.RandomErasing(), fv.RandomErasing, fv.RandomCrop(8), Thing(), Thing, 'mixup', 3, nn.Linear(1, 1),
    lambda: None, {'a':1}, CrossEntropy]

@pytest.mark.parametrize('cb', not_callbacks, ids=range(len(not_callbacks)))
def test_not_callbacks(cb):
    'What is not a callback is refused, wherever it is given; ours of the same name is named'
    given = [lambda: learner(cbs=cb),
        lambda: learner(cbs=[SAM(), cb])] # to cifar_learner, to a Learner that is there, to a fit
    for f in [*given, lambda: learner().add_cb(cb), lambda: learner().add_cbs([cb]), lambda: fit(learner(), cbs=[cb])]:
        with pytest.raises(UserError, match='is not a callback') as e: f()
        ours = getattr(cb, '__name__', type(cb).__name__)
        assert ('use cifar_fastai.augment.' in str(e.value) and f'.{ours}' in str(e.value))==(ours in ('RandomErasing',
            'RandomCrop'))

def test_callbacks():
    'What fastai accepts: one, a list, a generator, a class'
    for cbs,n in ((SAM(), 1), (SAM, 1), ([SAM, MixUp()], 2), ((o for o in (SAM(), MixUp)), 2), (None, 0), ((), 0),
        (L(SAM()), 1)):
        assert len(fit(learner(cbs=cbs))._grab_cbs(Trick))==n
    fit(learner(), cbs=SAM)
    with pytest.raises(UserError, match='KD cannot be made without arguments'): learner(cbs=KD)

# fastai's own mixers

theirs = dict(mixup=fm.MixUp, cutmix=fm.CutMix)

def same_start(loss, cbs, **kwargs):
    set_seed(3)
    return fit(learner(loss_func=loss, cbs=cbs, **kwargs), 2)

@pytest.mark.parametrize('extra', [(), (SAM,), (LabelSmoothing,), (SAM, LabelSmoothing, TrainAccuracy)])
@pytest.mark.parametrize('name', theirs)
def test_fastais_mixers(name, extra):
    "Weights are those with fastai's own loss; the data, the loss object and validation stay as they are"
    learns = []
    for loss in (CrossEntropy(), CrossEntropyLossFlat()):
        d = dls()
        before = [x.clone() for x,_ in d.valid]
        set_seed(3)
        learn = cifar_learner(net(), d, lr=0.01, loss_func=loss, cbs=[theirs[name](), *(o() for o in extra)])
        fit(learn, 2)
        assert learn.loss_func is loss
        if name=='mixup': assert all(torch.equal(a, b) for a,(b,_) in zip(before, learn.dls.valid))
        p,t = [torch.cat(o) for o in zip(*[(learn.model.eval()(x).detach(), y) for x,y in learn.dls.valid])]
        assert learn.validate()[0]==pytest.approx(nn.functional.cross_entropy(p, t).item(), rel=1e-5)
        learns.append(learn)
    a,b = (l.model.state_dict() for l in learns)
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)
    plain = same_start(CrossEntropy(), [o() for o in extra]).model.state_dict()
    assert any(not torch.allclose(a[k], plain[k]) for k in a)

@pytest.mark.parametrize('name', theirs)
def test_fastais_mixers_bf16(name): fit(learner(cbs=theirs[name]()).to_bf16())

@pytest.mark.parametrize('ours', [MixUp(), CutMix(), RICAP(), OneOf(MixUp(), CutMix()), MixUp(0.)])
@pytest.mark.parametrize('name', theirs)
def test_mixers_together(name, ours):
    "Beside one of ours fastai's is refused by name, when the Learner is made and before a fit"
    cb = theirs[name]
    for f in (lambda: learner(cbs=[ours, cb()]), lambda: fit(learner(cbs=ours), cbs=cb()),
        lambda: fit(learner(cbs=cb), cbs=ours)):
        with pytest.raises(UserError) as e: f()
        assert f"fastai's {theirs[name].__name__} and {ours!r}" in str(e.value)

def test_two_of_fastais():
    for f in (lambda: learner(cbs=[fm.MixUp(), fm.CutMix()]), lambda: fit(learner(cbs=fm.MixUp()), cbs=fm.CutMix())):
        with pytest.raises(UserError, match="fastai's MixUp and CutMix"): f()

# targets, classes and metrics

mixing = dict(mixup=MixUp, cutmix=lambda: CutMix(p=1.), ricap=RICAP, one_of=lambda: OneOf(MixUp(), CutMix(p=1.)),
    half=CutMix, none=lambda: MixUp(0.))
@pytest.mark.parametrize('name', mixing)
def test_train_metrics(name):
    "With mixed targets `train_metrics` are the expected ones, as `TrainAccuracy` counts; validation is as ever"
    seen = []
    def look(self):
        if self.training: seen.append((self.pred.detach(), as_probs(self.yb[0], 10)))
    learn = learner(cbs=[mixing[name](), TrainAccuracy(), Callback(after_loss=look)],
        metrics=[accuracy, error_rate, partial(top_k_accuracy, k=3)])
    learn.recorder.train_metrics = True
    fit(learn)
    p,q = (torch.cat(o) for o in zip(*seen))
    acc = q.gather(1, p.argmax(1)[:,None]).mean().item()
    names,values = learn.recorder.metric_names[1:],learn.recorder.values[-1]
    row = dict(zip(names, values))
    top3 = q.gather(1, p.topk(3).indices).sum(1).mean().item()
    got = [row[k] for k in ('train_accuracy', 'train_error_rate', 'train_top_k_accuracy')]
    assert got==pytest.approx([acc, 1-acc, top3], rel=1e-5)
    if name=='none': assert acc==pytest.approx((p.argmax(1)==q.argmax(1)).float().mean().item())

@pytest.mark.parametrize('metric',
    [F1Score(average='macro'), lambda p,y: torch.tensor((p.argmax(1)==y).float().mean().item())])
def test_refused_metrics(metric):
    'What cannot be computed for mixed targets is refused in one sentence, and works without a mixer'
    def one(cbs):
        learn = learner(cbs=cbs, metrics=metric)
        learn.recorder.train_metrics = True
        return fit(learn)
    with pytest.raises(UserError, match='cannot be computed for mixed targets'): one(MixUp())
    one(None)

@pytest.mark.parametrize('cbs', [None, MixUp, fm.MixUp, LabelSmoothing])
@pytest.mark.parametrize('n_out', [6, 12])
def test_classes(n_out, cbs):
    'A network of other classes than the data is refused before it learns anything'
    before = net(n_out)
    learn = cifar_learner(net(n_out), dls(), cbs=cbs)
    for f in (lambda: fit(learn), learn.validate):
        with learn.no_bar(), pytest.raises(UserError,
            match=f'The network has {n_out} outputs, and the data have 10 classes'):
            f()
    for a,b in zip(learn.model.parameters(), before.parameters()): assert torch.equal(a, b)

def test_n_out():
    with pytest.raises(UserError, match='n_out is 6, and the data have 10 classes'):
        cifar_learner('lenet', dls(), n_out=6)
    for o in ('a', 0, 1.5, 10**9):
        with pytest.raises(UserError, match='n_out is'): cifar_learner('lenet', dls(), n_out=o)
    cifar_learner('lenet', dls(), n_out=10)

@pytest.mark.parametrize('kwargs,name',
    [({k:v}, k) for k in ('lr', 'wd') for v in ('a', -1, float('nan'), 1e308, {}, [0.1, 'a'], slice(None))])
def test_rates(kwargs, name):
    'Refused when the Learner is made, and by every fit'
    with pytest.raises(UserError, match=f'^{name} is '): learner(**kwargs)
    learn,v = learner(),kwargs[name]
    fits = [lambda: fit(learn, **{name:v})] + [lambda: learn.fit_one_cycle(1, v)]*(name=='lr'
        and not isinstance(v, dict))
    for f in fits:
        with learn.no_bar(), learn.no_logging(), pytest.raises(UserError, match=f'^{name} is '): f()
