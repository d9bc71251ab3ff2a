"A run that is killed again and again, at random moments and while it writes a checkpoint, ends as one that never was: the same files, bit for bit."
import json, os, random, shutil, signal, time
from contextlib import suppress
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from cifar_fastai.runs.folder import RunFolder
from test_run import as_the_checkpoint_has_it, check_whole, elsewhere, files, last, log, processes # chkstyle: ignore

flags = '--dataset digits --model lenet --fraction 0.1 --bs 16 --epochs 6 --sched onecycle --lr 0.05 --mixup --device cpu'.split()
folder = Path('exps/killed/666')
def unfinished():
    'What a kill leaves of a file that is being written'
    return list(folder.glob('.tmp*'))

def state(name):
    'All files of a run, apart from times'
    res = {o.name:o.read_bytes() for o in Path(f'exps/{name}/666').iterdir()}
    env = json.loads(res['environment.json'])
    env.pop('started')
    below = np.asarray(Image.open(f'exps/{name}/666/curves.png'))[30:].tobytes() # the title is the name of the run
    return res | {'environment.json':env, 'log.csv':log(name), 'curves.png':below, 'last.safetensors':as_the_checkpoint_has_it(last(name))}

def assert_same(name):
    a,b = state(name),state('whole')
    assert sorted(a)==sorted(b)==files
    for k in a: assert a[k]==b[k], k

def kill_at_random(pid, rng, took):
    time.sleep(rng.uniform(0, 0.8*took))
    with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)

def kill_at_write(pid, rng, took):
    'Kill as soon as a temporary file is there, after a few others, or at the latest after `took` seconds'
    before,writes,end = set(unfinished()),rng.randrange(8),time.time()+took
    while time.time()<end:
        new = set(unfinished())-before
        before |= new
        writes -= len(new)
        if writes<0: break
    with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)

@pytest.mark.parametrize('kills,tricks', [(3, 'EMA(0.9)'), pytest.param(51, 'EMA(0.9)', marks=pytest.mark.slow),
    pytest.param(20, 'SAM,EMA(0.9),Lookahead(k=3),RandomErasing,TrivialAugment', marks=pytest.mark.slow)])
def test_killed(processes, kills, tricks):
    'No file is corrupt, no epoch that a checkpoint had is lost, and nothing else is left'
    start,rng,argv = time.time(),random.Random(kills),[*flags, '--tricks', tricks]
    processes.start([*argv, '--name', 'whole'])
    assert processes.ended()==0
    took,killed,had,left,lives = time.time()-start,0,(0, 0),0,0
    while killed<kills:
        pid = processes.start([*argv, '--name', 'killed', '--resume'])
        (kill_at_write if killed%2 else kill_at_random)(pid, rng, took)
        if processes.ended()==0: # it was done before
            assert_same('killed')
            shutil.rmtree('exps/killed')
            had,lives = (0, 0),lives+1
            continue
        killed,left = killed+1,left+bool(unfinished())
        check_whole('killed')
        now = RunFolder(folder).progress() or (0, 0)
        assert now>=had
        had = now
    processes.start([*argv, '--name', 'killed', '--resume'])
    assert processes.ended()==0
    assert_same('killed')
    print(f'{kills} kills over {lives+1} runs of {took:.1f} s, {left} of them left a temporary file')
    assert kills<10 or left>kills//10, 'hardly any kill met a write'
