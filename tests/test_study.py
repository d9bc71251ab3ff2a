'Studies: arms, paired seeds, statistics against scipy and simulation, controls, interruption, several processes'
import json, math, psutil, shutil, signal, subprocess, sys, time
from dataclasses import asdict, field, make_dataclass, replace
from pathlib import Path
import numpy as np, pytest
from scipy import stats
from cifar_fastai.cli import cifar_study
from cifar_fastai.core import UserError
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.export import load_run
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.runs.train import train
from cifar_fastai.studies.evaluate import corruptions, evaluate
from cifar_fastai.studies.report import read_run
from cifar_fastai.studies.stats import bootstrap_difference, detectable, holm, mcnemar, outperforms, paired_p
from cifar_fastai.studies.study import (Study, create_arm, create_arms, load_study, open_study, pack_study, read_study,
    run_study, unpack_study, study, study_plan, study_result, train_jobs)

base = RunConfig(model='lenet', dataset='digits', fraction=0.1, bs=32, epochs=2, valid_every=2, threads=1, lr=0.05,
    schedule='onecycle')
flags = '--dataset digits --model lenet --fraction 0.1 --bs 32 --epochs 2 --lr 0.05 --schedule onecycle --device cpu'.split()

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

def done(folder, arms, seeds=range(3), base=base, **kwargs):
    s = open_study(folder, create_arms(arms, base), seeds, **kwargs)
    run_study(s, device='cpu', bar=False)
    return s

# statistics

def test_paired_p():
    rng = np.random.default_rng(0)
    for n in (2, 3, 20):
        x,y = rng.normal(size=(2, n))
        assert paired_p(x, y)==pytest.approx(stats.ttest_rel(x, y).pvalue)
    assert math.isnan(paired_p([1.], [2.])) and paired_p([1., 2.], [0., 1.])==0.5 and paired_p([1., 2.], [1., 2.])==1

def test_holm():
    'By hand: the smallest p times the number of tests, the next times one less, never falling, at most 1'
    assert holm([0.04, 0.01, 0.6, 0.02])==pytest.approx([0.08, 0.04, 0.6, 0.06])
    assert holm([0.9, 0.8])==[1, 1] and holm([])==[]
    p = holm([0.01, math.nan, 0.02])
    assert p[0]==0.02 and math.isnan(p[1]) and p[2]==0.02

@pytest.mark.parametrize('n', [3, 5, 20])
def test_detectable(n):
    'A simulated effect of that size is found four times in five'
    rng,sd = np.random.default_rng(n),2.
    d = rng.normal(detectable(sd, n), sd, size=(20_000, n))
    assert abs((stats.ttest_1samp(d, 0, axis=1).pvalue<0.05).mean()-0.8)<0.01

def test_outperforms():
    r = outperforms([1, 2, 3, 4, 5], [0, 0, 0, 9, 5])
    z = stats.norm.ppf(0.975)
    centre,half = (0.75+z*z/8)/(1+z*z/4),z*math.sqrt(0.75*0.25/4+z*z/64)/(1+z*z/4)
    assert (r.value,r.n)==(0.75,4) and r.lo==pytest.approx(centre-half) and r.hi==pytest.approx(centre+half)

def test_mcnemar():
    a,b = np.array([1]*10+[0]*3+[1]*50, bool),np.array([0]*10+[1]*3+[1]*50, bool)
    assert mcnemar(a, b)==pytest.approx(2*sum(math.comb(13, k) for k in range(4))/2**13) and mcnemar(a, a)==1

def test_bootstrap():
    'The spread of the bootstrap is that of seeds and images together'
    rng = np.random.default_rng(0)
    p = np.clip(0.8+0.1*rng.normal(size=(12, 1))+0*rng.normal(size=(1, 400)), 0, 1)
    a,b = rng.random((12, 400))<p,rng.random((12, 400))<0.8
    r,d = bootstrap_difference(a, b),100*(a.astype(float)-b).mean(1)
    assert r.value==pytest.approx(d.mean())
    assert 0.8<(r.hi-r.lo)/(2*1.96*d.std()/math.sqrt(12))<1.3

def test_bootstrap_by_hand():
    'Seeds and images drawn with replacement, one resample after the other'
    rng = np.random.default_rng(1)
    p = np.where(rng.random(300)<0.8, 0.97, 0.4)
    a,b = rng.random((4, 300))<p,rng.random((4, 300))<p
    d = 100*(a.astype(float)-b)
    means = [d[rng.integers(4, size=4)][:,rng.integers(300, size=300)].mean() for _ in range(20_000)]
    r = bootstrap_difference(a, b, n_boot=20_000)
    assert (r.lo,r.hi)==pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.05*np.std(means)) and r.value==pytest.approx(d.mean())

def test_bounds_are_computed_once_when_they_are_read(monkeypatch):
    import cifar_fastai.studies.stats as module
    calls,resample = [],module._resample
    monkeypatch.setattr(module, '_resample', lambda *args: calls.append(1) or resample(*args))
    s = done('s', ['MixUp()', 'SAM()'])
    res = study_result(s)
    assert res.columns and not calls
    assert res.arms==study_result(s).arms and len(calls)==4
    assert str(res) and res.markdown() and res.html() and len(res.frame)==2 and len(calls)==4

@pytest.mark.slow
@pytest.mark.parametrize('n', [3, 5, 10])
def test_coverage(n):
    'The 95% intervals hold the truth in 94 to 96% of 10,000 simulated studies, and under no effect a verdict is wrong in at most 5.5%'
    from cifar_fastai.studies.stats import mean_interval
    rng,hits,wrong = np.random.default_rng(n),0,0
    for _ in range(10_000):
        y = rng.normal(90, 1, n)
        xs = y+rng.normal(0, 1.5, (4, n))
        i = mean_interval(list(xs[0]-y))
        hits += i.lo<=0<=i.hi
        wrong += min(holm([paired_p(x, y) for x in xs]))<0.05
    assert 0.94<=hits/10_000<=0.96 and wrong/10_000<=0.055

# arms

def test_arms():
    c = {o:create_arm(o, base).config for o in ('MixUp(0.2) SAM()', 'lr=0.2', 'sched=cosine', 'model=resnet20', 'precision=bf16',
        'mixup=True', 'optimizer=adamw', 'weight-decay=0.001')}
    assert c['MixUp(0.2) SAM()'].tricks==['MixUp(alpha=0.2)', 'SAM()'] and c['lr=0.2'].lr==0.2
    assert c['sched=cosine'].schedule=='cosine' and c['model=resnet20'].model=='resnet20' and c['precision=bf16'].precision=='bf16'
    assert c['mixup=True'].tricks==['MixUp()'] and c['optimizer=adamw'].optimizer=='adamw' and c['weight-decay=0.001'].wd==0.001

@pytest.mark.parametrize('arm,says', [('SAM(rh=1)', "no parameter of SAM 'rh'"), ('lrr=1', "no setting 'lrr': did you mean 'lr'"), ('', 'empty'),
    ('seed=3', 'sets seed'), ('tricks=SAM()', 'sets tricks'), ('lr=-1', 'lr is -1'), (3, 'is not text'), ('MixUp() CutMix()', 'MixUp'),
    ('lr=0.05', 'the same as baseline'), ('ShakeDrop()', 'Residual'), ('model=resnet21', "no backbone 'resnet21'")])
def test_refused_arms(arm, says):
    with pytest.raises(UserError) as e: create_arms([arm], base)
    assert says in str(e.value)

def test_all_faults_at_once():
    with pytest.raises(UserError) as e: study(['SAM(rh=1)', 'lr=-1', 'EMA()', 'EMA()'], dataset='digits', model='lenet', epochs=1)
    assert all(o in str(e.value) for o in ("'rh'", 'lr is -1', 'EMA(): it is the same as EMA()')) and not Path('studies').exists()

def test_pairs():
    names = [a.name for a in create_arms(['MixUp()', 'CutMix()', 'Cutout(8)', 'lr=0.1'], base, pairs=True)]
    assert names==['baseline', 'MixUp()', 'CutMix()', 'Cutout(8)', 'lr=0.1', 'MixUp() Cutout(8)', 'CutMix() Cutout(8)']

# controls

def test_control_that_changes_nothing():
    'A trick at its neutral setting gives a difference of exactly 0, and no verdict'
    res = study_result(done('s', ['MixUp(0.)', 'Cutout(0)']))
    for o in res.arms:
        assert o.difference.value==0 and o.p==1 and o.verdict=='cannot be told' and o.n==3
    assert 'nan' not in str(res) and res.html() and res.markdown()

def test_positive_control():
    'Label noise is found harmful'
    r, = study_result(done('s', ['label_noise=0.8'], range(6), replace(base, epochs=15, valid_every=15, fraction=0.2))).arms
    assert r.verdict=='hurts' and r.difference.hi<0

def test_paired_seeds():
    'Arms of a seed share images, weights and order; seeds do not'
    s = done('s', ['EMA(0.)', 'lr=0.1'], range(2))
    env = {(a.name, k):s.run_folder(a, k).environment()['data']['digest'] for a in s.arms for k in s.seeds}
    assert len(set(env.values()))==2 and env['baseline', 0]==env['lr=0.1', 0]!=env['baseline', 1]

def test_against_a_hand_computation():
    s = done('s', ['MixUp()', 'SAM(0.5)'])
    res = study_result(s)
    acc = {a.name:np.array([100*s.run_folder(a, k).test().accuracy for k in s.seeds]) for a in s.arms}
    raw = [stats.ttest_rel(acc[k], acc['baseline']).pvalue for k in ('MixUp()', 'SAM(0.5)')]
    adjusted = [min(1, 2*p) if p==min(raw) else max(p, min(1, 2*min(raw))) for p in raw]
    for o,p,q in zip(res.arms, raw, adjusted):
        d = acc[o.name]-acc['baseline']
        half = stats.t.ppf(0.975, 2)*d.std(ddof=1)/math.sqrt(3)
        assert o.p==pytest.approx(p) and o.adjusted==pytest.approx(q) and o.difference.value==pytest.approx(d.mean())
        assert o.difference.hi==pytest.approx(d.mean()+half)

# a study's life

def test_extended():
    'Declared verdicts stay; added seeds and arms are shown apart; nothing is run twice'
    s = done('s', ['MixUp()'])
    first,before = study_result(s),{o:o.stat().st_mtime_ns for o in Path('s').rglob('log.csv')}
    more = done('s', ['MixUp()', 'EMA(0.9)'], range(5))
    res = study_result(more)
    assert all(o.stat().st_mtime_ns==t for o,t in before.items())
    assert res.arms==first.arms and [o.name for o in res.added]==['EMA(0.9)'] and res.more_seeds[0].n==5
    assert 'seeds were added later' in ' '.join(res.notes()) and first.columns==res.columns

def test_another_protocol():
    done('s', ['MixUp()'], range(1))
    with pytest.raises(UserError, match='another study .*lr is 0.05, not 0.2'): open_study('s', create_arms(['MixUp()'],
        replace(base, lr=0.2)), range(1))

def test_incomplete():
    s = done('s', ['MixUp()'])
    (s.run_folder(s.arms[1], 1).path/'test.safetensors').unlink()
    r, = study_result(s).arms
    assert r.verdict=='incomplete (2 of 3)' and r.n==2
    r, = study_result(done('t', ['MixUp()'], range(2))).arms
    assert r.verdict=='no verdict (under 3 pairs)'

def test_failed_run(capsys):
    'A run that diverges is reported, and the others go on'
    s = done('s', ['lr=1000.', 'MixUp()'])
    res = study_result(s)
    assert 'failed' in capsys.readouterr().out and res.arms[0].missing and res.arms[1].n==3

def shown(res): return ' '.join(str(res).split())

def results(s): return {(a.name, k):(s.run_folder(a, k).path/'test.safetensors').read_bytes() for a in s.arms for k in s.seeds}

def test_interrupted(tmp_path):
    'Killed and started again, by two processes, it has bitwise the runs of an uninterrupted one'
    slow = replace(base, epochs=40, valid_every=40)
    whole = done('whole', ['MixUp()'], range(2), slow)
    s = open_study('s', create_arms(['MixUp()'], slow), range(2))
    code = "from cifar_fastai.studies.study import *; train_jobs(read_study('s'), device='cpu')"
    p = subprocess.Popen([sys.executable, '-c', code])
    while not s.done(): time.sleep(0.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert s.done()<4
    run_study(s, device='cpu', workers=2, bar=False)
    assert results(s)==results(whole)

def test_packed():
    s = done('s', ['MixUp()'])
    pack_study(s, 'p.safetensors')
    a,b = load_study('s'),load_study('p.safetensors')
    assert a.columns==b.columns and a.caption==b.caption and a.arms==b.arms and a.notes()==b.notes() and a.run_frame.equals(b.run_frame)
    assert Path('p.safetensors').stat().st_size<30_000

def test_unpacked():
    'The folder of a packed study has the same files, knows its teachers, and can be extended by more seeds'
    s = done('s', ['MixUp()', "KD('toynet_s1_k3')"], range(2), logits=True)
    pack_study(s, 'p.safetensors', logits=['MixUp()'])
    again = unpack_study('p.safetensors', 't')
    assert not again.missing() and again.digest==s.digest and again.declared==s.declared
    for a,b in zip([*s.arms, *s.teachers.values()], [*again.arms, *again.teachers.values()]):
        for k in range(2):
            x,y = s.run_folder(a, k),again.run_folder(b, k)
            for o in ('config.yaml', 'environment.json', 'log.csv'):
                assert (x.path/o).read_bytes()==(y.path/o).read_bytes(), (x, o)
            assert (y.test().logits is not None)==(a.name=='MixUp()')
            assert np.array_equal(x.test().correct, y.test().correct)
            assert np.array_equal(x.test().log_likelihood, y.test().log_likelihood)
    a,b = study_result(s),study_result(again)
    assert a.columns==b.columns and a.run_frame.equals(b.run_frame) and a.run_frame.ece.notna().all()
    run_study(open_study('t', create_arms(['MixUp()'], base), range(3), logits=True), device='cpu', bar=False)
    more = done('u', ['MixUp()'], range(2, 3), logits=True)
    assert results(more).items()<=results(read_study('t')).items()
    with pytest.raises(UserError, match='t exists: unpack the study into a new folder'): unpack_study('p.safetensors', 't')

def test_error_of_calibration_from_logits():
    'From stored logits, as from the weights'
    res = small('LabelSmoothing()', name='s', logits=True, weights=True)
    row = evaluate(res.study.run_folder(res.study.arms[1], 0).path).rows[0]
    assert res.runs['LabelSmoothing()'][0]['measures']['ece']==pytest.approx(row['ece'], rel=5e-3)

def test_without():
    'A trick of the baseline is left out'
    b = replace(base, tricks=['MixUp()', 'EMA()'])
    assert create_arm('without=EMA', b).config.tricks==['MixUp()']
    assert create_arm('without=EMA,MixUp lr=0.3 SAM()', b).config==replace(base, tricks=['SAM()'], lr=0.3)
    with pytest.raises(UserError, match='without=.?Flip.?: the tricks of the baseline are EMA, MixUp'): create_arm('without=Flip', b)
    with pytest.raises(UserError, match='the tricks of the baseline are none'): create_arm('without=Flip', base)

def test_workers_next_to_a_clone():
    'A folder called cifar_fastai in the current folder, such as a clone, does not hide the installed library'
    Path('cifar_fastai').mkdir()
    s = open_study('s', create_arms(['MixUp()'], base), range(1))
    run_study(s, device='cpu', workers=2, bar=False)
    assert s.done()==2

def test_arm_flag(capsys):
    'Arms with and without the flag'
    plan = [*flags, '--seeds', '2', '--dry-run']
    def said(*argv):
        cifar_study(argv=[*argv, *plan])
        return capsys.readouterr().out.splitlines()[0]
    assert said('MixUp()', '--arm', 'lr=0.2', '--arm', 'SAM()')==said('MixUp()', 'lr=0.2', 'SAM()')
    assert said('--arm', 'lr=0.2')==said('lr=0.2')

@pytest.mark.parametrize('damage', [lambda d: d.pop('arms'), lambda d: d.update(arms=['MixUp(']), lambda d: d.update(seeds='x'),
    lambda d: d.update(protocol=dict(model='nope')), lambda d: d.update(declared={}), lambda d: d.update(sources=['x']), lambda d: d['declared'].update(arms=['EMA()'])])
def test_damaged_study(damage):
    s = open_study('s', create_arms(['MixUp()'], base), range(1))
    d = json.loads((s.folder/'study.json').read_text())
    damage(d)
    (s.folder/'study.json').write_text(json.dumps(d))
    with pytest.raises(UserError, match='is not a valid study'): load_study('s')

@pytest.mark.parametrize('damage', [lambda b: b[:-3], lambda b: b'', lambda b: b[:40]+b'x'*40+b[80:]])
def test_damaged_results(damage):
    s = done('s', ['MixUp()'], range(1))
    path = s.run_folder(s.arms[0], 0).path/'test.safetensors'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match='test.safetensors is not a valid file'): study_result(s)

def test_test_results_are_those_of_the_network():
    'The stored bits and log likelihoods are those of the last weights on the test images'
    from cifar_fastai.runs.export import load_run
    s = done('s', ['MixUp()'], range(1), weights=True)
    f = s.run_folder(s.arms[0], 0)
    learn = load_run(f.path, weights='last')
    with learn.no_bar(): preds,y = learn.get_preds()
    t = f.test()
    assert np.array_equal(t.correct, (preds.argmax(1)==y).numpy())
    assert np.allclose(t.log_likelihood, preds[range(len(y)), y].log().numpy(), atol=2e-3)

def test_holdout():
    'Validated on a holdout of the training images; the test images are looked at once, at the end'
    s = done('s', ['MixUp()'], range(1), replace(base, valid='holdout', fraction=1.))
    f = s.run_folder(s.arms[0], 0)
    assert len(f.test().correct)==299 and f.environment()['data']['test_images']==150

# the command

def test_command(capsys):
    cifar_study(argv=['MixUp(0.2)', 'label_noise=0.5', *flags, '--seeds', '3', '--name', 'a'])
    out = capsys.readouterr().out
    assert 'digits, 149 training and 299 test images · lenet, 2 epochs · 3 paired seeds' in out and '█' not in out
    assert max(map(len, out.splitlines()))<=100
    assert all(o in out for o in ('baseline', 'MixUp(0.2)', 'label_noise=0.5', 'Holm', 'and the 9 runs'))
    assert {o.name for o in Path('studies/a').iterdir()}=={'study.json', 'runs', 'report.md', 'report.html', 'forest.png',
        'study.csv', 'runs.csv'}
    page = Path('studies/a/report.html').read_text()
    assert '<script' not in page and '<svg' in page and 'http' not in page.replace('http://www.w3.org', '')

def test_dry_run(capsys):
    cifar_study(argv=['MixUp()', *flags, '--seeds', '20', '--dry-run'])
    out = capsys.readouterr().out
    assert '40 of 40 runs are missing' in out and '0.66 standard deviations' in out and not Path('studies').exists()

def test_command_refuses(capsys):
    for argv,says in ((['MixUp(', *flags], 'must be written as calls'), (flags, 'needs an arm'),
        (['MixUp()', *flags, '--seeds', '0'], 'seeds is 0')):
        with pytest.raises(SystemExit) as e: cifar_study(argv=argv)
        err = capsys.readouterr().err
        assert e.value.code==2 and says in err and err.count('\n')==1
    assert not Path('studies').exists()

# objects of the user

own = '''from fastai.callback.core import Callback
from torch import nn
class Double(Callback):
    order = 11
    def __init__(self, by=2.): self.by = by
    def after_loss(self):
        if self.training: self.learn.loss_grad = self.loss_grad*self.by
class NoCallback: pass
class Broken(Callback):
    def __init__(self): raise KeyError('x')
def net(n_out): return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, n_out))
def number(n_out): return n_out
'''

def test_own_callback_and_network(tmp_path):
    'A callback of the user at its neutral setting gives 0; one that doubles the gradient does what twice the learning rate does'
    Path('mine.py').write_text(own)
    plain = replace(base, optimizer='sgd(momentum=0.0)', wd=0., model='mine:net')
    s = done('s', ['mine:Double(1.)', 'mine:Double(by=2.)', 'lr=0.1'], range(2), plain)
    run = {a.name:s.run_folder(a, 0).read() for a in s.arms}
    assert run['baseline'].log[-1]['valid_loss']==run['mine:Double(1.)'].log[-1]['valid_loss']
    a,b = (run[k].log[-1]['valid_loss'] for k in ('mine:Double(by=2.)', 'lr=0.1'))
    assert a==pytest.approx(b, rel=1e-4) and a!=run['baseline'].log[-1]['valid_loss']

@pytest.mark.parametrize('arm,says', [('mine:Nothing()', "no callback in mine 'Nothing'"), ('mine:NoCallback()', 'must be a fastai callback'),
    ('mine:Broken()', "cannot be created (KeyError: \"'x'\")"), ('nomodule:A()', 'cannot be imported'), ('mine:Double(1, 2, 3)', 'cannot be created'),
    ('model=mine:number', 'must return an nn.Module'), ('model=mine:nope', "no network in mine 'nope'")])
def test_own_objects_refused(arm, says):
    Path('mine.py').write_text(own)
    sys.modules.pop('mine', None)
    with pytest.raises(UserError) as e: create_arms([arm], base)
    assert says in str(e.value)

def test_equal_time():
    'The longer baseline has as many passes as the arm; it is added once'
    assert [a.name for a in create_arms(['SAM()', 'ASAM()', 'LookSAM(k=2)'], base, equal_time=True)]==['baseline', 'SAM()', 'ASAM()',
        'LookSAM(k=2)', 'baseline epochs=3', 'baseline epochs=4']
    assert [a.name for a in create_arms(['SAM()', 'epochs=4'], base, equal_time=True)]==['baseline', 'SAM()', 'epochs=4']
    assert [a.name for a in create_arms(['MixUp()'], base, equal_time=True)]==['baseline', 'MixUp()']

# tuning

def test_tuned():
    'Every arm gets the same grid and budget, on held-out training images, and is frozen; the study is read with its settings'
    longer = replace(base, epochs=8, valid_every=8, fraction=0.3)
    s = open_study('s', create_arms(['MixUp()'], longer), range(2), tune='lr=1e-5,0.05', tune_seeds=2, device='cpu')
    assert s.tuning['chosen']=={'baseline':dict(lr=0.05), 'MixUp()':dict(lr=0.05)} and s.tuning['runs']==8
    tuned = list(Path('s/tuning/runs').glob('*/*/config.yaml'))
    assert len(tuned)==8 and all('valid: holdout' in o.read_text() for o in tuned)
    run_study(s, device='cpu', bar=False)
    again = open_study('s', create_arms(['MixUp()'], longer), range(3), tune='lr=1e-5,0.05')
    assert again.tuning==s.tuning and [a.config.lr for a in again.arms]==[0.05]*2 and len(again.seeds)==3
    notes = shown(study_result(s))
    assert '2 settings x 2 seeds for every arm (8 runs' in notes and 'MixUp() lr=0.05' in notes
    with pytest.raises(UserError, match='was tuned: arms cannot be added'): open_study('s', create_arms(['SAM()'], longer), range(2))

@pytest.mark.parametrize('grid,says', [('lr', 'write settings as'), ('', 'tune is empty'), ('lr=', 'write settings as'), ('lrr=1', "no setting 'lrr'"),
    ('lr=-1', 'lr is -1'), ('model=nope', "no backbone 'nope'")])
def test_bad_grid(grid, says):
    with pytest.raises(UserError) as e: study('MixUp()', seeds=2, tune=grid or ' ', name='s', device='cpu', dataset='digits', model='lenet',
        fraction=0.1, epochs=1)
    assert says in str(e.value) and not Path('studies/s/study.json').exists()

# outcomes, teachers, logits
def small(*arms, seeds=2, **kwargs):
    "A study in the working directory"
    kw = dict(model='lenet', dataset='digits', fraction=0.1, bs=32, epochs=2, lr=0.05, schedule='onecycle', device='cpu', bar=False)
    return study(list(arms), seeds, **kw | kwargs)

@pytest.mark.parametrize('outcome', ['top5', 'nll', 'ece', 'corruptions'])
def test_outcome(outcome):
    'What is compared is what `evaluate` measures, and lower is better for an error'
    res = small('label_noise=0.5', outcome=outcome, name='s', epochs=4, seeds=3, weights=True)
    a = res.study.arms[1]
    for s in range(3):
        row = evaluate(res.study.run_folder(a, s).path, robustness=outcome=='corruptions').rows[0]
        want = sum(row[k] for k in corruptions)/5 if outcome=='corruptions' else row[outcome]
        assert res.runs[a.name][s]['value']==pytest.approx(want*(1 if outcome=='nll' else 100), rel=2e-3)
    r = res.arms[0]
    xs,ys = ([res.runs[k][s]['value'] for s in range(3)] for k in (a.name, 'baseline'))
    assert r.difference.value==pytest.approx(np.mean(np.subtract(xs, ys)))
    lower = outcome in ('nll', 'ece')
    wins = [(x<y)==lower for x,y in zip(xs, ys) if abs(x-y)>1e-9]
    assert r.better.value==pytest.approx(np.mean(wins))
    pack_study(res.study, 's.safetensors')
    assert load_study('s.safetensors').arms==res.arms and str(load_study('studies/s'))==str(res)
    label = dict(top5='top-5 accuracy', nll='negative log likelihood', ece='calibration error',
        corruptions='accuracy under corruptions')[outcome]
    assert label in res.columns and label in res.html() and label.capitalize() in ' '.join(str(res).split())

def test_verdict_where_lower_is_better():
    'Noise in the labels hurts the log likelihood: a higher loss'
    r = small('label_noise=0.8', outcome='nll', seeds=4, epochs=12).arms[0]
    assert r.difference.value>0 and r.verdict=='hurts' and r.better.value==0

def test_another_outcome_is_refused():
    small('MixUp()', name='s')
    with pytest.raises(UserError, match='contains another study .outcome is .accuracy., not .nll.'):
        small('MixUp()', name='s', outcome='nll')
    with pytest.raises(UserError, match="There is no outcome 'auc'"): small('MixUp()', name='t', outcome='auc')
    assert not Path('studies/t').exists()

def test_logits():
    'Stored on request, in the run and in the packed file'
    res = small('MixUp()', name='s', logits=True, weights=True)
    folder = res.study.run_folder(res.study.arms[1], 0)
    learn = load_run(folder.path)
    with learn.no_bar(): want = learn.get_preds(act=lambda x: x)[0]
    assert np.allclose(folder.test().logits, want, atol=0.02, rtol=2e-3)
    pack_study(res.study, 's.safetensors')
    assert np.array_equal(load_study('s.safetensors').runs['MixUp()'][0]['test'].logits, folder.test().logits)

def test_teacher():
    'A teacher is trained once for each seed, its weights are used, and its time counts'
    res = small("KD('toynet_s1_k3')", "KD('toynet_s1_k3') MixUp()", "KD('lenet', T=2)", name='s')
    s,teachers = res.study,next(Path('studies/s/runs').glob('model-toynet_s1_k3-*'))
    assert sorted(o.name for o in teachers.iterdir())==['0', '1'] and len(s.jobs())==8
    for seed in range(2):
        one,_,own = (s.run_folder(a, seed).read() for a in s.arms[1:])
        assert one.config['tricks']==[f"KD(teacher='toynet_s1_k3', path='{teachers/str(seed)}/last.safetensors')"]
        assert f'runs/baseline/{seed}/last.safetensors' in own.config['tricks'][0]
        t = read_run(teachers/str(seed))
        assert t.config['seed']==seed and t.config['tricks']==[]
        total = sum(one.column('cpu_seconds'))+sum(t.column('cpu_seconds'))
        assert res.runs[s.arms[1].name][seed]['seconds']==pytest.approx(total)
    by_hand = train(replace(s.base, seed=0, tricks=[f"KD('toynet_s1_k3', path='{teachers}/0/last.safetensors')"]), 'hand',
        exps='exps', device='cpu', bar=False)
    assert RunFolder(by_hand).read().accuracy==s.run_folder(s.arms[1], 0).read().accuracy

def test_teacher_of_dkd():
    'Every trick that needs a trained network gets it, and KD and DKD share it'
    res = small("DKD('toynet_s1_k3', beta=2)", "KD('toynet_s1_k3')", name='s', seeds=1)
    teacher = next(Path('studies/s/runs').glob('model-toynet_s1_k3-*'))
    got = [res.study.run_folder(a, 0).read().config['tricks'][0] for a in res.study.arms[1:]]
    ends = f"path='{teacher}/0/last.safetensors')"
    assert got==[f"DKD(teacher='toynet_s1_k3', beta=2.0, {ends}", f"KD(teacher='toynet_s1_k3', {ends}"]

def test_unknown_teacher():
    with pytest.raises(UserError, match="There is no backbone 'lenett': did you mean 'lenet'"): small("KD('lenett')")

@pytest.mark.parametrize('text,changes', [
    ('SAM() lr=0.1', dict(tricks=['SAM()'], lr=0.1)), ('lr=0.1 SAM(rho=0.1) epochs=4', dict(tricks=['SAM(rho=0.1)'], lr=0.1, epochs=4)),
    ('lr = 0.1', dict(lr=0.1)), ("optimizer=muon(momentum=0.5, ns_steps=3) lr=0.02 wd=0",
        dict(optimizer='muon(momentum=0.5, ns_steps=3)', lr=0.02, wd=0)),
    ("OneOf(MixUp(), CutMix(beta=0.5)) bs=16", dict(tricks=['OneOf(MixUp(), CutMix(beta=0.5))'], bs=16)),
    ("OneOf(Chain(MixUp(), CutMix(p=0.5)), RICAP()) lr=0.3",
        dict(tricks=['OneOf(Chain(MixUp(), CutMix(p=0.5)), RICAP())'], lr=0.3)),
    ("RandomCrop(2, mode='reflect')", dict(tricks=["RandomCrop(pad=2, mode='reflect')"]))])
def test_several_settings(text, changes):
    'An arm may change several settings and add tricks'
    base = RunConfig(model='lenet', dataset='digits', epochs=4)
    cfg = create_arm(text, base).config
    want = {**asdict(base), **changes}
    assert asdict(cfg)==asdict(RunConfig(**want))

def test_several_settings_refused():
    with pytest.raises(UserError, match='has lr twice'): create_arm('lr=0.1 lr=0.2', RunConfig())

def test_mcnemar_by_image():
    'The report counts the seeds whose test images are classified differently'
    res = small('label_noise=0.9', seeds=3, epochs=8)
    ps = [mcnemar(*(res.runs[k][s]['test'].correct for k in ('label_noise=0.9', 'baseline'))) for s in range(3)]
    assert res.arms[0].mcnemar==sum(p<0.05 for p in ps)>0
    assert f'{res.arms[0].mcnemar} of 3' in ' '.join(res.notes())

def test_passes():
    'A run counts optimizer steps, forward and backward passes'
    s = small('SAM()', 'MixUp()', seeds=1).study
    for a,k in zip(s.arms, (1, 2, 1)):
        for row in s.run_folder(a, 0).log():
            assert (row['steps'], row['forward_passes'], row['backward_passes'])==(5, 5*k, 5*k)

def test_tuned_by_workers():
    'Two processes tune as one does'
    arms = create_arms(['MixUp()'], replace(base, threads=1))
    one,two = (open_study(k, arms, [0], tune='lr=0.01,0.05', device='cpu', workers=w, bar=False) for k,w in (('a', None), ('b', 2)))
    assert one.tuning['chosen']==two.tuning['chosen'] and one.tuning['runs']==two.tuning['runs']==8

# a study's life
def test_folders_are_unique():
    'Arms whose names differ in a sign only have folders of their own'
    arms = create_arms(['lr=0.01', 'MixUp(0.2)', 'optimizer=sgd(momentum=0.5)', 'RandomErasing(area=(0.02, 0.4))'], base)
    assert len({a.folder for a in arms})==5 and arms[0].folder=='baseline'
    one,two = (create_arm(f'mymodule:MyTrick({v})', base).folder for v in (-0.9, 0.9))
    assert one!=two and one.startswith('mymodule-MyTrick-0.9')

def test_default_learning_rate_follows_the_optimizer():
    assert create_arm('optimizer=adamw', RunConfig()).config.lr==1e-3
    assert create_arm('optimizer=adamw lr=0.1', RunConfig()).config.lr==0.1
    assert create_arm('optimizer=adamw', RunConfig(lr=0.05)).config.lr==0.05
    assert create_arm('optimizer=sgd', RunConfig(optimizer='adamw')).config.lr==0.1

def test_pairs_of_data_in_a_folder(tmp_path):
    "Pairs are checked on the study's data, and one that is an arm already is left out"
    from PIL import Image
    for split in ('train', 'test'):
        for c in '0123456789':
            (d := tmp_path/'data/cifar10'/split/c).mkdir(parents=True)
            for i in range(3): Image.fromarray(np.full((32, 32, 3), 9*i, np.uint8)).save(d/f'{i}.png')
    found = create_arms(['MixUp()', 'SAM()'], replace(base, dataset='cifar10', fraction=1.), pairs=True, root=tmp_path/'data/cifar10')
    assert [a.name for a in found]==['baseline', 'MixUp()', 'SAM()', 'MixUp() SAM()']
    found = create_arms(['MixUp()', 'SAM()', 'SAM() MixUp()'], base, pairs=True)
    assert [a.name for a in found][3:]==['SAM() MixUp()']

def test_another_spelling_is_the_same_arm():
    s = open_study('s', create_arms(['MixUp(0.2)'], base), range(2))
    again = open_study('s', create_arms(['MixUp(alpha=0.2)', 'SAM()'], base), range(2))
    assert [a.name for a in again.arms]==['baseline', 'MixUp(0.2)', 'SAM()'] and s.arms[1].folder==again.arms[1].folder

def test_tuning_of_an_existing_study_is_refused():
    open_study('s', create_arms(['MixUp()'], base), range(1))
    with pytest.raises(UserError, match='was not tuned on this grid'):
        open_study('s', create_arms(['MixUp()'], base), range(1), tune='lr=0.1,0.2')
    assert not Path('s/tuning').exists()

def test_tuning_of_a_setting_that_an_arm_has_is_refused():
    with pytest.raises(UserError, match='has lr twice'):
        open_study('s', create_arms(['lr=0.2'], base), range(1), tune='lr=0.05,0.1', device='cpu', bar=False)
    assert not Path('s/study.json').exists()

def test_invalid_seeds_leave_no_study(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['cifar-study', 'MixUp()', *flags, '--first-seed', '-5', '--name', 's'])
    with pytest.raises(SystemExit): cifar_study()
    assert 'seed is -5' in capsys.readouterr().err and not Path('studies/s/study.json').exists()

def test_an_arm_that_fails_does_not_end_the_study(monkeypatch, capsys):
    "Any error of a user's callback is reported, the other runs are made, and the command fails"
    Path('failing_trick.py').write_text('from fastai.callback.core import Callback\n'
        'class Breaks(Callback):\n    def after_pred(self): raise RuntimeError("no luck")\n')
    monkeypatch.syspath_prepend('.')
    monkeypatch.setattr(sys, 'argv', ['cifar-study', 'failing_trick:Breaks()', 'MixUp()', *flags, '--seeds', '2', '--name', 's'])
    with pytest.raises(SystemExit) as e: cifar_study()
    out = capsys.readouterr().out
    assert e.value.code==1 and 'no luck' in out and 'incomplete (0 of 2)' in out
    assert open_study('studies/s', create_arms(['MixUp()'], read_study('studies/s').base), range(2), write=False).done()==4

def test_runs_on_other_data_are_refused():
    s = done('s', ['MixUp()'], range(2))
    path = s.run_folder(s.arms[1], 0).path/'environment.json'
    d = json.loads(path.read_text())
    d['data']['source'] = 'e'*64
    path.write_text(json.dumps(d))
    with pytest.raises(UserError, match="different versions of 'digits'"): study_result(s)

def test_later_arms_and_seeds_are_shown():
    done('s', ['MixUp()'], range(3))
    s = open_study('s', create_arms(['SAM()'], base), range(4))
    run_study(s, device='cpu', bar=False)
    text = str(study_result(s))
    first,later = text.split('Added later')
    assert 'MixUp()' in first and 'SAM()' not in first and 'MixUp()' in later and 'SAM()' in later
    for page in (study_result(s).markdown(), study_result(s).html()): assert page.count('SAM()')>=2

def test_compared_at_equal_time():
    'An arm with two passes is compared, paired and with a verdict, with the baseline of twice the epochs, which is no arm of its own'
    res = small('SAM()', 'MixUp()', 'ASAM()', equal_time=True, seeds=4, name='s')
    assert [o.name for o in res.arms]==['SAM()', 'MixUp()', 'ASAM()']
    names = 'SAM()', 'ASAM()'
    assert [o.name for o in res.equal_time]==[f'{o} against baseline epochs=4' for o in names]
    ds = [np.array([res.runs[k][s]['accuracy']-res.runs['baseline epochs=4'][s]['accuracy'] for s in range(4)]) for k in names]
    for r,d,p in zip(res.equal_time, ds, holm([stats.ttest_1samp(d, 0).pvalue for d in ds])):
        assert r.difference.value==pytest.approx(d.mean()) and r.adjusted==pytest.approx(p) and r.verdict in ('helps', 'hurts', 'cannot be told')
    log = res.runs['baseline epochs=4'][0]['run'].log
    assert sum(r['forward_passes'] for r in log)==sum(r['forward_passes'] for r in res.runs['SAM()'][0]['run'].log)
    for text in (str(res), res.markdown(), res.html()): assert 'SAM() against baseline epochs=4' in text and 'At equal time' in text
    assert any(o.startswith('ASAM() against baseline epochs=4: ') for o in res.notes())
    assert list(res.frame.name)==['SAM()', 'MixUp()', 'ASAM()', *(o.name for o in res.equal_time)]
    pack_study(res.study, 'p.safetensors')
    assert load_study('p.safetensors').equal_time==res.equal_time==load_study('studies/s').equal_time

def test_interaction_in_any_order():
    'The effect of a pair minus the sum of the single effects, whatever the order of its tricks'
    res = small('MixUp()', 'SAM()', 'SAM() MixUp()', seeds=3)
    both,a,b,none = (np.array([res.runs[k][s]['accuracy'] for s in range(3)])
        for k in ('SAM() MixUp()', 'MixUp()', 'SAM()', 'baseline'))
    at = f'SAM() MixUp(): its effect minus the sum of the single effects is {(both-a-b+none).mean():+.1f}'
    assert at in shown(res) and at in ' '.join(res.text('h1', 'list').split())

def test_plan_counts_passes(monkeypatch):
    'The time of an arm with two passes counts twice, and only missing runs count'
    monkeypatch.setattr('cifar_fastai.studies.experiments.image_seconds', lambda name, device, size=None: 1/149)
    monkeypatch.setattr('cifar_fastai.studies.experiments.count_images', lambda dataset, root, size=None: 1490)
    def plan(arm): return study_plan(open_study('s', create_arms([arm], base), range(2), write=False), 'cpu')
    assert 'magnitude: 8 s' in plan('MixUp()') and 'magnitude: 12 s' in plan('SAM()') # 2 epochs of a tenth, 4 runs
    s = done('s', ['SAM()'], range(2))
    assert '0 of 4 runs are missing' in study_plan(s, 'cpu') and 'magnitude: 0 s' in study_plan(s, 'cpu')

def test_plan_counts_everything(monkeypatch):
    'Teachers, tuning on nine tenths of the images, second passes in some steps, and the processes'
    monkeypatch.setattr('cifar_fastai.studies.experiments.image_seconds', lambda name, device, size=None: 1/100)
    monkeypatch.setattr('cifar_fastai.studies.experiments.count_images', lambda dataset, root, size=None: 10_000)
    def plan(*arms, **kwargs): return study_plan(open_study('s', create_arms(arms, base), range(2), write=False), 'cpu', **kwargs)
    assert 'magnitude: 1 min 20 s' in plan('MixUp()') # 2 epochs of 10 s, 4 runs
    assert 'magnitude: 1 min 40 s' in plan('SAM(every=2)')
    teachers = plan("KD('toynet_s1_k3')", "KD('toynet_s1_k3') MixUp()")
    assert '6 of 6 runs are missing, and 2 runs of teachers: ' in teachers and 'magnitude: 2 min 40 s' in teachers
    assert 'runs of teachers' not in plan("KD('lenet')") and 'magnitude: 1 min 20 s' in plan("KD('lenet')")
    tuned = plan('MixUp()', tune='lr=0.01,0.05', tune_seeds=3)
    assert '4 of 4 runs are missing, and 12 runs of tuning: ' in tuned and 'magnitude: 4 min 56 s' in tuned # 80 + 12*18
    assert 'Time of training in 4 processes, to an order of magnitude: 20 s' in plan('MixUp()', workers=4)
    assert not Path('s').exists()

# interruption and progress of the command

command = 'import sys\nfrom cifar_fastai.cli import cifar_study\ncifar_study()'

def started(*argv):
    'The command in a process of its own'
    return subprocess.Popen([sys.executable, '-c', 'import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n'+command, *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

@pytest.mark.parametrize('workers', ['2', '1'])
def test_interrupted_by_a_signal_to_the_parent(workers):
    'Ctrl-C, or `kill -INT` of the parent alone, ends all processes; their runs can be resumed'
    slow = [o if o!='2' else '400' for o in flags]
    argv = ['MixUp()', *slow, '--seeds', '2', '--name', 's', '--workers', workers]
    p = started(*argv)
    while len(list(Path('studies').rglob('log.csv')))<int(workers): time.sleep(0.02)
    workers_of = psutil.Process(p.pid).children(recursive=True)
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=60)
    assert p.returncode==130 and 'Traceback' not in err
    assert not [o for o in workers_of if o.is_running() and o.status()!=psutil.STATUS_ZOMBIE]
    assert err.splitlines()[-1]=='cifar-study: studies/s was interrupted with 0 of 4 runs finished: the same command resumes it.'
    begun = [RunFolder(o.parent) for o in Path('studies').rglob('config.yaml')]
    assert len(begun)==int(workers) and {o.state(400) for o in begun}=={'interrupted'}

def test_progress_without_a_terminal():
    'Plain lines on the standard error: at the start, and with every tenth of the runs; the output is the report'
    p = started('MixUp()', *flags, '--seeds', '2', '--name', 's')
    out,err = p.communicate(timeout=120)
    lines = [o for o in err.splitlines() if 'runs finished' in o]
    assert p.returncode==0 and 'runs finished' not in out and not any(c in out+err for c in '\r\b\x1b█')
    assert lines[0]=='studies/s: 0 of 4 runs finished; running: baseline seed 0' and lines[-1]=='studies/s: 4 of 4 runs finished'
    assert len(lines)==5 and 'about ' in lines[2] and 'left; running: baseline seed 1' in lines[2]

def test_progress_in_a_terminal(capsys, monkeypatch):
    'One line, written again and again, with the runs at work'
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', '120')
    small('MixUp()', name='s', bar=True)
    out,err = capsys.readouterr()
    *shown,end = out.split('\r')
    assert err=='' and len(shown)==5 and {len(o) for o in shown}=={119} and end=='\n' and out.count('\n')==1
    assert 'MixUp() seed 1' in shown[3] and '4 of 4' in shown[4]

def test_silent(capsys):
    small('MixUp()', name='s', bar=False)
    assert capsys.readouterr()==('', '')

# settings of the baseline

def test_settings_that_equal_a_default_are_obeyed():
    'Validation after every epoch, if it is asked for, in the command, in a file and from Python'
    Path('f.yaml').write_text('valid_every: 1\n')
    argv = ['MixUp()', *flags, '--seeds', '1', '--name']
    for name,more in (('a', ['--valid-every', '1']), ('b', ['--config', 'f.yaml']), ('c', []), ('d', ['--valid-every', '2'])):
        cifar_study(argv=[*argv, name, *more])
    small('MixUp()', seeds=1, valid_every=1, name='e')
    every = {o:read_study(f'studies/{o}').base.valid_every for o in 'abcde'}
    assert every==dict(a=1, b=1, c=2, d=2, e=1)
    log = RunFolder('studies/a/runs/baseline/0').log()
    assert len(log)==2 and not any(math.isnan(r['accuracy']) for r in log)

def test_a_seed_is_refused(capsys):
    with pytest.raises(SystemExit): cifar_study(argv=['MixUp()', *flags, '--seed', '666'])
    assert 'seed is 666: a study has several seeds, so give the first one as first_seed.' in capsys.readouterr().err
    with pytest.raises(UserError, match='seed is 3: a study'): small('MixUp()', seed=3)
    assert not Path('studies').exists()

# weights of finished runs

def weights(folder): return sorted(str(o.relative_to(folder)) for o in Path(folder).glob('runs/*/*/*') if o.name in ('best.safetensors', 'last.safetensors'))

@pytest.mark.parametrize('outcome', ['accuracy', 'ece'])
def test_weights_are_removed(outcome):
    'A finished run keeps what the report reads, and is not trained again; of an interrupted one everything is kept'
    res = small('MixUp()', name='s', outcome=outcome)
    assert not weights('studies/s') and res.arms[0].n==2
    kept = {o.name for o in res.study.run_folder(res.study.arms[1], 0).path.iterdir()}
    assert kept=={'.lock', 'config.yaml', 'environment.json', 'log.csv', 'test.safetensors'} | ({'measures.json'} if outcome=='ece' else set())
    before = {o:o.stat().st_mtime_ns for o in Path('studies/s/runs').rglob('*') if o.is_file()}
    again = small('MixUp()', name='s', outcome=outcome)
    assert before=={o:o.stat().st_mtime_ns for o in Path('studies/s/runs').rglob('*') if o.is_file()} and again.arms==res.arms

@pytest.mark.parametrize('outcome', ['accuracy', 'ece'])
def test_finished_by_another_process(outcome, monkeypatch):
    'A run that another process finishes, and whose weights it removes, after this one has looked is neither trained nor a failure'
    study = small('MixUp()', name='s', outcome=outcome, seeds=1).study
    before = {o:o.stat().st_mtime_ns for o in Path('studies/s/runs').rglob('*') if o.is_file()}
    looked,is_done = set(),Study.is_done
    def late(self, arm, seed):
        first = arm.name not in looked
        looked.add(arm.name)
        return not first and is_done(self, arm, seed)
    monkeypatch.setattr(Study, 'is_done', late)
    assert train_jobs(study)=={} and looked=={'baseline', 'MixUp()'}
    assert before=={o:o.stat().st_mtime_ns for o in Path('studies/s/runs').rglob('*') if o.is_file()}

def test_weights_are_kept(capsys):
    'If asked for once, and those of teachers; what a killed process left is removed by the next one'
    res = small('MixUp()', name='a', weights=True)
    assert len(weights('studies/a'))==8
    small('MixUp()', name='a')
    assert len(weights('studies/a'))==8
    small('MixUp()', name='d')
    killed = res.study.run_folder(res.study.arms[1], 0).path/'last.safetensors'
    shutil.copy(killed, Path('studies/d')/killed.relative_to('studies/a'))
    small('MixUp()', name='d')
    assert not weights('studies/d')
    small("KD('toynet_s1_k3')", name='b', seeds=1)
    assert [o.split('/')[1].startswith('model-toynet') for o in weights('studies/b')]==[True]*2
    cifar_study(argv=['MixUp()', *flags, '--seeds', '1', '--name', 'c', '--weights'])
    assert len(weights('studies/c'))==4

def test_a_teacher_without_weights_is_trained_again():
    'An arm that is added later needs the weights of the baseline: its runs are made again, with the same results'
    first = small('MixUp()', name='s')
    res = small('MixUp()', "KD('lenet')", name='s')
    assert weights('studies/s')==[f'runs/baseline/{k}/{o}.safetensors' for k in range(2) for o in ('best', 'last')]
    assert res.added[0].n==2 and [r['test'].correct.tolist() for r in first.runs['baseline'].values()]==[
        r['test'].correct.tolist() for r in res.runs['baseline'].values()]

# arms on disk

def test_a_new_setting_renames_no_arm(monkeypatch):
    'Settings at their default are not part of the digest; others are'
    from cifar_fastai.studies import study as module
    arm,later = create_arm('MixUp(0.2)', base),make_dataclass('RunConfig', [('future', int, field(default=0))], bases=(RunConfig,))
    with monkeypatch.context() as m:
        m.setattr(module, 'RunConfig', later)
        a,b = (create_arm('MixUp(0.2)', later(**asdict(base), future=k)).folder for k in (0, 1))
    assert a==arm.folder!=b
    assert create_arm('MixUp(0.2)', replace(base, bs=16)).folder!=arm.folder
    assert create_arm('MixUp(0.2)', replace(base, seed=1)).folder==arm.folder

def test_an_edited_module_is_refused(monkeypatch):
    'Runs of a callback whose source was edited since are not mixed with new ones; nothing is lost, and the message has the next step'
    monkeypatch.syspath_prepend('.')
    source = own.replace('self.loss_grad*self.by', 'self.loss_grad*self.by*{}')
    def written(by):
        sys.modules.pop('edited', None)
        Path('edited.py').write_text(source.format(by))
    written(1)
    res = small('edited:Double(2.)', 'MixUp()', name='s')
    assert small('edited:Double(2.)', 'MixUp()', name='s').arms==res.arms
    written(7)
    folder = f'studies/s/runs/{res.study.arms[1].folder}'
    for f in (lambda: small('edited:Double(2.)', name='s', seeds=3), lambda: run_study(read_study('studies/s'), device='cpu', bar=False)):
        with pytest.raises(UserError) as e: f()
        assert str(e.value)==f'edited was edited since studies/s has runs with it: give this study another name, or remove {folder} to train them again.'
    assert load_study('studies/s').arms==res.arms
    import shutil
    shutil.rmtree(folder)
    again = small('edited:Double(2.)', 'MixUp()', name='s')
    assert again.arms[1]==res.arms[1] and again.arms[0].mean!=res.arms[0].mean

# tuning

def test_a_setting_that_fails_is_not_chosen(monkeypatch):
    'A setting whose best seed survives and whose other one diverges is not chosen, and named'
    import cifar_fastai.runs.train as module
    real = module.train
    def train(cfg, *args, **kwargs):
        if cfg.lr==0.05 and cfg.seed%2: raise UserError('It diverged.')
        return real(cfg, *args, **kwargs)
    monkeypatch.setattr(module, 'train', train)
    longer = replace(base, epochs=8, valid_every=8, fraction=0.3)
    s = open_study('s', create_arms(['MixUp()'], longer), range(2), tune='lr=1e-5,0.05', device='cpu', bar=False)
    assert s.tuning['chosen']=={'baseline':dict(lr=1e-5), 'MixUp()':dict(lr=1e-5)} and s.tuning['runs']==6
    assert s.tuning['failed']==['lr=0.05', 'MixUp() lr=0.05']
    run_study(s, device='cpu', bar=False)
    assert 'Not chosen, since a run failed: lr=0.05; MixUp() lr=0.05.' in shown(study_result(s))
    with pytest.raises(UserError, match='baseline fails with every setting of the grid'):
        open_study('t', create_arms(['MixUp()'], longer), range(2), tune='lr=0.05', device='cpu', bar=False)

def test_a_run_without_weights_is_not_evaluated():
    'The message names what is missing, and how to keep it'
    s = small('MixUp()', name='s', seeds=1).study
    with pytest.raises(UserError, match='last.safetensors is missing: .* which a study keeps with --weights'):
        evaluate(s.run_folder(s.arms[1], 0).path)

def test_a_callback_is_fixed_after_it_failed(monkeypatch, capsys):
    'An arm whose runs all failed before their first epoch has no runs of other code'
    monkeypatch.syspath_prepend('.')
    for by in ('self.nothing', '1'):
        sys.modules.pop('fixed', None)
        Path('fixed.py').write_text(own.replace('*self.by', f'*{by}'))
        res = small('fixed:Double()', 'MixUp()', name='s')
    assert [o.n for o in res.arms]==[2, 2] and "no attribute 'nothing'" in capsys.readouterr().out
