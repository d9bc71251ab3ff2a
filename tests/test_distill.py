'Where a teacher comes from, what may not happen to it, and which teachers are refused'
import copy,os,pickle
import pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.learner import load_learner
from fastai.torch_core import set_seed
from safetensors.torch import save_file
from cifar_fastai.zoo.registry import create_model
from cifar_fastai.runs.checkpoint import Checkpoint
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.callback.distill import KD, Teacher, kd_loss
from cifar_fastai.learner import cifar_learner
from cifar_fastai.callback.sam import SAM
from cifar_fastai.serialize import save_tree
from common import fit_of

def net(n_out=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(4*64, n_out))

def learner(cbs=(), model=None, **kw):
    set_seed(0)
    return cifar_learner(model or net(), cifar_dls('digits', bs=20, fraction=40/1500, val_bs=100), cbs=cbs,
        lr=0.05, **kw)

fit = fit_of(seed=1)

def weights(m): return {k:v.clone(memory_format=torch.contiguous_format) for k,v in m.state_dict().items()}
def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())

def test_is_torchs():
    "The divergence is torch's `KLDivLoss`, in each reduction"
    z,t = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    want = nn.KLDivLoss(reduction='none')((z/3).log_softmax(1), (t/3).softmax(1)).sum(1)*9
    for r in ('mean', 'sum', 'none'):
        torch.testing.assert_close(kd_loss(z, t, 3, r), want if r=='none' else getattr(want, r)())

@pytest.mark.parametrize('kind', ['module', 'learner', 'best', 'checkpoint'])
def test_sources(kind, tmp_path):
    'A module, a Learner, and both kinds of files teach the same'
    torch.manual_seed(2)
    big = create_model('lenet', 10)
    trained = learner(model=copy.deepcopy(big))
    fit(trained, 1, cbs=Checkpoint(tmp_path/'last.safetensors'))
    save_file(weights(trained.model), tmp_path/'best.safetensors')
    files = dict(best='best.safetensors', checkpoint='last.safetensors')
    kd = KD('lenet', path=tmp_path/files[kind]) if kind in files else KD(trained if kind=='learner' else trained.model)
    a,b = weights(fit(learner(kd)).model),weights(fit(learner(KD(copy.deepcopy(trained.model)))).model)
    assert same(a, b) and not same(a, weights(fit(learner()).model))

@pytest.mark.parametrize('breaks', [False, True])
@pytest.mark.parametrize('mode', [True, False])
def test_teacher_is_untouched(mode, breaks):
    'Weights, buffers, gradients and the mode of each layer are afterwards as before, however the fit ended; in it the teacher is in evaluation mode'
    teacher = net().train(mode)
    teacher[1].eval()
    before,modes,seen = weights(teacher),[m.training for m in teacher.modules()],[]
    def look(self):
        seen.append(any(m.training for m in teacher.modules()))
        if breaks: raise KeyboardInterrupt
    try: fit(learner([KD(teacher), Callback(after_loss=lambda self: look(self) if self.training else None)]))
    except KeyboardInterrupt: assert breaks
    assert seen and not any(seen)
    assert same(before, weights(teacher)) and modes==[m.training for m in teacher.modules()]
    assert all(p.grad is None for p in teacher.parameters())

def test_asked_once_a_batch():
    "SAM's second pass uses the same answer"
    teacher,calls = net(),[]
    teacher.register_forward_hook(lambda *a: calls.append(1))
    fit(learner([KD(teacher), SAM(0.1)]))
    assert len(calls)==2

def test_export(tmp_path):
    'The file of an exported student does not hold the teacher; training on with it is refused, predicting works'
    learn = fit(learner(KD(nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 2000), nn.Linear(2000, 10))), path=tmp_path))
    learn.export('s.pkl')
    assert (tmp_path/'s.pkl').stat().st_size < 1_000_000
    with pytest.warns(UserWarning): loaded = load_learner(tmp_path/'s.pkl')
    with loaded.no_bar(): loaded.predict(learn.dls.valid_ds[0][0])
    loaded.dls = learn.dls
    with pytest.raises(UserError, match='was loaded without its teacher'): fit(loaded)
    assert pickle.loads(pickle.dumps(Teacher(net()))).net is None

def test_same_autocast():
    'The teacher runs under the autocast of the student'
    teacher,dtypes = net(),[]
    teacher.register_forward_hook(lambda m, x, y: dtypes.append(y.dtype))
    fit(learner([KD(teacher)]).to_bf16())
    assert set(dtypes)=={torch.bfloat16}

@pytest.mark.parametrize('made,said', [
    (lambda: KD('resnet20'), "The teacher 'resnet20' needs trained weights"),
    (lambda: KD('resnet2O', path='x'), "There is no backbone 'resnet2O'"),
    (lambda: KD('resnet20', path='no.safetensors'), 'There is no file '
        '\'no.safetensors\' with weights of the teacher'), (lambda: KD(3), 'The teacher is a int'),
    (lambda: KD(net(), alpha=1.5), 'alpha is 1.5: it must be a number in [0, 1].'),
    (lambda: KD(net(), T=0), 'T is 0: it must be a number in [0.001, 1000].'),
    (lambda: KD(net(), path='x'), "path is 'x': it goes with the name of a backbone"),
    (lambda: KD('resnet20', path=3), 'path is 3: it must be the file')])
def test_refused_when_made(made, said):
    with pytest.raises(UserError) as e: made()
    assert said in str(e.value)

def test_refused_files(tmp_path):
    'What is not a file of weights is refused when the trick is made: folders, pipes (which would wait for ever), other files, other trees'
    (tmp_path/'folder').mkdir()
    (tmp_path/'text').write_text('x')
    (tmp_path/'empty').touch()
    save_tree(tmp_path/'tree', dict(a=1))
    save_tree(tmp_path/'list', [1])
    files = dict(folder='is a folder', text='is not a file of weights', empty='is not a file of weights',
        tree='contains no network weights', list='is not a checkpoint')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path/'pipe')
        files['pipe'] = 'There is no file'
    for name,said in files.items():
        for path in (tmp_path/name, str(tmp_path/name)):
            with pytest.raises(UserError, match=said): KD('lenet', path=path)
    for path in ('x'*10_000, 'a\0b', '', tmp_path/'folder'/'x'):
        with pytest.raises(UserError): KD('lenet', path=path)

def test_refused_before_training(tmp_path):
    'Another number of classes, the student as its own teacher, two teachers, weights of another network: nothing has moved'
    save_file(weights(create_model('lenet', 7)), tmp_path/'w.safetensors')
    student,bad = net(),KD('lenet', path=tmp_path/'w.safetensors')
    cases = [(KD(net(7)), 'has 7 classes and the student 10'), (KD(student), 'is the network that trains'),
        ([KD(net()), KD(net())], 'each weigh the labels against a teacher'), (bad, 'weights of a lenet for 10 classes')]
    before = {n:p.detach().clone() for n,p in student.named_parameters()}
    for cbs,said in cases:
        with pytest.raises(UserError, match=said): fit(learner(cbs, student))
        assert same(before, student.state_dict())
