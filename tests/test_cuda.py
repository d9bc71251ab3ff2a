"""What only a GPU can show: run with `pytest -m cuda` where there is one.

An epoch does not wait for the device, images and weights agree with the CPU's, runs resume bit for bit, in every precision."""
import copy
import pytest, torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from cifar_fastai.augment.pixels import apply_operations, operations
from cifar_fastai.augment.autoaugment import magnitudes
from cifar_fastai.data.loaders import cifar_dls, crop_flip
from cifar_fastai.learner import cifar_learner
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.runs.train import deterministic, train
from cifar_fastai.zoo.registry import create_model
from cifar_fastai.serialize import load_tree
from cifar_fastai.trick import tricks
from common import fit
from test_contract import assert_same, chain, make, names, net, others, state

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')]

class NoSync(Callback):
    'After the first batch of an epoch, whatever waits for the device is an error'
    order = -1000
    def after_batch(self):
        if self.training: torch.cuda.set_sync_debug_mode('error')
    def after_train(self): torch.cuda.set_sync_debug_mode('default')
    after_cancel_train = after_cancel_fit = after_fit = after_train

def learner(cbs=(), arch=None, **kwargs):
    set_seed(0)
    return cifar_learner(arch or net(), cifar_dls('digits', bs=64, fraction=0.3), cbs=cbs, lr=0.05, **kwargs)

def on_cuda(name):
    'Trick `name`, with a teacher in float32'
    if not tricks[name.split()[0]].trained: return make(name)
    torch.manual_seed(3)
    return make(name, teacher=net())

def epoch(learn):
    try: return fit(learn, 1, cbs=NoSync())
    finally: torch.cuda.set_sync_debug_mode('default')

@pytest.mark.parametrize('group', [(n,) for n in [*names, *others]]+[chain], ids='+'.join)
def test_does_not_wait(group): epoch(learner([on_cuda(n) for n in group]))

def test_waiting_is_caught():
    with pytest.raises(RuntimeError, match='synchroniz'): epoch(learner([Waits()]))

class Waits(Callback):
    def after_loss(self): self.loss_grad.item()

@pytest.mark.parametrize('precision', ['to_fp16', 'to_bf16'])
@pytest.mark.parametrize('name', [None]+names)
def test_mixed_precision(name, precision):
    'An epoch in half precision ends with finite weights in float32'
    learn = getattr(learner([on_cuda(name)] if name else []), precision)()
    fit(learn, 2)
    for k,v in learn.model.state_dict().items():
        assert v.isfinite().all(), k
        assert v.dtype in (torch.float32, torch.int64)

@pytest.mark.parametrize('op', operations)
def test_pixel_operations(op):
    'uint8 images come out as on the CPU'
    x = cifar_dls('digits', device='cpu').train_ds.x[:64]
    x = (x+torch.rand(x.shape, generator=torch.Generator().manual_seed(1))*99).clamp(0, 255).byte()
    i = list(operations).index(op)
    for m in magnitudes(31)[op][::6]:
        args = torch.full((64,), i).numpy(),torch.full((64,), float(m)).numpy()
        a,b = apply_operations(x, *args, 0),apply_operations(x.cuda(), *args, 0).cpu()
        wrong = (a!=b).float().mean().item()
        assert wrong<2e-3, f'{op} {m}: {wrong:.2%} of the values differ, by up to {(a.int()-b.int()).abs().max()}'

def test_crop_flip():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (64,3,32,32), generator=g).byte()
    dy,dx = torch.randint(9, (2,64), generator=g)
    flip = torch.rand(64, generator=g)<0.5
    assert torch.equal(crop_flip(x, dy, dx, flip, 4), crop_flip(*(o.cuda() for o in (x, dy, dx, flip)), 4).cpu())

@pytest.mark.parametrize('arch', ['resnet20', 'wideresnet', 'densenet', 'coatnet_0', 'vision_transformer'])
def test_backbones(arch, monkeypatch):
    'Logits of the GPU in float32, TF32 off, are those of the CPU'
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    torch.manual_seed(0)
    model = create_model(arch, 10).eval()
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad(): a,b = model(x),copy.deepcopy(model).cuda()(x.cuda()).cpu()
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('name', [None]+names)
def test_resume(name, tmp_path):
    'Resumed after an epoch, the weights are bit for bit those without interruption'
    def made(**kwargs): return learner(([on_cuda(name)] if name else [])+[Checkpoint(tmp_path/'c.safetensors', **kwargs)])
    with deterministic(True):
        full = fit(made(), 3, seed=1)
        part = made()
        with pytest.raises(KeyboardInterrupt): fit(part, 3, seed=1, cbs=Stop())
        assert_same(state(full), state(fit(made(resume=True), 3, seed=1)))

class Stop(Callback):
    order = 10**6
    def before_train(self):
        if self.epoch==1: raise KeyboardInterrupt

@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_run(tmp_path, precision):
    'A run of the command line twice: equal bit for bit, on the GPU'
    cfg = RunConfig(dataset='digits', model='resnet20', epochs=2, tricks=['SAM()', 'MixUp()'], precision=precision, seed=3)
    a,b = (train(cfg, exps=tmp_path/i, same_bits=True, bar=False) for i in 'ab')
    a,b = (load_tree(o/'last.safetensors') for o in (a, b))
    assert_same(a['model'], b['model'])

def test_bench_figures():
    'A benchmark on a GPU reports peak memory and the idle share'
    from cifar_fastai.bench import epoch_cost
    r = epoch_cost('lenet', cifar_dls('digits', fraction=0.2), n=1)['Learner']
    assert r['peak_memory_mib']>0 and 0<=r['idle']<1
