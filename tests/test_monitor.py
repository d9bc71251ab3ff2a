'Columns of monitors: right figures, no wait for the device, gone after the fit'
import math,pickle,sys,time
import psutil,pytest,torch
from torch import nn
from fastai.callback.core import Callback,CancelBatchException,CancelTrainException,CancelValidException
from fastai.callback.training import ShortEpochCallback
from fastai.learner import Learner,SkipToEpoch,load_learner
from fastai.metrics import accuracy,error_rate
from fastai.torch_core import set_seed
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.callback.mixers import MixUp
from cifar_fastai.callback.recorder import async_metrics
from cifar_fastai.callback.monitor import CPUUse, GPUUse, ImagesPerSecond, PeakMemory, TrainAccuracy, peak_memory
from cifar_fastai.callback.sam import SAM
from common import fit_of

def learner(cbs):
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))
    return cifar_learner(model, cifar_dls('digits', bs=13, fraction=40/1500, val_bs=100), cbs=cbs, lr=0.01)

fit = fit_of(2, seed=1)

@pytest.mark.parametrize('beside', [[], [MixUp()], [SAM(0.1)], [MixUp(), SAM(0.1)]])
def test_train_accuracy(beside):
    'Of the predictions that were trained on, weighted by what their class has of the image'
    seen = []
    def look(self):
        y = self.yb[0] if self.yb[0].ndim==2 else nn.functional.one_hot(self.yb[0], 10).float()
        seen.append([y[i,g].item() for i,g in enumerate(self.pred.argmax(1).tolist())])
    learn = fit(learner([TrainAccuracy(), Callback(after_batch=lambda self: look(self) if self.training else None),
        *beside]), 3)
    assert learn.recorder.metric_names[-2]=='train_accuracy' and sum(map(len, seen))==120
    assert sum(v[-1] for v in learn.recorder.values)==pytest.approx(sum(map(sum, seen))/40, rel=1e-6)

def test_speed_and_use():
    'Images by the seconds of the training part; a process that sleeps uses no CPU'
    slow = Callback(after_batch=lambda self: time.sleep(0.1) if self.training else None)
    learn = fit(learner([ImagesPerSecond(), CPUUse(), slow]), 1)
    speed,use = learn.recorder.values[0][-2:]
    assert 20<speed<=100 and 0<=use<90

def test_memory(): assert 10 < fit(learner(PeakMemory())).recorder.values[-1][-1] < 1e6

def test_columns_go():
    'After a fit, broken off too, metrics are as before; without training `validate` shows nan'
    learn = learner([TrainAccuracy(), ImagesPerSecond(), CPUUse()])
    before = list(learn.metrics)
    with learn.no_bar(): assert all(math.isnan(v) for v in learn.validate()[2:])
    fit(learn)
    assert list(learn.metrics)==before and len(learn.recorder.values[0])==6
    def stop(self): raise KeyboardInterrupt
    learn.add_cb(Callback(after_loss=stop))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert list(learn.metrics)==before

def test_on_meta():
    'Counting waits for nothing: batches run on the meta device'
    cb,learn = TrainAccuracy(),learner([])
    learn.dls.to('meta')
    learn.model.to('meta')
    cb.figure = lambda: cb.hits.device.type
    learn.add_cbs([cb, ImagesPerSecond(), CPUUse(), PeakMemory()])
    assert fit(learn, 1).recorder.values[0][3]=='meta'

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_gpu_refused():
    with pytest.raises(UserError, match='needs an NVIDIA GPU'): fit(learner(GPUUse()))

# `recorder.history`: a column holds what its name says, whatever was recorded in a row

class Keep(Callback):
    'What each metric was worth, by part of the epoch: asked right before the Recorder writes its row'
    order,run_valid = 49.5,True
    def before_fit(self): self.rows = []
    def before_epoch(self): self.row = {}
    def _take(self, part, mets):
        self.row |= {f'{part}_loss' if i==0 else f'{part}{m.name}':m.value for i,m in enumerate(mets)}
    def after_train(self): self._take('train', self.recorder._train_mets)
    def after_validate(self): self._take('valid', self.recorder._valid_mets)
    def after_epoch(self): self.rows.append({k:float(v) for k,v in self.row.items()})

def plain(cbs):
    "A Learner made by hand, with the Recorder of `async_metrics`"
    set_seed(0)
    dls = cifar_dls('digits', bs=13, fraction=40/1500, val_bs=100)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))
    return async_metrics(Learner(dls, model, nn.CrossEntropyLoss(), lr=0.01, metrics=[accuracy, error_rate], cbs=cbs))

def check_history(learn, keep):
    "Each column is the metric of that name and part; what was not recorded is nan, and an epoch without figures has no row"
    h,both = learn.recorder.history,learn.recorder.train_metrics and learn.recorder.valid_metrics
    rows = [r for r in keep.rows if r]
    assert list(h.index)==[i for i,r in enumerate(keep.rows) if r]
    part = 'train' if learn.recorder.train_metrics else 'valid'
    def of(name): return name if name.endswith('_loss') else name.replace('_', '', 1) if both else part+name
    assert {of(c) for c in h.columns}=={k for r in rows for k in r}
    for (_,got),want in zip(h.iterrows(), rows):
        for c in h.columns: assert got[c]==pytest.approx(want.get(of(c), math.nan), rel=1e-6, nan_ok=True), c

class Drop(Callback):
    'Ends a part of some epochs'
    def __init__(self, train=(), valid=()): self.train,self.valid = train,valid
    def before_batch(self):
        if self.training and self.epoch in self.train: raise CancelTrainException
        if not self.training and self.epoch in self.valid: raise CancelValidException

lives = {'whole':[], 'short':[ShortEpochCallback()], 'short training':[ShortEpochCallback(short_valid=False)],
    'start_epoch':[SkipToEpoch(1)],
    'first cut':[Drop(train=[0])], 'last cut':[Drop(valid=[2])], 'mixed':[Drop(train=[0, 2], valid=[1, 2])]}

@pytest.mark.parametrize('life', lives)
@pytest.mark.parametrize('train,valid', [(False, True), (True, True), (True, False), (False, False)])
@pytest.mark.parametrize('make', [plain, learner])
def test_history(make, train, valid, life):
    keep = Keep()
    learn = make([*lives[life], keep, ImagesPerSecond()])
    learn.recorder.train_metrics,learn.recorder.valid_metrics = train,valid
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    assert len(keep.rows)==3
    check_history(learn, keep)

@pytest.mark.parametrize('make', [plain, learner])
def test_history_after_validate(make):
    'After `validate`, and after a fit that was broken off, a figure is in the column of its name'
    learn = make([TrainAccuracy()])
    fit(learn)
    def right(values):
        h = learn.recorder.history
        got = h.iloc[-1].dropna()
        for k,v in zip(('valid_loss', 'accuracy'), values): assert got[k]==pytest.approx(v, rel=1e-6)
        assert len(h)==1 and 'train_loss' not in got or len(h)==2
    with learn.no_bar(): right(learn.validate())
    class Stop(Callback):
        def before_validate(self):
            if self.epoch==1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=Stop())
    with learn.no_bar(): values = learn.validate()
    h = learn.recorder.history
    if 'train_loss' not in h: right(values)
    else: assert len(h)==1 and h.valid_loss.notna().all()

def test_history_before_a_fit(): assert len(plain([]).recorder.history)==0

def test_history_of_plain_rows():
    'Rows that came from a file have no names of their own: whole ones get theirs'
    learn = fit(plain([]))
    want = learn.recorder.history
    learn.recorder.values = [list(v) for v in learn.recorder.values]
    assert learn.recorder.history.equals(want) and list(want.columns)==['train_loss', 'valid_loss', 'accuracy',
        'error_rate']

def test_two_metrics_of_one_name():
    learn = plain([])
    learn.metrics = [accuracy, accuracy]
    assert list(fit(learn).recorder.history.columns)==['train_loss', 'valid_loss', 'accuracy', 'accuracy']

# a monitor through the life of a Learner

every = [TrainAccuracy, ImagesPerSecond, PeakMemory, CPUUse]
class Exporter(Callback):
    order = 70
    def after_epoch(self): self.learn.export('m.pkl')

@pytest.mark.parametrize('cls', every)
def test_one_column(cls):
    'In every fit its column is there once, however the fit before it ended: also where `after_fit` was not reached'
    cb = cls()
    learn = learner([cb])
    before = list(learn.metrics)
    def stop(self): raise KeyboardInterrupt
    for kw in (dict(after_loss=stop), dict(before_epoch=stop), dict(before_fit=stop), dict(after_fit=stop),
        dict(before_validate=stop), dict(after_epoch=stop)):
        for order in (-50, 48, 70):
            other = Callback(**kw)
            other.order = order
            learn.add_cb(other)
            with pytest.raises(KeyboardInterrupt): fit(learn)
            learn.remove_cb(other)
            fit(learn, 1)
            assert learn.recorder.metric_names.count(cls.column)==1 and list(learn.metrics)==before

@pytest.mark.parametrize('cls', every)
@pytest.mark.parametrize('inside', [False, True])
def test_exported(cls, inside, tmp_path):
    'A Learner that was exported after a fit or inside one is loaded, validates, and trains on with one column; the callback is pickled likewise'
    learn = learner([cls()])
    learn.path = tmp_path
    if inside: learn.add_cb(Exporter())
    fit(learn, 1)
    if not inside: learn.export('m.pkl')
    with pytest.warns(UserWarning): loaded = load_learner(tmp_path/'m.pkl')
    loaded.remove_cbs(Exporter)
    loaded.dls = learn.dls
    for _ in range(2):
        with loaded.no_bar(): loaded.validate()
        assert [m.name for m in loaded.metrics]==['accuracy']
        fit(loaded, 1)
        assert loaded.recorder.metric_names.count(cls.column)==1
    cb = next(o for o in learn.cbs if type(o) is cls)
    assert type(pickle.loads(pickle.dumps(cb))) is cls

def test_no_figure_of_an_interrupted_epoch():
    'Speed and CPU use of a training part that was broken off are not known: no mixture of two epochs'
    speed,use = ImagesPerSecond(),CPUUse()
    learn = fit(learner([speed, use]))
    assert speed.figure()>0 and use.figure()>=0
    def stop(self): raise KeyboardInterrupt
    learn.add_cb(Callback(after_loss=stop))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert math.isnan(speed.figure()) and math.isnan(use.figure())

def test_cancelled_batch():
    'A batch that was cancelled before the forward pass has no predictions: those of the batch before are not counted'
    class Skip(Callback):
        order = 1
        def before_batch(self):
            if self.training and self.iter in (0, 3): raise CancelBatchException
    cb = TrainAccuracy()
    learn = learner([cb, Skip()])
    learn.remove_cb(learn.recorder) # fastai's own counts the loss of the batch before
    fit(learn, 1)
    assert cb.n==26

def test_peak_memory(monkeypatch):
    'Bytes on every system: Linux counts in KiB, macOS in bytes, Windows elsewhere'
    now = psutil.Process().memory_info().rss
    assert now/2 <= peak_memory() < 2**40
    resource = pytest.importorskip('resource')
    class Usage: ru_maxrss = 5*2**20
    monkeypatch.setattr(resource, 'getrusage', lambda who: Usage)
    for system,want in (('linux', 5*2**30), ('darwin', 5*2**20)):
        monkeypatch.setattr(sys, 'platform', system)
        assert peak_memory()==want
    monkeypatch.setitem(sys.modules, 'resource', None)
    assert now/2 <= peak_memory() < 4*now
    class Info: peak_wset,rss = 7,3
    monkeypatch.setattr(psutil.Process, 'memory_info', lambda self: Info)
    assert peak_memory()==7

def test_model_without_parameters():
    learn = Learner(plain([]).dls, nn.Flatten(), lambda p,y: p.sum()*0, opt_func=None, cbs=[o() for o in every])
    learn.model.register_parameter('w', nn.Parameter(torch.ones(())))
    cb = learn.peak_memory
    del learn.model.w
    assert cb._device==torch.device('cpu')
