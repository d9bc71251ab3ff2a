"Optimizers of the package pytorch-optimizer by name: schedule-free ones and Prodigy in a Learner, against loops with the package"
import copy,random,subprocess,sys
from contextlib import suppress
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np,pytest,torch
import pytorch_optimizer as po
from torch import nn
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.torch_core import params,set_seed
from cifar_fastai.callback.average import EMA,Lookahead,SWA
from cifar_fastai.callback.monitor import ValidateEvery
from cifar_fastai.callback.sam import SAM
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.optimizers import create_opt_func
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.runs.export import load_run
from cifar_fastai.runs.train import train
from cifar_fastai.serialize import load_tree
import cifar_fastai.schedules # chkstyle: ignore
from common import silent

rates = dict(ScheduleFreeSGD=0.5, ScheduleFreeAdamW=0.01, Prodigy=1.)
free = [n for n in rates if n!='Prodigy']

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4*64, 10))

def learner(name, cbs=(), seed=0, factors=None, **kw):
    set_seed(seed)
    dls = cifar_dls('digits', bs=13, fraction=40/1500, val_bs=100)
    dls.valid.dataset = dls.valid_ds.subset(range(0, 299, 15))
    dls.valid.n = len(dls.valid_ds)
    opt = create_opt_func(f'pytorch-optimizer:{name}', **factors or {})
    return cifar_learner(net(), dls, opt_func=opt, lr=rates.get(name, 0.01), wd=1e-3, cbs=cbs, channels_last=False, **kw)

def fit(learn, n=2, **kw):
    set_seed(1)
    with silent(learn): learn.fit(n, **kw)
    return learn

def weights(o): return {k:v.clone() for k,v in o.state_dict().items()}
def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())

def mode(opt, on): getattr(opt, on, lambda: None)()

class Batches(Callback):
    'The batches of a fit, and the losses of its validation'
    order = 40
    def __init__(self): self.batches,self.seen = [],[]
    def before_epoch(self): self.batches.append([])
    def after_pred(self):
        if self.training: self.batches[-1].append((self.xb[0].clone(), self.yb[0].clone()))
    def after_epoch(self): self.seen.append(weights(self.model))

@torch.no_grad()
def valid_loss(model, dls):
    model.eval()
    xs,ys = zip(*dls.valid)
    res = nn.functional.cross_entropy(model(torch.cat(xs)), torch.cat(ys)).item()
    model.train()
    return res

def hand(name, model, epochs, opt=None, groups=None, after=lambda opt: None, look=lambda: None):
    "A loop over the package's optimizer, which is in evaluation mode outside of epochs"
    if opt is None: opt = getattr(po, name)(groups or model.parameters(), lr=rates[name], **({} if groups else dict(weight_decay=1e-3)))
    for batches in epochs:
        mode(opt, 'train')
        model.train()
        for x,y in batches:
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
            after(opt)
        mode(opt, 'eval')
        look()
    return opt

# against a loop with the package itself
@pytest.mark.parametrize('name', rates)
def test_by_hand(name):
    'Weights after each of two fits, and what validation reports, are those of a loop written out'
    learn = learner(name, Batches())
    model,losses,want = copy.deepcopy(learn.model),[],[]
    def look():
        want.append(weights(model))
        losses.append(valid_loss(model, learn.dls))
    opt = None
    for n in (2, 3):
        fit(learn, n)
        opt = hand(name, model, learn.batches.batches[-n:], opt, look=look)
        assert [r[1] for r in learn.recorder.values]==pytest.approx(losses[-n:], rel=1e-5)
    for a,b in zip(learn.batches.seen, want):
        for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)
    assert not same(weights(learn.model), learn.batches.seen[0])

@pytest.mark.parametrize('name', free)
def test_groups(name):
    'Rates and weight decay of norms, their biases and the head are those of parameter groups written out'
    learn = learner(name, Batches(), factors=dict(norm_bias_lr=4, head_lr=0.5), wd_bn_bias=False)
    model,lr = copy.deepcopy(learn.model),rates[name]
    fit(learn)
    def group(p, f, wd): return dict(params=[p], lr=f*lr, weight_decay=wd/f)
    c,b,l = model[0],model[1],model[4]
    hand(name, model, learn.batches.batches, groups=[group(c.weight, 1, 1e-3), group(c.bias, 1, 0), group(b.weight, 1, 0),
        group(b.bias, 4, 0), group(l.weight, 0.5, 1e-3), group(l.bias, 0.5, 0)])
    for p,q in zip(learn.model.parameters(), model.parameters()): torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)

# inference
@pytest.mark.parametrize('name', rates)
def test_validation_in_between(name):
    'Inference inside an epoch, and epochs without validation, change nothing, bitwise; it sees the averaged weights'
    seen = []
    def look(self):
        if not self.training: return
        twin,opt = copy.deepcopy(self.model),self.learn.opt
        groups = [dict(g, params=[q for p in g['params'] for q,r in zip(twin.parameters(), self.model.parameters()) if r is p])
            for g in opt.opt.param_groups]
        other = getattr(po, name)(groups, lr=1.)
        other.load_state_dict(copy.deepcopy(opt.opt.state_dict()))
        mode(other, 'eval')
        with self.learn.no_bar(): loss,preds = self.learn.validate()[0],self.learn.get_preds()[0]
        twin.eval()
        xs,_ = zip(*self.dls.valid)
        with torch.no_grad(): torch.testing.assert_close(preds, twin(torch.cat(xs)).softmax(1), rtol=1e-4, atol=1e-5)
        assert loss==pytest.approx(valid_loss(twin, self.dls), rel=1e-4)
        seen.append(not all(torch.equal(a, b) for a,b in zip(twin.parameters(), self.model.parameters())))
    a = fit(learner(name), 3)
    b = fit(learner(name, Callback(after_batch=look)), 3)
    c = fit(learner(name, ValidateEvery(3)), 3)
    assert same(weights(a.model), weights(b.model)) and same(weights(a.model), weights(c.model))
    assert len(seen)==12 and any(seen)==(name!='Prodigy')

@pytest.mark.parametrize('name', free)
def test_broken_off(name):
    'An interrupted fit leaves the averaged weights, and a further fit goes on'
    def stop(self):
        if self.epoch==1 and self.iter==1 and self.training: raise KeyboardInterrupt
    learn = learner(name, Batches())
    model = copy.deepcopy(learn.model)
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=Callback(after_step=stop))
    first,second = learn.batches.batches
    hand(name, model, [first, second[:2]])
    for p,q in zip(learn.model.parameters(), model.parameters()): torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    fit(learn)

# a Learner's life
@pytest.mark.parametrize('name', rates)
def test_lr_find(name):
    learn = learner(name)
    fit(learn, 1)
    before = weights(learn.model)
    with learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
    assert same(before, weights(learn.model))
    twin = fit(learner(name), 1)
    for l in (learn, twin): fit(l, 1)
    assert same(weights(learn.model), weights(twin.model))

@pytest.mark.parametrize('name', rates)
def test_frozen(name):
    'Frozen weights stay bitwise, inside epochs too, also those that were trained before, by `freeze` or by hand'
    for by_hand in (False, True):
        learn = learner(name, splitter=lambda m: [params(m[:2]), params(m[2:])])
        fit(learn, 1)
        if by_hand: learn.model[0].requires_grad_(False)
        else: learn.freeze()
        before,seen = weights(learn.model),[]
        fit(learn, 3, cbs=Callback(before_batch=lambda self: seen.append(self.model[0].weight.detach().clone())))
        assert all(torch.equal(o, before['0.weight']) for o in seen)
        assert torch.equal(before['0.weight'], learn.model[0].weight) and not torch.equal(before['4.weight'], learn.model[4].weight)
        if by_hand: learn.model[0].requires_grad_(True)
        else: learn.unfreeze()
        fit(learn, 1)
        assert not torch.equal(before['0.weight'], learn.model[0].weight)

@pytest.mark.parametrize('name', [*rates, 'AdaBelief'])
def test_clear_state(name):
    'After `unfreeze`, which clears the state of an optimizer, a fit is that of a new optimizer'
    a,b = (fit(learner(name, splitter=lambda m: [params(m[:2]), params(m[2:])])) for _ in range(2))
    a.freeze()
    a.unfreeze()
    b.create_opt()
    for l in (a, b): fit(l, 1)
    assert same(weights(a.model), weights(b.model))

@pytest.mark.parametrize('name', rates)
def test_save_and_export(name, tmp_path):
    "`save` and `load` go on bitwise; an exported Learner predicts with the averaged weights and trains on"
    a,b = (fit(learner(name, path=tmp_path)) for _ in range(2))
    a.save('m')
    with torch.no_grad(): [p.zero_() for p in b.model.parameters()]
    b.create_opt()
    b.load('m')
    a.export('m.pkl')
    with pytest.warns(UserWarning): c = load_learner(tmp_path/'m.pkl')
    assert same(weights(a.model), weights(c.model))
    c.dls = learner(name).dls
    for l in (a, b, c): fit(l) # the last with a new optimizer
    assert same(weights(a.model), weights(b.model)) and not same(weights(a.model), weights(c.model))

class StopAt(Callback):
    order = 96
    def __init__(self, epoch): self.at = epoch
    def before_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

class Tell(Callback):
    order = 40
    def __init__(self, ckpt, at): self.ckpt,self.at = ckpt,at
    def after_batch(self):
        if self.training and (self.epoch,self.iter)==self.at: self.ckpt.signal = 'told'

@pytest.mark.parametrize('cbs', [lambda: [], lambda: [EMA(0.9)], lambda: [SAM(0.1)]], ids=['alone', 'EMA', 'SAM'])
@pytest.mark.parametrize('name', rates)
def test_resume(name, cbs, tmp_path):
    'Stopped after an epoch, or inside one, and resumed in a new Learner: bitwise the uninterrupted fit'
    def run(file, stop=None, seed=1, resume=False):
        ckpt = Checkpoint(tmp_path/file, resume=resume)
        learn = learner(name, [ckpt, *cbs(), *([stop(ckpt)] if stop else [])], seed=0 if seed==1 else 7, wd_bn_bias=False)
        set_seed(seed)
        with silent(learn), suppress(KeyboardInterrupt): learn.fit_cosine(3, rates[name], by='batch')
        return learn
    whole = run('a')
    for file,stop in dict(b=lambda c: StopAt(1), c=lambda c: Tell(c, (1, 1)), d=lambda c: Tell(c, (0, 0))).items():
        run(file, stop)
        assert ('iter' in load_tree(tmp_path/file))==(file!='b')
        later = run(file, seed=9, resume=True)
        assert same(weights(whole.model), weights(later.model)) and later.recorder.values==whole.recorder.values
        assert (tmp_path/file).read_bytes()==(tmp_path/'a').read_bytes()

# with other tricks
@pytest.mark.parametrize('name', free)
def test_ema(name):
    'EMA averages the weights at which gradients are taken, and is in the model afterwards'
    learn = learner(name, [Batches(), EMA(0.9, warmup=False)])
    model = copy.deepcopy(learn.model)
    avg = [p.detach().clone() for p in model.parameters()]
    def after(opt):
        for i,p in enumerate(model.parameters()): avg[i] = 0.9*avg[i] + 0.1*p.detach()
    fit(learn)
    hand(name, model, learn.batches.batches, after=after)
    for p,q in zip(learn.model.parameters(), avg): torch.testing.assert_close(p.detach(), q, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('name', free)
def test_swa(name):
    'SWA averages the averages at the ends of epochs'
    learn,ends = learner(name, [Batches(), SWA(0.)]),[]
    model = copy.deepcopy(learn.model)
    fit(learn)
    hand(name, model, learn.batches.batches, look=lambda: ends.append([p.detach().clone() for p in model.parameters()]))
    for p,*qs in zip(learn.model.parameters(), *ends): torch.testing.assert_close(p.detach(), sum(qs)/2, rtol=1e-5, atol=1e-6)

def test_refused_with():
    'Lookahead, and one rate per layer group, where they have no meaning: before a weight moves'
    def check(said, learn, f):
        before = weights(learn.model)
        with pytest.raises(UserError, match=said), silent(learn): f(learn)
        assert same(before, weights(learn.model))
    check('pulls back the weights from which ScheduleFreeSGD', learner('ScheduleFreeSGD', Lookahead()), lambda l: l.fit(1))
    halves = dict(splitter=lambda m: [params(m[:2]), params(m[2:])])
    check('Prodigy estimates one step size', learner('Prodigy', **halves), lambda l: l.fit(1, slice(0.1, 1.)))
    fit(learner('Prodigy', **halves), lr=[1., 1.])
    with silent(l := learner('Prodigy')): l.fit_one_cycle(1, 1.)

@pytest.mark.parametrize('name', ['ScheduleFreeSGD', 'ScheduleFreeAdamW', 'AdaGC', 'SignSGD'])
def test_one_cycle(name):
    'One-cycle and `fine_tune` move the momentum unless the average is computed from it'
    learn,seen = learner(name, splitter=lambda m: [params(m[:2]), params(m[2:])]),[]
    mom = learn.opt_func([[nn.Parameter(torch.ones(1))]], lr=1.).hypers[0]['mom']
    learn.add_cb(Callback(before_step=lambda self: seen.append((self.opt.hypers[0]['lr'], self.opt.hypers[0]['mom']))))
    with silent(learn):
        learn.fit_one_cycle(2)
        learn.fine_tune(1)
    lrs,moms = map(set, zip(*seen))
    assert len(lrs)>8 and (moms=={mom})==(name in free)
    learn.recorder.plot_sched()
    plt.close('all')

# names
@pytest.mark.parametrize('name,kw,said', [('Prodgy', {}, "did you mean 'Prodigy'"), ('', {}, 'There is no optimizer of'),
    ('Prodigy', dict(d_coeff=2), "no parameter of Prodigy 'd_coeff': did you mean 'd_coef'"),
    ('AdaHessian', {}, 'without second derivatives'), ('AliG', {}, 'without a closure'), ('SAM', {}, 'use a trick'),
    ('LBFGS', {}, 'does not accept'), ('Fromage', {}, 'has no weight_decay'), ('Lomo', {}, 'does not accept'),
    ('ScheduleFreeSGD', dict(momentum=0), 'momentum must be in the range'),
    ('Prodigy', dict(weight_decay=-1), 'weight_decay is -1: it must be'),
    ('DAdaptSGD', dict(norm_bias_lr=2), 'DAdaptSGD estimates one step size')])
def test_refused(name, kw, said):
    state = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state().tolist()
    with pytest.raises(UserError) as e: create_opt_func(f'pytorch-optimizer:{name}', **kw)
    assert said in str(e.value)
    assert state==(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_optimizer', None)
    with pytest.raises(UserError, match=r"requires pytorch-optimizer: pip install 'cifar_fastai\[optimizers\]'"):
        create_opt_func('pytorch-optimizer:Prodigy')

def test_case_and_arguments():
    f = create_opt_func('pytorch-optimizer:ademamix', betas=(0.9, 0.99, 0.999), norm_bias_lr=2)
    opt = f([[nn.Parameter(torch.ones(2))]], lr=0.1)
    assert isinstance(opt.opt, po.AdEMAMix) and opt.opt.param_groups[0]['betas']==(0.9, 0.99, 0.999)

# runs
def test_config():
    'A configuration takes the name without importing torch; the default rate is that of the optimizer'
    c = RunConfig(optimizer="pytorch-optimizer:ScheduleFreeAdamW(betas=(0.95, 0.99))")
    assert c.optimizer=='pytorch-optimizer:ScheduleFreeAdamW(betas=(0.95, 0.99))' and c.lr==1e-3
    call = c.call('optimizer')
    assert call.name=='pytorch-optimizer:ScheduleFreeAdamW' and call.kwargs==dict(betas=(0.95, 0.99))
    assert RunConfig(optimizer='pytorch-optimizer:Prodigy').lr==RunConfig(optimizer='pytorch-optimizer:schedulefreesgd').lr==1.
    for text,said in (('pytorch-optimizer:Prodigy(1)', 'an argument without a name'), ('foo:Prodigy', "no optimizer 'foo:Prodigy'"),
        ('pytorch-optimizer', 'must be written as calls')):
        with pytest.raises(UserError, match=said): RunConfig(optimizer=text)
    code = "import sys; from cifar_fastai.runs.config import RunConfig; RunConfig(optimizer='pytorch-optimizer:X'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True)

def test_run(tmp_path):
    'A run by name: the best weights are the averaged ones, and it is read like any other'
    c = RunConfig(model='lenet', dataset='digits', fraction=0.1, bs=32, epochs=2, schedule='cosine',
        optimizer='pytorch-optimizer:ScheduleFreeSGD(momentum=0.95)', seed=3, valid='holdout')
    path = train(c, 'x', exps=tmp_path, device='cpu', bar=False)
    row,learn = RunFolder(path).read(),load_run(path)
    preds = [o for dl in [learn.dls.valid] for o in learn.get_preds(dl=dl)]
    assert row.config['optimizer']==c.optimizer and (preds[0].argmax(1)==preds[1]).float().mean()>0
    with pytest.raises(UserError, match="did you mean 'Prodigy'"):
        train(RunConfig(model='lenet', dataset='digits', optimizer='pytorch-optimizer:Prodgy'), 'y', exps=tmp_path, device='cpu', bar=False)
