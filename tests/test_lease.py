'Leases: one owner at a time over a shared folder, when owners are killed, suspended or late, and clocks differ'
import os, signal, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
import pytest
from cifar_fastai.core import UserError
from cifar_fastai.runs.config import RunConfig, lease_minutes, run_lease
from cifar_fastai.runs.folder import RunFolder, RunLocked
from cifar_fastai.runs.train import train
from test_cluster import elsewhere, slow, state, wait_for # chkstyle: ignore

minutes,seconds = 0.05,3. # the duration of a lease
cfg = RunConfig(model='lenet', dataset='digits', fraction=0.1, bs=32, epochs=6, threads=1, lr=0.05, schedule='onecycle',
    tricks='slow:Slow')
folder = Path('exps/a/666')

code = """import sys, time
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.folder import train_unlocked
from cifar_fastai.runs.train import train
before,skew = float(sys.argv[1]),time.time
time.time = lambda: skew()+before # the clock of another machine
def run(exps): train(RunConfig(**%r), 'a', exps=exps, resume=True, device='cpu', bar=False)
print('left', train_unlocked(['exps'], run, 0.2), flush=True)""" % vars(cfg)

def process(skew=0, **env):
    Path('slow.py').write_text(slow)
    return subprocess.Popen([sys.executable, '-c', code, str(skew)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | dict(CIFAR_FASTAI_LEASE=str(minutes)) | env)

@contextmanager
def owner(**kwargs):
    'A process that has trained an epoch, and continues slowly'
    p = process(SLOW='0.2', **kwargs)
    try:
        wait_for(lambda: p.poll() is not None or (folder/'last.safetensors').exists(), 'it does not train')
        assert p.poll() is None and RunFolder(folder).progress()<(cfg.epochs, 0)
        yield p
    finally:
        p.kill() # also if it is suspended
        p.wait()

def result(p, timeout=120):
    out,err = p.communicate(timeout=timeout)
    assert p.returncode==0, err
    return out.strip()

def elsewhere_host():
    'The marker says another host, where nobody can see whether a process lives'
    p = folder/'.lease'
    stat,text = p.stat(),p.read_text()
    lines = ['host=another' if o.startswith('host=') else o for o in text.splitlines()]
    with open(p, 'r+') as f: f.write('\n'.join(lines).ljust(len(text)-1)+'\n')
    os.utime(p, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert 'host=another' in p.read_text()

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    'The run by one process, without a lease'
    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp('whole'))
    try:
        Path('slow.py').write_text(slow)
        return state(train(cfg, 'a', device='cpu', bar=False).parents[1])
    finally: os.chdir(here)

def assert_whole(whole):
    assert {k:v for k,v in state('exps').items() if '.tmp' not in k}=={k:v for k,v in whole.items() if '.lock' not in k}

def test_setting(monkeypatch):
    assert lease_minutes() is None
    with run_lease(10):
        assert lease_minutes()==10
        with run_lease(None): assert lease_minutes()==10
    assert 'CIFAR_FASTAI_LEASE' not in os.environ
    for bad in ('x', '0', '-1', 'nan', '1e9'):
        monkeypatch.setenv('CIFAR_FASTAI_LEASE', bad)
        with pytest.raises(UserError, match='lease|LEASE'): lease_minutes()

def test_nothing_is_left():
    'A lease that was released leaves no file, and a folder that was created for nothing goes'
    f = RunFolder('exps/a/1')
    with run_lease(1), f.lock(): assert [o.name for o in f.path.iterdir()]==['.lease']
    assert not Path('exps').exists()

def test_locks_and_leases():
    'A process with a lease and one with a file lock see one another'
    f = RunFolder('exps/a/1')
    with f.lock():
        with run_lease(1), pytest.raises(RunLocked): f.lock().__enter__()
        assert not (f.path/'.lease').exists()
    with run_lease(1), f.lock():
        os.environ.pop('CIFAR_FASTAI_LEASE')
        with pytest.raises(RunLocked, match='give --lease'): f.lock().__enter__()
        os.environ['CIFAR_FASTAI_LEASE'] = '2'
        with pytest.raises(UserError, match='same --lease'): f.lock().__enter__()
        os.environ['CIFAR_FASTAI_LEASE'] = '1'

@pytest.mark.parametrize('lease', [None, 1])
def test_a_folder_that_vanishes(lease, monkeypatch):
    'A process that ends without a run removes its folder, which may happen while another one asks for the lock'
    def vanished(*args, **kwargs): raise FileNotFoundError(2, 'No such file or directory')
    monkeypatch.setattr(f"cifar_fastai.runs.folder.{'SoftFileLease' if lease else 'FileLock'}.acquire", vanished)
    with run_lease(lease), pytest.raises(RunLocked): RunFolder('exps/a/1').lock().__enter__()

@pytest.mark.parametrize('kind', ['folder', 'link', 'fifo'])
def test_a_marker_that_is_no_file(kind):
    f = RunFolder('exps/a/1')
    f.path.mkdir(parents=True)
    p = f.path/'.lease'
    dict(folder=p.mkdir, link=lambda: p.symlink_to('nowhere'), fifo=lambda: os.mkfifo(p))[kind]()
    with run_lease(1), pytest.raises(UserError, match='is not a regular file'): f.lock().__enter__()

many = """import os, sys, time
from cifar_fastai.runs.folder import RunFolder, RunLocked
f,n = RunFolder('exps/a/1'),0
while n<20:
    try:
        with f.lock():
            os.close(os.open('alone', os.O_CREAT|os.O_EXCL))
            time.sleep(0.01)
            os.unlink('alone')
            n += 1
    except RunLocked: time.sleep(0.01)"""

def test_one_at_a_time():
    env = os.environ | dict(CIFAR_FASTAI_LEASE='0.5')
    ps = [subprocess.Popen([sys.executable, '-c', many], stderr=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    for p in ps:
        err = p.communicate(timeout=100)[1]
        assert p.returncode==0, err

@pytest.mark.parametrize('skew', [0, *(pytest.param(o, marks=pytest.mark.slow) for o in (-86_400, 86_400))])
def test_killed_owner(whole, skew):
    'On the same host it is replaced at once; on another one after the duration of a lease, whatever the clocks say'
    with owner() as p:
        p.kill()
        p.wait()
        (folder/'.tmp-0123').write_text('half')
        if skew: elsewhere_host()
        start = time.monotonic()
        assert result(process(skew))=='left []'
        assert not skew or time.monotonic()-start>seconds
    assert (folder/'.tmp-0123').read_text()=='half', 'it may belong to a process that is suspended'
    assert not (folder/'.lease').exists()
    assert_whole(whole)

def test_suspended_owner(whole):
    'It is replaced; when it wakes up, it writes nothing and ends'
    with owner() as p:
        p.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        assert result(process())=='left []' and time.monotonic()-start>seconds
        assert_whole(whole)
        before = {o.name:o.stat().st_mtime_ns for o in folder.iterdir()}
        p.send_signal(signal.SIGCONT)
        assert result(p)=='left []', 'it sees that the other process has finished the run'
    assert {o.name:o.stat().st_mtime_ns for o in folder.iterdir()}==before
    assert_whole(whole)

@pytest.mark.slow
def test_it_wakes_up_in_the_middle(whole):
    'The old owner ends while the new one trains, and the new one is not disturbed'
    with owner() as p:
        p.send_signal(signal.SIGSTOP)
        new = process(SLOW='0.4')
        wait_for(lambda: str(new.pid) in (folder/'.lease').read_text(), 'it is not taken over')
        p.send_signal(signal.SIGCONT)
        assert result(p).startswith('left')
        assert result(new)=='left []'
    assert_whole(whole)

@pytest.mark.slow
def test_late_renewals(whole):
    'Pauses shorter than the duration of a lease cost nothing, and a process with another clock takes nothing away'
    with owner() as p:
        others = [process(skew) for skew in (-86_400, 86_400)]
        while p.poll() is None:
            p.send_signal(signal.SIGSTOP)
            time.sleep(0.5*seconds)
            p.send_signal(signal.SIGCONT)
            time.sleep(0.5*seconds)
        assert result(p)=='left []'
        for o in others: result(o)
    assert len(list(Path('starts').iterdir()))==1
    assert_whole(whole)
