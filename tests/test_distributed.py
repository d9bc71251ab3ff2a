"Several processes: against one process with the whole batch, and loops by hand over the parts of a batch"
import json, os, socket, subprocess, sys
from pathlib import Path
import pytest, torch, torch.distributed as dist
from torch import nn
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import RocAuc, accuracy
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from fasttransform import ItemTransform
from cifar_fastai.callback.average import EMA
from cifar_fastai.callback.distill import KD
from cifar_fastai.callback.mixers import MixUp
from cifar_fastai.callback.monitor import GradientClip, NonFiniteLoss, StopOnNonFinite, TrainAccuracy
from cifar_fastai.callback.recorder import async_metrics
from cifar_fastai.callback.sam import SAM
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import ImageTensors, TensorDL
from cifar_fastai.distributed import Distributed, process_group
from cifar_fastai.rng import RandomStream
from cifar_fastai.serialize import load_tree
from test_contract import assert_same

class Doubles(ItemTransform):
    split_idx = None
    def encodes(self, b): return b[0].double()/255,b[1]

def net(norm=None, seed=0, drop=0.):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm or nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout(drop), nn.Flatten(),
        nn.Linear(128, 5)).double()

def loaders(n=24, valid=7, bs=8):
    g = torch.Generator().manual_seed(5)
    def dl(n, shuffle, bs):
        x,y = torch.randint(256, (n,3,8,8), generator=g).byte(),torch.arange(n) % 5
        return TensorDL(ImageTensors(x, y, list('abcde'), 0), bs=bs, shuffle=shuffle, stream=RandomStream(n), after_batch=[Doubles()])
    return DataLoaders(dl(n, True, bs), dl(valid, False, 4))

def sgd(params, **kwargs): return OptimWrapper(params, torch.optim.SGD, momentum=0.9, **kwargs)

class Poison(TrainAccuracy):
    'In one process, the loss of the second batch is NaN'
    sums = ()
    def before_fit(self): pass
    def after_loss(self):
        if dist.is_initialized() and dist.get_rank()==1 and self.iter==1 and self.training: self.learn.loss = self.loss*float('nan')

class Parts(MixUp):
    'MixUp in one process, as by two: pairs within each half, drawn with the numbers of its process'
    def mix(self, x, probs):
        lam,h = self.lam(x),len(x)//2
        res = []
        for rank in (0, 1):
            os.environ['RANK'] = str(rank)
            self.stream._seeded.discard(x.device)
            p = self.perm(x[:h])
            a,b = x[rank*h:][:h],probs[rank*h:][:h]
            res.append((lam*a + (1-lam)*a[p], lam*b + (1-lam)*b[p]))
        del os.environ['RANK']
        return tuple(torch.cat(o) for o in zip(*res))

Parts.__name__ = 'MixUp' # it names the random stream

def make(name):
    'The Learner of a case, in one process or in two'
    cbs = dict(sam=[SAM(0.2, sync=True)], local=[SAM(0.2)], kd=[KD(net(seed=9).eval())], ema=[EMA(0.5)], clip=[GradientClip(0.3)],
        mixup=[MixUp() if dist.is_initialized() else Parts()], accuracy=[TrainAccuracy()], nan=[StopOnNonFinite(), Poison()]).get(name, [])
    dls = loaders(29 if name in ('uneven', 'accuracy') else 24)
    model = net(nn.BatchNorm2d(8) if name=='bn' else None, drop=0.5 if name=='dropout' else 0.)
    metrics = [accuracy, *([RocAuc()] if name=='auc' else [])]
    learn = Learner(dls, model, nn.CrossEntropyLoss(), opt_func=sgd, metrics=metrics, cbs=cbs, lr=0.1)
    return async_metrics(learn)

cases = 'plain uneven sam local kd ema clip mixup bn accuracy auc dropout nan'.split()

def result(name, cbs=()):
    learn = make(name)
    set_seed(3)
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=cbs)
    except NonFiniteLoss as e: return str(e)
    assert all(dl.part is None for dl in learn.dls)
    return dict(weights=learn.model.state_dict(), log=[list(o) for o in learn.recorder.values], rng=torch.get_rng_state())

def _process(rank, port, out):
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    with process_group('cpu'):
        res = {k:result(k, Distributed()) for k in cases}
        set_seed(rank) # other seeds: those of the first process are used
        learn = make('plain')
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Distributed())
        res['seeds'] = learn.model.state_dict()
        with pytest.raises(UserError, match='A batch of 1 cannot be divided among 2 processes'):
            Learner(loaders(25), net(), nn.CrossEntropyLoss(), cbs=Distributed()).fit(1)
    torch.save(res, f'{out}/{rank}')

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    'The results of both processes'
    out = tmp_path_factory.mktemp('two')
    torch.multiprocessing.spawn(_process, (free_port(), str(out)), nprocs=2)
    return [torch.load(out/str(i), weights_only=False) for i in (0, 1)]

def close(a, b):
    for k in b: torch.testing.assert_close(a[k], b[k], rtol=1e-9, atol=1e-12, msg=lambda m: f'{k}: {m}')

@pytest.mark.parametrize('name', [o for o in cases if o not in ('local', 'bn', 'dropout', 'nan')])
def test_as_one_process(two, name):
    'Weights, losses and metrics are those of one process with the whole batch'
    want = result(name)
    for got in two:
        close(got[name]['weights'], want['weights'])
        for a,b in zip(got[name]['log'], want['log']): assert a==pytest.approx(b, rel=1e-6, nan_ok=True), name

def batches(seed=3):
    'The batches of two epochs, in halves'
    learn,seen = make('plain'),[]
    class See(TrainAccuracy):
        def before_fit(self): pass
        def before_batch(self):
            if self.training: seen.append((self.x.clone(), self.y.clone()))
    set_seed(seed)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=See())
    return [((x[:4], y[:4]), (x[4:], y[4:])) for x,y in seen]

def hand(model, gradient):
    'Momentum SGD by hand, on the mean gradient of the halves'
    ps,v = list(model.parameters()),None
    for halves in batches():
        g = [sum(o)/2 for o in zip(*[gradient(model, ps, *h) for h in halves])]
        v = g if v is None else [0.9*a+b for a,b in zip(v, g)]
        with torch.no_grad():
            for p,o in zip(ps, v): p -= 0.1*o
    return model.state_dict()

def grad(model, ps, x, y): return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), ps)

def test_sam_on_parts(two):
    'Each process perturbs along its own gradient, and the second gradients are averaged'
    def gradient(model, ps, x, y):
        g = grad(model, ps, x, y)
        scale = 0.2/sum(o.square().sum() for o in g).sqrt()
        with torch.no_grad(): [p.add_(scale*o) for p,o in zip(ps, g)]
        res = grad(model, ps, x, y)
        with torch.no_grad(): [p.sub_(scale*o) for p,o in zip(ps, g)]
        return res
    want = hand(net(), gradient)
    for got in two: close(got['local']['weights'], want)

def test_batchnorm_of_parts(two):
    'Each half is normalised by its own statistics, and the running statistics are means of both'
    model,stats = net(nn.BatchNorm2d(8)),[]
    def gradient(model, ps, x, y):
        bn = model[1]
        before = {k:b.clone() for k,b in bn.named_buffers()}
        g = grad(model, ps, x, y)
        stats.append({k:b.clone() for k,b in bn.named_buffers()})
        bn.load_state_dict(before, strict=False)
        if len(stats)==2:
            bn.running_mean.copy_((stats[0]['running_mean']+stats[1]['running_mean'])/2)
            bn.running_var.copy_((stats[0]['running_var']+stats[1]['running_var'])/2)
            bn.num_batches_tracked += 1
            stats.clear()
        return g
    want = hand(model, gradient)
    for got in two: close(got['bn']['weights'], want)

def test_replicas(two):
    'Bitwise the same weights and log in both; dropout differs between them, and torch draws on as it would have'
    for k in cases:
        if k=='nan': continue
        (a,b) = (o[k] for o in two)
        assert_same(a['weights'], b['weights'])
        assert torch.equal(a['rng'], b['rng']) and str(a['log'])==str(b['log']), k
    assert_same(two[0]['seeds'], two[1]['seeds'])
    one = result('dropout')
    assert torch.equal(two[0]['dropout']['rng'], two[0]['plain']['rng']) # restored
    assert not torch.equal(one['weights']['0.weight'], two[0]['dropout']['weights']['0.weight'])

def test_all_stop(two):
    'A loss that is NaN in one process ends the fit of both'
    assert 'loss became nan in batch 2' in two[0]['nan'] and two[0]['nan']==two[1]['nan']

def test_needs_processes():
    learn = make('plain')
    with pytest.raises(UserError, match='needs a process group'), learn.no_bar(): learn.fit(1, cbs=Distributed())

# runs

_own = '''
import os, signal
from fastai.callback.core import Callback
class Stop(Callback):
    def before_epoch(self):
        if self.epoch==1 and os.environ['RANK']=='1' and 'HOW' in os.environ: os.kill(os.getpid(), getattr(signal, os.environ['HOW']))
'''
_run = '''
import os, sys
sys.path.insert(0, '.')
from cifar_fastai.core import UserError
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.train import train
cfg = RunConfig('resnet20', 'digits', epochs=3, fraction=0.15, bs=50, lr=0.05, threads=1, seed=1, tricks=['StochasticDepth()', 'MixUp()', 'EMA(0.9)', 'own:Stop()'])
try: train(cfg, 'r', exps=sys.argv[1], resume=True, device='cpu', bar=False)
except UserError as e:
    print(e)
    sys.exit(getattr(e, 'code', 2))
'''

def started(folder, exps, n=2, **env):
    'The processes of a run'
    Path(folder/'own.py').write_text(_own)
    port = str(free_port())
    envs = [os.environ | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=str(i), WORLD_SIZE=str(n), LOCAL_RANK=str(i)) | env for i in range(n)]
    return [subprocess.Popen([sys.executable, '-c', _run, exps], cwd=folder, env=e, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for e in envs]

def ended(processes):
    out = [p.communicate(timeout=300)[0] for p in processes]
    return [p.returncode for p in processes],out

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    'An uninterrupted run'
    folder = tmp_path_factory.mktemp('run')
    codes,out = ended(started(folder, 'whole'))
    assert codes==[0, 0], out
    return folder

def files(folder, exps):
    run = folder/exps/'r'/'1'
    log = [o.split(',')[:7] for o in (run/'log.csv').read_text().splitlines()]
    return load_tree(run/'last.safetensors')['model'],log

@pytest.mark.parametrize('how', ['SIGTERM', pytest.param('SIGKILL', marks=pytest.mark.slow)])
def test_resume(whole, how):
    'A signal to one process ends all after the epoch; a killed one ends the others with a sentence; resumed, the run is bitwise the same'
    codes,out = ended(started(whole, how, HOW=how))
    if how=='SIGTERM': assert codes==[143, 143] and 'after 2 of 3 epochs' in out[0], out
    else: assert codes==[2, -9] and 'Another process of this training ended' in out[0], out
    codes,out = ended(started(whole, how))
    assert codes==[0, 0], out
    (a,log_a),(b,log_b) = files(whole, 'whole'),files(whole, how)
    assert_same(a, b)
    assert log_a==log_b

@pytest.mark.slow
def test_resume_with_fewer(whole):
    'By one process instead of two: it resumes, and says that it is not bit for bit'
    ended(started(whole, 'fewer', HOW='SIGTERM'))
    codes,out = ended(started(whole, 'fewer', n=1))
    assert codes==[0] and 'processes 1 instead of 2: the result is not bitwise identical' in ' '.join(out[0].split()), out
    env = json.loads((whole/'fewer/r/1/environment.json').read_text())
    assert env['processes']==2 and env['resumed'][0]['processes']==1
