'Networks with the weights of runs, exported runs and repositories on the Hub'
import json,shutil
from pathlib import Path
import huggingface_hub,pytest,torch
from cifar_fastai.cli import cifar_train
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.learner import cifar_learner
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.export import export_run,load_run
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.serialize import load_weights
from cifar_fastai.zoo.registry import create_model
from common import fit_of

name = 'toynet_s1_k3'

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.chdir(tmp_path_factory.mktemp('runs'))
        cifar_train(argv=f'--dataset digits --model {name} --epochs 1 --fraction 0.1 --bs 64 --name a'.split())
        export_run('exps/a/666')
        yield m

@pytest.fixture
def hub(run, monkeypatch):
    'A Hub with one repository, me/net, which is a local folder'
    shutil.rmtree('hub', ignore_errors=True)
    shutil.copytree('exps/a/666/export', 'hub')
    def download(repo_id, allow_patterns=None):
        assert set(allow_patterns)=={'config.json', 'model.safetensors'}
        if repo_id!='me/net': raise OSError('404 Client Error')
        return 'hub'
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    return Path('hub')

def same(model, sd): return all(torch.equal(v, sd[k]) for k,v in model.state_dict().items())

@pytest.mark.parametrize('where', ['exps/a/666', Path('exps/a/666/export'), 'exps/a/666/best.safetensors', 'hf:me/net'])
def test_weights(hub, where):
    assert same(create_model(name, weights=where), RunFolder('exps/a/666').weights())

def test_last_weights(run, tmp_path):
    "Where a run has no weights of the best epoch"
    shutil.copy('exps/a/666/last.safetensors', tmp_path)
    assert same(create_model(name, weights=tmp_path), load_weights('exps/a/666/last.safetensors'))

def test_learner(hub):
    "It predicts as the exported run does, and trains on"
    learn = cifar_learner('hf:me/net', cifar_dls('digits', fraction=0.1, bs=64))
    x = learn.dls.valid.one_batch()[0]
    with torch.no_grad():
        want = load_run('exps/a/666/export').model.eval()(x)
        assert torch.equal(learn.model.eval()(x), want) and torch.equal(load_run('hf:me/net').model.eval()(x), want)
    fit_of(1)(learn)
    assert not same(learn.model, RunFolder('exps/a/666').weights())

def refused(f):
    with pytest.raises(UserError) as e: f()
    assert '\n' not in str(e.value)
    return str(e.value)

@pytest.mark.parametrize('where', ['exps/a/666', 'hf:me/net'])
def test_other_networks(hub, where):
    assert refused(lambda: create_model(name, 7, weights=where))==(f'{where} holds weights for 10 classes, and the network has 7 outputs: '
        'use n_out=10, and data with 10 classes.')
    assert f'{where} holds the weights of another network than lenet: ' in refused(lambda: create_model('lenet', weights=where))
    assert 'of another network than toynet_s1_k5' in refused(lambda: create_model('toynet_s1_k5', weights=where))

def test_other_classes(hub):
    dls = cifar_dls((torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8)%4), bs=4)
    assert 'weights for 10 classes, and the network has 4 outputs' in refused(lambda: cifar_learner('hf:me/net', dls))

def test_no_pickles(hub, tmp_path):
    torch.save(create_model(name).state_dict(), tmp_path/'w.pth')
    assert 'w.pth is a pickle, which can execute code' in refused(lambda: create_model(name, weights=tmp_path/'w.pth'))
    assert 'only safetensors are read, no pickles' in refused(lambda: create_model(name, weights=tmp_path))
    (tmp_path/'w.pth').rename(tmp_path/'w.safetensors')
    assert 'is not a file of weights, or it is damaged' in refused(lambda: create_model(name, weights=tmp_path/'w.safetensors'))
    (hub/'model.safetensors').rename(hub/'pytorch_model.bin')
    assert 'only safetensors are read, no pickles' in refused(lambda: cifar_learner('hf:me/net', 'digits'))

@pytest.mark.parametrize('config', [dict(config=dict(model='os:abort')), dict(config=dict(model='hf:me/net')), dict(config=5), [], None])
def test_other_repositories(hub, config):
    "No code is found by name, and a repository of something else is refused"
    (hub/'config.json').write_text(json.dumps(config)) if config is not None else (hub/'config.json').unlink()
    assert refused(lambda: create_model('hf:me/net'))=='hf:me/net is not an exported run with a network of this library.'

def test_downloads(hub, monkeypatch):
    assert refused(lambda: create_model('hf:me/other'))=="hf:me/other cannot be downloaded (OSError): '404 Client Error'."
    assert 'There is no checkpoint nowhere' in refused(lambda: create_model(name, weights='nowhere'))
    assert 'weights is 5: it must be a file' in refused(lambda: create_model(name, weights=5))
    monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
    assert refused(lambda: create_model('hf:me/net'))=="hf:me/net needs huggingface_hub: pip install 'cifar_fastai[hub]'."

def test_not_in_runs():
    "A run trains new weights"
    with pytest.raises(UserError, match="There is no backbone 'hf:me/net'"): RunConfig('hf:me/net')

def test_a_repository_names_no_code(hub):
    "A network of its author's module is refused, by every way to load it"
    d = json.loads((hub/'config.json').read_text())
    d['config']['model'] = 'os:getcwd'
    (hub/'config.json').write_text(json.dumps(d))
    for f in (lambda: load_run('hf:me/net'), lambda: create_model('hf:me/net'),
        lambda: cifar_learner('hf:me/net', cifar_dls('digits', fraction=0.1, bs=64))):
        with pytest.raises(UserError, match="of its author's module|not an exported run with a network of this library"): f()
