"Loggers of runs: the events are those of the log, the run is the same, and a resumed run continues its log"
import signal, sys
from types import ModuleType, SimpleNamespace
import pytest, torch, cifar_fastai.runs.train as run
from fastai.callback.core import Callback
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.folder import RunFolder, RunInterrupted
from cifar_fastai.serialize import load_tree

small = RunConfig(model='toynet_s1_k3', dataset='digits', epochs=2, bs=32, fraction=0.1, schedule='onecycle', tricks=['MixUp()'])

def train(name, exps, logger=None, **kwargs):
    return run.train(small, name, exps=exps, device='cpu', bar=False, curves=False, logger=logger, **kwargs)

def weights(folder): return load_tree(folder/'last.safetensors')['model']

def assert_same_run(a, b):
    assert (a/'test.safetensors').read_bytes()==(b/'test.safetensors').read_bytes()
    for k,v in weights(a).items(): assert torch.equal(v, weights(b)[k])

def interrupted(monkeypatch, at, **kwargs):
    "Train until the end of batch `at` of the second epoch, and resume"
    class Press(Callback):
        order = 79
        def after_batch(self):
            if self.training and (self.epoch, self.iter)==(1, at): signal.raise_signal(signal.SIGTERM)
    real = run.run_monitors
    with monkeypatch.context() as m:
        m.setattr(run, 'run_monitors', lambda row=None: [*real(row), Press()])
        with pytest.raises(RunInterrupted): train(**kwargs)
    return train(resume=True, **kwargs)

def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(folder/'tensorboard')).Reload()

def test_tensorboard(tmp_path, monkeypatch, recwarn):
    a,b = train('a', tmp_path),train('b', tmp_path, 'tensorboard')
    assert_same_run(a, b)
    c = interrupted(monkeypatch, 1, name='c', exps=tmp_path, logger='tensorboard')
    assert_same_run(a, c)
    assert not [o for o in recwarn if 'cannot be resumed' in str(o.message)]
    for folder in (b, c):
        seen,rows = events(folder),RunFolder(folder).log()
        n = rows[0]['steps']
        assert [e.step for e in seen.Scalars('train_loss')]==[*range(1, 2*n+1)]
        for k in ('accuracy', 'valid_loss', 'top5'):
            assert [(e.step, pytest.approx(e.value, rel=1e-5)) for e in seen.Scalars(k)]==[(n*(r['epoch']+1), r[k]) for r in rows]

@pytest.fixture
def wandb(monkeypatch):
    "A substitute for the package"
    m = ModuleType('wandb')
    m.logged,m.begun,m.finished,m.run = {},[],0,None
    def init(**kwargs):
        m.begun.append(kwargs)
        m.run = SimpleNamespace(step=0, summary={})
    def finish(): m.finished,m.run = m.finished+1,None
    def log(d, step=None): m.logged.setdefault(step, {}).update(d)
    m.init,m.finish,m.log = init,finish,log
    m.config = SimpleNamespace(update=lambda *args, **kwargs: None)
    monkeypatch.setitem(sys.modules, 'wandb', m)
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
    yield m
    sys.modules.pop('fastai.callback.wandb', None)

def test_wandb(tmp_path, wandb, monkeypatch):
    a,b = train('a', tmp_path),train('b', tmp_path, 'wandb')
    assert_same_run(a, b)
    row,logged = RunFolder(b).log()[-1],wandb.logged
    last = max(k for k in logged if k is not None)
    assert last==2*row['steps']-1 and logged[last]['accuracy']==pytest.approx(row['accuracy']) and wandb.finished==1
    kw = wandb.begun[0]
    assert kw['name']=='b/666' and kw['config']['tricks']==['MixUp()'] and kw['dir']==str(b)
    c = interrupted(monkeypatch, 1, name='c', exps=tmp_path, logger='wandb')
    assert_same_run(a, c)
    one,two = wandb.begun[1:]
    assert one['id']==two['id']!=kw['id'] and two['resume']=='allow' and wandb.finished==3

def test_wandb_that_cannot_start(tmp_path, wandb):
    def init(**kwargs): raise RuntimeError('no API key')
    wandb.init = init
    with pytest.raises(run.UserError, match='no API key.*WANDB_MODE=offline'): train('a', tmp_path, 'wandb')
    assert not list(tmp_path.iterdir())
