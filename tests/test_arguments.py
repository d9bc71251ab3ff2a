'Arguments of every trick and builder: a value is accepted, and then trains, or it is refused in one sentence'
import importlib,inspect,math,re,signal
from contextlib import contextmanager
import numpy as np
import pytest,torch
from torch import nn
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from cifar_fastai.trick import tricks
from cifar_fastai.zoo.registry import create_model, list_models, model_summary
from cifar_fastai.bench import epoch_cost, time_interleaved
from cifar_fastai.core import UserError,check_bool,short
from cifar_fastai.callback.distill import KD
from cifar_fastai.zoo.registry import init_weights
from cifar_fastai.zoo.layers import *
from cifar_fastai.zoo.shake import *
from test_contract import batches,listed,make,net,sgd,silent

# tricks whose arguments are not checked yet
OTHERS = set()

values = {'nan':math.nan, 'inf':math.inf, '-inf':-math.inf, '1e308':1e308, '10**30':10**30, '10**6':10**6,
    '100000':100000,
    '-1':-1, '0':0, '1':1, '0.5':0.5, 'True':True, 'x':'x', 'empty':'', 'no':'no', 'true':'True', 'bytes':b'1',
    'None':None,
    'list':[], 'dict':{}, 'array':np.ones(2), 'tensor':torch.ones(2), 'one':np.ones(1), 'object':object(), 'complex':1j,
    'long':'x'*100_000, 'digits':10**5000, 'pair':(1, 2), 'falling':(2, 1), 'nans':(math.nan, math.nan),
    'infs':(0.5, math.inf),
    'huge':(1e308, 1e308), 'wide':(10**30, 10**31), 'strings':('a', 'b'), 'arrays':(np.ones(2), 1), 'three':(0, 1, 2)}

class TooLong(BaseException): 'Not an `Exception`, so that nothing on the way takes it for an error of its own'

@contextmanager
def limit(seconds):
    'Breaks off what takes longer, where the system has an alarm'
    if not hasattr(signal, 'SIGALRM'):
        yield
        return
    def late(*_): raise TooLong
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)

def one_sentence(e): return 10<len(str(e))<400 and '\n' not in str(e) and str(e).endswith(('.', '?'))

def train(trick):
    'One step on two images'
    set_seed(0)
    learn = Learner(listed(batches(torch.float32, n=1)), net(), nn.CrossEntropyLoss(), opt_func=sgd, lr=1e-3, cbs=trick)
    set_seed(1)
    with silent(learn): learn.fit(1)
    return learn

def accepted(f, *args):
    'What `f` gives, or None if it refuses; anything else fails'
    try:
        with limit(20): return f(*args)
    except UserError as e: assert one_sentence(e), str(e)
    except TooLong: pytest.fail('took more than 20 seconds')

def parameters(name): return inspect.signature(tricks[name]).parameters.values()
def marks(name): return [pytest.mark.xfail(run=False, reason='not checked yet')] if name in OTHERS else []
def cases(kind=lambda v: True):
    'Name and parameter of each trick, where the default is of a kind'
    def of_base(n, p): return p.name in tricks[n].window_params and n!='MixUp' # the window is the same for all
    return [pytest.param(n, p.name, marks=marks(n)) for n in sorted(tricks) for p in parameters(n)
        if kind(p.default) and not of_base(n, p)]


@pytest.mark.parametrize('name,param', cases())
def test_tricks(name, param):
    'Each parameter of each trick, given each of the values: refused, or one step of training is finite'
    for k,v in values.items():
        trick = accepted(lambda: make(name, **{param:v}))
        learn = trick and accepted(train, trick)
        if learn: assert all(p.isfinite().all() for p in learn.model.parameters()), f'{param}={k}'

def wrapped(v, f):
    'A number, or each number of a tuple, through `f`'
    return tuple(map(f, v)) if isinstance(v, tuple) else f(v)

def numeric(v):
    return all(map(numeric, v)) if isinstance(v, tuple) else isinstance(v, (int, float)) and not isinstance(v, bool)

@pytest.mark.parametrize('name,param', cases(numeric))
def test_scalars(name, param):
    "Numpy's and torch's scalars are numbers, and kept as Python's"
    default = inspect.signature(tricks[name]).parameters[param].default
    def scalar(v): return torch.tensor(v, dtype=torch.float64 if isinstance(v, float) else torch.int64)
    for f in (np.array, lambda v: np.array(v)[()], scalar):
        trick = make(name, **{param:wrapped(default, f)})
        assert repr(trick)==repr(make(name, **{param:default}))
        got = {**dict(zip(('start', 'end'), trick.window)), **vars(trick)}[param]
        assert all(type(o) in (int, float) for o in (got if isinstance(got, tuple) else [got]))

@pytest.mark.parametrize('name,param', cases(lambda v: isinstance(v, bool)))
def test_booleans(name, param):
    'Only booleans are booleans'
    for v in values.values():
        if isinstance(v, bool): continue
        with pytest.raises(UserError, match=f'{param} is .*: it must be True or False'): make(name, **{param:v})
    for v in (True, np.True_, torch.tensor(True)): assert vars(make(name, **{param:v}))[param] is True

def test_check_bool():
    assert check_bool('b', False) is False and check_bool('b', np.False_) is False and check_bool('b',
        np.array(True)) is True
    for v in values.values():
        if not isinstance(v, bool): assert one_sentence(pytest.raises(UserError, check_bool, 'b', v).value)

# name -> function of one value; what it gives, if it gives anything, is used once
x = torch.ones(2, 4, 8, 8)
def fits(m): return m(x).isfinite().all()
builders = dict(name=lambda v: create_model(v), n_out=lambda v: create_model('resnet20', n_out=v),
    in_chans=lambda v: create_model('resnet20', in_chans=v),
    depths=lambda v: create_model('resnet20', depths=v), stem=lambda v: create_model('resnet20', stem=v),
    widths=lambda v: create_model('resnet20', widths=v),
    unheard=lambda v: create_model('resnet20', unheard=v), timm_name=lambda v: create_model(f'timm:{short(v)}'),
    timm_n_out=lambda v: create_model('timm:resnet18', n_out=v), pattern=lambda v: list_models(v),
    family=lambda v: list_models(family=v),
    summary=lambda v: model_summary(v), size=lambda v: model_summary('lenet', v),
    side=lambda v: model_summary('resnet20', (3,v,v)),
    init=lambda v: init_weights(nn.Linear(2, 2), v), drop=lambda v: fits(pool_head(4, 2, v)),
    head=lambda v: fits(pool_head(4, v)),
    conv=lambda v: fits(ConvBNAct(4, v)), ks=lambda v: fits(ConvBNAct(4, 4, v)),
    groups=lambda v: fits(ConvBNAct(4, 4, groups=v)),
    shortcut=lambda v: proj_shortcut(4, v), hidden=lambda v: fits(SEModule(4, v)), heads=lambda v: Attention(8, v),
    dim=lambda v: Attention(v, 2),
    head_dim=lambda v: Attention(8, 2, v), map=lambda v: RelativeAttention(8, v), rows=lambda v: relative_index(v, 2),
    mlp=lambda v: MLP(4, v),
    std=lambda v: trunc_init_(nn.Linear(2, 2), v), mode=lambda v: kaiming_init_(nn.Conv2d(2, 2, 1), v),
    depth=lambda v: fits(StochasticDepthLayer(v)),
    shake=lambda v: fits(ShakeDropLayer(v)), alpha=lambda v: fits(ShakeDropLayer(0.5, v)),
    beta=lambda v: fits(ShakeDropLayer(0.5, beta=v)),
    function=lambda v: shake_drop(x, 0.5, v), decay=lambda v: linear_decay(v, 3), blocks=lambda v: linear_decay(0.5, v),
    rounds=lambda v: time_interleaved(dict(a=lambda: None), 'a', v),
    base=lambda v: time_interleaved(dict(a=lambda: None), v, 1),
    arch=lambda v: epoch_cost(v, n=0),
    epoch_rounds=lambda v: epoch_cost('lenet', 3, n=v) if not (isinstance(v, int) and v==1) else None,
    path=lambda v: KD('lenet', path=v))

@pytest.mark.parametrize('name', builders)
def test_builders(name):
    'Likewise for networks, layers, initial weights and benchmarks'
    for v in values.values(): accepted(builders[name], v)

# Names that fastai has too

theirs = ['RandomResizedCrop(224)', 'RandomResizedCrop(224, min_scale=0.3)', 'RandomCrop((224, 224))', 'RandomErasing(p=0.5, sl=0., sh=0.3)',
    'RandomErasing(max_count=3)', "Flip(p=0.5, mode='bilinear')", 'Lookahead(opt)', 'Lookahead(opt, k=6)', 'CutMix(alpha=1.)', 'GradientClip(1., norm_type=2.)']

@pytest.mark.parametrize('call', theirs)
def test_calls_of_fastais(call):
    "A call that fits only fastai's class of that name is told where that is"
    opt = SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    with pytest.raises(UserError, match=rf"fastai's {call.partition('(')[0]} is fastai\.") as e: eval(call, dict(tricks), dict(opt=opt))
    path = re.search(r' is (fastai\.[\w.]*\w)', str(e.value))[1]
    module,_,name = path.rpartition('.')
    eval(call, {name:getattr(importlib.import_module(module), name)}, dict(opt=opt))

@pytest.mark.parametrize('call,says', [('RandomErasing(p=2)', 'p is 2'), ('MixUp(-1)', 'alpha is -1'), ('Lookahead(k=0)', 'k is 0')])
def test_calls_of_ours(call, says):
    "A call that fits both is refused for its values"
    with pytest.raises(UserError, match=says): eval(call, dict(tricks))
