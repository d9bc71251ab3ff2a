"Devices: names, availability, and what differs between them; GPUs that this machine lacks have substitutes"
from types import SimpleNamespace
import pytest, torch
from cifar_fastai.callback.monitor import peak_memory
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.devices import as_device, available_devices, device_name
from cifar_fastai.loop import forward_rng
from cifar_fastai.learner import cifar_learner
from cifar_fastai.rng import learner_random, set_learner_random
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.export import load_run
from cifar_fastai.runs.train import RunPlan, available_memory, check_memory, run_device, train
from cifar_fastai.studies.launch import run_workers

small = RunConfig(model='toynet_s1_k3', dataset='digits', epochs=1, bs=32, fraction=0.05, schedule='onecycle')

@pytest.mark.parametrize('name, says', [('gpu', "did you mean 'cuda'"), ('Cuda', "did you mean 'cuda'"), ('', 'no device'),
    ('cuda:', "or 'cuda'"), ('cuda:x', "did you mean 'cuda"), ('meta', 'no device'), ('cuda:99', 'on this machine: there is cpu'),
    (99, "'cuda:99' on this machine"), (1.5, 'no device'), (torch.device('cuda:99'), 'on this machine')])
def test_refused(name, says):
    for f in (as_device, run_device, lambda o: cifar_dls('digits', device=o), lambda o: train(small, device=o)):
        with pytest.raises(UserError, match='There is no device') as e: f(name)
        assert says in str(e.value)

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu():
    for o in ('cuda', 'cuda:0', '0', 0, 'mps'):
        with pytest.raises(UserError, match='there is cpu'): as_device(o)
    assert available_devices()==['cpu'] and as_device()==torch.device('cpu') and device_name('cpu').endswith(' CPU')

def test_of_learner_and_run(tmp_path):
    plan = RunPlan(small, device=run_device('cpu'))
    assert plan.learner().dls.device==torch.device('cpu')
    folder = train(small, 'a', exps=tmp_path, device='cpu', bar=False, curves=False)
    assert load_run(folder, device='cpu').dls.device==torch.device('cpu')
    with pytest.raises(UserError, match='no device'): load_run(folder, device='cuda:99')
    assert 'device' not in (folder/'config.yaml').read_text()

@pytest.fixture
def mps(monkeypatch):
    "A substitute for torch's functions for Apple's GPU"
    state = torch.arange(44, dtype=torch.uint8)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.mps, 'get_rng_state', lambda device='mps': state.clone())
    monkeypatch.setattr(torch.mps, 'set_rng_state', lambda new, device='mps': state.copy_(new))
    monkeypatch.setattr(torch.mps, 'driver_allocated_memory', lambda: 7)
    monkeypatch.setattr(torch.mps, 'recommended_max_memory', lambda: 2**20)
    return state

def on(device): return SimpleNamespace(cbs=[], dls=SimpleNamespace(device=torch.device(device), loaders=[]))

def test_generator_of_mps(mps):
    "The state of its generator is stored and restored, and ignored on other devices"
    learn,before = on('mps'),mps.clone()
    sd = learner_random(learn)
    mps.zero_()
    set_learner_random(on('cpu'), sd)
    assert not mps.any()
    set_learner_random(learn, sd)
    assert torch.equal(mps, before)
    set_learner_random(learn, learner_random(on('cpu'))) # a run of the CPU that goes on on a GPU
    assert torch.equal(mps, before)
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device('mps'))]))
    assert torch.equal(forward_rng(SimpleNamespace(model=model))[1], before)

def test_fewer_gpus(monkeypatch):
    "States of GPUs that this machine lacks are left out"
    learn,seen = on('cpu'),[]
    sd = learner_random(learn)
    sd['rng']['torch_cuda_state'] = [torch.zeros(16, dtype=torch.uint8)]*3
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', lambda states: seen.append(len(states)))
    set_learner_random(learn, sd)
    assert seen==[1]

def test_other_gpu(monkeypatch):
    "The state of the run's GPU is restored on the one that it is resumed on"
    states = {'cuda:0':torch.zeros(16, dtype=torch.uint8), 'cuda:1':torch.ones(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, 'get_rng_state', lambda device: states[str(device)])
    monkeypatch.setattr(torch.cuda, 'set_rng_state', lambda new, device: states.update({str(device):new}))
    set_learner_random(on('cuda:0'), learner_random(on('cuda:1')))
    assert states['cuda:0'].all()

def test_memory_of_mps(mps):
    assert peak_memory('mps')==7 and available_memory('mps')==2**20 and available_devices()[-1]=='mps'
    assert device_name('mps').endswith(' MPS')
    with pytest.raises(UserError, match='but mps has 0.0 GiB'): check_memory(RunConfig(model='resnet18'), 'mps')

@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_precision_that_a_device_lacks(precision, monkeypatch, tmp_path):
    "One sentence, and no file"
    class Lacks(torch.autocast):
        def __init__(self, device, dtype): super().__init__(device, dtype, enabled=precision=='fp16')
    def step(*args): raise RuntimeError('not implemented for this device')
    monkeypatch.setattr(torch, 'autocast', Lacks)
    monkeypatch.setattr(torch.GradScaler, 'step', step)
    with pytest.raises(UserError, match=f"precision is '{precision}', which cpu does not have"):
        train(small.override(precision=precision), exps=tmp_path/'exps', device='cpu', bar=False)
    assert not (tmp_path/'exps').exists()

def test_precision_draws_nothing():
    def after(precision):
        torch.manual_seed(0)
        cifar_learner('lenet', cifar_dls('digits', fraction=0.05, device='cpu'), precision=precision)
        return torch.get_rng_state()
    assert torch.equal(after('fp16'), after('fp32'))

@pytest.mark.parametrize('device, want', [('cuda:1', ['cuda:1']*2), (None, ['cuda:0', 'cuda:1'])])
def test_workers(device, want, monkeypatch, tmp_path):
    "A given device reaches every process; by default each has one of its own"
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    code = f"import os; open({str(tmp_path)!r}+'/'+str(os.getpid()), 'w').write(sys.argv[-1])"
    assert run_workers(2, f'import sys; {code}', [], device)==0
    assert sorted(o.read_text() for o in tmp_path.iterdir())==[f'--device={o}' for o in want]
