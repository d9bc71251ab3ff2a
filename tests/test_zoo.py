'Every backbone, over the registry: what each must do, and the networks of other packages that confirm it.'
import copy,pickle
from functools import cache
import pytest,torch
from cifar_fastai.backbones import get_model,list_models,model_summary,zoo_contract
from zoo_refs import copy_to,load_references,randomise_

contract = zoo_contract()
references = load_references()
names = list_models()
summary = cache(model_summary)
heavy = [n for n in names if summary(n).macs>2e9]
# heavy networks are swept with -m slow
swept = [pytest.param(n, marks=pytest.mark.slow) if n in heavy else n for n in names]

def rel(a, b): return ((a-b).abs().max()/b.abs().max()).item()

@pytest.mark.parametrize('name', contract)
def test_count(name):
    'The parameter count of the contract, exactly; a size where the paper gives no more'
    want,got = contract[name]['params_at_10_classes'],summary(name).params
    if '+-' in want: assert abs(got/float(want.split('+-')[0])-1) <= 0.03
    else: assert got==int(want)

def test_contract_is_whole():
    'Every row of the contract is a backbone, and every row marked `outputs` has its reference'
    assert not set(contract)-set(names)
    assert not {n for n,r in contract.items() if r['confirmed_by']=='outputs'}-set(references)

@pytest.mark.parametrize('name', references)
def test_reference(name):
    'With the same weights, the other package gives the same logits in eval mode and the same input gradient in train mode'
    torch.manual_seed(0)
    ref,ours = references[name],randomise_(get_model(name))
    theirs = copy_to(ours, ref, ref.build())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(): assert rel(ours.eval()(x), theirs.eval()(x)) < 1e-5
    if ref.random: return
    grads = []
    for m in (ours, theirs):
        xi = x.double().requires_grad_()
        m.double().train()(xi).square().sum().backward()
        grads.append(xi.grad)
    # in float64: where the map is 1x1, BatchNorm has two values a channel, and float32 gradients would be rounding
    assert rel(*grads) < 1e-6

@pytest.mark.parametrize('name', swept)
def test_backbone(name):
    'What every network must do'
    torch.manual_seed(0)
    x,model = torch.randn(2, 3, 32, 32),get_model(name)
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
        twin = get_model(name).eval()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x), out), 'the state dict says all'
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert rel(last, out) < 1e-4, 'channels_last'
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), out), 'pickle'

@pytest.mark.parametrize('name', names)
def test_on_meta(name):
    'Builds for 100 classes and runs forward and backward on the meta device'
    model = get_model(name, n_out=100).to('meta')
    out = model(torch.empty(2, 3, 32, 32, device='meta'))
    assert out.shape==(2, 100)
    out.sum().backward()
