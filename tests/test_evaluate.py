'Evaluation of runs: measures against scikit-learn and loops by hand, views, corruptions, ensembles'
import numpy as np, pytest, torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from cifar_fastai.cli import cifar_evaluate
from cifar_fastai.core import UserError
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.export import load_run
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.runs.train import report, train
import cifar_fastai.studies.evaluate as studies_evaluate
from cifar_fastai.studies.evaluate import calibration_bins, calibration_error, corrupt, corruptions, evaluate, measures, tta_logits

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d = tmp_path_factory.mktemp('runs')
    cfg = RunConfig(model='lenet', dataset='digits', bs=64, epochs=2, lr=0.05, schedule='onecycle', threads=1)
    return [str(train(cfg.override(seed=s), 'a', exps=d/'exps', device='cpu', bar=False, curves=False)) for s in range(2)]

def random_probs(n=400, c=10):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, c, generator=g).mul(2).softmax(1),torch.randint(0, c, (n,), generator=g)

def test_measures():
    p,y = random_probs()
    m = measures(p, y)
    assert m['accuracy']==pytest.approx(accuracy_score(y, p.argmax(1)))
    assert m['top5']==pytest.approx(top_k_accuracy_score(y, p, k=5))
    assert m['nll']==pytest.approx(log_loss(y, p.double().numpy()), rel=1e-5)

def test_calibration():
    "Bins as scikit-learn's, and the error by hand"
    p,y = random_probs()
    conf,hit = p.max(1).values.double().numpy(),(p.argmax(1)==y).numpy()
    acc,mean = calibration_curve(hit, conf, n_bins=15)
    df = calibration_bins(p, y)
    assert np.allclose(df.accuracy, acc) and np.allclose(df.confidence, mean) and df.n.sum()==len(y)
    error = 0
    for i in range(15):
        at = (conf>=i/15) & (conf<(i+1)/15)
        if at.any(): error += at.mean()*abs(conf[at].mean()-hit[at].mean())
    assert calibration_error(p, y)==pytest.approx(error)

def test_views():
    'By hand: mirrored, and moved by a pixel with reflection'
    x = torch.rand(2, 3, 8, 8)
    w = torch.rand(10, 3*64)
    def model(x): return x.flatten(1)@w.T
    flip = (model(x)+model(x.flip(3)))/2
    assert torch.allclose(tta_logits(model, x, 'flip'), flip)
    pad = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode='reflect'))
    a,b = pad[:,:,:8,:8],pad[:,:,2:,2:]
    moved = (model(a)+model(a.flip(3))+model(b)+model(b.flip(3)))/4
    assert torch.allclose(tta_logits(model, x, 'shift'), (flip+moved)/2)

@pytest.mark.parametrize('name', corruptions)
def test_corruptions(name):
    'More severe ones are farther from the image; the same every time; a batch is corrupted image by image'
    x = cifar_dls('digits').valid_ds.x[:16]
    far = [(corrupt(x, name, s).float()-x.float()).square().mean().item() for s in range(1, 6)]
    assert (far==sorted(far) or name=='pixelate') and 0<far[0]<far[-1] # the grid of pixels may coincide with that of digits
    assert torch.equal(corrupt(x, name), corrupt(x, name)) and corrupt(x, name).dtype==torch.uint8
    if name!='noise': assert torch.equal(corrupt(x, name)[3:4], corrupt(x[3:4], name))

def test_evaluate(runs):
    e = evaluate(runs, robustness=True)
    assert [r['run'] for r in e.rows]==[*runs, 'ensemble of 2'] and set(corruptions)<=set(e.rows[0])
    one = evaluate(runs[1])
    assert one.rows[0]['accuracy']==e.rows[1]['accuracy']
    assert np.array_equal(one.confusion(), confusion_matrix(one.y, one.probs.argmax(1)))
    assert torch.allclose(e.probs, (evaluate(runs[0]).probs+one.probs)/2)

def test_stored_results_agree(runs):
    'What a run stores of the test images is what evaluation finds'
    from cifar_fastai.runs.folder import RunFolder
    assert evaluate(runs[0]).rows[0]['accuracy']==pytest.approx(RunFolder(runs[0]).test().accuracy)

@pytest.mark.parametrize('precision,dtype', [('bf16', torch.bfloat16), ('fp16', torch.float16)])
def test_precision(tmp_path, capsys, precision, dtype):
    "A run is evaluated in its own precision, as a loop by hand under autocast, or in another one on request"
    cfg = RunConfig(model='lenet', dataset='digits', bs=64, epochs=2, lr=0.05, schedule='onecycle', threads=1, precision=precision)
    folder = train(cfg, 'a', exps=tmp_path, device='cpu', bar=False, curves=False, logits=True)
    learn,e,full = load_run(folder, weights='last'),evaluate(folder),evaluate(folder, precision='fp32')
    model,ds = learn.model.eval(),learn.dls.valid_ds
    def by_hand(on):
        with torch.no_grad(), torch.autocast('cpu', dtype, enabled=on):
            return torch.cat([model(learn.dls.valid.after_batch((x,))[0]).float() for x in ds.x.split(64)])
    stored = RunFolder(folder).test()
    assert e.rows[0]['accuracy']==stored.accuracy and np.allclose(by_hand(True), stored.logits, atol=1e-2, rtol=1e-3)
    assert torch.allclose(e.probs, by_hand(True).softmax(1)) and torch.allclose(full.probs, by_hand(False).softmax(1))
    assert not torch.allclose(e.probs, full.probs)
    assert e.caption.endswith(f'Precision: {precision}.') and full.caption.endswith(f'Precision: fp32 (training: {precision}).')
    cifar_evaluate(argv=[str(folder), '--precision', 'fp32'])
    assert f'Precision: fp32 (training: {precision}).' in capsys.readouterr().out

def test_table(runs):
    'Runs are named without the path; a table with many columns is continued below'
    text = evaluate(runs, robustness=True).table()
    assert max(map(len, text.splitlines()))<=100 and 'a/0' in text and 'exps' not in text
    assert all(o in text for o in (*corruptions, 'ece', 'ensemble of 2'))

def test_each_network_is_run_once(runs, monkeypatch):
    "The accuracy of an ensemble under corruptions needs no second pass over its members; by hand"
    calls,probs = [],studies_evaluate._probs
    monkeypatch.setattr(studies_evaluate, '_probs', lambda *args: calls.append(1) or probs(*args))
    e = evaluate(runs, robustness=True)
    assert len(calls)==2*(1+5*len(corruptions))
    learns,hits = [load_run(o, weights='last') for o in runs],[]
    dl = learns[0].dls.valid
    for s in range(1, 6):
        x = dl.after_batch((corrupt(dl.dataset.x, 'contrast', s),))[0]
        with torch.no_grad(): ps = [o.model.eval()(x).softmax(1) for o in learns]
        hits.append([(p.argmax(1)==dl.dataset.y).double().mean().item() for p in (*ps, sum(ps))])
    assert [r['contrast'] for r in e.rows]==pytest.approx(np.mean(hits, 0))

def test_same_classes_of_other_images(runs, tmp_path):
    "Equal labels are not enough: runs must have the same images"
    learns = [load_run(o) for o in runs]
    learns[1].dls.valid_ds.x = 255-learns[1].dls.valid_ds.x
    with pytest.raises(UserError, match='different test images'): studies_evaluate._own_images(learns)

def test_other_images(runs, tmp_path):
    cfg = RunConfig(model='lenet', dataset='digits', bs=64, epochs=1, fraction=0.5, subset='first', threads=1)
    other = train(cfg, 'b', exps=tmp_path, device='cpu', bar=False, curves=False)
    if len(evaluate(other).y)==299: pytest.skip('digits have no published order')
    with pytest.raises(UserError, match='different test images'): evaluate([runs[0], other])

def test_command(runs, capsys, tmp_path):
    cifar_evaluate(argv=[*runs, '--tta', 'flip', '--out', str(tmp_path/'o')])
    out = capsys.readouterr().out
    assert 'ensemble of 2' in out and 'ece' in out and 'Test-time augmentation: flip' in out
    assert sorted(o.name for o in (tmp_path/'o').iterdir())==['confusion.csv', 'evaluation.json', 'evaluation.png']

@pytest.mark.parametrize('argv,says', [([], 'no run to evaluate'), (['nowhere'], 'neither a run'), (['RUN', '--tta', 'x'], "no tta 'x'"),
    (['RUN', '--weights', 'x'], "'x'"), (['RUN', '--precision', 'x'], "no precision 'x'")])
def test_refused(argv, says, runs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [runs[0] if o=='RUN' else o for o in argv]
    with pytest.raises(SystemExit) as e: cifar_evaluate(argv=argv)
    err = capsys.readouterr().err
    assert e.value.code==2 and says in err and err.count('\n')==1

def test_tta_of_a_run(tmp_path):
    'The stored results of a run with test-time augmentation are those of its evaluation, and of a loop by hand'
    cfg = RunConfig(model='lenet', dataset='digits', bs=64, epochs=2, lr=0.05, schedule='onecycle', threads=1, tta='shift')
    folder = train(cfg, 'tta', exps=tmp_path, device='cpu', bar=False, curves=False)
    stored = RunFolder(folder).test()
    assert stored.accuracy==evaluate(folder, tta='shift').rows[0]['accuracy']
    learn = load_run(folder)
    learn.model.eval()
    x,y = learn.dls.valid.after_batch((learn.dls.valid_ds.x,))[0],learn.dls.valid_ds.y
    padded = torch.nn.functional.pad(x, (1,)*4, mode='reflect')
    views = [(1/2, x), (1/4, padded[:,:,:32,:32]), (1/4, padded[:,:,2:,2:])]
    with torch.no_grad(): logits = sum(w/2*(learn.model(v)+learn.model(v.flip(3))) for w,v in views)
    assert stored.accuracy==pytest.approx((logits.argmax(1)==y).float().mean().item())
    ll = torch.log_softmax(logits, 1).gather(1, y[:,None])[:,0].numpy()
    assert np.allclose(stored.log_likelihood, ll, atol=2e-3, rtol=2e-3)
    assert f"{stored.accuracy:.2%} with test-time augmentation 'shift'" in report(folder)

def test_noise_differs_between_images(runs, monkeypatch):
    'Images of different chunks get different noise'
    seen = []
    monkeypatch.setattr('cifar_fastai.studies.evaluate.corruptions', ['noise'])
    monkeypatch.setattr('cifar_fastai.studies.evaluate.corrupt', lambda x, **kw: seen.append(len(x)) or corrupt(x, **kw))
    evaluate(runs[0], robustness=True)
    assert set(seen)=={299} # all at once
    x = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    assert not torch.equal(*corrupt(x, 'noise'))
