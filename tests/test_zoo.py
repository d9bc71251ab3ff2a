'Every backbone, over the registry: what each must do, and the networks of other packages that confirm it.'
import copy,pickle,time
import pytest,torch
from torch import nn
from cifar_fastai.zoo.registry import create_model, list_models, model_summary, zoo_contract
from cifar_fastai.zoo.shake import ShakeDropLayer, ShakeShakeLayer, StochasticDepthLayer
from zoo_refs import copy_to,load_references,randomise_

contract = zoo_contract()
references = load_references()
names = list_models()
# aliases build what their row builds
aliases = dict(wrn28_10='wideresnet')
noises = StochasticDepthLayer,ShakeDropLayer,ShakeShakeLayer
stochastic = ['efficientnetb0', 'pyramidnet272', 'shake_resnet26_2x32d', 'shake_resnet26_2x64d',
    'stochastic_depth_resnet18']

def up_to(gmacs, names):
    'Networks that cost more are swept with -m slow'
    return [n if float(contract[n]['gmacs'])<gmacs else pytest.param(n, marks=pytest.mark.slow) for n in names
        if n not in aliases]

def rel(a, b): return ((a-b).abs().max()/b.abs().max()).item()

@pytest.mark.parametrize('name', contract)
def test_count(name):
    'The parameter count of the contract, exactly; a size where the paper gives no more; the cost'
    s,want = model_summary(name),contract[name]['params_at_10_classes']
    if '+-' in want: assert abs(s.params/float(want.split('+-')[0])-1) <= 0.03
    else: assert s.params==int(want)
    assert round(s.macs/1e9, 3)==float(contract[name]['gmacs'])

def test_contract_is_whole():
    'Every row of the contract is a backbone, and every row marked `outputs` has its reference'
    assert not set(contract)-set(names)
    assert not {n for n,r in contract.items() if r['confirmed_by']=='outputs'}-set(references)

def deviation(name):
    'How far the logits in eval mode are from those of the other package with the same weights'
    torch.manual_seed(0)
    ref,ours = references[name],randomise_(create_model(name))
    theirs = copy_to(ours, ref, ref.build())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(): return rel(ours.eval()(x), theirs.eval()(x))

@pytest.mark.parametrize('name', up_to(2, references))
def test_reference(name):
    'With the same weights, the other package gives the same logits in eval mode'
    assert deviation(name) < 1e-5

@pytest.mark.parametrize('name', up_to(0.4, names))
def test_backbone(name):
    'What every network must do'
    torch.manual_seed(0)
    x,start = torch.randn(2, 3, 32, 32),time.process_time()
    model = create_model(name)
    big = sum(p.numel() for p in model.parameters())>5e7
    assert time.process_time()-start < (6 if big else 2), 'seconds to build, twice what they may be'
    with torch.autograd.set_detect_anomaly(True):
        out = model(x)
        assert out.shape==(2, 10) and out.isfinite().all()
        out.square().sum().backward()
    assert not [n for n,p in model.named_parameters() if p.grad is None], 'parameters without a gradient'
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        out = model(x)
        assert torch.allclose(model(x[:1]), out[:1], rtol=1e-4, atol=1e-4*out.abs().max().item()), 'a batch of one'
        twin = create_model(name).eval()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x), out), 'the state dict says all'
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert rel(last, out) < 1e-4, 'channels_last'
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), out), 'pickle'

@pytest.mark.parametrize('name', names)
def test_on_meta(name):
    'Runs forward and backward on the meta device, for 100 classes and one channel'
    with torch.device('meta'): model = create_model(name, n_out=100, in_chans=1)
    state,out = torch.get_rng_state(),model(torch.empty(2, 1, 32, 32, device='meta'))
    assert out.shape==(2, 100)
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), state), 'something is drawn on the CPU'
    assert (name in stochastic)==any(isinstance(m, noises) for m in model.modules())

def test_aliases():
    'The same row under another name'
    from cifar_fastai.zoo.registry import backbones
    assert {n:backbones[n].name for n in names if backbones[n].name!=n}==aliases

@pytest.mark.parametrize('name', up_to(0.05, names))
def test_export(name):
    'torch.export gives a program with the same outputs'
    torch.manual_seed(0)
    model,x = create_model(name).eval(),torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (x,), strict=False).module()
    with torch.no_grad(): assert rel(program(x), model(x)) < 1e-6

class Times(nn.Module):
    'A branch that multiplies'
    def __init__(self, by):
        super().__init__()
        self.by = by
    def forward(self, x): return x*self.by

@pytest.mark.parametrize('name', up_to(0.6, stochastic))
def test_noise(name):
    'On average, every random layer does in train mode what it does in eval mode; the noise is of each image'
    torch.manual_seed(0)
    model,ones = create_model(name),torch.ones(20000, 1, 1, 1, dtype=torch.double)
    layers = [copy.copy(m) for m in model.modules() if isinstance(m, noises)]
    for m in layers:
        if isinstance(m, ShakeShakeLayer): m._modules = dict(a=Times(1), b=Times(-0.5))
        y = m.train()(ones)
        assert abs(y.mean()-m.eval()(ones[:1]).item()) < 5*y.std()/len(y)**0.5
    x = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    # BatchNorm with its running statistics and no dropout: all that is left is the noise
    for m in model.train().modules():
        if isinstance(m, (nn.BatchNorm2d, nn.Dropout)): m.eval()
    with torch.no_grad():
        assert len(model(x).unique(dim=0)) > 4
        assert torch.allclose(*model.eval()(x)[:2], rtol=1e-4)
