'Mixed precision on the CPU: what the contract says of a trick holds under bf16, and what is outside autocast is float32'
import pytest, torch
from contextlib import suppress
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from cifar_fastai.callback.monitor import GradientClip
from cifar_fastai.core import UserError
from cifar_fastai.trick import step_order
from cifar_fastai.learner import cifar_learner
from cifar_fastai.runs.checkpoint import Checkpoint
from common import silent
from test_contract import StopAt, alone, assert_same, fit, make, our_learner, state

@pytest.mark.parametrize('name', alone)
def test_float32_outside_autocast(name):
    'Weights, momentum, losses and metrics are finite and float32'
    learn = fit(our_learner([make(name)], precision='bf16'))
    for k,v in state(learn).items():
        if v.is_floating_point(): assert v.dtype==torch.float32 and v.isfinite().all(), k
    assert all(o.dtype==torch.float32 and o.isfinite() for o in learn.recorder.losses)
    assert learn.recorder.history.notna().all(axis=None)

@pytest.mark.parametrize('name', [None, *alone])
def test_resumes_bitwise(name, tmp_path):
    def run(file, seed=1, **kwargs):
        learn = our_learner([make(name)] if name else [], seed=0 if seed==1 else 7, precision='bf16')
        set_seed(seed)
        with silent(learn), suppress(KeyboardInterrupt): learn.fit_cosine(3, 0.05, by='batch', **kwargs)
        return learn
    whole = run('a')
    run('b', cbs=[Checkpoint(tmp_path/'b'), StopAt(2)])
    assert_same(state(run('b', seed=9, cbs=Checkpoint(tmp_path/'b', resume=True))), state(whole))

def test_it_is_bf16():
    'The network computes in bf16, and the loss in float32'
    seen = set()
    look = Callback(after_pred=lambda self: seen.add(('pred', self.pred.dtype)),
        after_loss=lambda self: seen.add(('loss', self.loss.dtype)))
    look.order = -100
    fit(our_learner(precision='bf16'), 1, cbs=look)
    assert seen=={('pred', torch.bfloat16), ('loss', torch.float32)}

@pytest.mark.parametrize('clip', [True, False])
def test_gradient_clip_sees_float32(clip):
    'The float32 gradients of a bf16 step are clipped before the step'
    seen = []
    def record(self):
        grads = [p.grad for p in self.model.parameters()]
        seen.append((torch.cat([g.flatten() for g in grads]).norm().item(), {g.dtype for g in grads}))
    look = Callback(before_step=record)
    look.order = step_order.clip+1
    fit(our_learner([GradientClip(0.1)]*clip, precision='bf16'), 1, cbs=look)
    norms,dtypes = zip(*seen)
    assert all(o=={torch.float32} for o in dtypes)
    assert all(n==pytest.approx(0.1, rel=1e-4) for n in norms) if clip else min(norms)>0.11

def test_unknown():
    with pytest.raises(UserError, match="no precision 'fp8'"): cifar_learner('lenet', our_learner().dls, precision='fp8')

def test_cpu_without_bf16(monkeypatch):
    'A CPU without bf16 instructions is named in one warning'
    for o in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'): monkeypatch.setattr(torch.cpu, o, lambda: False)
    monkeypatch.setattr('platform.machine', lambda: 'x86_64')
    with pytest.warns(UserWarning, match='no fast bf16'): our_learner(precision='bf16')
