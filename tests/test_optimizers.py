"Optimizers that torch has not, equal to pytorch_optimizer's in float64; every optimizer by name in a Learner"
import copy,math,pickle,pytest,torch
from contextlib import suppress
from functools import partial
import pytorch_optimizer as po
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.schedule import * # patches Learner
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.learner import Learner,load_learner
from fastai.optimizer import SGD,OptimWrapper
from fastai.torch_core import set_seed
from cifar_fastai.runs.checkpoint import Checkpoint, learner_state, load_learner_state
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.optimizers import AdaBound,AdaBoundW,LARS,Lion,Muon,create_opt_func,optimizers,orthogonalize

class TheirAdaBound(po.AdaBound):
    "pytorch_optimizer's, without the 1e-15 that it adds to the second moment and the paper does not"
    apply_ams_bound = staticmethod(partial(po.AdaBound.apply_ams_bound, exp_avg_sq_eps=0.))
    apply_ams_bound_foreach = staticmethod(partial(po.AdaBound.apply_ams_bound_foreach, exp_avg_sq_eps=0.))

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4*36, 5)).double()

g = torch.Generator().manual_seed(1)
xs,ys = torch.randn(12, 6, 3, 8, 8, generator=g, dtype=torch.float64),torch.randint(0, 5, (12, 6), generator=g)

def run(make, lr, n=12):
    'After `n` steps with two groups, under a warmup and a fall of the learning rate'
    model = net()
    ps = list(model.parameters())
    opt = make([dict(params=ps[:1]), dict(params=ps[1:])], lr=lr)
    for i in range(n):
        for o in opt.param_groups: o['lr'] = lr*(0.5 if i==0 else 1. if i<8 else 0.1)
        opt.zero_grad()
        nn.functional.cross_entropy(model(xs[i]), ys[i]).backward()
        opt.step()
    return ps,opt

@pytest.mark.parametrize('wd', [0., 0.02])
@pytest.mark.parametrize('ours,theirs,lr', [
    (AdaBound, lambda p, **kw: TheirAdaBound(p, weight_decouple=False, **kw), 0.01),
    (AdaBoundW, TheirAdaBound, 0.01), (LARS, po.LARS, 3.), (Lion, po.Lion, 0.01)])
def test_is_pytorch_optimizers(ours, theirs, lr, wd):
    (a,oa),(b,ob) = (run(lambda p, **kw: f(p, weight_decay=wd, **kw), lr) for f in (ours, theirs))
    start = list(net().parameters())
    for x,y,z in zip(a, b, start):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
        assert (x-z).abs().max() > 1e-3
    for x,y in zip(a, b):
        for k in ours.states: torch.testing.assert_close(oa.state[x][k], ob.state[y][k], rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize('ours,theirs,kw', [
    (AdaBoundW, TheirAdaBound, dict(final_lr=0.02, gamma=0.5, betas=(0.8, 0.9), eps=1e-4)),
    (LARS, po.LARS, dict(momentum=0.5, trust_coefficient=0.02)), (Lion, po.Lion, dict(betas=(0.7, 0.8)))])
def test_parameters(ours, theirs, kw):
    'Other parameters than the defaults; the tight bounds of AdaBound bind'
    (a,_),(b,_) = (run(lambda p, **k: f(p, **k, **kw), 0.05) for f in (ours, theirs))
    for x,y in zip(a, b): torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)

def test_late_parameters():
    'A parameter that gets its first gradient later is corrected for its own start'
    def last(first):
        a,b = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
        opt = AdaBound([a, b], lr=0.1)
        for i in range(3):
            a.grad,b.grad = torch.ones_like(a),torch.ones_like(b) if i>=first else None
            opt.step()
        return a,b
    a,_ = last(0)
    _,b = last(2)
    fresh = nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt = AdaBound([fresh], lr=0.1)
    fresh.grad = torch.ones_like(fresh)
    opt.step()
    assert torch.equal(b, fresh) and not torch.equal(a, b)

def test_groups():
    'Groups with rates of their own keep their own `base_lr`'
    a,b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = AdaBound([dict(params=[a], lr=0.1), dict(params=[b])], lr=0.01)
    assert [g['base_lr'] for g in opt.param_groups]==[0.1, 0.01]

def learner(name, **kw):
    set_seed(0)
    dls = cifar_dls('digits', bs=13, fraction=40/1500, val_bs=100)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4*64, 10))
    return cifar_learner(model, dls, opt_func=name, lr=0.01, **kw)

def fit(learn, n=1):
    set_seed(1)
    with learn.no_bar(), learn.no_logging(): learn.fit_cosine(n, 0.01, by='batch')
    return learn

@pytest.mark.parametrize('name', optimizers)
def test_in_a_learner(name):
    'By name, with norms and biases left undecayed, on the meta device, and on from a saved state'
    learn = fit(learner(name, wd_bn_bias=False))
    assert [g['weight_decay'] for g in learn.opt.opt.param_groups]==[5e-4, 0.]
    on_meta = learner(name)
    on_meta.dls.to('meta')
    on_meta.model.to('meta')
    fit(on_meta)
    learn,other = fit(learner(name)),fit(learner(name)) # the second fit of both follows
    with torch.no_grad():
        for o in other.model.parameters(): o.zero_()
    other.create_opt()
    load_learner_state(other, copy.deepcopy(learner_state(learn)))
    for l in (learn, other): fit(l)
    for a,b in zip(learn.model.state_dict().values(), other.model.state_dict().values()): assert torch.equal(a, b)

@pytest.mark.parametrize('name', optimizers)
def test_closure(name):
    "As torch's: a closure is evaluated with gradients, and its loss returned"
    w = nn.Parameter(torch.ones(2, 2))
    opt = create_opt_func(name)([w], lr=0.01)
    def closure():
        loss = w.square().sum()
        loss.backward()
        return loss
    assert opt.opt.step(closure)==4. and w.sum()<4

# weight decay and layer groups are two things

def halves(m): return [list(m[:2].parameters()), list(m[2:].parameters())]

def of_param(learn, k):
    "Hyperparameter `k` of each parameter, by torch's name, in torch's groups or in fastai's"
    if isinstance(learn.opt, OptimWrapper): groups = [(g['params'], g[k]) for g in learn.opt.opt.param_groups]
    else: groups = [(ps, h[dict(weight_decay='wd').get(k, k)]) for ps,h in zip(learn.opt.param_lists, learn.opt.hypers)]
    return {n:v for n,p in learn.model.named_parameters() for ps,v in groups if any(p is q for q in ps)}

decayed = {'0.weight', '3.weight'}
ways = dict(learner=lambda l: l.fit(1), fit=lambda l: l.fit(1, wd=0.1), one_cycle=lambda l: l.fit_one_cycle(1, wd=0.1),
    cosine=lambda l: l.fit_cosine(1, wd=0.1), groups=lambda l: l.fit(1, wd=[0.1, 0.1]),
    fine_tune=lambda l: l.fine_tune(1, wd=0.1),
    set_hyper=lambda l: l.opt.set_hyper('wd', 0.1), hypers=lambda l: [h.update(wd=0.1) for h in l.opt.hypers])

@pytest.mark.parametrize('way', ways)
@pytest.mark.parametrize('name', optimizers)
def test_undecayed(name, way):
    'However the weight decay is set, `wd_bn_bias=False` keeps it from norms and biases, and one number or one per layer group is right'
    learn = learner(name, wd=0.1 if way=='learner' else 0.3, wd_bn_bias=False, splitter=halves)
    learn.create_opt()
    with learn.no_bar(), learn.no_logging(): ways[way](learn)
    assert of_param(learn, 'weight_decay')=={n:0.1 if n in decayed else 0. for n,_ in learn.model.named_parameters()}
    assert [h['wd'] for h in learn.opt.hypers]==[0.1, 0.1]

@pytest.mark.parametrize('on', [False, True])
def test_fastais_learner(on):
    "`wd_bn_bias` of a Learner made elsewhere is obeyed"
    ours = learner('sgd')
    learn = Learner(ours.dls, ours.model, ours.loss_func, opt_func=create_opt_func('adamw'), wd=0.1, wd_bn_bias=on)
    fit(learn)
    assert {n for n,v in of_param(learn, 'weight_decay').items() if v}==(set(dict(learn.model.named_parameters())) if on
        else decayed)

def test_other_wrappers():
    "fastai's own wrapper decays norms and biases whatever `wd_bn_bias` says: refused, however it is given; its own optimizers obey"
    wrap = partial(OptimWrapper, opt=torch.optim.SGD)
    for o in (wrap, lambda ps, lr: wrap(ps, lr=lr),
        OptimWrapper(opt=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))):
        with pytest.raises(UserError, match='wd_bn_bias=False: .* create_opt_func'): learner(o, wd_bn_bias=False)
        learner(o)
    learner(SGD, wd_bn_bias=False)

@pytest.mark.parametrize('wd_bn_bias', [False, True])
@pytest.mark.parametrize('name', optimizers)
def test_layer_groups(name, wd_bn_bias):
    "Freezing and slices of rates act on layer groups, as with fastai's own SGD"
    learners = [learner(o, wd_bn_bias=wd_bn_bias, splitter=halves) for o in (name, SGD)]
    seen = [[] for _ in learners]
    for learn,s in zip(learners, seen):
        def look(): s.append(({n:p.requires_grad for n,p in learn.model.named_parameters()}, of_param(learn, 'lr')))
        with learn.no_bar(), learn.no_logging():
            for f,*args in [(learn.freeze,), (learn.unfreeze,), (learn.freeze_to, 1), (learn.fit, 1, slice(1e-4, 1e-2)),
                (learn.fit, 1, slice(1e-3)),
                (learn.unfreeze,), (learn.fit_one_cycle, 1, slice(1e-4, 1e-2)),
                (learn.fit_flat_cos, 1, slice(1e-4, 1e-2)), (learn.fit, 1, [1e-3, 1e-4])]:
                f(*args)
                look()
    assert seen[0]==seen[1] and seen[0][0][0]['0.weight']==False and seen[0][0][0]['3.weight']==True
    assert len(learners[0].opt.param_lists)==len(learners[0].opt.hypers)==2

def test_without_norms():
    'Layer groups of only norms and biases, or of neither'
    learn = learner('sgd', wd_bn_bias=False, wd=0.1,
        splitter=lambda m: [[m[0].weight], [m[3].weight], [m[0].bias, *m[1].parameters(), m[3].bias]])
    fit(learn)
    assert [len(ps) for ps in learn.opt.param_lists]==[1, 1, 4]
    assert {n for n,v in of_param(learn, 'weight_decay').items() if v}==decayed and [h['wd']
        for h in learn.opt.hypers]==[0.1]*3

@pytest.mark.parametrize('name', optimizers)
def test_split(name):
    'Any number of parts, with any factors; what is set for a layer group is read from it again, exactly, also from a saved state'
    def opt():
        ps = [nn.Parameter(torch.full((2,), i+1.)) for i in range(6)]
        res = create_opt_func(name)([ps[:4], ps[4:]], lr=0.01)
        res.split(ps[1:3], wd=0., lr=3.)
        res.split([ps[2], ps[5]], lr=1/3)
        return ps,res
    ps,o = opt()
    assert [len(l) for l in o.param_lists]==[4, 2] and [len(g['params']) for g in o.opt.param_groups]==[2, 1, 1, 1, 1]
    o.set_hyper('lr', [0.1, 0.7])
    o.set_hyper('wd', 0.3)
    def check(ps, o):
        def of(k): return [next(g[k] for g in o.opt.param_groups if any(p is q for q in g['params'])) for p in ps]
        assert of('lr')==[0.1, 0.1*3., 0.1*(3.*(1/3)), 0.1, 0.7, 0.7*(1/3)] and of('weight_decay')==[0.3, 0., 0.,
            0.3, 0.3, 0.3]
        assert [h['lr'] for h in o.hypers]==[0.1, 0.7] and [h['wd'] for h in o.hypers]==[0.3, 0.3]
    check(ps, o)
    sd = o.state_dict()
    o.set_hyper('lr', 0.2)
    ps,o = opt()
    o.load_state_dict(sd)
    check(ps, o)
    with pytest.raises(KeyError): o.split(ps, no_such=1.)

@pytest.mark.parametrize('name', optimizers)
def test_save_and_load(name, tmp_path):
    "`save` and `load` bring the optimizer back, groups and rates too"
    kw = dict(wd_bn_bias=False, splitter=halves, path=tmp_path)
    def train(learn):
        set_seed(1)
        with learn.no_bar(), learn.no_logging(): learn.fit_cosine(2, slice(1e-3, 1e-2), wd=0.1, by='batch')
    a,b = learner(name, **kw),learner(name, **kw)
    for l in (a, b): train(l)
    a.save('m')
    with torch.no_grad():
        for o in b.model.parameters(): o.zero_()
    b.load('m')
    b.create_opt()
    b.load('m')
    for k in ('lr', 'weight_decay'): assert of_param(a, k)==of_param(b, k)
    for l in (a, b): train(l)
    for x,y in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(x, y)

class StopAt(Callback):
    order = 96
    def __init__(self, epoch): self.at = epoch
    def before_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('name', optimizers)
def test_resume(name, tmp_path):
    'Interrupted and resumed in a new Learner: bitwise the uninterrupted fit, with undecayed norms, two layer groups and a rate that a callback wrote'
    def run(file, *cbs, resume=False):
        learn = learner(name, wd_bn_bias=False, splitter=halves,
            cbs=[Lower(), Checkpoint(tmp_path/file, resume=resume), *cbs])
        set_seed(1)
        with learn.no_bar(), learn.no_logging(), suppress(KeyboardInterrupt): learn.fit(4, slice(1e-3, 1e-2), wd=0.1)
        return learn
    whole = run('a')
    run('b', StopAt(2))
    later = run('b', resume=True)
    assert of_param(later, 'lr')==of_param(whole, 'lr') and whole.opt.hypers[1]['lr']==0.005
    for a,b in zip(whole.model.state_dict().values(), later.model.state_dict().values()): assert torch.equal(a, b)

# hyperparameters that are written

class Lower(Callback):
    'Halves the rate after the second epoch, as ReduceLROnPlateau may'
    def after_epoch(self):
        if self.epoch==1:
            for h in self.opt.hypers: h['lr'] = h['lr']/2

@pytest.mark.parametrize('name', optimizers)
def test_hypers(name):
    "What `hypers` holds is what fastai's own has, but for None, and a write reaches the parameter groups"
    cls,kw = optimizers[name]
    ps = [[nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))]]
    ours,theirs = create_opt_func(name)(ps, lr=0.01),OptimWrapper(ps, cls, lr=0.01, **kw)
    for a,b in zip(ours.hypers, theirs.hypers):
        b = {k:v for k,v in b.items() if v is not None}
        assert dict(a)==b==a and {**a}==b and repr(a)==repr(b) and len(a)==len(b) and list(a.items())==list(b.items()) and 'lr' in a and 'x' not in a
        for c in (a.copy(), copy.copy(a), copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
            assert type(c) is dict and c==b
    names = {t:f for t,f in theirs.fwd_map.items() if isinstance(theirs.hypers[0][f], (int, float))
        and not isinstance(theirs.hypers[0][f], bool)}
    assert {'lr', 'weight_decay'}<=set(names) and (name not in ('adam', 'lion') or 'betas__0' in names)
    for i,(t,f) in enumerate(names.items()):
        for key,v in ((t, 0.25+i/100), (f, 0.5+i/100)):
            ours.hypers[1][key] = v
            key,_,j = t.partition('__')
            got = ours.opt.param_groups[1][key]
            assert (got[int(j)] if j else got)==v==ours.hypers[1][f]==ours.hypers[1][t]
    assert ours.hypers[0]=={k:v for k,v in theirs.hypers[0].items() if v is not None}
    for h in ours.hypers:
        with pytest.raises(KeyError): h['learning_rate'] = 1
        with pytest.raises(TypeError): del h['lr']

@pytest.mark.parametrize('name', [*optimizers, SGD])
def test_plateau(name):
    "`ReduceLROnPlateau` lowers the rate in a plain fit, as for fastai's own SGD, and a schedule overwrites it at its next batch"
    def rates(fit):
        learn,seen = learner(name, cbs=ReduceLROnPlateau('never', patience=1)),[]
        learn.metrics = [lambda p,y: torch.tensor(0.)]
        learn.metrics[0].func.__name__ = 'never'
        learn.add_cb(Callback(before_step=lambda self: seen.append(self.opt.hypers[-1]['lr'])))
        with learn.no_bar(), learn.no_logging(): fit(learn)
        return seen
    plain = rates(lambda l: l.fit(3, 0.01))
    n = len(plain)//3
    assert plain==pytest.approx([0.01]*2*n + [0.001]*n)
    learn = learner(name)
    sched = rates(lambda l: l.fit_cosine(3, 0.01, by='batch'))
    assert sched==pytest.approx([0.01*(1+math.cos(math.pi*i/3/n))/2 for i in range(3*n)])

@pytest.mark.parametrize('name', optimizers)
def test_pickle(name, tmp_path):
    learn = fit(learner(name, wd_bn_bias=False, path=tmp_path))
    o = pickle.loads(pickle.dumps(learn.opt))
    assert o.hypers==learn.opt.hypers and [len(p) for p in o.param_lists]==[len(p) for p in learn.opt.param_lists]
    learn.export('m.pkl')
    loaded = load_learner(tmp_path/'m.pkl')
    loaded.create_opt()
    assert [g['weight_decay']
        for g in loaded.opt.opt.param_groups][1]==0. and loaded.opt.hypers[0].keys()==learn.opt.hypers[0].keys()

# what AdaBound's final rate is measured against

def final(learn):
    "`final_lr` at the rate that a step uses, by its definition; recorded at every step"
    seen = []
    learn.add_cb(Callback(before_step=lambda self: seen.append([g['final_lr']*g['lr']/g['base_lr']
        for g in self.opt.opt.param_groups])))
    return seen

fits = dict(plain=lambda l, lr: l.fit(1, lr), cosine=lambda l, lr: l.fit_cosine(3, lr), warm=lambda l,
    lr: l.fit_warmcosine(2, lr, by='batch'),
    one_cycle=lambda l, lr: l.fit_one_cycle(2, lr), flat=lambda l, lr: l.fit_flat_cos(2, lr), sgdr=lambda l,
    lr: l.fit_sgdr(1, 2, lr),
    triangular=lambda l, lr: l.fit_triangular(2, lr))

@pytest.mark.parametrize('lr', [1e-3, 0.3, slice(1e-4, 1e-2)])
@pytest.mark.parametrize('kind', fits)
@pytest.mark.parametrize('name', ['adabound', 'adaboundw'])
def test_base_lr(name, kind, lr):
    "`final_lr` is the rate at the top of the fit, whatever the Learner's own rate is, and follows the schedule"
    learn = learner(name, splitter=halves)
    seen = final(learn)
    for _ in range(2): # a second fit with another rate is measured by itself
        with learn.no_bar(), learn.no_logging(): fits[kind](learn, lr)
        assert len(seen)>2
        for i,top in enumerate((lr.start, lr.stop) if isinstance(lr, slice) else (lr, lr)):
            assert learn.opt.opt.param_groups[i]['base_lr']==pytest.approx(top)
            assert max(s[i] for s in seen)==pytest.approx(0.1, rel=0.2) and all(s[i]<0.1001 for s in seen)
        seen.clear()
        lr = slice(1e-3, 1e-1) if isinstance(lr, slice) else lr*10

def test_lr_find_keeps_base_lr():
    learn = learner('adabound')
    learn.create_opt()
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)
    assert learn.opt.opt.param_groups[0]['base_lr']==0.01

@pytest.mark.parametrize('make,said', [
    (lambda p: AdaBound(p, final_lr=-1), 'final_lr is -1'), (lambda p: AdaBound(p, gamma=-1), 'gamma is -1'),
    (lambda p: LARS(p, momentum=2), 'momentum is 2'), (lambda p: Lion(p, weight_decay=-1), 'weight_decay is -1'),
    (lambda p: create_opt_func('loin'), "There is no optimizer 'loin': did you mean 'lion'")])
def test_refusals(make, said):
    with pytest.raises(UserError) as e: make([nn.Parameter(torch.ones(1))])
    assert said in str(e.value)

# Muon
@pytest.mark.parametrize('shape', [(6, 20), (20, 6), (8, 8)])
@pytest.mark.parametrize('steps,momentum,wd', [(5, 0.95, 0.1), (3, 0.6, 0.)])
def test_muon_is_torchs(shape, steps, momentum, wd):
    "Filters of 1x1 are updated as torch's Muon updates matrices"
    torch.manual_seed(0)
    w,grads = torch.randn(shape),torch.randn(10, *shape)
    mine,theirs = nn.Parameter(w[...,None,None].clone()),nn.Parameter(w.clone())
    a = Muon([mine], lr=0.02, momentum=momentum, weight_decay=wd, ns_steps=steps)
    b = torch.optim.Muon([theirs], lr=0.02, momentum=momentum, weight_decay=wd, ns_steps=steps)
    for g in grads:
        mine.grad,theirs.grad = g[...,None,None].clone(),g.clone()
        a.step()
        b.step()
    moved = (theirs-w).norm()
    assert moved>0.1 and (mine[...,0,0]-theirs).norm() < 0.03*moved # bf16

def test_muon_rest_is_sgd():
    "Matrices and vectors are updated by torch's SGD with Nesterov momentum"
    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((3, 4), (5,))]
    qs = [nn.Parameter(p.detach().clone()) for p in ps]
    a = Muon(ps, lr=0.1, sgd_momentum=0.8, weight_decay=0.01)
    b = torch.optim.SGD(qs, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01)
    for _ in range(5):
        for p,q in zip(ps, qs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p,q in zip(ps, qs): torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)

def test_muon_normalize():
    'The filters are rescaled before the step, and are not decayed'
    torch.manual_seed(0)
    w,g = torch.randn(6, 3, 3, 3, dtype=torch.float64),torch.randn(6, 3, 3, 3, dtype=torch.float64)
    p = nn.Parameter(w.clone().contiguous(memory_format=torch.channels_last))
    p.grad = g.clone()
    Muon([p], lr=0.1, weight_decay=0.5, normalize=True).step()
    want = w*6**0.5/w.norm() - 0.1*orthogonalize(g.flatten(1)).double().view_as(w)
    torch.testing.assert_close(p.detach(), want, rtol=0, atol=0.005) # bf16

def test_orthogonalize():
    'Singular vectors are kept, singular values become about 1'
    torch.manual_seed(0)
    g = torch.randn(12, 30)
    u,_,v = torch.linalg.svd(g, full_matrices=False)
    s = u.T@orthogonalize(g, 6).float()@v.T
    assert (s.diag()-1).abs().max()<0.4 and (s-torch.diag(s.diag())).abs().max()<0.05

# learning rates of norm biases and of the head
@pytest.mark.parametrize('wd_bn_bias', [True, False])
def test_lr_factors(wd_bn_bias):
    "A fit equals a loop over torch's SGD with parameter groups written out"
    def learner():
        set_seed(0)
        dls = cifar_dls('digits', fraction=0.05, bs=25)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, 10))
        return cifar_learner(model, dls, opt_func=create_opt_func('sgd', norm_bias_lr=8, head_lr=0.25), lr=0.1, wd=0.01,
            wd_bn_bias=wd_bn_bias, channels_last=False)
    learn,seen = learner(),[]
    start = copy.deepcopy(learn.model)
    def record(self):
        if self.training: seen.append((self.xb[0].clone(), self.yb[0].clone()))
    learn.add_cb(Callback(after_pred=record))
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    bias_wd = 0.01 if wd_bn_bias else 0.
    def group(p, lr, wd): return dict(params=[p], lr=lr, weight_decay=wd)
    conv,norm,head = start[0],start[1],start[5]
    opt = torch.optim.SGD([group(conv.weight, 0.1, 0.01), group(conv.bias, 0.1, bias_wd), group(norm.weight, 0.1, bias_wd),
        group(norm.bias, 0.8, bias_wd/8), group(head.weight, 0.025, 0.04), group(head.bias, 0.025, bias_wd*4)],
        momentum=0.9)
    for x,y in seen:
        opt.zero_grad()
        nn.functional.cross_entropy(start(x), y).backward()
        opt.step()
    for a,b in zip(learn.model.parameters(), start.parameters()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

def test_lr_factors_in_a_life():
    'A schedule, a second fit and a checkpoint keep the factors'
    learn = cifar_learner(net().float(), cifar_dls('digits', fraction=0.02, bs=10),
        opt_func=create_opt_func('nesterov', norm_bias_lr=64), lr=0.1)
    learn.model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10))
    def factors(): return [gs[-1]['lr']/gs[0]['lr'] for gs in learn.opt.layers]
    with learn.no_bar(), learn.no_logging():
        for _ in range(2):
            learn.fit_one_cycle(1, 0.1)
            assert factors()==[pytest.approx(64)]
    assert learn.opt.hypers[0]['lr']==learn.opt.opt.param_groups[0]['lr']

@pytest.mark.parametrize('kw,message', [(dict(norm_bias_lr=0), 'norm_bias_lr is 0'), (dict(head_lr='a'), "head_lr is 'a'")])
def test_lr_factors_invalid(kw, message):
    with pytest.raises(UserError, match=message): create_opt_func('sgd', **kw)
