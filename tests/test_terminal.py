'What a user sees in a terminal: the lines of a run, tables that fit, curves, and messages of what was done before.'
import re, shutil, subprocess, sys
from pathlib import Path
import matplotlib.pyplot as plt, pytest, torch
from cifar_fastai.cli import cifar_lr_find, cifar_train, cifar_tricks, cifar_zoo
from cifar_fastai.runs.config import registry_table
from cifar_fastai.runs.folder import RunFolder, plot_log

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    'Runs lie in a folder of their own'
    monkeypatch.chdir(tmp_path)

small = '--dataset digits --model lenet --epochs 3 --fraction 0.2 --bs 32 --name a'.split()

def test_lines_of_a_run(capsys):
    'Network, data, device and steps; then epochs from 1, in 80 columns; asked again, when it was done'
    cifar_train(argv=[*small, '--valid-every', '3'])
    out = capsys.readouterr().out
    what,where,heads,*rows = out.splitlines()[:6]
    log = RunFolder('exps/a/666').log()
    assert what=='lenet (62,006 parameters) on digits: 299 training images, 299 test images'
    assert re.fullmatch(r'(CPU, \d+ threads?|.*), fp32; 3 epochs of 10 steps, about \d+ s; in exps/a/666/', where)
    assert [o.split()[0] for o in rows]==['1', '2', '3'] and [r['epoch'] for r in log]==[0, 1, 2]
    assert heads.split()[:4]==['epoch', 'train', 'loss', 'valid'] and max(map(len, out.splitlines()[2:6]))<=80
    assert f"{log[-1]['accuracy']:.2%}" in rows[2] and f"{log[-1]['valid_loss']:#.4g}" in rows[2]
    assert '%' in rows[0] and len(rows[0].split())==6, 'no validation in this epoch: its columns are empty'
    assert rows[0].index('%')==rows[2].rindex('%') and not {'█', '\r'} & {*out}
    cifar_train(argv=[*small, '--valid-every', '3'])
    again = capsys.readouterr().out.splitlines()
    started = RunFolder('exps/a/666').environment()['started']
    assert 'was trained before' in again[0] and started[:10] in again[0] and started[11:19] in again[0]
    assert 'another --seed or --name' in again[1] and 'accuracy' in again[3] and max(map(len, again))<=100

def test_resumed_run(capsys):
    'A resumed run says from where, and its rows go on counting'
    from fastai.callback.core import Callback
    import cifar_fastai.runs.train as run
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    monitors = run.run_monitors
    with pytest.MonkeyPatch.context() as m:
        m.setattr(run, 'run_monitors', lambda row: [*monitors(row), Stop()])
        with pytest.raises(SystemExit): cifar_train(argv=small)
    capsys.readouterr()
    cifar_train(argv=[*small, '--resume'])
    lines = capsys.readouterr().out.splitlines()
    assert 'resumed after 1 of 3 epochs of 10 steps' in lines[1] and [o.split()[0] for o in lines[3:5]]==['2', '3']

def test_no_estimate_where_it_costs(monkeypatch):
    'The time of a large network on a CPU is left out, and nothing is run for it'
    import cifar_fastai.runs.train as run
    from cifar_fastai.runs.config import RunConfig
    def measured(*args): raise AssertionError
    monkeypatch.setattr(run, 'seconds_per_image', measured)
    learn = run.RunPlan(RunConfig('lenet', 'digits', bs=32), device=torch.device('cpu')).learner()
    for model in ('pyramidnet272', 'torch.nn:Identity'):
        assert run.expected_seconds(RunConfig(model, 'digits'), learn, 1) is None
    with pytest.raises(AssertionError): run.expected_seconds(RunConfig('lenet', 'digits', bs=32), learn, 1)

def test_estimate_leaves_no_trace():
    'Measuring changes neither weights nor statistics nor random numbers'
    from cifar_fastai.runs.config import RunConfig
    from cifar_fastai.runs.train import RunPlan, expected_seconds
    cfg = RunConfig('resnet20', 'digits', bs=8)
    learn = RunPlan(cfg, device=torch.device('cpu')).learner()
    before,rng = {k:v.clone() for k,v in learn.model.state_dict().items()},torch.get_rng_state()
    assert expected_seconds(cfg, learn, 2)>0 and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert all(p.grad is None for p in learn.model.parameters())

@pytest.mark.skipif(not shutil.which('script'), reason='needs a pseudo-terminal')
@pytest.mark.parametrize('columns', [80, 120])
def test_terminal(columns):
    'In a terminal there are bars, and no row is wider than it'
    code = f'from cifar_fastai.cli import cifar_train; cifar_train(argv={small!r})'
    p = subprocess.run(['script', '-qec', f'stty cols {columns}; {sys.executable} -c "{code}"', '/dev/null'],
        capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = [o for o in re.split('[\r\n]+', p.stdout) if o]
    assert p.returncode==0 and any('█|' in o and 'Epoch 3/3' in o for o in lines), p.stdout
    assert [o.split()[0] for o in lines if re.match(r' +\d+ +\d', o)]==['1', '2', '3']
    assert max(len(o) for o in lines if re.match(r'Epoch | *epoch | +\d', o))<=columns

def shown(capsys, cmd, *argv):
    cmd(argv=[*argv])
    return capsys.readouterr().out

@pytest.mark.parametrize('columns', [80, 100, 120])
def test_tables_fit(capsys, monkeypatch, columns):
    'The lists of tricks and backbones fit the terminal, at most 100 columns, and miss nothing'
    monkeypatch.setenv('COLUMNS', str(columns))
    outs = [shown(capsys, cifar_tricks), shown(capsys, cifar_zoo, '*net*'), shown(capsys, cifar_tricks, 'RandomErasing')]
    for out in outs: assert max(map(len, out.splitlines()))<=min(columns, 100)
    for k in registry_table()['trick']: assert re.search(rf'^{k}\(', outs[0], re.M)
    for k in registry_table()['backbone']: assert 'net' not in k or re.search(f'^{k} ', outs[1], re.M)

def test_one_trick(capsys):
    'Parameters with their comments, paper, step, what it is refused with, and how it is off; for all'
    out = shown(capsys, cifar_tricks, 'SAM')
    for o in ('rho        0.05     neighbourhood radius', 'https://arxiv.org/abs/2010.01412', 'second_pass',
        'Refused with: ASAM, LookSAM', 'Off: SAM(rho=0.0)'): assert o in out
    for k,v in registry_table()['trick'].items():
        out = shown(capsys, cifar_tricks, k)
        assert 'Step of training: ' in out and all(f'\n{p}' in out for p in v['params']) and '{' not in out

def test_groups_are_refused():
    'Two tricks of one group in the table are refused by a Learner'
    from cifar_fastai.core import UserError
    from cifar_fastai.loop import check_callbacks
    from cifar_fastai.runs.config import RunConfig
    from cifar_fastai.runs.train import create_tricks
    from fastcore.basics import NS
    from fastcore.foundation import L
    groups = {}
    for k,v in registry_table()['trick'].items():
        if v.get('group') and not v.get('trained') and '*' not in v['params']: groups.setdefault(v['group'], []).append(k)
    pairs = [(a, b) for names in groups.values() for a in names for b in names if a<b]
    assert len(pairs)>10
    for pair in pairs:
        with pytest.raises(UserError, match='.'): check_callbacks(NS(cbs=L(create_tricks(RunConfig(tricks=list(pair))))))

def test_help_names_the_tricks():
    '`cifar-train --help` names every trick, without torch'
    code = 'import sys; from cifar_fastai.cli import cifar_train\ntry: cifar_train(argv=["--help"])\nexcept SystemExit: print("torch" in sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout
    assert out.endswith('False\n') and all(re.search(rf'\b{k}\b', out) for k in registry_table()['trick'])

@pytest.mark.parametrize('row,near', [('3.4/ToyNet_bs', '3.4/ToyNet_bs128'), ('3.5/mixup', '3.5/shake_resnet26_2x64d_mixup'),
    ('resnet20', '3.3/resnet20')])
def test_near_rows(capsys, row, near):
    'A wrong row is compared with the rows of its table'
    with pytest.raises(SystemExit): cifar_train(argv=['--row', row])
    err = capsys.readouterr().err
    assert near in err and ('/' not in row or {o[:4] for o in re.findall(r"\b\d\.\d/", err)}=={row[:4]})

def log(train_loss, accuracy):
    return [dict(epoch=i, train_loss=l, valid_loss=l, accuracy=a, train_accuracy=a/2)
        for i,(l,a) in enumerate(zip(train_loss, accuracy))]

def test_curves():
    'The best epoch is marked, epochs are integers from 1, curves are named, and an exploding epoch does not fill the axis'
    losses,accs = plot_log(log([17.6, 2.1, 1.4, 1.1], [0.1, 0.4, 0.7, 0.6]))
    assert losses.get_ylim()[1]<3 and '17.6' in losses.get_title(loc='left')
    assert accs.get_title(loc='left')=='● best: 70.00%, epoch 3' and list(accs.lines[-1].get_xdata())==[3]
    assert [o.get_text() for o in accs.texts]==['train', 'valid'] and [list(l.get_ydata()) for l in accs.lines[:2]]==[
        [5, 20, 35, 30], [10, 40, 70, 60]]
    ticks = [o for o in accs.get_xticks() if accs.get_xlim()[0]<=o<=accs.get_xlim()[1]]
    assert ticks and all(o==int(o)>0 for o in ticks)
    losses,_ = plot_log(log([2.3, 2.1, 1.4], [0.1, 0.4, 0.7]))
    assert losses.get_ylim()[1]>2.3 and not losses.get_title(loc='left')
    for ls,accuracies in (([2.], [0.5]), ([float('nan')]*3, [float('nan')]*3), ([float('inf'), 1e30], [0., 0.])):
        plot_log(log(ls, accuracies))
    RunFolder('b/7').path.mkdir(parents=True)
    RunFolder('b/7').write_curves(log([2.3, 2.1], [0.1, 0.4]))
    assert Path('b/7/curves.png').read_bytes()[:4]==b'\x89PNG' and not plt.get_fignums() or plt.close('all') is None

def test_lr_find(capsys, monkeypatch):
    "fastai's two suggestions, on a curve over three decades and more"
    kept,close = [],plt.close
    monkeypatch.setattr(plt, 'close', lambda *a: kept.append(plt.gcf()))
    out = shown(capsys, cifar_lr_find, *'--dataset digits --model lenet --bs 64 --num-it 30'.split())
    valley,slide = map(float, re.search(r'rate: (\S+) by .*\nor (\S+) by', out).groups())
    ax = kept[0].axes[0]
    points = {l.get_label():(float(l.get_xdata()[0]), float(l.get_ydata()[0])) for l in ax.lines[1:]}
    xs = [float(o) for o in ax.lines[0].get_xdata()]
    assert points['valley'][0]==pytest.approx(valley, rel=0.05) and points['slide'][0]==pytest.approx(slide, rel=0.05)
    assert xs[-1]>=1000*xs[0] and xs[0]<valley<xs[-1] and 'lenet on digits' in ax.get_title()
    close('all')
