"Tricks in fastai's own Learners: other targets, frozen layers, few images"
import re,subprocess,sys
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np,pytest,torch,torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat,CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from fastai.torch_core import TensorMask,set_seed
from fastai.vision.core import PILImage,PILMask,TensorBBox,TensorPoint,imagenet_stats
from fastai.data.block import CategoryBlock,DataBlock,MultiCategoryBlock,RegressionBlock
from fastai.data.transforms import IndexSplitter,Normalize
from fastai.vision.data import ImageBlock,MaskBlock
from fastai.vision.learner import vision_learner
from torch import nn
from cifar_fastai.augment.geometry import Flip,RandomCrop
from cifar_fastai.augment.occlusion import Cutout
from cifar_fastai.augment.repeat import RepeatedAugment
from cifar_fastai.callback.distill import KD
from cifar_fastai.callback.mixers import CutMix,MixUp
from cifar_fastai.callback.selective import SelectiveBackprop
from cifar_fastai.callback.whiten import Whiten
from cifar_fastai.core import UserError
from cifar_fastai.losses import LabelSmoothing
from hand import Draws
from common import silent
from test_contract import fit,our_learner

def net(): return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def learner(ys, loss, cbs, model=None, bs=4):
    'A Learner of fastai with three batches of random images'
    set_seed(0)
    xs = torch.rand(len(ys), 3, 16, 16)
    bs = [(xs[i:i+bs], ys[i:i+bs]) for i in range(0, len(ys), bs)]
    dls = DataLoaders(bs, bs)
    dls.c = 3
    def sgd(ps, lr): return OptimWrapper(ps, torch.optim.SGD, lr=lr)
    return Learner(dls, model or net(), loss, opt_func=sgd, lr=0.1, cbs=cbs)

several = (torch.rand(12, 3, generator=torch.Generator().manual_seed(1))<0.5).float()

def test_mixup_of_several_labels():
    "Targets are mixed, and the loss is torch's: a loop written by hand"
    learn = learner(several, BCEWithLogitsLossFlat(), MixUp(0.4))
    stream = learn.mix_up.stream
    model = net()
    model.load_state_dict(learn.model.state_dict())
    with silent(learn): learn.fit(1)
    for i,(x,y) in enumerate(learn.dls.train):
        rng = Draws(stream.seed, (0, i))
        perm,lam = torch.randperm(4, generator=rng.gen('cpu')),rng.py.betavariate(0.4, 0.4)
        x,y = (lam*o + (1-lam)*o[perm] for o in (x, y))
        F.binary_cross_entropy_with_logits(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters(): p -= 0.1*p.grad
        model.zero_grad()
    for a,b in zip(learn.model.parameters(), model.parameters()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert isinstance(learn.loss_func, BCEWithLogitsLossFlat)

@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_loss_of_several_labels(reduction):
    'With a trick that does nothing, the weights are those without it'
    res = []
    for cbs in ([], [LabelSmoothing(0.)]):
        learn = learner(several, nn.BCEWithLogitsLoss(reduction=reduction), cbs)
        with silent(learn): learn.fit(2)
        res.append(list(learn.model.parameters()))
    for a,b in zip(*res): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)

def message(ys, loss, cbs, model=None):
    learn = learner(ys, loss, cbs, model)
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(UserError) as e, silent(learn): learn.fit(1)
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    assert '\n' not in str(e.value)
    return str(e.value)

def test_several_labels_are_refused():
    assert 'KD(teacher=Sequential) compares the probabilities of classes that exclude each other' in message(several,
        BCEWithLogitsLossFlat(), KD(net()))
    assert 'these targets are class labels' in message(torch.arange(12)%3, nn.BCEWithLogitsLoss(), MixUp())

masks = torch.zeros(12, 16, 16, dtype=torch.long)
def per_pixel(): return nn.Conv2d(3, 3, 1)

@pytest.mark.parametrize('trick', [MixUp, CutMix, lambda: KD(per_pixel()), SelectiveBackprop])
def test_classes_of_pixels(trick):
    "In a window that opens later too: before the first step"
    for cb in (trick(), MixUp(start=0.5)):
        assert 'for each image, and these targets have the shape (4, 16, 16)' in message(masks, CrossEntropyLossFlat(axis=1), cb, per_pixel())

@pytest.mark.parametrize('ys', [masks, TensorMask(masks), TensorPoint(torch.zeros(12, 2)), TensorBBox(torch.zeros(12, 2, 4))])
@pytest.mark.parametrize('trick', [Flip, RandomCrop])
def test_places(ys, trick):
    assert f'{trick()!r} changes images and leaves their targets as they are' in message(ys, nn.MSELoss(), trick())

def test_places_that_stay():
    'What does not move pixels, or is off, works'
    for cb in (Cutout(4), RepeatedAugment(), Flip(0), MixUp(0.), LabelSmoothing()):
        learn = learner(masks, nn.CrossEntropyLoss(), cb, per_pixel())
        with silent(learn): learn.fit(1)

def test_smoothed_pixels():
    "Label smoothing of a class per pixel is torch's"
    a,b = learner(masks, nn.CrossEntropyLoss(), LabelSmoothing(0.2), per_pixel()),learner(masks,
        nn.CrossEntropyLoss(label_smoothing=0.2), [], per_pixel())
    for l in (a, b):
        with silent(l): l.fit(1)
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)

def test_frozen_convolution():
    learn = learner(torch.arange(12)%3, nn.CrossEntropyLoss(), Whiten())
    learn.model[0].weight.requires_grad_(False)
    before = learn.model[0].weight.clone()
    with pytest.raises(UserError, match='which are frozen: call learn.unfreeze()'), silent(learn): learn.fit(1)
    assert torch.equal(learn.model[0].weight, before)

def test_few_images_are_selected():
    'Two images are left of a batch of two or three, for BatchNorm of features'
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    for bs in (2, 3):
        learn = learner(torch.arange(12)%3, nn.CrossEntropyLoss(), SelectiveBackprop(0.3, interrupt=0), model, bs)
        with silent(learn): learn.fit(1)

def test_tensorboard(tmp_path):
    "fastai's callback writes losses and all hyperparameters that are numbers, also of torch's optimizers"
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = our_learner([MixUp()])
    fit(learn, 1, cbs=TensorBoardCallback(tmp_path, trace_model=False))
    log = EventAccumulator(str(tmp_path)).Reload()
    assert {'train_loss', 'valid_loss', 'accuracy', 'lr_0', 'mom_0', 'wd_0'}<=set(log.Tags()['scalars'])
    assert {round(o.value, 4) for o in log.Scalars('lr_0')}=={0.05}

def test_no_warnings():
    "Importing the library shows no warnings of others, and hides none afterwards"
    code = '''from cifar_fastai.all import *
import warnings
for o in (FutureWarning, DeprecationWarning): warnings.warn('`torch.jit.script` is deprecated', o)'''
    out = subprocess.run([sys.executable, '-W', 'default', '-c', code], capture_output=True, text=True)
    assert out.returncode==0 and [o.split()[0] for o in out.stderr.splitlines()]==['<string>:3:']*2, out.stderr

def fastai_loaders(block, get_y):
    imgs = [PILImage.create(np.full((20, 20, 3), 10*i, dtype=np.uint8)) for i in range(9)]
    return DataBlock((ImageBlock, block), get_x=lambda i: imgs[i], get_y=get_y, splitter=IndexSplitter([8]),
        batch_tfms=Normalize.from_stats(*imagenet_stats)).dataloaders(range(9), bs=4, num_workers=0)

blocks = dict(classes=(CategoryBlock, lambda i: 'ab'[i%2], '100% |a|b|%'), labels=(MultiCategoryBlock, lambda i: ['1', '2'][i%2:], "1, 2|2|% '"),
    numbers=(RegressionBlock(n_out=2), lambda i: [i/9, 1.], r'^\(0'), masks=(MaskBlock('ab'), lambda i: PILMask.create(np.eye(20, dtype=np.uint8)), '^$'))
@pytest.mark.parametrize('name', blocks)
def test_show_batch(name):
    "A batch with other targets is shown as the loader shows it; mixed ones with their shares"
    block,get_y,titles = blocks[name]
    dls = fastai_loaders(block, get_y)
    for cbs in ([Cutout(4)], [MixUp()] if name in ('classes', 'labels') else []):
        plt.close('all')
        vision_learner(dls, 'test_resnet', pretrained=False, loss_func=None if name!='masks' else nn.MSELoss(), n_out=2, cbs=cbs).show_batch()
        got = [ax.get_title() for ax in plt.gcf().axes if ax.images]
        assert len(got)==4 and all(re.search(titles, o) for o in got), got
