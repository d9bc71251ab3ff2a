"""The contract of every trick, over the registry: a new trick arrives tested.

1 neutral, 2 reference, 3 together, 4 lifecycle, 5 nothing left behind, 6 device, 7 exact resume, 8 picture."""
import copy
from contextlib import suppress
from functools import partial
from itertools import combinations
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.learner import Learner,load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from fastai.torch_core import get_random_states,set_seed
from cifar_fastai.core import UserError
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.zoo.layers import ConvBNAct, Residual
from cifar_fastai.learner import DeviceSmoothLoss,cifar_learner
from cifar_fastai.callback.monitor import TrainAccuracy
from cifar_fastai.callback.sam import SAM
from cifar_fastai.serialize import load_tree
from cifar_fastai.loop import check_callbacks
from cifar_fastai.trick import tricks
from hand import hand_fit
from common import fit_of, silent # chkstyle: ignore

def teacher():
    'A teacher that shows whether it is in evaluation mode, always the same one'
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(48, 10)).double()

# what a trick needs in these tests beside its defaults
arguments = dict(LabelSmoothing=dict(eps=0.1), SAM=dict(rho=0.3), LookSAM=dict(k=2, rho=0.3),
    KD=lambda: dict(teacher=teacher(), T=3.), DKD=lambda: dict(teacher=teacher(), beta=2., T=3., warmup=1.),
    EMA=dict(decay=0.9),
    SWA=dict(start=0.), Lookahead=dict(k=2), GradientClip=dict(max_norm=0.5),
    GhostBatchNorm=dict(size=3), SelectiveBackprop=dict(interrupt=3))
# settings with which a trick takes another way: name and a word; they are held to what each trick is held to alone
others = {'Flip alternate':dict(alternate=True), 'RandomCrop reflect':dict(mode='reflect'),
    'AutoAugment svhn':dict(policy='svhn'),
    'RandomErasing uniform':dict(log_aspect=False), 'SAM every':dict(every=2), 'SAM norm':dict(only='norm'),
    'MixUp window':dict(start=0.17, end=0.67), 'EMA window':dict(start=0.5), 'ShakeDrop window':dict(end=0.4),
    'KD window':dict(start=0.3), 'LabelSmoothing window':dict(start=0.5), 'SAM window':dict(start=0.34, end=0.8),
    'MixUp per image':dict(per_image=True), 'CutMix per image':dict(per_image=True, p=0.7),
    'RepeatedAugment same_size':dict(k=3, same_size=True),
    'AugMix alone':dict(jsd=0.), 'SelectiveBackprop window':dict(start=0.25, end=0.9, interrupt=0)}
resizing = ['AugMix', 'RepeatedAugment', 'SelectiveBackprop'] # the network gets fewer images, or more
names = sorted(tricks)
alone = names+list(others)
sharp = [n for n in names if issubclass(tricks[n], SAM)]
def sampled(groups, every):
    'Every n-th group; the others are slow tests'
    return [pytest.param(o, marks=[pytest.mark.slow] if i%every else []) for i,o in enumerate(groups)]

pairs = list(combinations(names, 2))
triples = [t for t in combinations(names, 3) if set(t)&set(sharp)]

# the longest sensible chain
chain = 'AutoAugment','RandomCrop','Flip','RandomErasing','RICAP','KD','SAM','GradientClip','EMA'

def make(name, **kwargs):
    a = arguments.get(kind := name.split()[0], {})
    return tricks[kind](**{**(a() if callable(a) else a), **others.get(name, {}), **kwargs})

def net(n_out=10):
    'A small network with what tricks have to get right: BatchNorm, dropout, a residual branch'
    branch = nn.Sequential(ConvBNAct(8, 8), ConvBNAct(8, 8, act=None))
    return nn.Sequential(ConvBNAct(3, 8, stride=2), Residual(branch, act=nn.ReLU), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, n_out))

def batches(dtype, n=3, bs=6):
    'Random batches, the last of one image'
    g = torch.Generator().manual_seed(5)
    return [(torch.rand(b, 3, 32, 32, generator=g, dtype=dtype), torch.randint(0, 10, (b,), generator=g))
        for b in [bs]*(n-1)+[2]]

def listed(bs):
    'Fixed batches as `DataLoaders`'
    dls = DataLoaders(list(bs), list(bs))
    dls.c = 10
    return dls

sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9)

def plain_learner(cbs, dtype=torch.float64):
    "A Learner that this library did not make; in float32 with fastai's loss, which knows no float64"
    set_seed(0)
    loss = nn.CrossEntropyLoss() if dtype==torch.float64 else CrossEntropyLossFlat()
    learn = Learner(listed(batches(dtype)), net().to(dtype), loss, opt_func=sgd, lr=0.05, wd=1e-3, cbs=cbs)
    learn.recorder.smooth_loss = DeviceSmoothLoss() # fastai's takes float32 only
    return learn

def our_learner(cbs=(), seed=0, **kwargs):
    'A Learner of this library over a few real digits; the last batch has one image'
    set_seed(seed)
    dls = cifar_dls('digits', bs=13, fraction=40/1500, val_bs=100)
    assert len(dls.train_ds)==40
    dls.valid.dataset = dls.valid_ds.subset(range(0, 299, 15))
    dls.valid.n = len(dls.valid_ds)
    return cifar_learner(net(), dls, cbs=cbs, lr=0.05, **kwargs)

fit = fit_of(2, seed=1)

def state(learn):
    'Weights, buffers and momentum'
    res = {k:v.clone() for k,v in learn.model.state_dict().items()}
    return res | {f'momentum {i}':s['momentum_buffer'].clone() for i,s in enumerate(learn.opt.opt.state.values())}

def assert_same(a, b):
    assert a.keys()==b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

def refused(cbs):
    'The message with which `cbs` are refused together, or None'
    try: check_callbacks(plain_learner(cbs))
    except UserError as e: return str(e)

# 1 neutral
@pytest.mark.parametrize('name', alone)
@pytest.mark.parametrize('learner', [plain_learner, partial(plain_learner, dtype=torch.float32), our_learner])
def test_neutral(name, learner):
    'Switched off, the weights are bitwise those without it'
    off = make(name, **tricks[name.split()[0]].off_kwargs)
    assert_same(state(fit(learner([off]))), state(fit(learner([]))))

@pytest.mark.parametrize('name', alone)
def test_does_something(name):
    'Switched on, it changes the weights'
    on,off = (state(fit(our_learner(cbs))) for cbs in ([make(name)], []))
    assert any(not torch.equal(a, b) for a,b in zip(on.values(), off.values()))

@pytest.mark.parametrize('name', alone)
def test_own_random_numbers(name):
    "A trick moves nobody else's random numbers: Python's, numpy's and torch's end where they end without it"
    ends = []
    for cbs in ([make(name)], []):
        learn = our_learner(cbs)
        if name.split()[0] in resizing: learn.model[4].p = 0. # dropout draws one number per image
        fit(learn, 1)
        r = get_random_states()
        ends.append((r['random_state'], r['numpy_state'][1].tolist(), r['torch_state'].tolist()))
    assert ends[0]==ends[1]

# Tricks of which a Learner takes one, by the reason that it gives
exclusive = {'both choose what happens to an image':['AugMix', 'AugMix alone', 'AutoAugment', 'AutoAugment svhn', 'RandAugment', 'TrivialAugment'],
    'both crop the images':['RandomCrop', 'RandomCrop reflect', 'RandomResizedCrop'],
    'together have no single meaning':['CutMix', 'CutMix per image', 'ManifoldMixUp', 'MixUp', 'MixUp per image',
        'MixUp window', 'RICAP', 'ResizeMix'],
    'each decide where the one gradient of a step is taken':['ASAM', 'LookSAM', 'SAM',
        'SAM every', 'SAM norm', 'SAM window'],
    'each say which weights the model has after training':['EMA', 'EMA window', 'SWA'],
    'both disturb the residual branches':['ShakeDrop', 'ShakeDrop window', 'StochasticDepth'],
    'both limit the gradient of a step':['AGC', 'GradientClip'],
    'each weigh the labels against a teacher':['DKD', 'KD', 'KD window'],
    'the teacher of KD':['KD', 'ManifoldMixUp'], 'the teacher of DKD':['DKD', 'ManifoldMixUp'],
    'does not see it':['KD window', 'ManifoldMixUp']}

def same_kind(a, b): return a.split()[0]==b.split()[0]

def test_refused_pairs():
    'Exactly these pairs are refused, each with its reason'
    found = {frozenset(o):refused([make(n) for n in o]) for o in combinations(alone, 2) if not same_kind(*o)}
    wanted = {frozenset(o):why for why,names in exclusive.items() for o in combinations(names, 2) if not same_kind(*o)}
    wanted |= {frozenset(('AugMix', o)):'would mix with different images'
        for o in exclusive['together have no single meaning']}
    assert {o for o,message in found.items() if message}==set(wanted)
    for o,why in wanted.items(): assert why in found[o] and all(n.split()[0] in found[o] for n in o)

# 2 reference and 3 together
@pytest.mark.parametrize('group', [*[(n,) for n in alone], *sampled(pairs, 3), *sampled(triples, 15), chain], ids='+'.join)
def test_by_hand(group):
    'Equal to a loop written out by hand, in float64: weights, buffers, momentum; or refused, naming every trick concerned'
    cbs = [make(n) for n in group]
    if message:=refused(cbs):
        assert sum(n in message for n in group) >= 2
        return
    learn = plain_learner([make(n) for n in group])
    model = copy.deepcopy(learn.model)
    fit(learn, 2)
    set_seed(1)
    velocity = hand_fit(model, batches(torch.float64), 10, lr=0.05, momentum=0.9, wd=1e-3,
        tricks=[make(n) for n in group], epochs=2)
    for (k,a),b in zip(learn.model.state_dict().items(), model.state_dict().values()):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), k
    buffers = [s['momentum_buffer'] for s in learn.opt.opt.state.values()]
    for a,b in zip(buffers, velocity.values()): assert torch.allclose(a, b, rtol=1e-8, atol=1e-9)

@pytest.mark.parametrize('group', [*sampled(pairs, 8), *sampled(triples, 50), chain], ids='+'.join)
def test_order_of_the_list(group):
    'The order of `cbs` changes nothing, bitwise: callbacks are sorted, so turning a list round exchanges every two that could be'
    back = group[::-1]
    if refused([make(n) for n in group]): assert refused([make(n) for n in back])
    else: assert_same(*(state(fit(our_learner([make(n) for n in o]), 1)) for o in (group, back)))

# 4 lifecycle
class Break(Callback):
    'Breaks the fit off in the second batch'
    order = 95
    def __init__(self, when, exc): self.when,self.exc = when,exc
    def __call__(self, event_name):
        if event_name==self.when and self.training and self.iter==1: raise self.exc

def left_behind(learn):
    'What a fit must not change beside weights and optimizer: attributes, loss, hooks, transforms, data, class of the model'
    pipes = [[(type(t),t.order) for t in dl.after_batch.fs] for dl in learn.dls.loaders if hasattr(dl, 'after_batch')]
    hooks = [len(m._forward_hooks)+len(m._forward_pre_hooks)+len(m._backward_hooks) for m in learn.model.modules()]
    data = [dl.dataset.x.clone() for dl in learn.dls.loaders if hasattr(dl, 'dataset')]
    loss = learn.loss_func
    return dict(attrs=set(vars(learn))-{'lrs','final_record','smooth_loss','dl'},
        loss=(id(loss), len(getattr(loss, 'terms', [])), getattr(loss, 'smoothing', 0)),
        pipes=pipes, hooks=hooks, data=[d.sum().item() for d in data], model=[type(m) for m in learn.model.modules()],
        logger=learn.logger,
        autocast=(torch.is_autocast_enabled('cpu'), torch.is_autocast_enabled('cuda')))

@pytest.mark.parametrize('name', alone)
def test_lr_find(name):
    '`lr_find` changes nothing that comes after'
    learn = our_learner([make(name)])
    set_seed(1)
    with silent(learn): learn.lr_find(num_it=6, show_plot=False)
    with silent(learn): learn.fit(1)
    assert_same(state(learn), state(fit(our_learner([make(name)]), 1)))

@pytest.mark.parametrize('when',
    'before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch'.split())
@pytest.mark.parametrize('name', alone)
def test_interrupt(name, when):
    'Interrupted at any event, by Ctrl-C or an exception, nothing is left behind, and the next fit is that of another Learner with these weights'
    for learner,exc in ((our_learner, KeyboardInterrupt), (plain_learner, ZeroDivisionError('x'))):
        learn = learner([make(name)])
        fit(learn, 1)
        before = left_behind(learn)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)): fit(learn, 1, cbs=Break(when, exc))
        assert left_behind(learn)==before
        assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
        twin = fit(learner([make(name)]), 1) # the second fit of both
        twin.model.load_state_dict(learn.model.state_dict())
        for l in (learn, twin): fit(l, 1, reset_opt=True)
        assert_same(state(learn), state(twin))

# 5 nothing left behind
@pytest.mark.parametrize('name', alone)
@pytest.mark.parametrize('learner', [plain_learner, our_learner])
def test_nothing_left(name, learner):
    'After a fit, everything but weights and optimizer is as before'
    learn = fit(learner([]), 1)
    bare = left_behind(learn)
    cb = make(name)
    learn.add_cb(cb)
    fit(learn, 1)
    learn.remove_cb(cb)
    assert left_behind(learn)==bare

@pytest.mark.parametrize('name', alone)
def test_validation_is_plain(name):
    'Validation figures are those of the model that the Learner has after the fit: cross entropy and accuracy, computed here by hand'
    learn = our_learner([make(name)])
    fit(learn, 1)
    loss,acc = learn.recorder.values[-1][1:3]
    preds,targs = [],[]
    learn.model.eval()
    with torch.no_grad():
        for x,y in learn.dls.valid:
            preds.append(learn.model(x))
            targs.append(y)
    p,t = torch.cat(preds),torch.cat(targs)
    assert loss == pytest.approx(nn.functional.cross_entropy(p, t).item(), rel=1e-5)
    assert acc == pytest.approx((p.argmax(1)==t).float().mean().item(), rel=1e-5)
    assert fit(our_learner([make(name)]), 1).validate()[0] == pytest.approx(loss, rel=1e-6)

@pytest.mark.parametrize('name', alone)
def test_lives_with_fastai(name, tmp_path):
    'Prediction, tta, show_batch, save, load, export and load_learner work with the trick on'
    learn = our_learner([make(name)], path=tmp_path)
    fit(learn, 1)
    want = state(learn)
    with silent(learn):
        preds,_ = learn.get_preds()
        learn.tta(n=2)
        learn.show_batch(max_n=4)
        learn.show_results(max_n=4)
        learn.save('m')
        learn.load('m')
        learn.export('m.pkl')
        plt.close('all')
        assert_same(state(learn), want)
        loaded = load_learner(tmp_path/'m.pkl')
        img = learn.dls.valid_ds[0][0]
        with loaded.no_bar(): assert torch.allclose(loaded.predict(img)[2], preds[0], atol=1e-5)

@pytest.mark.parametrize('name', alone)
def test_accumulates(name):
    'Gradient accumulation over two halves of a batch runs, and moves the weights once'
    learn = our_learner([make(name), GradientAccumulation(52 if name=='RepeatedAugment' else 26)]) # it counts copies
    steps = []
    learn.add_cb(Callback(after_step=lambda self: steps.append(1)))
    fit(learn, 1)
    assert len(steps)==1 and all(v.isfinite().all() for v in state(learn).values())

@pytest.mark.parametrize('name', alone)
def test_bf16(name):
    'In bf16 equal to the loop written by hand under autocast, as near as bf16 goes'
    learn = plain_learner([make(name)], torch.float32).to_bf16()
    model,start = copy.deepcopy(learn.model),copy.deepcopy(learn.model)
    fit(learn, 1)
    set_seed(1)
    hand_fit(model, batches(torch.float32), 10, lr=0.05, momentum=0.9, wd=1e-3, tricks=[make(name)],
        autocast=lambda: torch.autocast('cpu', dtype=torch.bfloat16))
    for a,b,c in zip(learn.model.parameters(), model.parameters(), start.parameters()):
        assert (a-b).norm() <= 0.1*(b-c).norm() + 1e-6

# 6 device
def on_meta(cbs):
    learn = our_learner(cbs)
    learn.dls.to('meta')
    learn.model.to('meta')
    return learn

@pytest.mark.parametrize('group', [(n,) for n in alone]+[chain], ids='+'.join)
def test_on_meta(group):
    'Nothing a step does waits for the device or lands on another one: an epoch runs on the meta device'
    fit(on_meta([make(n) for n in group]), 1)

def test_meta_catches():
    'What the meta device is there to catch is caught'
    for bad in (lambda self: self.loss.item(), lambda self: self.xb[0]*torch.ones(1),
        lambda self: self.xb[0][self.xb[0]>0]):
        with pytest.raises(Exception): fit(on_meta([Callback(after_loss=bad)]), 1)

# 7 exact resume
class StopAt(Callback):
    'Ctrl-C at the start of an epoch'
    order = 96
    def __init__(self, epoch): self.at = epoch
    def before_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('name', alone)
def test_resume(name, tmp_path):
    'RunInterrupted after an epoch and gone on with in a new Learner: bitwise the uninterrupted run, its checkpoint too'
    def run(file, seed=1, **kwargs):
        learn = our_learner([make(name)], seed=0 if seed==1 else 7)
        set_seed(seed)
        with silent(learn), suppress(KeyboardInterrupt): learn.fit_cosine(3, 0.05, by='batch', **kwargs)
        return learn
    whole = run('a', cbs=Checkpoint(tmp_path/'a'))
    for stop in (1, 2):
        run('b', cbs=[Checkpoint(tmp_path/f'b{stop}'), StopAt(stop)])
        later = run('b', seed=9, cbs=Checkpoint(tmp_path/f'b{stop}', resume=True))
        assert_same(state(later), state(whole))
        assert later.recorder.values==whole.recorder.values
        assert (tmp_path/f'b{stop}').read_bytes()==(tmp_path/'a').read_bytes()

class Tell(Callback):
    'Says to a checkpoint what SIGTERM says, in a batch of the second epoch'
    order = 40
    def __init__(self, ckpt, batch): self.ckpt,self.batch = ckpt,batch
    def after_batch(self):
        if self.training and (self.epoch,self.iter)==(1,self.batch): self.ckpt.signal = 'told'

@pytest.mark.parametrize('name', alone)
def test_resume_inside_an_epoch(name, tmp_path):
    'Told to end in the middle of an epoch, or in its last batch, and gone on with: bitwise the uninterrupted run'
    def run(file, cbs=(), seed=1, resume=False):
        learn = our_learner([make(name), TrainAccuracy()], seed=0 if seed==1 else 7)
        ckpt = Checkpoint(tmp_path/file, resume=resume)
        set_seed(seed)
        with silent(learn): learn.fit_one_cycle(3, 0.05, cbs=[ckpt, *(o(ckpt) for o in cbs)])
        return learn
    whole = run('a')
    for batch in (0, 2, 3):
        file = f'b{batch}'
        run(file, [partial(Tell, batch=batch)])
        assert load_tree(tmp_path/file).get('iter')==(None if batch==3 else batch+1)
        later = run(file, seed=9, resume=True)
        assert_same(state(later), state(whole))
        assert later.recorder.values==whole.recorder.values and later.recorder.lrs==whole.recorder.lrs
        assert (tmp_path/file).read_bytes()==(tmp_path/'a').read_bytes()

# 8 picture
@pytest.mark.parametrize('name', alone)
def test_picture(name):
    '`show_batch` with the trick on draws images and moves nothing'
    learn = our_learner([make(name)])
    set_seed(1)
    learn.show_batch(max_n=4)
    assert len(plt.gcf().axes) >= 4
    plt.close('all')
    with silent(learn): learn.fit(1)
    assert_same(state(learn), state(fit(our_learner([make(name)]), 1)))
