"""A Learner's life: every trick and every callback of ours x everything that a Learner does, before, after and inside a fit.

What is not training leaves weights, optimizer, files, random numbers and the state of callbacks bitwise as they were, and a fit
with inference inside ends bitwise as without it. Interrupted and resumed equals uninterrupted for every stateful callback."""
import copy, warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from torch import nn
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException
from fastai.callback.core import CancelTrainException
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, ShortEpochCallback
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.torch_core import get_random_states, set_seed
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.loop import loop_state, managed, training_run
from cifar_fastai.callback.mixers import Chain, CutMix, MixUp, OneOf
from cifar_fastai.callback.monitor import CPUUse, ImagesPerSecond, PeakMemory, TrainAccuracy
from cifar_fastai.rng import learner_random
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.runs.train import RunLog
from test_contract import assert_same, batches, listed, make, names, net, our_learner, plain_learner, silent, state

# callbacks beside the tricks: name -> function of a folder
ours = dict(OneOf=lambda d: OneOf(MixUp(), CutMix()), Chain=lambda d: Chain(MixUp(), CutMix()),
    TrainAccuracy=lambda d: TrainAccuracy(),
    ImagesPerSecond=lambda d: ImagesPerSecond(), PeakMemory=lambda d: PeakMemory(), CPUUse=lambda d: CPUUse(),
    Checkpoint=lambda d: Checkpoint(d/'c.safetensors'), Resuming=lambda d: Checkpoint(d/'r.safetensors', resume=True),
    RunLog=lambda d: RunLog(RunFolder(d)))
# fastai's stateful callbacks, on a Learner of ours
theirs = dict(SaveModel=lambda d: SaveModelCallback(), EarlyStopping=lambda d: EarlyStoppingCallback(patience=5),
    ReduceLR=lambda d: ReduceLROnPlateau(patience=1), CSVLogger=lambda d: CSVLogger(),
    Accumulation=lambda d: GradientAccumulation(20),
    ShortEpoch=lambda d: ShortEpochCallback(0.4))
callbacks = {n:partial(lambda n, d: make(n), n) for n in names} | ours | theirs

def learner(name, folder, **kwargs):
    folder.mkdir(exist_ok=True)
    return our_learner([callbacks[name](folder)], path=folder, **kwargs)

def loaded(learn):
    learn.export('m.pkl')
    other = load_learner(learn.path/'m.pkl')
    with other.no_bar(): other.predict(learn.dls.valid_ds[0][0])
    (learn.path/'m.pkl').unlink()

def shown(f):
    def _f(learn):
        res = f(learn)
        plt.close('all')
        return res
    return _f

# what a Learner does beside training
infer = dict(validate=lambda l: l.validate(), get_preds=lambda l: l.get_preds(),
    train_preds=lambda l: l.get_preds(ds_idx=0, with_loss=True),
    predict=lambda l: l.predict(l.dls.valid_ds[0][0]), tta=lambda l: l.tta(n=2),
    show_results=shown(lambda l: l.show_results(max_n=2)),
    interpretation=lambda l: ClassificationInterpretation.from_learner(l).confusion_matrix(),
    summary=lambda l: str(l.summary()), export=loaded)
trial = dict(show_batch=shown(lambda l: l.show_batch(max_n=2)), lr_find=shown(lambda l: l.lr_find(num_it=6)))
activities = infer | trial

def plain(v):
    'A value as bytes that can be compared'
    if isinstance(v, torch.Tensor):
        return str(v.dtype),v.detach().cpu().double().numpy().tobytes() if not v.is_meta else b''
    if isinstance(v, np.ndarray): return v.tobytes()
    if isinstance(v, dict): return {str(k):plain(o) for k,o in v.items()}
    if isinstance(v, (list, tuple)) or type(v).__name__=='L': return [plain(o) for o in v]
    return v if isinstance(v,
        (int, float, str, bytes, bool, type(None))) else id(v) if callable(v) else type(v).__name__

def callback_state(learn, recorder=True):
    'The attributes of our callbacks, of trackers and of the Recorder'
    skip = {'learn', 'progress'} | (set() if recorder else {'recorder'})
    return {type(cb).__name__:plain({k:v for k,v in vars(cb).items() if k not in ('learn', 'run', '_stream')})
        for cb in learn.cbs
        if cb.name not in skip and not isinstance(cb, (ProgressCallback, Nested, InferenceLog))}

def snapshot(learn, recorder=True):
    'All that must be as before'
    files = {str(o.relative_to(learn.path)):o.read_bytes() for o in sorted(Path(learn.path).rglob('*')) if o.is_file()}
    opt = None if learn.opt is None else plain(learn.opt.state_dict())
    return dict(weights=plain(learn.model.state_dict()), opt=opt,
        hypers=None if learn.opt is None else plain(list(map(dict, learn.opt.hypers))),
        random=plain(learner_random(learn)), callbacks=callback_state(learn, recorder), files=files,
        cbs=sorted(type(cb).__name__ for cb in learn.cbs),
        autocast=(torch.is_autocast_enabled('cpu'), torch.get_default_dtype()),
        grads=[p.grad is None or not p.grad.any().item() for p in learn.model.parameters()],
        loss=(id(learn.loss_func), learn.loss_func.smoothing, len(learn.loss_func.terms), learn.loss_func.reduction))

def assert_equal(a, b, what):
    for k in a: assert a[k]==b[k], f'{what}: {k}'

def run(learn, n=2, **kwargs):
    with silent(learn): learn.fit(n, **kwargs)
    return learn

def all_activities(learn, todo=activities):
    for k,f in todo.items():
        before = snapshot(learn, recorder=k!='lr_find') # the Recorder shows what lr_find did
        with silent(learn): f(learn)
        assert_equal(before, snapshot(learn, recorder=k!='lr_find'), k)

@pytest.mark.parametrize('name', callbacks)
def test_life(name, tmp_path):
    'Before, between and after fits, nothing but a fit changes anything, and the fits are those of a Learner that did nothing else'
    set_seed(1)
    learn = learner(name, tmp_path/'a')
    all_activities(learn)
    run(learn)
    all_activities(learn)
    run(learn, 1)
    all_activities(learn, dict(validate=infer['validate']))
    set_seed(1)
    other = run(run(learner(name, tmp_path/'b')), 1)
    assert_same(state(learn), state(other))
    figures = [[v for k,v in zip(l.recorder.metric_names[1:], l.recorder.values[-1]) if 'second' not in k
        and 'percent' not in k and 'mib' not in k]
        for l in (learn, other)]
    assert figures[0]==figures[1]

class Nested(Callback):
    'Does one thing after another inside a fit, at an event; within the inference of others too if it is `deep`'
    def __init__(self, event, todo, order=70, deep=False):
        self.event,self.todo,self.order,self.deep,self.results,self.i = event,todo,order,deep,[],0
    def __getstate__(self): return dict(event='none', todo={}, order=self.order) # an exported one does nothing
    def __call__(self, event_name):
        if event_name!=self.event or event_name.endswith('batch') and self.iter!=1: return
        if not self.deep and loop_state(self.learn).inference: return
        if event_name in ('after_pred', 'after_loss', 'before_batch', 'after_batch', 'after_backward',
            'before_step') and not self.training:
            return
        names = list(self.todo)
        k = names[self.i%len(names)]
        self.i += 1
        loop = {o:getattr(self.learn, o, None)
            for o in 'epoch n_epoch iter n_iter train_iter pct_train dl xb yb pred loss training logger opt'.split()}
        modes,cbs = [m.training for m in self.learn.model.modules()],callback_state(self.learn)
        rng = plain(learner_random(self.learn))
        self.results.append(self.todo[k](self.learn))
        for o,v in loop.items():
            assert getattr(self.learn, o, None) is v or getattr(self.learn, o, None)==v, f'{k}: {o}'
        assert [m.training for m in self.learn.model.modules()]==modes, k
        assert callback_state(self.learn)==cbs, k
        assert plain(learner_random(self.learn))==rng, k

events = 'before_fit before_epoch before_train before_batch after_pred after_loss after_backward before_step after_batch after_train before_validate after_validate after_epoch after_fit'.split()

representative = {'SAM', 'MixUp', 'EMA', 'SWA', 'KD', 'DKD', 'ShakeDrop', 'RandAugment', 'Flip', 'ProgressiveResize',
    'Lookahead', 'WeightStandardization', 'RunLog', 'Checkpoint', 'SaveModel', 'Accumulation'}
# one of each kind; the others are slow tests

@pytest.mark.parametrize('name', [n if n in representative else pytest.param(n, marks=pytest.mark.slow)
    for n in callbacks])
def test_inside(name, tmp_path):
    'A fit with inference inside, at every event, ends as without it'
    ends = []
    for k in ('a', 'b'):
        learn = learner(name, tmp_path/k)
        nested = [Nested(e, {o:infer[o]}) for e,o in zip(events, [*infer, *infer])]
        for i,cb in enumerate(nested): cb.learn = learn
        set_seed(1)
        with silent(learn): learn.fit_cosine(2, 0.05, by='batch', cbs=nested if k=='b' else None)
        ends.append((state(learn), learn.recorder.lrs, [o.tolist() for o in learn.recorder.losses],
            [v[:2] for v in learn.recorder.values]))
    assert_same(ends[0][0], ends[1][0])
    assert ends[0][1:]==ends[1][1:]

class InferenceLog(Callback):
    'The events of inference inside a fit'
    order,seen = 45,()
    def __getstate__(self): return dict(learn=self.learn)
    def __call__(self, event_name):
        if training_run(self.learn) and loop_state(self.learn).inference: self.seen = (*self.seen, event_name)

@pytest.mark.parametrize('activity', infer)
def test_no_event_of_a_fit_inside(activity, tmp_path):
    "Inference inside a fit fires no event of a fit or an epoch on anybody's callback"
    learn,log = our_learner(path=tmp_path),InferenceLog()
    learn.add_cb(log)
    with silent(learn): learn.fit(1, cbs=Nested('after_epoch', {activity:infer[activity]}))
    assert not {*log.seen} & {'before_fit', 'before_epoch', 'after_epoch', 'after_fit', 'after_cancel_epoch',
        'after_cancel_fit'}
    assert activity=='export' or 'before_validate' in log.seen

@pytest.mark.parametrize('name', ['DKD', 'KD', 'SWA', 'ShakeDrop'])
def test_inside_inference(name, tmp_path):
    'Inference within the inference of another callback'
    ends = []
    for k in ('a', 'b'):
        learn = learner(name, tmp_path/k)
        nested = [Nested(e, {'validate':infer['validate']}, deep=True)
            for e in ('before_train', 'before_validate', 'after_validate', 'after_batch')]
        set_seed(1)
        with silent(learn): learn.fit(2, 0.05, cbs=nested if k=='b' else None)
        ends.append((state(learn), [v[:2] for v in learn.recorder.values]))
    assert_same(ends[0][0], ends[1][0])
    assert ends[0][1]==ends[1][1]

@pytest.mark.slow
@pytest.mark.parametrize('activity', infer)
@pytest.mark.parametrize('event', events)
@pytest.mark.parametrize('name', callbacks)
def test_cell(name, event, activity, tmp_path):
    'Every callback x every event x every activity'
    ends = []
    for k in ('a', 'b'):
        learn = learner(name, tmp_path/k)
        set_seed(1)
        with silent(learn):
            learn.fit_one_cycle(2, 0.05, cbs=Nested(event, {activity:infer[activity]}) if k=='b' else None)
        ends.append((state(learn), [v[:2] for v in learn.recorder.values]))
    assert_same(ends[0][0], ends[1][0])
    assert ends[0][1]==ends[1][1]

@pytest.mark.parametrize('name', callbacks)
def test_resumed_life(name, tmp_path):
    'Interrupted and resumed, with inference before, inside and after: the uninterrupted run'
    def fit(k, stop=None, look=False):
        learn = learner(name, tmp_path/k)
        class Interrupt(Callback):
            order = 99
            def before_epoch(self):
                if self.epoch==stop: raise KeyboardInterrupt
        if look: infer['validate'](learn), infer['predict'](learn)
        set_seed(1)
        ckpt = Checkpoint(tmp_path/f'{k}-ckpt.safetensors', resume=True)
        cbs = [ckpt, Interrupt()] + [Nested('after_epoch', dict(validate=infer['validate']))]*look
        with silent(learn), suppress(KeyboardInterrupt): learn.fit_cosine(4, 0.05, cbs=cbs)
        return learn
    whole = fit('a')
    fit('b', stop=2, look=True)
    later = fit('b', look=True)
    assert_same(state(whole), state(later))
    csvs = [tmp_path/k/'history.csv' for k in 'ab']
    if csvs[0].exists():
        assert [[r.split(',')[:3] for r in o.read_text().split()] for o in csvs][0]==[r.split(',')[:3]
            for r in csvs[1].read_text().split()]

# what the figures of inference inside a fit are
def figures(model, dl):
    'Loss and accuracy of the plain model, by hand'
    modes = {m:m.training for m in model.modules()}
    model.eval()
    with torch.no_grad(): p,t = (torch.cat(o) for o in zip(*[(model(x), y) for x,y in dl]))
    for m,v in modes.items(): m.training = v
    return [nn.functional.cross_entropy(p, t).item(), (p.argmax(1)==t).float().mean().item()]

@pytest.mark.parametrize('event', ['after_batch', 'after_pred', 'after_epoch', 'after_train', 'before_validate'])
@pytest.mark.parametrize('name',
    ['LabelSmoothing', 'ShakeDrop', 'StochasticDepth', 'KD', 'DKD', 'EMA', 'SWA', 'SAM', 'MixUp', 'Lookahead'])
def test_figures_inside(name, event, tmp_path):
    'In the training part those of the plain model with the training weights, after it of the average'
    weights = []
    def look(learn):
        got = list(learn.validate())[:2]
        model = copy.deepcopy(learn.model)
        for m in model.modules(): m._forward_hooks.clear()
        weights.append([p.clone() for p in model.parameters()])
        assert got==pytest.approx(figures(model, learn.dls.valid), rel=1e-5)
        if name=='LabelSmoothing' and event in ('after_batch', 'after_pred'): assert learn.loss_func.smoothing==0.1
    learn = learner(name, tmp_path)
    set_seed(1)
    with silent(learn): learn.fit(2, cbs=Nested(event, dict(look=look)))
    assert len(weights)>=2

@pytest.mark.parametrize('what',
    ['fit', 'fit_one_cycle', 'fit_flat_cos', 'fine_tune', 'lr_find', 'fit_cosine', 'fit_policy', 'show_batch'])
def test_fit_inside_a_fit(what, tmp_path):
    'Refused in a sentence, and nothing is left behind'
    args = dict(lr_find=(), show_batch=(), fit_policy=('cosine', 1)).get(what, (1,))
    class Inner(Callback):
        def after_epoch(self): getattr(self.learn, what)(*args)
    learn = our_learner(path=tmp_path)
    with silent(learn), pytest.raises(UserError, match='inside a fit of the same Learner'): learn.fit(2, cbs=Inner())
    assert training_run(learn) is None
    run(learn, 1)

def test_unguarded_nesting(tmp_path):
    'A callback that validates at an event of inference is not called by its own inference, and nothing waits for a lock'
    class Look(Callback):
        n = 0
        def after_validate(self):
            self.n += 1
            self.learn.validate()
    look = Look()
    learn = our_learner([look], path=tmp_path)
    with silent(learn): learn.validate()
    assert look.n==1
    run(learn, 2)
    assert look.n==3

class Cancel(Callback):
    'Raises at an event, in the second epoch'
    def __init__(self, event, exc, order=70): self.event,self.exc,self.order = event,exc,order
    def __call__(self, event_name):
        if event_name==self.event and self.epoch==1 and self.training: raise self.exc

@pytest.mark.parametrize('exc', [CancelFitException, CancelEpochException, CancelTrainException, CancelBatchException,
    KeyboardInterrupt, ValueError('x')])
@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'after_backward', 'after_batch'])
@pytest.mark.parametrize('order', [-20, 11, 70])
def test_autocast_is_left(exc, event, order):
    'However a batch ends, autocast is off afterwards, and casts of weights are not kept'
    if (event,exc)==('after_batch',CancelBatchException): pytest.skip('fastai catches it inside the batch only')
    learn = our_learner().to_bf16()
    set_seed(1)
    with silent(learn), suppress(KeyboardInterrupt, ValueError): learn.fit(3, cbs=Cancel(event, exc, order))
    assert not torch.is_autocast_enabled('cpu') and torch.autocast_increment_nesting()==1
    torch.autocast_decrement_nesting()

@pytest.mark.parametrize('to', ['to_bf16', 'to_fp16'])
def test_show_batch_leaves_autocast(to):
    learn = getattr(our_learner([MixUp()]), to)()
    with silent(learn): learn.show_batch(max_n=2)
    plt.close('all')
    assert not torch.is_autocast_enabled('cpu') and torch.autocast_increment_nesting()==1
    torch.autocast_decrement_nesting()

class SkipStep(Callback):
    'Cancels every other optimizer step, as an overflow of fp16 does'
    order = 11
    def before_step(self):
        if self.train_iter%2: raise CancelStepException

@pytest.mark.parametrize('name', ['EMA', 'Lookahead'])
def test_counts_steps_that_happened(name):
    cb,seen = make(name),[]
    look = Callback(after_epoch=lambda self: seen.append(cb.n))
    with silent(learn := our_learner([cb])): learn.fit(2, cbs=[SkipStep(), look])
    assert seen==[2, 4]

# the end of a fit
def early(losses, folder, stop=None, resume=True):
    'A fit whose validation losses are given; interrupted at epoch `stop`'
    class Given(Callback):
        order = 51
        def after_epoch(self): self.recorder.values[-1][1] = losses[self.epoch]
    class Interrupt(Callback):
        order = 99
        def before_epoch(self):
            if self.epoch==stop: raise KeyboardInterrupt
    folder.mkdir(exist_ok=True)
    learn = our_learner([SaveModelCallback(), EarlyStoppingCallback(patience=2)], path=folder)
    set_seed(1)
    with silent(learn), suppress(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit(8, 0.05, cbs=[Given(), Interrupt(), RunLog(RunFolder(folder)),
            Checkpoint(folder/'c.safetensors', resume=resume)])
    return learn

def test_trackers_are_resumed(tmp_path):
    'Best value and patience of fastai trackers: interrupted at any epoch, the end is that of the whole run'
    losses = [1, .2, .9, .8, .7, .6, .5, .4]
    whole = early(losses, tmp_path/'a')
    for stop in (1, 2, 3):
        early(losses, tmp_path/f'b{stop}', stop)
        later = early(losses, tmp_path/f'b{stop}')
        assert len(later.recorder.values)==len(whole.recorder.values)==4
        assert_same(state(whole), state(later))
        assert_same(torch.load(whole.path/'models'/'model.pth'), torch.load(later.path/'models'/'model.pth'))

def test_the_last_epoch_counts(tmp_path):
    'The epoch in which a callback ends the fit is in the checkpoint and in the log; resuming the fit trains nothing more'

    from cifar_fastai.serialize import load_tree
    losses = [1, .2, .9, .8, .1, .1, .1, .1]
    learn = early(losses, tmp_path)
    assert len(learn.recorder.values)==4 and len(RunFolder(tmp_path).log())==4
    sd = load_tree(tmp_path/'c.safetensors')
    assert sd['epoch']==4 and sd['finished']
    again = early(losses, tmp_path)
    assert len(again.recorder.values)==4
    assert_same(state(learn), state(again))

@pytest.mark.parametrize('n_acc', [20, 33, 1000])
def test_accumulated_gradients(n_acc, tmp_path):
    'An unfinished accumulation is in the checkpoint, inside an epoch too, and does not reach the next fit'
    class Tell(Callback):
        order = 40
        def after_batch(self):
            if self.training and (self.epoch,self.iter)==(1,1) and self.ckpt: self.ckpt.signal = 'x'
    def fit(k, tell=False, n=3):
        ckpt = Checkpoint(tmp_path/k, resume=True)
        learn = our_learner([GradientAccumulation(n_acc)])
        t = Tell()
        t.ckpt = ckpt if tell else None
        set_seed(1)
        with silent(learn): learn.fit(n, cbs=[ckpt, t])
        return learn
    whole = fit('a')
    fit('b', tell=True)
    later = fit('b')
    assert_same(state(whole), state(later))
    assert all(p.grad is None or not p.grad.any() for p in whole.model.parameters())

# a checkpoint belongs to one fit
def script(folder, fits, stop=None, cb=None):
    'Several fits with one checkpoint; interrupted in epoch `stop[1]` of fit `stop[0]`; weights between them'
    learn = our_learner([Checkpoint(folder/'c.safetensors', resume=True), *([cb] if cb else [])], path=folder)
    seen = []
    set_seed(1)
    for i,f in enumerate(fits):
        class Interrupt(Callback):
            order = 99
            def before_epoch(self):
                if (i,self.epoch)==stop: raise KeyboardInterrupt
        learn.add_cb(inter := Interrupt())
        try:
            with silent(learn): f(learn)
        except KeyboardInterrupt: return
        learn.remove_cb(inter)
        seen.append((state(learn), copy.deepcopy(learn.opt.state_dict())))
        learn.predict(learn.dls.valid_ds[0][0]) if i==0 else None
    return seen

two = [lambda l: l.fit(2, 0.01), lambda l: l.fit_one_cycle(3, 0.05)]
tune = [lambda l: l.fine_tune(3, 0.01, freeze_epochs=2)]

@pytest.mark.parametrize('fits,stop', [(two, (0, 1)), (two, (1, 1)), (tune, (0, 1))])
@pytest.mark.parametrize('cb', [None, 'EMA', 'SAM'])
def test_a_file_per_fit(fits, stop, cb, tmp_path):
    'A script that is run again passes over the fits that finished and resumes the interrupted one'
    for d in 'ab': (tmp_path/d).mkdir()
    new = lambda: make(cb) if cb else None
    whole = script(tmp_path/'a', fits, cb=new())
    assert script(tmp_path/'b', fits, stop, new()) is None
    for _ in range(2): # once more when all is finished
        later = script(tmp_path/'b', fits, cb=new())
        for (a,o),(b,p) in zip(whole, later):
            assert_same(a, b)
            assert plain(o)==plain(p)
    assert sorted(o.name for o in (tmp_path/'b').glob('*.safetensors'))==['c-2.safetensors', 'c.safetensors']

@pytest.mark.parametrize('first,second,message', [
    (lambda l: l.fit(2), lambda l: l.fit(3), r'another fit \(saved: epochs 2; current: epochs 3\)'),
    (lambda l: l.fit(2, 0.1), lambda l: l.fit(2, 0.2), r'lr from 0.1 to 0.1 \(at most 0.1\); current: lr from 0.2'),
    (lambda l: l.fit_cosine(2, 0.1), lambda l: l.fit_one_cycle(2, 0.1), 'another fit'),
    (lambda l: l.fit_cosine(4, 0.1), lambda l: l.fit_multistep(4, 0.1), 'another fit')])
def test_another_fit_is_refused(first, second, message, tmp_path):
    'A file whose epochs or schedule differ, and nothing is changed'
    def new(): return our_learner([Checkpoint(tmp_path/'c', resume=True)], path=tmp_path)
    with silent(learn := new()): first(learn)
    learn,before = new(),(tmp_path/'c').read_bytes()
    w = copy.deepcopy(learn.model.state_dict())
    with silent(learn), pytest.raises(UserError, match=message): second(learn)
    assert_same(w, learn.model.state_dict())
    assert (tmp_path/'c').read_bytes()==before

def test_another_number_is_refused(tmp_path):
    learn = our_learner(path=tmp_path)
    run(learn, 1)
    run(learn, 2, cbs=Checkpoint(tmp_path/'c', resume=True))
    with pytest.raises(UserError, match=r'another fit \(saved: fit 2; current: fit 1\)'):
        run(our_learner(path=tmp_path), 2, cbs=Checkpoint(tmp_path/'c', resume=True))

def test_who_cannot_be_resumed_is_named(tmp_path):
    class Keeps(Callback):
        def before_fit(self): self.thing = object()
    def fit(stop):
        class Interrupt(Callback):
            def before_epoch(self):
                if self.epoch==stop: raise KeyboardInterrupt
        learn = our_learner([Keeps(), Checkpoint(tmp_path/'c', resume=True)], path=tmp_path)
        with suppress(KeyboardInterrupt): run(learn, 2, cbs=Interrupt())
    fit(1)
    with pytest.warns(UserWarning, match='Keeps cannot be resumed exactly'): fit(None)

# a Learner without anything of ours
def foreign(cbs=()):
    set_seed(0)
    return Learner(listed(batches(torch.float32)), net(), nn.CrossEntropyLoss(), lr=0.05, cbs=list(cbs))

def test_a_plain_learner_is_fastais():
    'No random number is drawn, and events are those of fastai'
    log = []
    class Log(Callback):
        def __call__(self, event_name): log.append(event_name)
    learn = foreign([Log()])
    assert not managed(learn)
    r = plain(get_random_states())
    with silent(learn): learn.validate()
    assert log[1:3]==['before_fit', 'before_epoch'] and log[-2:]==['after_epoch', 'after_fit']
    torch.manual_seed(0)
    with silent(learn): learn.fit(1)
    assert plain(get_random_states()['random_state'])==r['random_state']

def test_a_foreign_learner_with_one_trick(tmp_path):
    'Any DataLoaders, any model: inference between fits does not move anything either'
    def life(look):
        learn = plain_learner([make('EMA'), make('MixUp')], torch.float32)
        set_seed(1)
        for _ in range(2):
            with silent(learn): learn.fit(1)
            if look: learn.validate(), learn.get_preds(dl=learn.dls.valid, reorder=False)
        return state(learn)
    assert_same(life(False), life(True))

# a last batch of one image
@pytest.mark.parametrize('arch', ['own', 'spp_d11_pN'])
def test_last_batch_of_one_image(arch):
    'A network that cannot train on it is refused before training starts, and nothing is changed; with `drop_last` it trains'
    def new(): return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.BatchNorm1d(10)) if arch=='own' else arch
    def dls(**kwargs): return cifar_dls('digits', bs=13, fraction=40/1500, **kwargs)
    model = new()
    if arch=='own':
        before,data = copy.deepcopy(model.state_dict()),dls()
        set_seed(1)
        r = plain(get_random_states())
        with pytest.raises(UserError, match='last batch of an epoch has one image of 40.*drop_last=True'):
            cifar_learner(model, data)
        assert_same(before, model.state_dict())
        assert plain(get_random_states())==r and model.training
        learn = cifar_learner(new(), dls(drop_last=True))
        with silent(learn): learn.fit(1, 0.01)
    else: cifar_learner(model, dls()) # normalises maps of more than one pixel
