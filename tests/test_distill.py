'Where a teacher comes from, what may not happen to it, and which teachers are refused'
import copy,math,os,pickle
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
from cifar_fastai.callback.distill import DKD, KD, Teacher, dkd_loss, kd_loss
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

def decoupled(z, p, t, T):
    'TCKD and NCKD of one image with label `t`, from the definitions, in Python floats'
    q,p = ([math.exp(v/T) for v in o] for o in (z, p))
    q,p = ([v/sum(o) for v in o] for o in (q, p))
    tckd = p[t]*math.log(p[t]/q[t]) + (1-p[t])*math.log((1-p[t])/(1-q[t]))
    others = [i for i in range(len(p)) if i!=t]
    nckd = sum(p[i]/(1-p[t])*math.log(p[i]/(1-p[t])/(q[i]/(1-q[t]))) for i in others)
    return tckd*T*T,nckd*T*T

@pytest.mark.parametrize('T', [1., 4.])
@pytest.mark.parametrize('alpha,beta', [(1., 8.), (0.5, 0.), (0., 2.)])
def test_decoupled(alpha, beta, T):
    'Equal to a loop over images, for labels and for mixed targets, in each reduction'
    torch.manual_seed(0)
    z,p = torch.randn(2, 6, 7, dtype=torch.float64).mul(3).unbind()
    y,probs = torch.tensor([0, 6, 3, 3, 1, 5]),torch.rand(6, 7, dtype=torch.float64)
    probs[:,2:5] = 0
    probs /= probs.sum(1, keepdim=True)
    def one(i, t):
        tckd,nckd = decoupled(z[i].tolist(), p[i].tolist(), t, T)
        return alpha*tckd + beta*nckd
    wants = {y:[one(i, t) for i,t in enumerate(y.tolist())],
        probs:[sum(probs[i,t].item()*one(i, t) for t in range(7)) for i in range(6)]}
    for targ,want in wants.items():
        want = torch.tensor(want, dtype=torch.float64)
        for r in ('mean', 'sum', 'none'):
            torch.testing.assert_close(dkd_loss(z, p, targ, alpha, beta, T, r), want if r=='none' else getattr(want, r)(),
                rtol=1e-12, atol=1e-12)

def test_decoupled_parts_make_kd():
    'KD = TCKD + (1-p_t) NCKD; a label is the class with probability 1; float32 with a teacher that is certain stays finite'
    torch.manual_seed(0)
    z,p = torch.randn(2, 6, 10, dtype=torch.float64).mul(4).unbind()
    y = torch.randint(10, (6,))
    tckd,nckd = (dkd_loss(z, p, y, a, 1-a, 3., 'none') for a in (1., 0.))
    rest = 1-(p/3).softmax(1).gather(1, y[:,None])[:,0]
    torch.testing.assert_close(tckd + rest*nckd, kd_loss(z, p, 3., 'none'), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dkd_loss(z, p, nn.functional.one_hot(y, 10)), dkd_loss(z, p, y), rtol=1e-12, atol=1e-12)
    z,p = torch.randn(6, 10, requires_grad=True),100*nn.functional.one_hot(y, 10).float()
    for t in (y, nn.functional.one_hot(y, 10)):
        for a,b in ((z, p), (100*z, -100*z.detach())): dkd_loss(a, b, t).backward()
        assert z.grad.isfinite().all()

@pytest.mark.parametrize('warmup,want', [(0.5, [0.5, 1, 1, 1]), (1, [0.25, 0.5, 0.75, 1]), (0.1, [1]*4), (0, [1]*4)])
def test_warmup(warmup, want):
    'The weight of the term rises from epoch to epoch over a fraction of the fit, in a second fit too'
    learn,seen = learner(DKD(net(), warmup=warmup)),[]
    learn.add_cb(Callback(before_train=lambda self: seen.append(self.dkd.weight)))
    for _ in range(2): fit(learn, 4)
    assert seen==2*want

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
    (lambda: DKD(net(), beta=-1), 'beta is -1: it must be a number in [0, 1000].'),
    (lambda: DKD(net(), warmup=20), 'warmup is 20: it must be a number in [0, 1].'),
    (lambda: DKD('resnet20'), "The teacher 'resnet20' needs trained weights"),
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
        ([KD(net()), KD(net())], 'each weigh the labels against a teacher'), (DKD(net(7)), 'has 7 classes and the student 10'),
        ([DKD(net()), KD(net())], 'DKD.*KD.* each weigh the labels against a teacher'), (bad, 'weights of a lenet for 10 classes')]
    before = {n:p.detach().clone() for n,p in student.named_parameters()}
    for cbs,said in cases:
        with pytest.raises(UserError, match=said): fit(learner(cbs, student))
        assert same(before, student.state_dict())
