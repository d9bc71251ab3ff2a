'ONNX files: what onnxruntime computes from them is what the network computes'
import json,sys
import numpy as np,pytest,torch
from torch import nn
from cifar_fastai.cli import cifar_export,cifar_train
from cifar_fastai.core import UserError
from cifar_fastai.runs.export import export_run,load_run,to_onnx
from cifar_fastai.zoo.registry import backbones,create_model

mean,std,vocab = [0.1, 0.5, 0.9],[0.2, 0.3, 0.4],list('0123456789')
def session(b):
    ort = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    return ort.InferenceSession(b)

def compare(b, f, x):
    "Both on batches of other sizes than that of the export"
    s = session(b)
    for n in (1, 3):
        with torch.no_grad(): want = f(x[:n]).numpy()
        got, = s.run(None, dict(image=x[:n].numpy()))
        assert got.shape==want.shape and np.abs(got-want).max()<=1e-4*max(np.abs(want).max(), 1e-3)
    return s

families = dict(plain='lenet', residual='resnet20', inception='squeezenet', mobile='shufflenetv2', transformer='cct_7_3x1',
    multipath='densenet', nas='pnasnet', hybrid='mobilevit_xxs')
slow = 'multipath','nas','hybrid'

def test_families(): assert set(families)=={o.family for o in backbones.values()}

@pytest.mark.parametrize('name', [pytest.param(v, marks=[pytest.mark.slow] if k in slow else []) for k,v in families.items()])
def test_network(name):
    "One backbone of each family, with its normalisation, after running statistics have moved"
    pytest.importorskip('onnxscript')
    torch.manual_seed(0)
    model,x = create_model(name),torch.rand(4, 3, 32, 32)
    model.train()
    with torch.no_grad(): model(torch.randn(8, 3, 32, 32))
    b = to_onnx(model, mean, std, vocab)
    def f(x): return model((x-torch.tensor(mean).view(1, 3, 1, 1))/torch.tensor(std).view(1, 3, 1, 1))
    compare(b, f, x)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.chdir(tmp_path_factory.mktemp('runs'))
        cifar_train(argv='--dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64 --name a --precision bf16'.split())
        yield m

def test_run(run, capsys):
    "The file of a run gives the predictions of its Learner for images from 0 to 1, and says what it takes"
    pytest.importorskip('onnxscript')
    cifar_export(argv='exps/a/666 --format onnx'.split())
    assert 'model.onnx takes RGB images from 0 to 1' in capsys.readouterr().out
    learn = load_run('exps/a/666/export')
    imgs = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    def f(x): return learn.model.eval()(learn.dls.valid.after_batch((x,))[0])
    with torch.no_grad(): want = f(imgs)
    got, = (s := session(open('exps/a/666/export/model.onnx', 'rb').read())).run(None, dict(image=imgs.numpy().astype('float32')/255))
    np.testing.assert_allclose(got, want, atol=1e-4)
    meta = s.get_modelmeta()
    assert json.loads(meta.custom_metadata_map['classes'])==list(learn.dls.vocab)
    assert 'takes RGB images from 0 to 1, float32, (batch, 3, 32, 32), and returns logits' in meta.description
    assert '`model.onnx` takes RGB' in open('exps/a/666/export/README.md').read()
    export_run('exps/a/666')
    with pytest.raises(OSError): open('exps/a/666/export/model.onnx')

def test_refused(run, monkeypatch):
    with pytest.raises(UserError, match="There is no format 'onx': did you mean 'onnx'"): export_run('exps/a/666', format='onx')
    class Branch(nn.Module):
        def forward(self, x): return x if x.sum()>0 else -x
    if 'onnxscript' in sys.modules:
        with pytest.raises(UserError, match='^Branch cannot be exported as ONNX: .*'): to_onnx(Branch(), mean, std, vocab)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(UserError, match="pip install 'cifar_fastai\\[onnx\\]'"): export_run('exps/a/666', format='onnx')
