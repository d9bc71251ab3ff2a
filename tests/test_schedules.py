'Every fit policy is the torch scheduler of the same shape, value for value, an epoch and a batch at a time'
import warnings
import numpy as np,pytest,torch
from functools import partial
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, CosineAnnealingWarmRestarts, CyclicLR
from torch.optim.lr_scheduler import LambdaLR, LinearLR, MultiStepLR, SequentialLR
from fastai.callback.core import Callback
from fastai.test_utils import synth_learner
from cifar_fastai.core import UserError
from cifar_fastai.schedules import PolicyScheduler,policies,policy_values

def torch_values(make, n_epoch, lr, n_iter, by):
    'The rates of every batch by `make(opt, k)`, a scheduler that is stepped `k` times an epoch'
    k = n_iter if by=='batch' else 1
    opt = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of SequentialLR, about itself
        sched,res = make(opt, k),[]
        for _ in range(n_epoch*k):
            res += [opt.param_groups[0]['lr']]*(n_iter//k)
            opt.step()
            sched.step()
    return res

def multistep(opt, k, milestones, gamma): return MultiStepLR(opt, [m*k for m in milestones], gamma)
def cosine(opt, k, n, lr_min): return CosineAnnealingLR(opt, n*k, lr_min)
def restarts(opt, k, T_0, T_mult, lr_min): return CosineAnnealingWarmRestarts(opt, T_0*k, T_mult, lr_min)
def three_points(opt, k):
    'Linear between 0.2, 1 and 0.07 of the learning rate'
    return LambdaLR(opt, lambda i: np.interp(i/k, [0, 2.5, 10], [0.2, 1, 0.07]))

def triangular(opt, k, n, up): return CyclicLR(opt, 0., opt.param_groups[0]['lr'], up*k, (n-up)*k, cycle_momentum=False)

def warmup_multistep(opt, k, warmup, start, milestones, gamma):
    return SequentialLR(opt,
        [LinearLR(opt, start, total_iters=warmup*k), MultiStepLR(opt, [(m-warmup)*k for m in milestones], gamma)],
        [warmup*k])

def early_multistep(opt, k, warmup, start, milestones, gamma):
    'Milestones within the warmup too'
    return ChainedScheduler([LinearLR(opt, start, total_iters=warmup*k),
        MultiStepLR(opt, [m*k for m in milestones], gamma)], opt)

def warmcosine(opt, k, period, warmup, start, lr_min):
    return SequentialLR(opt, [LinearLR(opt, start, total_iters=warmup*k), CosineAnnealingLR(opt, period*k, lr_min)],
        [warmup*k])

# policy, epochs, what the user asks for, and torch's scheduler of that shape
shapes = [ # chkstyle: ignore-node
    ('multistep', 200, dict(), partial(multistep, milestones=[60,120,160], gamma=0.2)),
    ('multistep', 10, dict(milestones=[7,3], gamma=0.1), partial(multistep, milestones=[3,7], gamma=0.1)),
    ('cosine', 30, dict(), partial(cosine, n=30, lr_min=0.)),
    ('cosine', 7, dict(lr_min=0.01), partial(cosine, n=7, lr_min=0.01)),
    ('warmup_multistep', 200, dict(),
    partial(warmup_multistep, warmup=20, start=1/3, milestones=[60,120,160], gamma=0.5)),
    ('warmup_multistep', 12, dict(warmup=3, start=0.1, milestones=[5,9], gamma=0.3),
    partial(warmup_multistep, warmup=3, start=0.1, milestones=[5,9], gamma=0.3)),
    ('warmup_multistep', 12, dict(warmup=6, milestones=[2,9]),
    partial(early_multistep, warmup=6, start=1/3, milestones=[2,9], gamma=0.5)),
    ('warmcosine', 300, dict(), partial(warmcosine, period=280, warmup=20, start=0.01, lr_min=0.)),
    ('warmcosine', 300, dict(warmup=20, period=300), partial(warmcosine, period=300, warmup=20, start=0.01, lr_min=0.)),
    ('warmcosine', 9, dict(warmup=2, start=0.5, lr_min=1e-3),
    partial(warmcosine, period=7, warmup=2, start=0.5, lr_min=1e-3)),
    ('cosine_restarts', 310, dict(), partial(restarts, T_0=10, T_mult=2, lr_min=1e-4)),
    ('cosine_restarts', 50, dict(T_0=2, T_mult=3, lr_min=0.), partial(restarts, T_0=2, T_mult=3, lr_min=0.)),
    ('cosine_restarts', 20, dict(T_0=4, T_mult=1), partial(restarts, T_0=4, T_mult=1, lr_min=1e-4)),
    ('triangular', 50, dict(), partial(triangular, n=50, up=15)),
    ('triangular', 9, dict(up=2), partial(triangular, n=9, up=2)),
    ('triangular', 10, dict(up=2.5, start=0.2, end=0.07), three_points)]
ids = [f'{p} {n} {shape}' for p,n,shape,_ in shapes]

@pytest.mark.parametrize('by', ['epoch', 'batch'])
@pytest.mark.parametrize('policy,n,shape,make', shapes, ids=ids)
def test_is_torchs(policy, n, shape, make, by):
    "Over 10 batches an epoch, as near as float64 goes beside torch's running products"
    ours,theirs = (f(n, n_iter=10, by=by) for f in (partial(policy_values, policy, lr=0.3, **shape),
        partial(torch_values, make, lr=0.3)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)

def test_every_policy_is_compared(): assert {s[0] for s in shapes} == set(policies)

@pytest.mark.parametrize('by', ['epoch', 'batch'])
@pytest.mark.parametrize('policy,n,shape,make', [s for s in shapes if s[1]<13],
    ids=[i for i,s in zip(ids, shapes) if s[1]<13])
def test_fit(policy, n, shape, make, by):
    'What the optimizer gets in a fit, through the `fit_*` of the policy, for a Learner with two groups too'
    learn,seen = synth_learner(n_trn=3, splitter=lambda m: [[m.a], [m.b]]),[]
    learn.add_cb(Callback(before_step=lambda self: seen.append([h['lr'] for h in self.opt.hypers])))
    with learn.no_bar(), learn.no_logging(): getattr(learn, f'fit_{policy}')(n, slice(0.1, 0.3), by=by, **shape)
    for group,lr in enumerate((0.1, 0.3)):
        np.testing.assert_allclose([s[group] for s in seen], torch_values(make, n, lr, 3, by), rtol=1e-9, atol=1e-13)
    assert not learn.cbs.filter(lambda c: isinstance(c, PolicyScheduler))

bad_rates = ['a', float('nan'), float('inf'), -0.1, 1e308, [0.1, 'a'], [[0.1]], True, slice('a'), slice(None),
    slice(-1, 1), slice(0.1, 1e308), {}, b'1', np.array([-1.])]
bad_lengths = [0, -1, 1.5, '3', None, True, float('inf'), 10**30, [3]]
bad_milestones = ['60,120', 5.5, {}, ['a'], [-1], [float('nan')], [[1]], 0, object(), [10**400]]
nan,steps,ends = float('nan'),('multistep', 'warmup_multistep'),('cosine', 'warmcosine', 'cosine_restarts')
bad_settings = [ # of which policies, setting, values
    (policies, 'lr', bad_rates), (policies, 'n_epoch', bad_lengths), (policies, 'by', ('step', 1, True)),
    (steps, 'milestones', bad_milestones),
    (steps, 'gamma', (-1, 2, 'a', nan)), (ends, 'lr_min', (-1, 0.2, 'a', float('inf'))),
    (('warmup_multistep', 'warmcosine'), 'warmup', (-1, 5, 'a')),
    (('warmup_multistep', 'warmcosine'), 'start', (-1, 2, 'a')), (('warmcosine',), 'period', (0, -1, 'a', 1e30)),
    (('triangular',), 'up', (-1, 9, 'a')), (('triangular',), 'start', (-1, 2, 'a')), (('triangular',), 'end', (-1, 2, 'a')),
    (('cosine_restarts',), 'T_0', (0, 1e-9, 'a', 1e30)), (('cosine_restarts',), 'T_mult', (0.5, 1e9, nan))]
refused = [(p, {k:v}, k) for ps,k,vs in bad_settings for p in ps for v in vs]

@pytest.mark.parametrize('policy,kwargs,name', refused, ids=lambda v: repr(v).split(' at 0x')[0][:50])
def test_refusals(policy, kwargs, name):
    'What makes no sense is refused in one sentence that names it, before anything happens; also where the curve is drawn'
    learn = synth_learner(n_trn=3, cbs=Callback(before_fit=lambda self: pytest.fail('the fit began')))
    with pytest.raises(UserError) as e: getattr(learn, f'fit_{policy}')(**{**dict(n_epoch=4, lr=0.1), **kwargs})
    assert str(e.value).startswith(f'{name} is ') and len(str(e.value))<200
    if not isinstance(kwargs.get('lr'), slice):
        with pytest.raises(UserError, match=f'^{name} is '):
            policy_values(policy, **{**dict(n_epoch=4, lr=0.1), **kwargs})

def test_refused_words():
    learn = synth_learner(n_trn=3)
    for f in (lambda: learn.fit_policy('cosine', 2, shape=dict(gamma=0.1)),
        lambda: policy_values('cosine', 2, gamma=0.1)):
        with pytest.raises(UserError, match="There is no setting of cosine 'gamma': there is lr_min."): f()
    with pytest.raises(UserError, match='shape is 3: it must be a dict'): learn.fit_policy('cosine', 2, shape=3)
    with pytest.raises(UserError, match="lr has 3 values for 2 layer groups"):
        synth_learner(splitter=lambda m: [[m.a], [m.b]]).fit_cosine(2, [1e-3]*3)

def test_accepted():
    "Rates as numpy's and torch's numbers, a slice and one per layer group; 0 is a rate"
    for lr in (np.float32(0.1), torch.tensor(0.1), 1, 0, slice(0.1), slice(0.01, 0.1), [0.01, 0.1],
        np.array([0.01, 0.1]), (0.1,)):
        learn = synth_learner(n_trn=3, splitter=lambda m: [[m.a], [m.b]])
        with learn.no_bar(), learn.no_logging(): learn.fit_multistep(np.int64(2), lr, milestones=np.array([1]))

@pytest.mark.parametrize('n_iter', [10, 100])
@pytest.mark.parametrize('n_epoch', range(1, 31))
@pytest.mark.parametrize('policy', policies)
def test_short_fits(policy, n_epoch, n_iter):
    'By default a fit of any length trains from the first epoch on, for a good part of it near the top, and ends low'
    for lr in (1., 1e-4):
        rates = np.array(policy_values(policy, n_epoch, lr, n_iter))/lr
        epochs = rates.reshape(n_epoch, n_iter).mean(1)
        assert epochs[0]>0.02 and rates.min()>=0 and 0.9<rates.max()<=1+1e-12
        assert (rates>0.499).mean()>=0.25 and rates[-1]<=0.25
        assert (epochs[:-1]>0).all() # only the end may reach 0

def test_first_epoch():
    'At no length a first epoch at rate 0'
    for p in policies:
        for n in (*range(1, 120), 200, 300, 1000): assert np.mean(policy_values(p, n, 1., 20)[:20])>=0.01, (p, n)

@pytest.mark.parametrize('n_epoch', [1, 2, 3, 5, 10])
@pytest.mark.parametrize('policy', policies)
def test_short_fit(policy, n_epoch):
    'What the optimizer gets by default is what `policy_values` says'
    learn,seen = synth_learner(n_trn=7),[]
    learn.add_cb(Callback(before_step=lambda self: seen.append(self.opt.hypers[0]['lr'])))
    with learn.no_bar(), learn.no_logging(): getattr(learn, f'fit_{policy}')(n_epoch, 0.1)
    np.testing.assert_allclose(seen, policy_values(policy, n_epoch, 0.1, 7), rtol=1e-12)

@pytest.mark.parametrize('n_epoch', [200, 300])
@pytest.mark.parametrize('policy', [p for p in policies if p!='triangular'])
def test_published_lengths(policy, n_epoch):
    'There the default moves once an epoch, with the published numbers'
    n,lr = n_epoch,0.1
    want = dict(multistep=partial(multistep, milestones=[n*3//10, n*6//10, n*8//10], gamma=0.2),
        cosine=partial(cosine, n=n, lr_min=0.),
        warmup_multistep=partial(warmup_multistep, warmup=n//10, start=1/3,
            milestones=[n*3//10, n*6//10, n*8//10], gamma=0.5),
        cosine_restarts=partial(restarts, T_0=10, T_mult=2, lr_min=1e-4))
    got = policy_values(policy, n, lr, 5)
    if policy in want:
        np.testing.assert_allclose(got, torch_values(want[policy], n, lr, 5, 'epoch'), rtol=1e-9, atol=1e-13)
    else: assert got==policy_values(policy, n, lr, 5, by='epoch')
    assert (np.diff(np.reshape(got, (n, 5)), axis=1)==0).all()

def test_only_zero():
    'A fit whose every batch has rate 0 is refused'
    for f in (lambda l: l.fit_triangular(1, 0.1, by='epoch'), lambda l: l.fit_warmcosine(1, 0.1, start=0, by='epoch')):
        with pytest.raises(UserError, match='learning rate of 0'): f(synth_learner(n_trn=3))
    with pytest.raises(UserError, match='learning rate of 0'): synth_learner(n_trn=1).fit_triangular(1, 0.1)

def test_restarts_end():
    'However many cosines, a value takes no time, and values are those of restart after restart'
    for T_0,T_mult in ((0.01, 1.), (0.01, 1+1e-12), (0.01, 1.0001), (1e6, 100.)):
        assert 0<=policies['cosine_restarts'](1., 999_999.3, 10**6, T_0=T_0, T_mult=T_mult, lr_min=0.)<=1
    for T_0,T_mult in ((10, 2), (3, 1), (0.7, 1.3), (1.5, 1)):
        for t in np.arange(0, 300, 0.37):
            r,T = t,T_0
            while r>=T: r,T = r-T,T*T_mult
            assert policies['cosine_restarts'](1., t, 300, T_0=T_0, T_mult=T_mult,
                lr_min=0.)==pytest.approx(policies['cosine'](1., r, T), abs=1e-6)

def test_period():
    'After its period the cosine stays where it ended'
    v = policy_values('warmcosine', 20, 1., 1, by='epoch', warmup=2, period=8, lr_min=0.1)
    assert v[10:]==[0.1]*10 and v[9]>0.1
    assert policy_values('warmcosine', 20, by='epoch', warmup=2, period=18)==policy_values('warmcosine', 20,
        by='epoch', warmup=2)
