"""Random numbers are keyed: by fit, trick, epoch, batch and pass, and by rank where they differ by image.

So settings that draw a different number of variates stay aligned, inference moves nothing, and no global generator is touched."""
import random
import numpy as np, pytest, torch
from scipy import stats
from fastai.callback.core import Callback
from fastai.torch_core import get_random_states, set_seed
from torch import nn
from cifar_fastai import rng
from cifar_fastai.augment.autoaugment import RandAugment
from cifar_fastai.augment.occlusion import Cutout, RandomErasing
from cifar_fastai.callback import mixers
from cifar_fastai.callback.distill import KD
from cifar_fastai.callback.mixers import CutMix, MixUp, OneOf
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.rng import RandomStream, key_hash
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.serialize import save_tensors
from cifar_fastai.zoo.registry import create_model
from common import fit, silent

def learner(*cbs, **kwargs):
    set_seed(0)
    dls = cifar_dls('digits', bs=16, fraction=0.06)
    return cifar_learner(nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10)), dls, cbs=cbs, lr=0.01, **kwargs)

class Batches(Callback):
    'The training batches as the network gets them'
    order = 1000
    def __init__(self): self.x,self.y = [],[]
    def before_batch(self):
        if not self.training: return
        self.x.append(self.xb[0].clone())
        self.y.append(self.yb[0].clone())

def same(a, b): return len(a)==len(b) and all(map(torch.equal, a, b))

@pytest.fixture
def perms(monkeypatch):
    'Every permutation that MixUp applies'
    seen,mixup = [],mixers.mixup
    def keep(x, probs, perm, lam):
        seen.append(perm.clone())
        return mixup(x, probs, perm, lam)
    monkeypatch.setattr(mixers, 'mixup', keep)
    return seen

def test_settings_stay_aligned(perms):
    "Beta variates are drawn by rejection, so two values of alpha draw different numbers of them; each batch is permuted alike to the end"
    found = []
    for alpha in (0.2, 1.):
        perms.clear()
        fit(learner(MixUp(alpha)), 4)
        found.append(list(perms))
    assert len(found[0])>=20 and same(*found)

def test_boxes_stay_aligned(monkeypatch):
    'Nor do the centres of the boxes of CutMix, which come from the generator that beta variates come from'
    centres,cut_box = [],mixers.cut_box
    def keep(lam, i, j, h, w):
        centres.append((i, j))
        return cut_box(lam, i, j, h, w)
    monkeypatch.setattr(mixers, 'cut_box', keep)
    found = []
    for beta in (0.2, 3.):
        centres.clear()
        fit(learner(CutMix(beta, p=1.)), 4)
        found.append(list(centres))
    assert len({*found[0]})>=20 and found[0]==found[1]

def test_a_trick_moves_no_other():
    'The order of the data and the erased boxes are the same beside a trick that draws much and one that draws nothing'
    seen = []
    for more in ([], [RandAugment()]):
        batches = Batches()
        fit(learner(RandomErasing(p=1.), batches, *more), 2)
        seen.append([(o==0).all(1) for o in batches.x])
    assert same(*seen) and all(o.any() for o in seen[0])

def test_neighbours_are_independent():
    'The first numbers of neighbouring epochs and batches, of tricks and of passes, are uniform and uncorrelated'
    s,u,t = RandomStream('a'),[],[]
    for e in range(40):
        for b in range(50):
            s.rekey(e, b)
            u.append(s.py.random())
            t.append(torch.rand(1, generator=s.gen('cpu')).item())
    other = []
    for e in range(40):
        for b in range(50):
            s.rekey(e, b, 'second pass')
            other.append(s.py.random())
    u,t,other = map(np.array, (u, t, other))
    for x in (u, t, other): assert stats.kstest(x, 'uniform').pvalue>1e-3
    for x,y in ((u[1:], u[:-1]), (u[50:], u[:-50]), (t[1:], t[:-1]), (u, t), (u, other)): assert abs(np.corrcoef(x, y)[0,1])<0.08
    assert len({*u})==len({*t})==2000

def test_a_key_is_no_sum():
    'Keys whose parts add up to the same, or join to the same text, are different keys'
    keys = [(1, 2), (2, 1), (0, 3), ('12',), ('1', '2'), (1, '2'), (12,), ((1, 2),), ()]
    assert len({key_hash(*o) for o in keys})==len(keys)

@pytest.mark.parametrize('before', ['validate', 'get_preds', 'predict', 'show_batch', 'lr_find', 'loader'])
def test_inference_moves_nothing(before):
    'What an epoch draws does not depend on what was looked at before it'
    do = dict(validate=lambda l: l.validate(), get_preds=lambda l: l.get_preds(ds_idx=0), predict=lambda l: l.predict(l.dls.valid_ds[0][0]),
        show_batch=lambda l: l.show_batch(), lr_find=lambda l: l.lr_find(num_it=5, show_plot=False), loader=lambda l: list(l.dls.train))[before]
    seen = []
    for look in (False, True):
        batches = Batches()
        learn = learner(MixUp(), RandomErasing())
        if look:
            with silent(learn): do(learn)
        fit(learn, 2, cbs=batches)
        seen.append(batches.x+batches.y)
    assert same(*seen)

def test_inside_a_fit():
    'Nor does an epoch depend on inference inside it'
    class Look(Callback):
        def after_batch(self):
            if self.training and self.iter==2: self.learn.validate()
        def before_epoch(self): self.learn.get_preds(ds_idx=0)
    seen = []
    for cbs in ([], [Look()]):
        batches = Batches()
        fit(learner(MixUp(), RandomErasing()), 2, cbs=[batches, *cbs])
        seen.append(batches.x+batches.y)
    assert same(*seen)

def test_generators_are_left_alone():
    "A fit draws nothing from Python's, numpy's and torch's generators"
    def states(): return random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    learn = learner(MixUp(), RandomErasing(), RandAugment())
    before = states()
    with silent(learn): learn.fit(2)
    assert states()==before

def test_fits_draw_anew():
    'A second fit of a Learner draws other numbers; another Learner repeats the first; another seed draws others'
    def batches(learn, seed):
        seen = Batches()
        fit(learn, 1, seed=seed, cbs=seen)
        return seen.x+seen.y
    learn = learner(MixUp())
    first,second = batches(learn, 1),batches(learn, 1)
    assert not same(first, second)
    again = learner(MixUp())
    assert same(first, batches(again, 1)) and same(second, batches(again, 1))
    assert not same(first, batches(learner(MixUp()), 2))

def test_two_of_a_kind():
    'Tricks of one class are told apart by their settings, whatever their order'
    seen = []
    for cbs in ([Cutout(4), Cutout(8)], [Cutout(8), Cutout(4)]):
        batches = Batches()
        fit(learner(*cbs), 1, cbs=batches)
        seen.append(batches.x)
    assert same(*seen)

def test_resumed_with_another_setting(tmp_path):
    'The setting is named; a trick whose class and number are the same is the same trick'
    learn = learner(MixUp(0.2))
    class Stop(Callback):
        order = 99
        def after_epoch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(learn, 2, cbs=[Checkpoint(tmp_path/'c.safetensors'), Stop()])
    with pytest.raises(UserError, match=r'saved: alpha=0\.2.*current: alpha=0\.3'):
        fit(learner(MixUp(0.3)), 2, cbs=Checkpoint(tmp_path/'c.safetensors', resume=True))

def test_a_teacher_by_name(tmp_path):
    'A network that a trick builds leaves the generators alone'
    save_tensors(tmp_path/'t.safetensors', create_model('lenet').state_dict(), {})
    seen = []
    for cbs in ([], [KD('lenet', alpha=0., path=tmp_path/'t.safetensors')]):
        torch.manual_seed(5)
        learn = learner(*cbs)
        before = get_random_states()['torch_state'].tolist()
        fit(learn, 1, seed=None)
        seen.append((before, get_random_states()['torch_state'].tolist()))
    assert seen[0]==seen[1]

def test_ranks(monkeypatch):
    'Draws by image differ between processes; the order of the data and what is drawn for a whole batch do not'
    def draws():
        s = RandomStream(3)
        s.rekey(0, 1)
        return torch.rand(3, generator=s.gen('cpu')).tolist(),s.py.random(),torch.rand(3, generator=RandomStream(3).gen('cpu', per_rank=False)).tolist()
    a = draws()
    monkeypatch.setattr(rng, 'rank_distrib', lambda: 1)
    b = draws()
    assert a[0]!=b[0] and a[1:]==b[1:]

def test_no_generator_is_made_in_a_step(monkeypatch):
    'Generators are seeded anew'
    made,make = [],torch.Generator
    learn = fit(learner(MixUp(), RandomErasing()), 1)
    monkeypatch.setattr(torch, 'Generator', lambda *args: made.append(args) or make(*args))
    fit(learn, 2)
    assert not made

def test_one_of_keys_its_mixers(perms):
    'What a mixer in a OneOf draws does not depend on how often it was its turn before'
    found = []
    for p in (0.5, 0.999):
        perms.clear()
        batches = Batches()
        fit(learner(OneOf(MixUp(), CutMix(), p=[p, 1-p]), batches), 2)
        found.append([o.tolist() for o in perms])
    assert 0<len(found[0])<len(found[1]) and all(o in found[1] for o in found[0])

def test_foreign_learners(tmp_path):
    "A Learner without anything of ours draws and does what it does where the library was never imported"
    import subprocess, sys
    code = '''
import random, sys
{imports}
from fastai.vision.all import *
from fastai.test_utils import synth_learner
set_seed(3)
learn = synth_learner(cbs=[CSVLogger('x.csv')], metrics=mae)
with learn.no_bar(), learn.no_logging():
    learn.fit_one_cycle(2)
    learn.validate()
    learn.fit(1)
    losses = list(learn.recorder.losses)
    learn.get_preds()
print([float(x) for x in losses], random.random(), torch.rand(2).tolist(), np.random.rand())
print([p.tolist() for p in learn.model.parameters()], len(learn.cbs), CSVLogger._stateattrs, Recorder.__dict__.keys())
'''
    outs = [subprocess.run([sys.executable, '-W', 'ignore', '-c', code.format(imports=o)], capture_output=True, text=True, check=True, cwd=tmp_path)
        for o in ('', 'from cifar_fastai.all import *')]
    assert outs[0].stdout==outs[1].stdout and len(outs[0].stdout)>200
