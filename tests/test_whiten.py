"Whitening of the first convolution: the filters, which parameters are trained when, and other loaders than ours"
import numpy as np,pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed
from cifar_fastai.callback.whiten import Whiten,patch_moments,whitening_filters
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from common import fit

def test_moments():
    "Second moments of patches, by numpy's sliding windows"
    x = torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = np.lib.stride_tricks.sliding_window_view(x.numpy(), (3, 2), axis=(2, 3)) # (b, c, i, j, 3, 2)
    p = p.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 18)
    np.testing.assert_allclose(patch_moments(x, (3, 2)), p.T@p/len(p), atol=1e-12)

def test_filters_whiten():
    'Outputs are uncorrelated, of variance 1, in the order of the explained variance'
    g = torch.Generator().manual_seed(0)
    p = torch.randn(5000, 6, generator=g, dtype=torch.float64)@torch.randn(6, 6, generator=g, dtype=torch.float64)
    m = p.T@p/len(p)
    f = whitening_filters(m, 0.)
    torch.testing.assert_close(f@m@f.T, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (f.norm(dim=1).diff()>0).all() # the smaller the variance, the larger the filter

def airbench(cbs, **kwargs):
    set_seed(0)
    return cifar_learner('airbench94', cifar_dls('digits', fraction=0.1, bs=32), lr=0.05, cbs=cbs, **kwargs)

def test_when_it_trains():
    'The weights never; the bias in the first epochs; afterwards both can be trained again'
    learn,seen = airbench(Whiten(100, bias_epochs=2)),[]
    conv = learn.model[0]
    learn.add_cb(Callback(after_train=lambda self: seen.append((conv.weight.clone(), conv.bias.clone()))))
    fit(learn, 4)
    ws,bs = zip(*seen)
    assert all(torch.equal(o, ws[0]) for o in ws)
    assert not torch.equal(bs[0], bs[1]) and torch.equal(bs[1], bs[2]) and torch.equal(bs[2], bs[3])
    assert conv.weight.requires_grad and conv.bias.requires_grad

def test_unaugmented_images():
    'The filters are those of the first training images without augmentation'
    learn = airbench(Whiten(60), wd=0.)
    x = learn.dls.valid.after_batch((learn.dls.train_ds.x[:60],))[0]
    f = whitening_filters(patch_moments(x, (2, 2)), 5e-4).float()
    fit(learn, 1)
    w = learn.model[0].weight.detach().flatten(1)[:12] # the channels of digits are equal: eigenvectors are not unique
    torch.testing.assert_close(w.T@w, f.T@f, rtol=1e-3, atol=1.)

@pytest.mark.parametrize('nf,n', [(4, 4), (5, 4), (40, 24)])
def test_number_of_filters(nf, n):
    'Those of the largest eigenvalues where there is no room for all; further filters keep their weights'
    net = nn.Sequential(nn.Conv2d(3, nf, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nf, 10))
    before = net[0].weight.detach().clone()
    learn = cifar_learner(net, cifar_dls('digits', fraction=0.1, bs=32), cbs=Whiten(100), channels_last=False)
    fit(learn, 1)
    changed = [not torch.equal(a, b) for a,b in zip(net[0].weight, before)]
    assert changed==[True]*n+[False]*(nf-n)
    assert torch.equal(net[0].weight[:n//2], -net[0].weight[n//2:n])

def test_second_fit():
    'A second fit computes the same filters again'
    learn = airbench(Whiten(100))
    fit(learn, 1)
    w = learn.model[0].weight.detach().clone()
    fit(learn, 1)
    assert torch.equal(w, learn.model[0].weight)

def test_other_loaders():
    "Any loader of batches will do"
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8)) for _ in range(3)]
    dls = DataLoaders(batches, batches)
    dls.c = 10
    net = nn.Sequential(nn.Conv2d(3, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    fit(cifar_learner(net, dls, cbs=Whiten(9), channels_last=False), 1)
    m = patch_moments(torch.cat([batches[0][0], batches[1][0]]), (2, 2))
    torch.testing.assert_close(net[0].weight.detach()[:12].flatten(1), whitening_filters(m).float(), rtol=1e-4, atol=1e-4)

def test_refused():
    for net in (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)),
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten(), nn.Linear(2700, 10))):
        with pytest.raises(UserError, match='Whiten needs a network whose first convolution has one group'):
            fit(cifar_learner(net, cifar_dls('digits', fraction=0.02), cbs=Whiten()), 1)
