"""Five times forty fits in one process, with random tricks and networks, exceptions and interrupts: nothing is left.

`python tests/test_soak.py FILE` stores memory, open files, threads and hooks after every fit for the documentation."""
import gc, json, random, signal, sys, threading, warnings
from pathlib import Path
import numpy as np, psutil, pytest, torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.loop import _loops
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.zoo.registry import create_model
from test_contract import make, names

networks = 'lenet', 'toynet_s1_k3', 'resnet20', 'shufflenetv2', 'mobilevit_xxs', 'cct_7_3x1'
events = 'before_fit before_train before_batch after_pred after_backward after_step after_epoch before_validate'.split()

class Raise(Callback):
    'Raise an error at the n-th time of an event'
    order = 30
    def __init__(self, event, error):
        self.error,self.left = error,3 if 'batch' in event or event in ('after_pred', 'after_backward', 'after_step') else 1
        setattr(self, event, self._count)
    def _count(self):
        self.left -= 1
        if not self.left: raise self.error

def switches():
    'Settings of the process that a fit must leave alone'
    return dict(grad=torch.is_grad_enabled(), autocast=torch.is_autocast_enabled('cpu'), threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled(), dtype=torch.get_default_dtype(),
        cudnn=(torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        signals=[signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], filters=len(warnings.filters))

def hooks(model):
    own = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return sum(len(getattr(m, o)) for m in model.modules() for o in own) + sum(
        len(p._backward_hooks or ())+len(getattr(p, '_post_accumulate_grad_hooks', None) or ()) for p in model.parameters())

def one(rng, path, i):
    'A fit; how it ended, and the hooks that are left on the network'
    dls = cifar_dls('digits', bs=16, fraction=0.04, val_bs=64)
    dls.valid.dataset = dls.valid_ds.subset(range(64))
    dls.valid.n = 64
    cbs = [make(n, teacher=create_model('lenet')) if n in ('KD', 'DKD') else make(n) for n in rng.sample(names, rng.randrange(4))]
    model = create_model(rng.choice(networks))
    try: learn = cifar_learner(model, dls, cbs=cbs, lr=0.01)
    except UserError: return 'refused',hooks(model)
    before = {type(cb).__name__ for cb in learn.cbs}
    if rng.random()<0.3: learn.to_bf16()
    cls = [None, None, ValueError, KeyboardInterrupt][i % 4]
    extra = [Raise(rng.choice(events), cls('stop'))] if cls else [Checkpoint(path/f'{i}.safetensors')]*(rng.random()<0.3)
    outcome = 'finished'
    with learn.no_bar(), learn.no_logging():
        try: learn.fit(2, cbs=extra)
        except UserError: outcome = 'refused'
        except (ValueError, KeyboardInterrupt): outcome = 'raised'
        if rng.random()<0.2: learn.get_preds()
    assert {type(cb).__name__ for cb in learn.cbs}-{'MixedPrecision'}==before
    for f in path.iterdir(): f.unlink()
    return outcome,hooks(model)

def soak(n, path, seed=0):
    'Memory and more after each of `n` fits, the same forty again and again: kernels for new shapes take memory once'
    process,rows = psutil.Process(),[]
    for i in range(n):
        if i%40==0: rng = random.Random(seed)
        set_seed(i%40)
        was,kept = switches(),random.getstate()
        outcome,left = one(rng, path, i%40)
        assert switches()==was, f'fit {i} ({outcome})'
        gc.collect()
        rows.append(dict(outcome=outcome, mib=process.memory_info().rss/2**20, files=process.num_fds(), threads=threading.active_count(),
            hooks=left, learners=len(_loops)))
    return rows

@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process, 'num_fds'), reason='open files are counted on POSIX')
def test_soak(tmp_path):
    'Open files, threads and hooks are flat, no Learner is kept, and memory stops to grow'
    rows = soak(200, tmp_path)
    ends = {o:sum(r['outcome']==o for r in rows) for o in ('finished', 'raised', 'refused')}
    assert all(v>=10 for v in ends.values()), ends
    for k in ('files', 'threads'): assert {r[k] for r in rows[50:]}=={rows[50][k]}, k
    assert not any(r['hooks'] for r in rows)
    assert max(r['learners'] for r in rows)<=2
    grown = np.median([r['mib'] for r in rows[160:]])-np.median([r['mib'] for r in rows[40:80]])
    assert grown<30, f'{grown:.0f} MiB in 120 fits'

if __name__=='__main__':
    import tempfile
    with tempfile.TemporaryDirectory() as d: rows = soak(200, Path(d))
    Path(sys.argv[1]).write_text(json.dumps({k:[r[k] for r in rows] for k in rows[0]})+'\n')
