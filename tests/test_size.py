"Images of another size than 32: a setting of a run, which holds wherever its data are read again"
import numpy as np
import pytest, torch
from PIL import Image
import cifar_fastai.studies.evaluate as ev
from cifar_fastai.cli import cifar_train
from cifar_fastai.core import UserError
from cifar_fastai.data.datasets import benchmark_corruptions
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.export import export_run, load_run
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.runs.train import RunPlan, estimate_memory, train
from cifar_fastai.studies.evaluate import evaluate
from cifar_fastai.studies.experiments import count_images, image_seconds
from cifar_fastai.studies.report import read_run, run_caption
from cifar_fastai.studies.study import study

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Two classes, of images of 80x72"
    d,r = tmp_path_factory.mktemp('size')/'imgs',np.random.default_rng(0)
    for split,n in (('train', 24), ('test', 8)):
        for i,c in enumerate('ab'):
            (d/split/c).mkdir(parents=True)
            for k in range(n): Image.fromarray((r.integers(0, 100, (80, 72, 3)) + i*120).astype('uint8')).save(d/split/c/f'{k}.png')
    return d

def config(images, **kw): return RunConfig('resnet20', str(images), epochs=1, bs=16, lr=0.01, schedule='onecycle', **kw)

@pytest.fixture(scope='module')
def run(images, tmp_path_factory):
    return train(config(images, size=48), exps=tmp_path_factory.mktemp('exps'), device='cpu', bar=False, curves=False)

def test_setting():
    assert RunConfig(size=32)==RunConfig() and RunConfig().size is None and RunConfig().data['size']==32
    assert RunConfig(size=64).override(size=32)==RunConfig()
    assert 'size64' in RunConfig(size=64).name and 'size' not in RunConfig(size=32).name
    for v in (7, 513, 33.5, '64', True):
        with pytest.raises(UserError, match='size is'): RunConfig(size=v)

def test_run(run, images):
    assert 'size48' in run.parent.name and 'size: 48' in (run/'config.yaml').read_text()
    learn = load_run(run, device='cpu')
    assert learn.dls.one_batch()[0].shape[1:]==learn.dls.valid.one_batch()[0].shape[1:]==(3, 48, 48)
    assert evaluate(run, device='cpu').rows[0]['accuracy']==pytest.approx(RunFolder(run).test().accuracy)
    assert 'imgs at 48x48' in run_caption([read_run(run)])

def test_other_images(run, images, monkeypatch):
    "Test images of another data set, and corrupted ones, are resized to those of the run"
    e = evaluate(run, test=images, device='cpu')
    assert torch.equal(e.probs, evaluate(run, device='cpu').probs)
    seen,probs = [],ev._probs
    monkeypatch.setattr(ev, '_probs', lambda learn, tta, x, y: seen.append(x.shape[1:]) or probs(learn, tta, x, y))
    monkeypatch.setattr(ev, '_corrupted_path', lambda *args: None)
    xs,y = torch.zeros(5, 4, 32, 32, 3, dtype=torch.uint8),torch.zeros(4, dtype=torch.long)
    monkeypatch.setattr(ev, 'corrupted_images', lambda *args: ((k, xs, y) for k in benchmark_corruptions))
    assert 'mCE' in evaluate(run, corrupted='cifar10c', device='cpu').rows[0]
    assert set(seen)=={(3, 48, 48)}

def test_ensemble_of_two_sizes(run, images, tmp_path):
    other = train(config(images), exps=tmp_path, device='cpu', bar=False, curves=False)
    with pytest.raises(UserError, match='different test images'): evaluate([run, other], device='cpu')
    with pytest.raises(UserError, match='images of 32 and 48 pixels: evaluate them separately'):
        evaluate([run, other], test=images, device='cpu')

def test_export(run, images, tmp_path):
    out = export_run(run, tmp_path/'out')
    card = (out/'README.md').read_text()
    assert 'for 48x48 images' in card and 'resized to 48x48' in card and '32x32' not in card and '{' not in card.split('---')[2]
    a,b,image = load_run(out, device='cpu'),load_run(run, device='cpu'),images/'test/b/0.png'
    with a.no_bar(), b.no_bar(): assert torch.allclose(a.predict(image)[2], b.predict(image)[2])

@pytest.mark.parametrize('size', ['64', -1, 10**6, [64]])
def test_damaged_export(run, tmp_path, size):
    import json
    out = export_run(run, tmp_path/'out')
    facts = json.loads((out/'config.json').read_text())
    facts['config']['size'] = size
    (out/'config.json').write_text(json.dumps(facts))
    with pytest.raises(UserError, match='not that of an exported run'): load_run(out)

def test_backbone_that_does_not_fit(images, tmp_path, monkeypatch, capsys):
    "One sentence, before a file is written"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit): cifar_train(argv=['--dataset', str(images), '--model', 'lenet', '--size', '64'])
    err = capsys.readouterr().err
    assert err.count('\n')==1 and 'lenet does not take images of 64x64' in err and 'use size=32' in err
    with pytest.raises(UserError, match='lenet does not take images of 64x64'): image_seconds('lenet', 'cpu', size=64)
    with pytest.raises(UserError, match='lenet does not take images of 64x64'):
        study('MixUp()', seeds=1, model='lenet', dataset=str(images), size=64, device='cpu', bar=False)
    assert not list(tmp_path.iterdir())

def test_estimates(images):
    a,b = (estimate_memory(config(images, size=s, seed=0)) for s in (32, 64))
    weights = 4*3*sum(p.numel() for p in RunPlan(config(images)).learner().model.parameters())
    assert b-weights==pytest.approx(4*(a-weights), rel=1e-2)
    assert count_images(str(images), size=48)==48 and image_seconds('resnet20', 'cpu', size=64)>0
