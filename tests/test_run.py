"Runs: what they leave, going on after a kill at any moment, full disks, two processes at once, files that are not what they should be."
import csv,errno,json,os,re,select,shutil,signal,subprocess,sys,time
from dataclasses import fields, replace
from pathlib import Path
import pytest, torch
from safetensors import safe_open
from fastai.callback.core import Callback
from cifar_fastai import serialize
from cifar_fastai.runs import train as run
from cifar_fastai.cli import cifar_train
from cifar_fastai.core import UserError
from cifar_fastai.runs.config import RunConfig, read_config, run_config
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.runs.train import RunPlan, count_passes, train

files = ['.lock', 'best.safetensors', 'config.yaml', 'curves.png', 'environment.json', 'last.safetensors', 'log.csv',
    'test.safetensors']
small = '--dataset digits --model toynet_s1_k3 --half --bs 32 --sched onecycle --lr 0.05 --mixup'.split()
timed = 'seconds', 'cpu_seconds', 'images_per_second', 'peak_memory_mib'

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    'Runs lie in a folder of their own'
    monkeypatch.chdir(tmp_path)

def log(name):
    'A log without the columns that differ from run to run'
    with open(f'exps/{name}/666/log.csv') as f:
        return [{k:v for k,v in r.items() if k not in timed} for r in csv.DictReader(f)]

def last(name): return Path(f'exps/{name}/666/last.safetensors')

def as_the_checkpoint_has_it(path):
    'A checkpoint without the columns of its log that differ from run to run'
    sd = serialize.load_tree(path)
    for r in sd['tricks']['RunLog/0']['rows']:
        for k in timed: r.pop(k)
    for v in sd['recorder']['values']: del v[-2:] # the monitors of time and memory
    sd['random']['rng'].pop('torch_deterministic') # what --deterministic sets
    tensors = {}
    return json.dumps(serialize._pack(sd, tensors)),[t.numpy().tobytes() for t in tensors.values()]

def assert_same_end(a, b):
    assert log(a)==log(b)
    assert as_the_checkpoint_has_it(last(a))==as_the_checkpoint_has_it(last(b))
    assert last(a).with_name('best.safetensors').read_bytes()==last(b).with_name('best.safetensors').read_bytes()

def refused(capsys, argv):
    'The sentence with which `argv` is refused'
    with pytest.raises(SystemExit) as e: cifar_train(argv=argv)
    err = capsys.readouterr().err
    assert e.value.code==2 and err.count('\n')==1 and 'Traceback' not in err
    return err

def contents(folder): return {o.name:o.read_bytes() for o in folder.iterdir() if o.is_file()}

def test_run(capsys):
    'A run leaves what it says, is not run twice, and its folder is refused to another'
    argv = small+['--epochs', '2', '--name', 'a']
    cifar_train(argv=argv+['--nw', '4', '--logger', 'tensorboard'])
    out,err = capsys.readouterr()
    assert 'exps/a/666/ contains log.csv' in out and '--nw is ignored' in err
    folder = Path('exps/a/666')
    assert sorted(o.name for o in folder.iterdir())==sorted([*files, 'tensorboard'])
    with open(folder/'log.csv') as f: rows = list(csv.DictReader(f))
    assert list(rows[0])=='epoch lr train_loss valid_loss accuracy top5 train_accuracy images_per_second peak_memory_mib seconds cpu_seconds steps forward_passes backward_passes'.split()
    assert [r['epoch'] for r in rows]==['0', '1'] and all(float(r['accuracy'])<=float(r['top5'])<=1 for r in rows)
    cfg,env = read_config(folder/'config.yaml'),json.loads((folder/'environment.json').read_text())
    assert cfg['tricks']==['MixUp()'] and cfg['row'] is None and run_config(cfg).epochs==2
    assert env['data']['train_images']==749 and env['data']['test_images']==299 and env['threads']==1 and env['torch']
    with safe_open(folder/'best.safetensors', 'pt') as f:
        assert all('weight' in k or 'bias' in k or 'num_batches' in k or 'running' in k for k in f.keys())
    for f in folder.glob('*.safetensors'): assert b'pickle' not in f.read_bytes()
    before = contents(folder)
    cifar_train(argv=argv)
    assert contents(folder)==before
    assert 'epochs is 2, not 3' in refused(capsys, small+['--epochs', '3', '--name', 'a'])

def test_same_bits_twice(capsys):
    'The same recipe, seed and machine give the same log and weights twice; another seed others'
    for name,more in dict(a=[], b=['--deterministic'], c=['--seed', '1']).items():
        cifar_train(argv=small+['--epochs', '2', '--name', name, '--cutout', '--autoaugmentation', *more])
    assert_same_end('a', 'b')
    assert log('a')!=[{k:v for k,v in r.items() if k not in timed} for r in csv.DictReader(open('exps/c/1/log.csv'))]
    import torch
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic

# a process that has everything imported forks one for each run
server = """
import os,signal,sys
signal.signal(signal.SIGINT, signal.default_int_handler) # a process started in the background ignores it
import cifar_fastai.runs.train,cifar_fastai.studies.experiments,cifar_fastai.zoo.plain,sklearn.datasets
from cifar_fastai.cli import cifar_train
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        sys.stdin.close()
        for o in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), o)
        cwd,*argv = line.split()
        os.chdir(cwd)
        cifar_train(argv=argv)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
class Server:
    'Starts runs as processes of their own'
    def __init__(self):
        self.p = subprocess.Popen([sys.executable, '-c', server], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
    def start(self, argv):
        self.p.stdin.write(' '.join([os.getcwd(), *argv])+'\n')
        self.p.stdin.flush()
        return self._number(60)
    def ended(self): return self._number(240)
    def _number(self, seconds):
        assert select.select([self.p.stdout], [], [], seconds)[0], f'nothing after {seconds} s'
        return int(self.p.stdout.readline())

def wait_for(path, seconds=120):
    start = time.time()
    while not Path(path).exists():
        assert time.time()-start<seconds, f'no {path} after {seconds} s'
        time.sleep(0.02)

@pytest.fixture(scope='module')
def processes():
    s = Server()
    yield s
    s.p.kill()

def check_whole(name):
    'Every file that is there is whole'
    folder = Path(f'exps/{name}/666')
    if (folder/'config.yaml').exists(): assert 'MixUp()' in read_config(folder/'config.yaml')['tricks']
    if (folder/'environment.json').exists(): json.loads((folder/'environment.json').read_text())
    if (folder/'log.csv').exists(): RunFolder(folder).log()
    for o in folder.glob('*.safetensors'):
        with safe_open(o, 'pt') as f: assert all(f.get_tensor(k) is not None for k in f.keys())

@pytest.mark.parametrize('signum', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_told_to_end(processes, signum):
    'SIGTERM, or Ctrl-C, saves after the batch, and a resume goes on from it bit for bit'
    argv = small+['--epochs', '4', '--bs', '8']
    pid = processes.start(argv+['--name', 'told'])
    wait_for(last('told'))
    os.kill(pid, signum)
    assert processes.ended()==128+signum
    at = serialize.load_tree(last('told'), ['epoch', 'iter'])
    assert 1<=at['epoch']<4
    cifar_train(argv=argv+['--name', 'told', '--resume'])
    cifar_train(argv=argv+['--name', 'whole'])
    assert_same_end('told', 'whole')

def test_told_to_end_at_the_end(monkeypatch):
    'Ctrl-C in the last epoch leaves a finished run and is passed on: a sweep must not go on with the next run'
    class Press(Callback):
        order = 79
        def after_epoch(self):
            if self.epoch+1==self.n_epoch: signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(run, 'run_monitors', lambda row=None: [Press()])
    with pytest.raises(SystemExit, match='130'): cifar_train(argv=small+['--epochs', '2', '--name', 'a'])
    assert RunFolder(last('a').parent).progress()==(2, 0)

def test_killed_after_the_last_checkpoint(capsys, monkeypatch):
    'A run that ended with its last checkpoint lacks nothing'
    from cifar_fastai.runs import checkpoint
    real = checkpoint.save_tree
    def save_and_end(path, tree):
        real(path, tree)
        if tree['epoch']==2: raise KeyboardInterrupt
    monkeypatch.setattr(checkpoint, 'save_tree', save_and_end)
    monkeypatch.setattr(run.RunLog, 'after_cancel_fit', lambda self: None)
    argv = small+['--epochs', '2', '--name', 'a']
    with pytest.raises(SystemExit, match='130'): cifar_train(argv=argv)
    before = contents(last('a').parent)
    assert sorted(before)==files and len(log('a'))==2
    cifar_train(argv=argv)
    assert contents(last('a').parent)==before

def test_told_what_happened(capsys, monkeypatch):
    'A run that is told to end says where it stands and how to go on; without --resume it is refused'
    from cifar_fastai.runs.checkpoint import Checkpoint
    def told(self):
        if self.training and (self.epoch,self.iter)==(1,3): os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(Checkpoint, 'before_batch', told, raising=False)
    argv = small+['--epochs', '3', '--name', 'a']
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as e: cifar_train(argv=argv)
    assert e.value.code==143 and 'was interrupted (SIGTERM) after 1 of 3 epochs and 4 batches, and its state is saved: resume it with --resume True' in capsys.readouterr().err
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]==handlers
    assert 'interrupted after 1 of 3 epochs and 4 batches: resume it with --resume True' in refused(capsys, argv)

def test_disk_full(capsys, monkeypatch):
    'The run stops with one sentence, the checkpoint before is whole, and with room again it goes on to the same end'
    argv = small+['--epochs', '4', '--name']
    cifar_train(argv=argv+['whole'])
    real,room,kept = os.fsync,[10],{}
    def fsync(fd):
        room[0] -= 1
        if room[0]<0:
            kept.update(kept or contents(Path('exps/full/666')))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)
    monkeypatch.setattr(os, 'fsync', fsync)
    capsys.readouterr()
    assert 'could not be written; an existing file is unchanged (No space left on device)' in refused(capsys,
        argv+['full'])
    monkeypatch.setattr(os, 'fsync', real)
    check_whole('full')
    assert contents(Path('exps/full/666'))=={k:v for k,v in kept.items()
        if not k.startswith('.tmp')} and last('full').exists()
    cifar_train(argv=argv+['full', '--resume'])
    assert_same_end('full', 'whole')

@pytest.mark.parametrize('n,what', [(2, 'best'), (4, 'last')])
def test_disk_full_under_the_writer(capsys, monkeypatch, n, what):
    'The same where the operating system refuses to go on writing tensors: in the second epoch, in either file'
    resource = pytest.importorskip('resource')
    real,seen,soft = serialize.save_file,[],resource.getrlimit(resource.RLIMIT_FSIZE)
    def save_file(tensors, path, *args):
        seen.append({o.name:o.read_bytes() for o in Path(path).parent.iterdir() if o.suffix=='.safetensors'})
        if len(seen)>n: resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, soft[1]))
        real(tensors, path, *args)
    monkeypatch.setattr(serialize, 'save_file', save_file)
    try: err = refused(capsys, small+['--epochs', '3', '--name', 'a'])
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert f'{what}.safetensors could not be written' in err and 'File too large' in err and 'an existing file is unchanged' in err
    assert {o.name:o.read_bytes()
        for o in last('a').parent.glob('*.safetensors')}==seen[-1] and not list(last('a').parent.glob('.tmp*'))
    monkeypatch.setattr(serialize, 'save_file', real)
    cifar_train(argv=small+['--epochs', '3', '--name', 'a', '--resume'])
    cifar_train(argv=small+['--epochs', '3', '--name', 'whole'])
    assert_same_end('a', 'whole')

def test_two_processes(capsys, processes):
    'The second is told so, and leaves the run alone'
    argv = small+['--epochs', '40', '--bs', '8', '--name', 'a']
    pid = processes.start(argv)
    wait_for('exps/a/666/log.csv')
    assert 'is being trained by another process: wait for it to finish' in refused(capsys, argv+['--resume'])
    os.kill(pid, signal.SIGKILL)
    assert processes.ended()==-9
    check_whole('a')

@pytest.mark.parametrize('name', ['config.yaml', 'last.safetensors'])
@pytest.mark.parametrize('spoil',
    [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'\x80\x04no such thing', lambda b: b[:40]+b'\xff'*40+b[80:]])
def test_spoilt_files(capsys, spoil, name):
    'A file that is not what it should be is told in one sentence, and nothing is written over'
    argv = small+['--epochs', '1', '--fraction', '0.1', '--name', 'a']
    argv.remove('--half')
    cifar_train(argv=argv)
    capsys.readouterr()
    f = Path('exps/a/666')/name
    f.write_bytes(spoil(f.read_bytes()))
    before = contents(f.parent)
    assert f.name in refused(capsys, argv+['--resume']) or name=='config.yaml'
    assert contents(f.parent)==before

def test_foreign_checkpoint(capsys):
    'The checkpoint of another network, or with other tricks, is refused, and kept'
    for n,more in dict(a=['--model', 'resnet20'], b=['--tricks', 'EMA(0.9)'], c=[]).items():
        cifar_train(argv=[o for o in small if o!='--half']+['--fraction', '0.1', '--epochs', '2', '--name', n, *more])
    capsys.readouterr()
    for other,says in dict(a='the weights of another network', b='was made with the tricks').items():
        shutil.copy(last(other), last('c'))
        sd = serialize.load_tree(last('c'))
        serialize.save_tree(last('c'), sd | dict(epoch=1, finished=False))
        before = contents(last('c').parent)
        assert says in refused(capsys,
            [o for o in small if o!='--half']+['--fraction', '0.1', '--epochs', '2', '--name', 'c', '--resume'])
        assert contents(last('c').parent)==before

def test_missing_extra(capsys, monkeypatch):
    'A package that is not there is named before anything starts'
    for name,module in dict(tensorboard='torch.utils.tensorboard', wandb='wandb').items():
        monkeypatch.setitem(sys.modules, module, None)
        assert f"pip install 'cifar_fastai[{name}]'" in refused(capsys, small+['--logger', name])
    assert "did you mean 'wandb'" in refused(capsys, small+['--logger', 'wand'])
    assert not list(Path().iterdir())

def test_no_room(monkeypatch):
    'A row that needs more memory than there is says so before it starts'
    monkeypatch.setattr(run, 'available_memory', lambda device: 2**20)
    with pytest.raises(UserError, match='GiB or more.*try a smaller --bs'): train(RunConfig('resnet20', 'digits'))
    assert not list(Path().iterdir())

@pytest.mark.slow
def test_a_checkpoint_costs_little(tmp_path):
    'Under 2% of an epoch of ResNet-18 over 50,000 images, by what one batch takes'
    from cifar_fastai.runs.checkpoint import learner_state
    from cifar_fastai.runs.train import RunPlan
    learn = RunPlan(RunConfig('resnet18', 'digits', fraction=0.1)).learner()
    def seconds(f, n=3):
        times = []
        for _ in range(n):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter()-start)
        return sorted(times)[n//2]
    with learn.no_bar(), learn.no_logging(): epoch = seconds(lambda: learn.fit(1))*50_000/len(learn.dls.train_ds)
    save = seconds(lambda: serialize.save_tree(tmp_path/'last.safetensors', learner_state(learn)))
    assert save < 0.02*epoch, f'{save:.2f} s of {epoch:.0f}'

def test_a_trick_that_draws_when_it_is_created(monkeypatch):
    'What it draws follows from the seed of the run, and creating it moves no generator'
    Path('drawing.py').write_text('import torch\nfrom fastai.callback.core import Callback\n'
        'class Draws(Callback):\n    def __init__(self): self.by = torch.rand(1).item()\n')
    monkeypatch.syspath_prepend('.')
    def drawn(seed): return RunPlan(RunConfig('lenet', 'digits', seed=seed, tricks='drawing:Draws()')).tricks[0].by
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = drawn(1)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(5)
    assert a==drawn(1)!=drawn(2)

def test_passes():
    'Forward passes per step, as in the log of a run'
    want = {'SAM()':2, 'SAM(every=2)':1.5, 'ASAM(start=0.5)':1.5, 'LookSAM(k=4)':1.25, 'MixUp()':1, 'EMA() SAM(every=4, end=0.5)':1.125}
    for k,v in want.items():
        cfg = RunConfig('lenet', 'digits', epochs=2, bs=32, fraction=0.07, tricks=k, schedule='cosine', threads=1)
        assert count_passes(cfg)==v
        rows = RunFolder(train(cfg, re.sub(r'\W', '', k), device='cpu', bar=False)).log()
        assert sum(r['forward_passes'] for r in rows)/sum(r['steps'] for r in rows)==pytest.approx(v, abs=0.15)

def test_default_names():
    'Every setting that can change a result is in the name; the defaults are not; numbers have one spelling'
    plain = RunConfig('lenet', 'digits')
    assert plain.name=='lenet_digits_multistep'==RunConfig('lenet', 'digits', seed=3, threads=2).name
    other = dict(model='resnet20', dataset='cifar10', epochs=3, bs=64, lr=0.05, tricks='MixUp()', optimizer='sgd(momentum=0.8)', schedule='cosine',
        wd=1e-3, wd_bn_bias=False, loss='CrossEntropy(smoothing=0.1)', init='kaiming_normal', fraction=0.5, subset='fixed', drop_last=True,
        size=64, label_noise=0.1, valid='holdout', valid_every=2, precision='bf16', compile=True, tta='flip')
    assert {*other, 'seed', 'threads'}=={f.name for f in fields(RunConfig)}
    names = {k:replace(plain, **{k:v}).name for k,v in other.items()}
    assert len({plain.name, *names.values()})==len(other)+1, names
    assert names['lr']=='lenet_digits_multistep_lr0.05' and names['epochs']=='lenet_digits_multistep_epochs3'
    assert RunConfig('lenet', 'digits', optimizer='adamw').name=='lenet_digits_multistep_adamw'
    a = RunConfig('lenet', 'digits', bs=64, lr=0.1+0.2, wd=1e-5, tricks='SAM(rho=0.30000000000000004) GradientClip(3.0) AGC(clip=1e-5)').name
    assert a=='lenet_digits_multistep_bs64_lr0.3_wd1e-05_AGC-clip-1e-05_GradientClip-max_norm-3_SAM-rho-0.3'
    assert len(RunConfig(tricks=40*'EMA(0.1) ').name)==150!=RunConfig(tricks=41*'EMA(0.1) ').name

def test_another_setting_is_another_run():
    'Two commands that differ in one setting have two folders'
    for argv in ([], ['--lr', '0.02'], ['--bs', '64'], ['--epochs', '2']):
        cifar_train(argv='--dataset digits --model toynet_s1_k3 --fraction 0.05 --epochs 1 --bs 32 --sched onecycle --device cpu'.split()+argv)
    assert len(list(Path('exps').iterdir()))==4
