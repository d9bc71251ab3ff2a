'Runs that are given away: exported, loaded again with and without their data, pushed, and spoilt in every way'
import json, random, shutil, sys
from contextlib import redirect_stdout
from io import StringIO
import pytest, torch, yaml
from fastai.vision.all import Path, Learner
from PIL import Image
from safetensors.torch import load_file, save_file
import cifar_fastai.runs.export as share
from cifar_fastai.core import UserError
from cifar_fastai.data.datasets import digit_images
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.studies.report import read_run
from cifar_fastai.runs.train import train
from cifar_fastai.runs.export import *

names = 'README.md', 'config.json', 'model.safetensors'

def small(exps, name='small', row=None, **kw):
    "A run of seconds"
    r = RunConfig(**dict(model='lenet', dataset='digits', epochs=2, bs=32, fraction=0.1, lr=0.05, schedule='onecycle',
        seed=1) | kw)
    with redirect_stdout(StringIO()): return train(r, name, exps=exps, device='cpu', row=row)

@pytest.fixture(scope='module')
def trained(tmp_path_factory): return small(tmp_path_factory.mktemp('exps'))

@pytest.fixture
def run(trained, tmp_path): return Path(shutil.copytree(trained, tmp_path/'small'/'1'))

@pytest.fixture
def out(run, tmp_path): return export_run(run, tmp_path/'out')

def probabilities(learn, x): return torch.stack([learn.predict(o.numpy())[2] for o in x])

def refused(f, *said):
    "What `f()` raises is one sentence"
    with pytest.raises(UserError) as e: f()
    assert '\n' not in str(e.value) and all(o in str(e.value) for o in said), str(e.value)

def test_export(run, out):
    assert sorted(o.name for o in out.iterdir())==sorted(names)
    for k,v in load_file(run/'best.safetensors').items(): assert load_file(out/'model.safetensors')[k].equal(v)
    facts = json.loads((out/'config.json').read_text())
    assert facts['vocab']==[str(i) for i in range(10)] and facts['figures']['accuracy']==read_run(run).best_accuracy
    assert sorted(o.name for o in export_run(run).iterdir())==sorted(names) # its own folder, in that of the run

@pytest.mark.parametrize('weights', ['best', 'last'])
def test_run_and_export_predict_the_same(run, tmp_path, weights):
    x = digit_images().test_x[:4]
    a,b = load_run(run, weights=weights),load_run(export_run(run, tmp_path/'o', weights))
    assert isinstance(b, Learner) and probabilities(a, x).equal(probabilities(b, x))
    assert a.predict(x[0].numpy())[0]==b.predict(x[0].numpy())[0]
    r = read_run(run)
    assert a.validate()[1]==pytest.approx(r.best_accuracy if weights=='best' else r.accuracy)

def test_best_and_last_differ(run, tmp_path):
    "The epoch with the best accuracy is not the last here, and each set of weights is named by its own figure"
    save_file({k:v*0 for k,v in load_file(run/'best.safetensors').items()}, run/'best.safetensors')
    a,b = (load_file(export_run(run, tmp_path/o, o)/'model.safetensors') for o in ('best', 'last'))
    assert all((v==0).all() for v in a.values()) and any((v!=0).any() for v in b.values())

def test_predicts_from_anything(out, tmp_path):
    learn,x = load_run(out),digit_images().test_x[0]
    Image.fromarray(x.numpy()).save(tmp_path/'digit.png')
    for o in (tmp_path/'digit.png', str(tmp_path/'digit.png'), Image.fromarray(x.numpy()), x.permute(2,0,1)):
        name,i,probs = learn.predict(o)
        assert name==learn.dls.vocab[int(i)]==str(int(probs.argmax())) and float(probs.sum())==pytest.approx(1)

def test_an_export_needs_neither_data_nor_pickle(out, monkeypatch):
    import pickle
    def no(*args, **kwargs): raise AssertionError('read')
    for mod,name in ((share, 'cifar_dls'), (share, 'RunPlan'), (torch, 'load'), (pickle, 'load'), (pickle, 'loads'),
        (pickle, 'Unpickler')):
        monkeypatch.setattr(mod, name, no)
    learn = load_run(out)
    assert len(learn.dls.train_ds)==len(learn.dls.valid_ds)==0
    learn.predict(digit_images().test_x[0].numpy())

@pytest.mark.parametrize('kw',
    [dict(tricks='EMA(0.9)'), dict(model='resnet20', tricks='ShakeDrop()', epochs=1),
        dict(tricks='SAM() MixUp() LabelSmoothing()'), dict(optimizer='adamw', lr=1e-3)], ids=str)
def test_runs_with_tricks(tmp_path, kw):
    "Whatever a trick adds while it trains, the weights fit the plain network"
    f = small(tmp_path, **kw)
    assert load_run(f).validate()[1]==pytest.approx(read_run(f).best_accuracy)
    x = digit_images().test_x[:2]
    assert probabilities(load_run(export_run(f, tmp_path/'o')), x).allclose(probabilities(load_run(f), x), atol=1e-6)

def test_loading_moves_no_random_numbers(run, out):
    torch.manual_seed(3)
    random.seed(3)
    want = torch.rand(3),random.random()
    torch.manual_seed(3)
    random.seed(3)
    load_run(run)
    got = torch.rand(3),random.random()
    assert got[0].equal(want[0]) and got[1]==want[1]

# -- the card

def test_card(run, out):
    text = (out/'README.md').read_text()
    head,body = text.split('---\n', 2)[1:]
    header,r = yaml.safe_load(head),read_run(run)
    result = header['model-index'][0]['results'][0]
    assert result['metrics'][0]['value']==round(r.best_accuracy,
        4) and result['dataset']['name']=='digits' and 'datasets' not in header
    assert header['pipeline_tag']=='image-classification'
    env = r.environment
    figures = f'{r.best_accuracy:.2%}', f'{r.accuracy:.2%}', f"{env['data']['train_images']:,} training and 299 test images", env['device'], 'Seed: 1.', 'Epochs: 2.'
    words = 'selected on the test images', 'load_run(', 'not one of the published rows', 'fraction: 0.1'
    for o in figures+words: assert o in body, o
    assert not yaml.safe_load(body.split('```yaml\n')[1].split('```')[0]).keys() - {*r.config}

def test_card_of_a_row(tmp_path):
    "A shortened row is said to be none"
    f = small(tmp_path, row='3.3/lenet')
    text = (export_run(f, tmp_path/'o')/'README.md').read_text()
    assert 'derived from the published row 3.3/lenet and differs from it: shortened:' in text and 'epochs 2 for 200' in text

def test_card_of_the_last_epoch(run, tmp_path):
    "Each set of weights has its own figure"
    head,one,two = (run/'log.csv').read_text().splitlines()
    i = head.split(',').index('accuracy')
    (run/'log.csv').write_text('\n'.join([head,
        *(','.join(o.split(',')[:i]+[a]+o.split(',')[i+1:]) for o,a in ((one, '0.75'), (two, '0.5')))])+'\n')
    for weights,said in dict(best='(epoch 1 of 2) | 75.00%', last='(epoch 2 of 2) | 50.00%').items():
        assert said in (export_run(run, tmp_path/weights, weights)/'README.md').read_text()
    assert 'selected on the test images' not in (export_run(run, tmp_path/'o', 'last')/'README.md').read_text()

def test_places_stay_at_home(tmp_path):
    "A folder of images is named by its own name only"
    im = digit_images()
    for split,(x,y) in dict(train=(im.train_x[:60], im.train_y[:60]), test=(im.test_x[:40], im.test_y[:40])).items():
        for i,(a,b) in enumerate(zip(x, y)):
            p = tmp_path/'secret'/'digits7'/split/f'class {int(b)}'/f'{i}.png'
            p.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(a.numpy()).save(p)
    f = small(tmp_path/'exps', dataset=str(tmp_path/'secret'/'digits7'), fraction=1.)
    o = export_run(f, tmp_path/'o')
    assert 'secret' not in (o/'README.md').read_text()+(o/'config.json').read_text() and 'digits7' in (o/'README.md').read_text()
    shutil.rmtree(tmp_path/'secret')
    assert load_run(o).predict(im.test_x[0].numpy())[0].startswith('class ')
    refused(lambda: load_run(f), 'digits7')

# -- what is refused

def test_other_data(run, tmp_path):
    "Names and normalisation of other data would make the weights mean something else"
    env = json.loads((run/'environment.json').read_text())
    env['data']['source'] = '0'*16
    (run/'environment.json').write_text(json.dumps(env))
    for f in (lambda: export_run(run, tmp_path/'o'), lambda: load_run(run)):
        refused(f, 'are not those of', 'set root')
    assert not (tmp_path/'o').exists()

def test_weights_that_are_not_there(run, tmp_path):
    refused(lambda: export_run(run, tmp_path/'o', 'bset'), "did you mean 'best'")
    (run/'last.safetensors').unlink()
    refused(lambda: load_run(run, weights='last'), 'last.safetensors is missing')
    (run/'log.csv').unlink()
    refused(lambda: export_run(run, tmp_path/'o'), 'no finished epoch')

def test_folders_that_are_none(run, tmp_path):
    refused(lambda: load_run(tmp_path/'none'), 'neither a run')
    refused(lambda: export_run(tmp_path/'none'), 'no folder')
    refused(lambda: push_run(tmp_path, 'me/x', api=object()), 'neither a run')

def test_other_files_are_left_alone(run, tmp_path):
    "A README of somebody's own is not written over; an earlier export is"
    o = tmp_path/'o'
    o.mkdir()
    (o/'README.md').write_text('mine')
    refused(lambda: export_run(run, o), 'holds other files')
    assert [p.name for p in o.iterdir()]==['README.md'] and (o/'README.md').read_text()=='mine'
    refused(lambda: export_run(run, run), 'holds other files')
    (o/'README.md').unlink()
    assert export_run(run, export_run(run, o), 'last')==o
    (tmp_path/'f').write_text('')
    refused(lambda: export_run(run, tmp_path/'f'), 'is not a folder')

def test_exported_whole_or_not_at_all(run, out, full_disk):
    before = {o.name:o.read_bytes() for o in out.iterdir()}
    for n in range(1, 4):
        full_disk(n)
        refused(lambda: export_run(run, out, 'last'), 'No space left')
        assert {o.name:o.read_bytes() for o in out.iterdir()}==before

def test_weights_of_another_network(run, out):
    f = out/'config.json'
    facts = json.loads(f.read_text())
    def model(o): return dict(config=dict(facts['config'], model=o))
    for kw in (dict(vocab=[]), dict(vocab=[1,2]), dict(std=[0.,1.,1.]), dict(mean=[1.]), dict(mean='abc'),
        dict(format='x'), dict(config=None)):
        f.write_text(json.dumps(facts | kw))
        refused(lambda: load_run(out), 'not that of an exported run')
    for kw,said in ((model('resnet20'), 'another network'), (model('lenett'), "did you mean 'lenet'"),
        (dict(vocab=['a','b']), 'another network')):
        f.write_text(json.dumps(facts | kw))
        refused(lambda: load_run(out), said)

def test_weights_that_lack_one(out):
    sd = load_file(out/'model.safetensors')
    save_file({k:v for i,(k,v) in enumerate(sd.items()) if i}, out/'model.safetensors')
    refused(lambda: load_run(out), 'another network')

def test_fuzz(out, tmp_path):
    "Any file of an export deleted or cut anywhere: a sentence, never other weights"
    rng,x = random.Random(0),digit_images().test_x[:1]
    want,readable = probabilities(load_run(out), x),0
    for i in range(60):
        d = Path(shutil.copytree(out, tmp_path/f'x{i}'))
        p = d/names[i%3]
        b = p.read_bytes()
        p.unlink() if i<3 else p.write_bytes(b[:rng.randrange(len(b))])
        if p.name=='README.md': assert probabilities(load_run(d), x).equal(want)
        else: refused(lambda: load_run(d))
        shutil.rmtree(d)

# -- push

class Hub:
    "Takes what is pushed"
    def create_repo(self, repo_id, **kw):
        self.made = repo_id,kw
        return f'https://huggingface.co/{repo_id}'
    def upload_folder(self, repo_id, folder_path, **kw):
        self.repo,self.kw = repo_id,kw
        self.files = {o.name:o.read_bytes() for o in Path(folder_path).iterdir()}

def test_push(run, out):
    "A run is exported on the way, an export goes up as it is"
    for path in (run, out):
        hub = Hub()
        assert push_run(path, 'me/lenet', private=True, api=hub)=='https://huggingface.co/me/lenet'
        assert hub.made==('me/lenet',dict(private=True, exist_ok=True)) and hub.repo=='me/lenet'
        assert hub.files=={o.name:o.read_bytes() for o in out.iterdir()}
        assert not [o for o in hub.files
            if Path(o).suffix in ('.pkl', '.pth', '.pickle')] and set(hub.kw['allow_patterns'])=={*names, 'model.onnx'}
    assert not (run/'export').exists()

def test_push_that_is_refused(out):
    class Closed(Hub):
        def create_repo(self, repo_id, **kw): raise OSError('401 Client Error.\nLong story')
    refused(lambda: push_run(out, 'me/lenet', api=Closed()), 'Upload to me/lenet failed: 401 Client Error.')

def test_push_without_the_package(out, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    refused(lambda: push_run(out, 'me/lenet'), 'pip install huggingface_hub')

def test_the_real_client_has_these_arguments():
    hub = pytest.importorskip('huggingface_hub')
    from inspect import signature
    signature(hub.HfApi.create_repo).bind(None, 'a/b', private=True, exist_ok=True)
    signature(hub.HfApi.upload_folder).bind(None, repo_id='a/b', folder_path='x', commit_message='y', allow_patterns=[])
