'Launchers: the same runs, bit for bit, from processes of this machine, tasks of Ray and a job array of Slurm, whatever happens to them'
import csv, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from cifar_fastai import serialize
from cifar_fastai.cli import cifar_reproduce, cifar_study
from cifar_fastai.core import UserError
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.studies.cluster import LauncherOptions, RayLauncher, run_task
from cifar_fastai.studies.experiments import JobProgress, plan, reproduce, row_tasks, select_experiments
from cifar_fastai.studies.study import create_arms, open_study, read_study, run_study, study_tasks

flags = '--dataset digits --model lenet --fraction 0.1 --bs 32 --lr 0.05 --schedule onecycle --device cpu --seeds 2 --name s'.split()
base = RunConfig(model='lenet', dataset='digits', fraction=0.1, bs=32, epochs=2, valid_every=2, threads=1, lr=0.05,
    schedule='onecycle')
timed = 'seconds', 'cpu_seconds', 'images_per_second', 'peak_memory_mib'

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

def tree(path):
    'A checkpoint without what differs from run to run'
    sd,tensors = serialize.load_tree(path),{}
    for r in sd['tricks']['RunLog/0']['rows']:
        for k in timed: r.pop(k)
    for v in sd['recorder']['values']: del v[-2:] # the monitors of time and memory
    return json.dumps(serialize._pack(sd, tensors)),[t.numpy().tobytes() for t in tensors.values()]

def log(path):
    with open(path) as f: return [{k:v for k,v in r.items() if k not in timed} for r in csv.DictReader(f)]

def contents(p):
    if p.name=='log.csv': return log(p)
    if p.name=='last.safetensors': return tree(p)
    if p.name=='environment.json': return {k:v for k,v in json.loads(p.read_text()).items() if k!='started'}
    return p.read_bytes()

def state(folder):
    'All files of the runs in a folder, apart from times'
    folder = Path(folder)
    return {str(p.relative_to(folder)):contents(p) for p in folder.rglob('*')
        if p.is_file() and p.parent.name.isdigit() and p.suffix!='.png'}

def assert_same(a, b):
    a,b = state(a),state(b)
    assert a and sorted(a)==sorted(b)
    assert not [k for k in a if a[k]!=b[k]]

# a callback that says when a run starts and makes its batches last, without an effect on the result
slow = """import os, time
from pathlib import Path
from fastai.callback.core import Callback
class Slow(Callback):
    def before_fit(self):
        Path('starts').mkdir(exist_ok=True)
        Path(f'starts/{os.getpid()}-{time.time_ns()}').write_text(str(self.learn.path))
    def after_batch(self):
        if self.training and not Path('fast').exists(): time.sleep(float(os.environ.get('SLOW', 0)))
"""

def starts():
    'Folder of a run -> how often it was started'
    found = [o.read_text() for o in Path('starts').glob('*')]
    return {o:found.count(o) for o in found}

def command(name, *argv, folder='.', **env):
    'A command as a process of its own'
    Path(folder).mkdir(exist_ok=True)
    (Path(folder)/'slow.py').write_text(slow)
    return subprocess.Popen([sys.executable, '-c', f'from cifar_fastai.cli import {name}; {name}()', *argv], cwd=folder,
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def study(*argv, **kwargs): return command('cifar_study', 'MixUp(0.2)', '--tricks', 'slow:Slow', *flags, *argv, **kwargs)

def ended(p, code=0, timeout=500):
    out,err = p.communicate(timeout=timeout)
    assert p.returncode==code, out+err
    return out

def wait_for(f, what, seconds=100):
    end = time.time()+seconds
    while not f():
        assert time.time()<end, what
        time.sleep(0.1)

# options

@pytest.mark.parametrize('name,kwargs,said', [('rey', {}, "did you mean 'ray'"), ('local', dict(num_cpus=2), 'does not take --num-cpus'),
    ('ray', dict(slurm='--time=1'), 'does not take --slurm'), ('ray', dict(workers=2), 'does not take --workers'),
    ('slurm', dict(num_gpus=1.), 'ask for GPUs with --slurm'), ('slurm', dict(ray_address='x'), 'does not take --ray-address'),
    ('slurm', dict(device='cuda'), 'it can only be cpu'), ('slurm', dict(slurm='time=1'), 'must be options of sbatch'),
    ('slurm', dict(slurm='--time=1\nrm x'), 'must be options of sbatch')])
def test_refused(name, kwargs, said):
    own = {k:kwargs.pop(k) for k in ('device', 'workers') if k in kwargs}
    with pytest.raises(UserError) as e: LauncherOptions(name, **kwargs).create(**own)
    assert said in str(e.value)

def test_shares():
    'Without --num-cpus a run has a CPU per thread; a launcher on the CPU asks for no GPU'
    ray = LauncherOptions('ray').create('cpu', 2)
    assert (ray.num_cpus, ray.num_gpus)==(2, 0) and LauncherOptions('ray').create().num_gpus is None
    assert LauncherOptions('ray', num_gpus=0.25).create('cpu').num_gpus==0.25
    assert LauncherOptions('slurm').create(threads=3).num_cpus==3
    assert LauncherOptions('slurm', num_cpus=2).create(threads=3).num_cpus==2

def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(UserError, match=r'pip install "cifar_fastai\[ray\]"'): RayLauncher().run([1])
    assert RayLauncher().run([])=={}

# tasks

def test_tasks_of_a_study():
    'The missing runs, each after its teacher; they give what the study gives in one process'
    arms = create_arms(["KD('toynet_s1_k3')", 'MixUp(0.2)'], base)
    run_study(open_study('local/s', arms, [0, 1]), device='cpu', bar=False)
    s = open_study('s', arms, [0, 1])
    tasks = study_tasks(s, device='cpu')
    assert len(tasks)==8 and [t.name for t in tasks if t.after is not None]==[f"KD('toynet_s1_k3') seed {s}" for s in (0, 1)]
    assert all(tasks[t.after].name==f'model=toynet_s1_k3 seed {t.name[-1]}' for t in tasks if t.after is not None)
    for t in json.loads(json.dumps([t.call for t in reversed(tasks)])): assert run_task(**t)=='' # in any order
    a,b = state('local/s'),state('s')
    own = [f'runs/{arms[1].folder}/{k}/config.yaml' for k in (0, 1)] # the path of the teacher
    for k in own: assert a[k]==b[k].replace(b"path=''s/", b"path=''local/s/")
    assert len(a)>40 and sorted(a)==sorted(b) and not [k for k in a if a[k]!=b[k] and k not in own]
    assert study_tasks(s)==[]
    before = {p:p.stat().st_mtime_ns for p in Path('s').rglob('*')}
    assert run_task(**tasks[0].call)=='' and run_task(**tasks[-1].call)==''
    assert {p:p.stat().st_mtime_ns for p in Path('s').rglob('*')}==before

def test_tasks_of_rows():
    kw = dict(dataset='digits', model='toynet_s1_k3', epochs=1, fraction=0.1, bs=64, threads=1)
    cifar_reproduce(argv=[*'--table 3.5 --exps a --device cpu'.split(), *(f'--{k}={v}' for k,v in kw.items())])
    jobs = plan(select_experiments('3.5'), 1, 'b', **kw)
    for t in json.loads(json.dumps([t.call for t in row_tasks(jobs, 'b', device='cpu')])): assert run_task(**t)==''
    a,b = state('a'),state('b')
    assert len(a)>20 and a==b and row_tasks(plan(select_experiments('3.5'), 1, 'b', **kw), 'b')==[]
    assert RunFolder(next(Path('b').glob('*/0'))).settings()['threads']==1

class Here:
    'A launcher that runs its tasks one after another in this process'
    def run(self, tasks, folder=None, done=None, waiting=None):
        for t in tasks:
            waiting()
            done(t, run_task(**t.call))
        return {}

def test_progress_of_a_launcher(capsys):
    'The progress of a launcher is read from the folders of the runs'
    jobs = plan(select_experiments('3.5'), 1, 'a', dataset='digits', model='toynet_s1_k3', epochs=1, fraction=0.1, bs=64, threads=1)
    assert reproduce(jobs, 'a', device='cpu', progress=JobProgress('a', jobs), launcher=Here())=={}
    out,err = capsys.readouterr()
    assert [o.split(':')[0] for o in out.splitlines() if 'accuracy' in o]==[j.name for j in jobs]
    assert [o.split(',')[0] for o in err.splitlines()]==[f'a: {i} of 4 runs finished' for i in range(4)]

def test_a_failing_task():
    s = open_study('s', create_arms(['MixUp(0.2)'], base), [0])
    t = study_tasks(s, device='cpu')[0]
    Path('s/runs').write_text('')
    assert 'is not a folder' in run_task(**t.call)

def test_a_locked_task():
    'It waits for the other process, and does not train again what that has finished'
    s = open_study('s', create_arms(['MixUp(0.2)'], base), [0])
    t,folder = study_tasks(s, device='cpu')[0],s.run_folder(s.arms[0], 0)
    code = f'from cifar_fastai.studies.cluster import run_task; assert run_task(**{t.call!r}, seconds=0.1)==""; print("end")'
    with folder.lock():
        p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
        time.sleep(8)
        assert p.poll() is None and not folder.has('last.safetensors')
    assert p.communicate(timeout=60)[0]=='end\n' and s.is_done(s.arms[0], 0)

# the job script

def test_script_of_a_study(capsys):
    'Options of the user come last; the file says which runs are missing; afterwards the same command writes the report'
    argv = ['MixUp(0.2)', *flags, '--epochs=1', '--launcher=slurm', '--slurm', '--time=10:00', '--num-cpus=2']
    cifar_study(argv=argv)
    assert '4 runs to submit: sbatch studies/s/slurm.sh' in capsys.readouterr().out
    lines = Path('studies/s/slurm.sh').read_text().splitlines()
    options = [o for o in lines if o.startswith('#SBATCH')]
    assert options[-1]=='#SBATCH --time=10:00' and '#SBATCH --array=0-3' in options and '#SBATCH --cpus-per-task=2' in options
    assert '#SBATCH --signal=B:USR1@300' in options and lines[0]=='#!/bin/bash'
    s = [json.loads(o[1:-1]) for o in lines if o.startswith("'{")]
    assert len(s)==4 and json.loads(Path('studies/s/study.json').read_text())['protocol']['threads']==2
    for o in s[:3]: assert run_task(**o)==''
    cifar_study(argv=argv)
    assert '1 run to submit' in capsys.readouterr().out
    assert run_task(**s[3])==''
    cifar_study(argv=argv)
    assert 'MixUp(0.2)' in capsys.readouterr().out and Path('studies/s/report.html').exists()

def test_tuning_by_script(capsys):
    'The runs of tuning come first'
    argv = ['MixUp(0.2)', *flags, '--epochs=1', '--launcher=slurm', '--tune', 'lr=0.01,0.05', '--tune-seeds=1']
    counts = []
    for _ in range(2):
        cifar_study(argv=argv)
        script = Path(capsys.readouterr().out.split('sbatch ')[1].split('\n')[0])
        calls = [json.loads(o[1:-1]) for o in script.read_text().splitlines() if o.startswith("'{")]
        counts.append((str(script), len(calls)))
        for o in calls: assert run_task(**o)==''
    assert counts==[('studies/s/tuning/slurm.sh', 4), ('studies/s/slurm.sh', 4)]
    cifar_study(argv=argv)
    assert read_study('studies/s').tuning['runs']==4 and 'and the 4 runs' in capsys.readouterr().out

def element(script, **env):
    'The process of the first element of a job array, with a `scontrol` that writes down what it is asked'
    Path('bin').mkdir(exist_ok=True)
    Path('bin/scontrol').write_text('#!/bin/sh\necho "$@" >> requeued\n')
    Path('bin/scontrol').chmod(0o755)
    env = os.environ | dict(PATH=f"{Path('bin').resolve()}:{os.environ['PATH']}", SLURM_ARRAY_JOB_ID='7', SLURM_ARRAY_TASK_ID='0') | env
    return subprocess.Popen(['bash', script], env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

@pytest.mark.skipif(not shutil.which('bash'), reason='there is no bash')
def test_signals_to_the_script():
    'The state is saved before the time limit, and the element requeued, and after scancel; it resumes bit for bit'
    ended(study('--epochs=8', folder='local'))
    ended(study('--epochs=8', '--launcher=slurm', '--seeds=1'))
    script = 'studies/s/slurm.sh'
    for number,requeued in (signal.SIGUSR1, True),(signal.SIGTERM, False):
        Path('requeued').unlink(missing_ok=True)
        shutil.rmtree('starts', ignore_errors=True)
        p = element(script, SLOW='0.3')
        wait_for(starts, 'no run starts')
        time.sleep(0.5)
        if number==signal.SIGTERM: os.killpg(p.pid, number) # scancel signals all processes
        else: p.send_signal(number)
        out,err = p.communicate(timeout=60)
        assert p.returncode==143 and 'was interrupted (SIGTERM)' in err, err
        assert Path('requeued').exists()==requeued
        if requeued: assert Path('requeued').read_text()=='requeue 7_0\n'
    assert RunFolder('studies/s/runs/baseline/0').progress()>(0, 0)
    Path('requeued').unlink(missing_ok=True)
    p = element(script)
    assert p.communicate(timeout=60) and p.returncode==0 and not Path('requeued').exists()
    a,b = state('local/studies/s/runs/baseline'),state('studies/s/runs/baseline')
    assert b and {k:v for k,v in a.items() if k[0]=='0'}==b

# Ray

epochs = '--epochs=30'

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    'The sweep by processes of this machine'
    folder = tmp_path_factory.mktemp('local')
    ended(study(epochs, folder=folder))
    return folder

@pytest.fixture
def ray_cluster(monkeypatch):
    'Two nodes of one CPU each'
    pytest.importorskip('ray', reason='ray is not installed')
    from ray.cluster_utils import Cluster
    monkeypatch.setenv('SLOW', '0.1') # of the workers, which have the environment of their node
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try: yield cluster,nodes
    finally: cluster.shutdown()

def two_saved(): return len(list(Path('studies').rglob('last.safetensors')))>=2

def finished(): return len(list(Path('studies/s/runs').glob('*/*/test.safetensors')))

@pytest.mark.slow
def test_a_lost_node(ray_cluster, whole):
    'A machine is lost in the middle: its run resumes on the other one, the report is complete, all runs are those of this machine'
    cluster,nodes = ray_cluster
    p = study(epochs, '--launcher=ray', '--ray-address', cluster.address)
    wait_for(lambda: p.poll() is not None or len(starts())>=2 and two_saved(), 'no two runs start')
    assert finished()<4
    cluster.remove_node(nodes[1], allow_graceful=False)
    out = ended(p)
    assert 'and the 4 runs' in out and sorted(starts().values())==[1, 1, 1, 2], starts()
    assert_same(whole/'studies', 'studies')
    assert {o.name for o in Path('studies/s').iterdir()}>={'report.html', 'study.csv', 'runs.csv', 'forest.png'}

@pytest.mark.slow
@pytest.mark.parametrize('number,code', [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_driver_that_is_stopped(ray_cluster, whole, number, code):
    'The same command resumes the sweep'
    cluster,_ = ray_cluster
    argv = epochs,'--launcher=ray','--ray-address',cluster.address
    p = study(*argv)
    wait_for(lambda: p.poll() is not None or two_saved(), 'no two runs start')
    p.send_signal(number)
    out,err = p.communicate(timeout=60)
    assert p.returncode==code and finished()<4, err
    if number!=signal.SIGKILL: assert 'the same command resumes it' in err, err
    assert 'and the 4 runs' in ended(study(*argv))
    assert_same(whole/'studies', 'studies')

@pytest.mark.slow
def test_rows_by_ray_on_this_machine():
    pytest.importorskip('ray', reason='ray is not installed')
    argv = '--table 3.5 --dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64 --device cpu --threads 1'.split()
    a = ended(command('cifar_reproduce', *argv, '--exps=a')).splitlines()
    b = ended(command('cifar_reproduce', *argv, '--exps=b', '--launcher=ray')).splitlines()
    assert len(b)==4 and sorted(o.split(';')[0] for o in a)==sorted(o.split(';')[0] for o in b)
    assert_same('a', 'b')
    assert ended(command('cifar_reproduce', *argv, '--exps=b', '--launcher=ray'))==''

@pytest.mark.slow
def test_a_failing_run_by_ray(whole):
    'It is reported, and not tried again; the others are trained'
    pytest.importorskip('ray', reason='ray is not installed')
    p = study(epochs, '--launcher=slurm')
    ended(p)
    Path('studies/s/runs').mkdir()
    Path('studies/s/runs/baseline').write_text('')
    out = ended(study(epochs, '--launcher=ray'), 1)
    assert out.count('failed: ')==2 and 'baseline seed 1 failed: ' in out and finished()==2, out

# Slurm

conf = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=5
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES State=UP
"""

def munge_auth(folder):
    'Command of a munged with a key and a socket of its own'
    (folder/'key').write_bytes(os.urandom(128))
    (folder/'key').chmod(0o400)
    files = {k:folder/f'munge.{k}' for k in ('socket', 'pid', 'log', 'seed')}
    return ['munged', '--foreground', '--force', f'--key-file={folder/"key"}', f'--socket={files["socket"]}',
        f'--pid-file={files["pid"]}', f'--log-file={files["log"]}', f'--seed-file={files["seed"]}']

@pytest.fixture
def slurm(monkeypatch):
    'One node of two CPUs; the services are children of this process'
    missing = [o for o in ('munged', 'slurmctld', 'slurmd', 'sbatch') if not shutil.which(o)]
    if missing or os.getuid(): pytest.skip(f"{missing[0]} is not installed" if missing else 'the services of Slurm run as root')
    import socket, tempfile
    folder = Path(tempfile.mkdtemp(prefix='slurm')) # a short path: that of a socket has at most 107 characters
    for o in ('state', 'spool'): (folder/o).mkdir()
    with socket.create_server(('127.0.0.1', 0)) as a, socket.create_server(('127.0.0.1', 0)) as b:
        ports,host = [o.getsockname()[1] for o in (a, b)],socket.gethostname().split('.')[0]
    (folder/'slurm.conf').write_text(conf.format(dir=folder, host=host, ports=ports))
    monkeypatch.setenv('SLURM_CONF', str(folder/'slurm.conf'))
    services = []
    def start(*argv):
        out = open(folder/f'{argv[0]}.out', 'w')
        services.append(subprocess.Popen(argv, stdout=out, stderr=out, cwd=folder))
    try:
        start(*munge_auth(folder))
        wait_for((folder/'munge.socket').exists, 'munged does not start')
        start('slurmctld', '-D')
        start('slurmd', '-D')
        wait_for(lambda: 'idle' in called('sinfo', '-h'), 'the node does not come up')
        yield folder
    finally:
        called('scancel', '--full', '--user=root')
        for p in reversed(services):
            p.terminate()
            p.wait(30)
        shutil.rmtree(folder)

def called(*argv): return subprocess.run(argv, capture_output=True, text=True).stdout

@pytest.mark.slow
def test_a_time_limit(slurm, whole):
    'Runs that exceed it get the signal, save their state, are requeued and resume; the end is that of this machine, bit for bit'
    limit = '--time=1 --signal=B:USR1@15'
    argv = epochs,'--seeds=1','--launcher=slurm','--slurm',limit
    ended(study(*argv))
    job = called('sbatch', '--parsable', '--export=ALL,SLOW=1', 'studies/s/slurm.sh').strip() # 150 s of training
    def outs(): return [o.read_text() for o in sorted(Path('studies/s').glob(f'slurm-{job}_*.out'))]
    wait_for(lambda: sum('was interrupted (SIGTERM)' in o for o in outs())==2, 'the runs are not interrupted', 300)
    Path('fast').touch()
    # Slurm starts a requeued job after two minutes
    wait_for(lambda: finished()==2 and not called('squeue', '-h'), 'the jobs do not end', 600)
    assert all(n>1 for n in starts().values()), starts()
    assert 'and the 2 runs' in ended(study(*argv))
    a,b = state(whole/'studies'),state('studies')
    assert b and {k:v for k,v in a.items() if '/0/' in k}==b

@pytest.mark.slow
def test_cancelled_jobs(slurm):
    'They save their state, and do not come back'
    ended(study(epochs, '--launcher=slurm', '--seeds=1'))
    job = called('sbatch', '--parsable', '--export=ALL,SLOW=0.5', 'studies/s/slurm.sh').strip()
    wait_for(lambda: len(starts())==2, 'no runs start')
    time.sleep(3)
    called('scancel', job)
    wait_for(lambda: not called('squeue', '-h'), 'the jobs do not end')
    outs = [o.read_text() for o in Path('studies/s').glob(f'slurm-{job}_*.out')]
    assert all('was interrupted (SIGTERM)' in o for o in outs) and sum(starts().values())==2, outs
