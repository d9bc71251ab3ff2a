"Progress of a sweep and of a study: within a run, over all runs, with and without a terminal"
import os, subprocess, sys, time
from types import SimpleNamespace
import pytest, cifar_fastai.runs.train as run
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.studies.experiments import JobProgress, plan, reproduce, select_experiments
from cifar_fastai.studies.launch import Progress

small = RunConfig(model='toynet_s1_k3', dataset='digits', epochs=2, bs=32, fraction=0.1, schedule='onecycle')

def jobs(exps): return plan(select_experiments('3.5'), exps=exps, epochs=1, fraction=0.05, dataset='digits', model='toynet_s1_k3')

@pytest.fixture
def fast_clock(monkeypatch):
    "A second passes with every look at the clock"
    now = iter(range(10**6))
    monkeypatch.setattr(run, 'time', SimpleNamespace(**vars(time) | dict(monotonic=lambda: next(now))))

def test_within_a_run(tmp_path, fast_clock):
    "A run tells its completed part, which changes nothing in it"
    seen = []
    a = run.train(small, 'a', exps=tmp_path, bar=False, curves=False, each=seen.append)
    b = run.train(small, 'b', exps=tmp_path, bar=False, curves=False)
    assert seen==sorted(set(seen)) and len(seen)==2*5 and seen[0]==pytest.approx(0.1) and seen[-1]==1
    assert (a/'test.safetensors').read_bytes()==(b/'test.safetensors').read_bytes()

def test_at_most_once_per_second(tmp_path):
    seen = []
    run.train(small, 'a', exps=tmp_path, bar=False, curves=False, each=seen.append)
    assert len(seen)<=1+sum(r['seconds'] for r in RunFolder(tmp_path/'a/666').log())

def test_text():
    p = Progress('exps', 8)
    p.first = 2.5 # two runs were finished, and half of one
    p.start -= 60
    assert p.text(2, [('a', 0.5)])=='exps: 2 of 8 runs finished; running: 50% of a'
    assert p.text(2, [('a', 1.), ('b', 0.)])=='exps: 2 of 8 runs finished, about 10 min 0 s left; running: 100% of a, b'
    assert p.text(8)=='exps: 8 of 8 runs finished'

@pytest.mark.parametrize('columns', [60, 120])
def test_sweep_in_a_terminal(tmp_path, columns, capsys, monkeypatch, fast_clock):
    "The line of a finished run takes the place of the progress"
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', str(columns))
    todo = jobs(tmp_path)[:2]
    progress = JobProgress('exps', todo)
    reproduce(todo, tmp_path, progress=progress)
    progress.end()
    out,err = capsys.readouterr()
    *lines,last = out.split('\n')
    reports = [o.split('\r')[-1] for o in lines]
    assert not err and last=='' and len(lines)==3 and [o.split(':')[0] for o in reports[:2]]==[j.name for j in todo]
    shown = [p for o in lines for p in o.split('\r')[:-1]]
    assert all(len(o)==columns-1 and o.startswith('exps: ') for o in shown) and len(shown)==4
    assert 'running: 3.5/shake' in shown[0] and '0 of 2' in shown[1] and 'left; running: 100%' in shown[1] and '1 of 2' in shown[2]
    assert all(len(o)>=columns-1 for o in reports[:2])

def test_sweep_without_a_terminal(tmp_path):
    "Plain lines on the standard error, those of reports on the output; processes of a sweep are silent"
    argv = '--table 3.5 --epochs 1 --fraction 0.05 --dataset digits --model toynet_s1_k3'.split()
    code = 'import warnings; warnings.simplefilter("ignore"); from cifar_fastai.cli import cifar_reproduce; cifar_reproduce()'
    for workers in ('1', '2'):
        p = subprocess.run([sys.executable, '-c', code, *argv, '--exps', f'e{workers}', '--workers', workers], cwd=tmp_path,
            capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=os.getcwd()))
        shown = [o for o in p.stderr.splitlines() if 'runs finished' in o]
        assert p.returncode==0 and 'runs finished' not in p.stdout and not any(c in p.stdout+p.stderr for c in '\r\b\x1b')
        assert shown[0].startswith(f'e{workers}: 0 of 4 runs finished') and len(shown)<=6
        assert len({o.split(':')[0] for o in p.stdout.splitlines() if 'accuracy' in o})==4

def test_a_process_of_a_sweep_is_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('CIFAR_FASTAI_WORKER', '1')
    reproduce(todo := jobs(tmp_path)[:1], tmp_path, progress=JobProgress('exps', todo))
    out,err = capsys.readouterr()
    assert not err and out.count('\n')==1 and 'accuracy' in out

def test_of_other_processes(tmp_path):
    "What an interrupted or running run has completed is read from its folder"
    folder = RunFolder(run.train(small, 'a', exps=tmp_path, bar=False, curves=False))
    assert folder.completed(2)==1 and folder.completed(8)==0.25 and RunFolder(tmp_path/'none').completed(3)==0
    todo,seen = jobs(tmp_path)[:1],[]
    p = JobProgress('exps', todo)
    p.update = lambda done, running: seen.append((done, running))
    with RunFolder(todo[0].folder).lock(): p.show()
    p.show()
    assert seen==[(0, [(todo[0].name, 0)]), (0, [])]
