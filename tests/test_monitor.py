'Columns of monitors: right figures, no wait for the device, gone after the fit'
import math,time
import pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from cifar_fastai.core import UserError
from cifar_fastai.data import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.mixers import MixUp
from cifar_fastai.monitor import CPUUse,GPUUse,ImagesPerSecond,PeakMemory,TrainAccuracy
from cifar_fastai.sam import SAM

def learner(cbs):
    set_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))
    return cifar_learner(model, cifar_dls('digits', bs=13, fraction=40/1500, val_bs=100), cbs=cbs, lr=0.01)

def fit(learn, n=2):
    set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn

@pytest.mark.parametrize('beside', [[], [MixUp()], [SAM(0.1)], [MixUp(), SAM(0.1)]])
def test_train_accuracy(beside):
    'Of the predictions that were trained on, weighted by what their class has of the image'
    seen = []
    def look(self):
        y = self.yb[0] if self.yb[0].ndim==2 else nn.functional.one_hot(self.yb[0], 10).float()
        seen.append([y[i,g].item() for i,g in enumerate(self.pred.argmax(1).tolist())])
    learn = fit(learner([TrainAccuracy(), Callback(after_batch=lambda self: look(self) if self.training else None), *beside]), 3)
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
