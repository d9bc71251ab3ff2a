"Data: which images a loader draws (rules, seeds, samplers, weights) and the arguments of `cifar_dls`."
import json, pickle
import numpy as np, pytest, torch
from fastai.vision.all import CrossEntropyLossFlat, Learner, PartialDL, Transform, WeightedDL, load_learner, mkdir, nn
from cifar_fastai.data.sources import *
from cifar_fastai.data.datasets import *
from cifar_fastai.data.loaders import *
from test_data import at_home, real_cifar10 # chkstyle: ignore
from test_data import binary_layout, image_layout, python_layout, write
from conftest import time_limit
from test_data_faults import make_special, refused

torch.set_num_threads(1)
def digits(**kw): return cifar_dls('digits', **dict(dict(device='cpu', bs=64), **kw))
def ys(dl): return torch.cat([b[1] for b in dl])

# Rules, seeds and what is recorded of them

def test_the_seed_decides_what_is_trained_and_held_out():
    for kw in (dict(fraction=0.3), dict(valid='holdout'), dict(valid='holdout', fraction=0.3)):
        a,b,c = (digits(seed=s, **kw) for s in (1,1,2))
        for i in range(len(a.loaders)):
            assert torch.equal(a[i].dataset.x, b[i].dataset.x)
            same = torch.equal(a[i].dataset.x, c[i].dataset.x)
            assert same==(i==2 or i==1 and 'valid' not in kw)
        assert a.split==c.split and a.source_digest==c.source_digest

@pytest.mark.parametrize('layout', [python_layout, binary_layout])
def test_first_images(tmp_path, layout):
    "`first`: the first of both splits, in the source's order, whatever the seed"
    root = write(layout(), tmp_path/'x')/next(iter(layout()))
    whole,half,other = (cifar_dls(root, device='cpu', **kw)
        for kw in ({}, dict(fraction=0.5, rule='first'), dict(fraction=0.5, rule='first', seed=7)))
    for dls in (half,other):
        for i in (0,1):
            n = len(whole[i].dataset)//2
            assert torch.equal(dls[i].dataset.x, whole[i].dataset.x[:n]) and torch.equal(dls[i].dataset.y,
                whole[i].dataset.y[:n])
    assert half.split==dict(rule='first', fraction=0.5, valid='test', holdout=None)==json.loads(json.dumps(other.split))
    assert half.source_digest==whole.source_digest

def test_first_images_of_class_folders(tmp_path):
    "Sorted by class, the first half would be half of the classes: a fixed stratified part of both splits"
    root = write(image_layout(('a','b')), tmp_path/'x')
    whole,a,b = (cifar_dls(root, device='cpu', **kw)
        for kw in ({}, dict(fraction=0.5, rule='first', seed=1), dict(fraction=0.5, rule='first', seed=2)))
    for i in (0,1):
        assert torch.equal(a[i].dataset.x, b[i].dataset.x) and a[i].dataset.y.tolist()==[0,1]
        assert torch.equal(a[i].dataset.x, whole[i].dataset.x[stratified(whole[i].dataset.y, 0.5, 42)[0]])
    assert a.split==b.split==dict(rule='stratified', fraction=0.5, valid='test', holdout=None)

def test_split_and_digest_are_recorded(tmp_path):
    a = digits(fraction=0.5, valid='holdout', holdout=0.2)
    assert a.split==dict(rule='stratified', fraction=0.5, valid='holdout', holdout=0.2) and len(a.source_digest)==16
    assert {digits(**kw).source_digest
        for kw in ({}, dict(seed=3), dict(fraction=0.1), dict(valid='holdout'))}=={a.source_digest}
    for o in (a.new_empty(), pickle.loads(pickle.dumps(a))): assert (o.split,o.source_digest)==(a.split,a.source_digest)
    root = write(image_layout(('a','b')), tmp_path/'x')
    assert cifar_dls(root, device='cpu').source_digest==cached_images(root).digest!=a.source_digest

def test_the_digest_of_a_whole_source_is_that_of_its_run():
    "So that runs on all images that were stored before keep their place"
    from cifar_fastai.runs.train import data_digest
    dls = digits()
    assert dls.source_digest==data_digest(dls)

@pytest.mark.slow
def test_digest_of_real_cifar10(real_cifar10):
    from cifar_fastai.runs.train import data_digest
    dls = cifar_dls('cifar10', root=real_cifar10, device='cpu')
    assert dls.source_digest==data_digest(dls)

# Samplers of fastai and of users

class W(WeightedDL, TensorDL): pass
class P(PartialDL, TensorDL): pass

@pytest.fixture(scope='module')
def ds(): return cifar_dls('digits', device='cpu').train_ds

def favour(ds, label=3, w=100.): return torch.where(ds.y==label, w, 1.).numpy()

def test_weighted_dl(ds):
    np.random.seed(0)
    y = ys(W(ds, bs=64, wgts=favour(ds), shuffle=True))
    assert len(y)==len(ds) and abs((y==3).float().mean()-0.917)<0.03
    assert torch.equal(ys(W(ds, bs=64, wgts=favour(ds), shuffle=False)), ds.y)

def test_partial_dl(ds):
    dl = P(ds, bs=64, partial_n=200, shuffle=True)
    y = ys(dl)
    assert len(y)==200 and len(dl)==4 and len(list(dl))==4
    assert [len(b[1]) for b in P(ds, bs=64, partial_n=200, drop_last=True)]==[64]*3
    assert torch.equal(ys(P(ds, bs=64)), ds.y)

def test_a_subclass_decides_the_order(ds):
    class Back(TensorDL):
        def get_idxs(self): return super().get_idxs()[::-1]
    class Few(TensorDL):
        def get_idxs(self): return np.array([5,0,7])
    class More(TensorDL):
        def get_idxs(self): return list(range(self.n))*2
    class Lazy(TensorDL):
        def get_idxs(self): return (i for i in (1,2,3))
    class Order(TensorDL):
        def shuffle_fn(self, idxs): return idxs[::-1]
    class Twice(TensorDL):
        def shuffle_fn(self, idxs): return super().shuffle_fn(idxs)[:100]
    class Perm(TensorDL):
        def permutation(self): return torch.arange(self.n).flip(0)
    class Nothing(TensorDL):
        def get_idxs(self): return []
    assert torch.equal(ys(Back(ds)), ds.y.flip(0)) and torch.equal(ys(Order(ds, shuffle=True)),
        ds.y.flip(0)) and torch.equal(ys(Perm(ds)), ds.y.flip(0))
    assert torch.equal(ys(Order(ds)), ds.y)
    assert ys(Few(ds)).tolist()==ds.y[[5,0,7]].tolist() and ys(Lazy(ds)).tolist()==ds.y[[1,2,3]].tolist()
    assert torch.equal(ys(More(ds)), ds.y.repeat(2)) and list(Nothing(ds))==[]
    assert len(ys(Twice(ds, shuffle=True)))==100 and not torch.equal(ys(Twice(ds, shuffle=True)), ds.y[:100])

def test_functions_decide_the_order(ds):
    "fastai takes any of its methods as an argument"
    assert torch.equal(ys(TensorDL(ds, shuffle=True, shuffle_fn=lambda idxs: idxs[::-1])), ds.y.flip(0))
    assert ys(TensorDL(ds, get_idxs=lambda: [3,1])).tolist()==ds.y[[3,1]].tolist()
    dl = TensorDL(ds, get_idxs=lambda: [3,1])
    assert ys(dl.new()).tolist()==ds.y[[3,1]].tolist()

def test_hooks_that_a_gather_has_no_place_for(ds):
    "Refused rather than left out"
    class Item(TensorDL):
        def create_item(self, i): return super().create_item(i)
    for f in (lambda: Item(ds), lambda: TensorDL(ds, after_item=[Transform(lambda o: o)]),
        lambda: TensorDL(ds, before_batch=Transform(lambda o: o)),
        lambda: TensorDL(ds, create_batch=lambda b: b)):
        with refused('after_batch'): f()
    assert len(TensorDL(ds).new(bs=7)) and len(W(ds, bs=7).new())

def test_the_plain_loader_makes_no_lists(ds, monkeypatch):
    dls = digits(weights='balanced')
    monkeypatch.setattr(TensorDL, 'get_idxs', None)
    assert len(ys(dls.train))==len(ds) and len(ys(dls.valid))==len(dls.valid_ds)

# Weights

def share(dls, label=3, n=10): return torch.cat([ys(dls.train) for _ in range(n)]).eq(label).float().mean().item()

@pytest.mark.parametrize('form', [list, tuple, np.array, torch.tensor, lambda o: {str(i): w for i,w in enumerate(o)}])
def test_weights_of_classes(ds, form):
    w = [1.]*10
    w[3] = 100.
    p = (ds.y==3).sum()*100/((ds.y==3).sum()*100+(ds.y!=3).sum())
    assert abs(share(digits(weights=form(w)))-p)<0.01

def test_weights_of_images(ds):
    "One per image of the source: they follow their images into a part"
    w = favour(ds)
    for kw in ({}, dict(fraction=0.5), dict(valid='holdout'), dict(valid='holdout', fraction=0.5, seed=3)):
        assert abs(share(digits(weights=w, **kw))-0.917)<0.02
    only = torch.zeros(len(ds))
    only[[4,9,100]] = torch.tensor([1.,2.,1.])
    dls = digits(weights=only)
    x = torch.cat([b[0] for b in dls.train.new(after_batch=None)])
    y = ys(dls.train)
    assert {o.numpy().tobytes() for o in x}=={ds.x[i].numpy().tobytes() for i in (4,9,100)}
    assert abs((y==ds.y[9]).float().mean()-0.5)<0.06

def test_balanced(tmp_path):
    root = write(image_layout(('a','b')), tmp_path/'x')
    f = root/'cifar10/train/a/0.png'
    for i in range(60): (root/f'cifar10/train/b/n{i}.png').write_bytes(f.read_bytes())
    dls = cifar_dls(root, device='cpu', weights='balanced', bs=8)
    assert dls.train_ds.y.bincount().tolist()==[2,62] and abs(share(dls, 0, 60)-0.5)<0.03
    assert torch.equal(ys(dls.valid), dls.valid_ds.y)

def test_draws_follow_the_weights(ds):
    "Chi-square over images, one in ten thousand; zero is never"
    small = ds.subset(torch.arange(50), 0)
    w = torch.arange(50.).flip(0)
    dl = TensorDL(small, shuffle=True, weights=w, n=200_000)
    got,exp = dl.permutation().bincount(minlength=50).double(),w.double()/w.sum()*200_000
    assert got[-1]==0 and ((got-exp)[:-1]**2/exp[:-1]).sum()<95

def test_weights_are_drawn_from_the_stream():
    "Reproducible, resumable, and apart from the global generators"
    a,b,c = (digits(weights='balanced', seed=s) for s in (1,1,2))
    assert torch.equal(ys(a.train), ys(b.train)) and not torch.equal(ys(a.train), ys(c.train))
    before = torch.get_rng_state()
    sd = a.train.stream.state_dict()
    first = ys(a.train)
    a.train.stream.load_state_dict(sd)
    assert torch.equal(ys(a.train), first) and torch.equal(torch.get_rng_state(), before)

def test_weights_stay(tmp_path):
    w = {str(i): 100. if i==3 else 1. for i in range(10)}
    dls = digits(weights=w)
    assert (ys(dls.train.new(bs=9))==3).float().mean()>0.8
    assert torch.equal(ys(dls.train.new(shuffle=False)), dls.train_ds.y)
    assert (ys(pickle.loads(pickle.dumps(dls)).train)==3).float().mean()>0.8
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), loss_func=CrossEntropyLossFlat(),
        path=tmp_path)
    learn.export('m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    assert (ys(again.dls.train.new(dls.train_ds))==3).float().mean()>0.8
    with learn.no_bar():
        preds,targs = learn.get_preds(ds_idx=0)
        assert torch.equal(targs, dls.train_ds.y)
    per_image = digits(weights=favour(dls.train_ds))
    assert len(per_image.new_empty().train)==0
    with refused('weights'): per_image.train.new(dls.valid_ds)

def test_weights_on_a_device_without_numbers():
    dls = digits(weights='balanced')
    dls.to('meta')
    assert dls.one_batch()[0].device.type=='meta'
    dls.cpu()
    assert len(ys(dls.train))==len(dls.train_ds)

@pytest.mark.parametrize('w',
    ['balance', [1.]*9, [-1.]+[1.]*9, [float('nan')]*10, [float('inf')]+[1.]*9, [0.]*10, ['a']*10,
        [None]*10, [[1.]*10], 3, True, {'0': 1.}, {}, [], b'x', object(),
        [10**400]*10, torch.ones(10, dtype=torch.complex64), {str(i+1): 1. for i in range(10)}, [1]*1500],
    ids=lambda o: str(o)[:20])
def test_weights_that_are_none(w):
    with refused('weights'): digits(weights=w)

def test_extreme_weights():
    assert len(ys(digits(weights=[1e308]*10).train))==1498 and len(ys(digits(weights=[1e-308]*10).train))==1498
    assert share(digits(weights=[0.]*9+[1e-300]), 9, 1)==1

# Last batches

def test_drop_last():
    dls = digits(bs=100, drop_last=True)
    assert [len(y) for _,y in dls.train]==[100]*14 and len(dls.train)==14
    assert sum(len(y) for _,y in dls.valid)==299
    assert dls.train.new().drop_last
    with refused('bs is 2000.*1498'): digits(bs=2000, drop_last=True)

# Arguments

@pytest.mark.parametrize('kw,message', [
    (dict(fraction=1e-300), r'fraction is 1e-300.* at least'), (dict(fraction=1e-6), 'fraction is 1e-06'),
    (dict(fraction=float('nan')), 'fraction is nan'), (dict(fraction=True), 'fraction is True'),
    (dict(fraction=10**400), 'fraction is 1000'), (dict(fraction=1e-300, rule='first'), 'fraction is 1e-300'),
    (dict(fraction=None), 'fraction is None'), (dict(fraction=np.ones(2)), 'fraction is'),
    (dict(valid='holdout', holdout=1-1e-15), 'holdout is 0.9'),
    (dict(valid='holdout', holdout=0), r'holdout is 0: .*\(0, 1\)'),
    (dict(holdout=2), 'holdout is 2'),
    (dict(seed=-1), 'seed is -1'), (dict(seed=2**64), 'seed is 18446744073709551616'), (dict(seed=10**5000), 'seed is'),
    (dict(seed='a'), "seed is 'a'"), (dict(seed=1.5), 'seed is 1.5'), (dict(seed=None), 'seed is None'),
    (dict(bs=10**30), 'bs is 1000'), (dict(bs=None), 'bs is None'), (dict(bs=np.array([64])), 'bs is'),
    (dict(bs=float('inf')), 'bs is inf'), (dict(val_bs=0), 'val_bs is 0'), (dict(val_bs=2.5), 'val_bs is 2.5'),
    (dict(pad=33), r'pad is 33: it must be an integer in \[0, 32\]'), (dict(pad=100000), 'pad is 100000'),
    (dict(pad='4'), "pad is '4'"), (dict(pad=float('nan')), 'pad is nan'),
    (dict(flip='no'), "flip is 'no'"), (dict(flip=0.3), 'flip is 0.3'), (dict(drop_last='no'), "drop_last is 'no'"),
    (dict(drop_last=None), 'drop_last is None'),
    (dict(rule='frist'), "no rule 'frist': did you mean 'first'"), (dict(rule=None), 'no rule'),
    (dict(rule=['first']), 'no rule'),
    (dict(valid=3), 'validation images'), (dict(valid=[]), 'validation images'),
    (dict(dataset=None), 'dataset is None'), (dict(dataset=[]), r'dataset is \[\]'), (dict(dataset={}), 'dataset is'),
    (dict(dataset=3), 'dataset is 3'), (dict(dataset=b'digits'), 'dataset is'),
    (dict(dataset=''), "no data set ''"), (dict(dataset='a\0b'), r'a\\x00b'), (dict(dataset='x/a\0b'), r'a\\x00b'),
    (dict(dataset='x'*5000), 'data set|folder'), (dict(dataset='/'+'x'*5000), 'folder or archive'),
    (dict(dataset='~nobody_of_that_name/x'), 'nobody_of_that_name'), (dict(dataset='\udcff/x'), r'\\udcff'),
    (dict(dataset='\udcff'), r'\\udcff'),
    (dict(root='nowhere'), r"root is 'nowhere': .*existing"), (dict(root=''), "root is ''"),
    (dict(root='a\0b'), 'root is'),
    (dict(root=3), 'root is 3'), (dict(root=[]), r'root is \[\]'), (dict(root=True), 'root is True'),
    (dict(root='x'*5000), 'root is'), (dict(root='~nobody_of_that_name'), 'root is'), (dict(root='\udcff'), 'root is'),
    (dict(dataset='cifar10', root='nowhere'), 'root is'),
    (dict(device='gpu9'), "There is no device 'gpu9'"), (dict(device=[]), r"There is no device '\[\]'")],
    ids=lambda o: o[:40] if isinstance(o, str) else '-')
def test_arguments(kw, message):
    with time_limit(), refused(message): cifar_dls(**dict(dict(dataset='digits', device='cpu'), **kw))

def test_numbers_of_numpy_and_torch():
    a = digits(bs=np.int64(64), seed=torch.tensor(3), fraction=np.float32(0.5), pad=np.uint8(2),
        val_bs=torch.tensor(32))
    b = digits(bs=64, seed=3, fraction=0.5, pad=2, val_bs=32)
    assert torch.equal(a.one_batch()[0], b.one_batch()[0]) and json.dumps(a.split)==json.dumps(b.split)
    assert len(digits(seed=2**64-1).train_ds)==len(digits(seed=0).train_ds)
    assert digits(fraction=10/1498).train_ds.y.bincount().tolist()==[1]*10

def test_rare_classes_stay(tmp_path):
    "A part has at least one image of each class"
    root = write(image_layout(('a','b')), tmp_path/'x')
    for i in range(60): (root/f'cifar10/train/b/n{i}.png').write_bytes((root/'cifar10/train/a/0.png').read_bytes())
    assert cifar_dls(root, fraction=0.1, device='cpu').train_ds.y.bincount().tolist()==[1,6]

@pytest.mark.parametrize('kw', [dict(pad=-1), dict(pad=100), dict(pad='x'), dict(pad=1.5), dict(flip='no')])
def test_crop_flip_arguments(kw):
    with refused(next(iter(kw))): CropFlip(**kw)

@pytest.mark.parametrize('bs', [0, -1, 'x', 2.5, None, 10**30, True])
def test_batch_sizes_of_loaders(ds, bs):
    for f in (lambda: TensorDL(ds, bs=bs), lambda: TensorDL(ds).new(bs=bs)):
        with refused('bs is'): f()
    if bs is not None:
        with refused('bs is'): TensorDL(ds, batch_size=bs)

def test_nothing_to_predict():
    with refused('test_items is empty'): digits().test_dl([])

@pytest.mark.parametrize('kind', ['fifo','dangling','folder'])
@pytest.mark.parametrize('part', ['','.part'])
def test_a_download_into_what_is_no_file(tmp_path, monkeypatch, kind, part):
    make_special(kind, mkdir(tmp_path/'r')/f'x.tgz{part}')
    with time_limit(), refused('is not a regular file'):
        download_archive('http://127.0.0.1:9/x.tgz', tmp_path/'r', '0'*64)
