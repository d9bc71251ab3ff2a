'Files: outputs never damage anything, checkpoints reach the disk, a folder belongs to one run, and damaged files are reported in one sentence.'
import csv, json, os, re, shutil, socket, subprocess, sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from cifar_fastai import serialize
from cifar_fastai.runs import train as run
from cifar_fastai.data.datasets import datasets, digit_images
from cifar_fastai.data.loaders import cifar_dls
from cifar_fastai.cli import cifar_compare, cifar_train
from cifar_fastai.core import UserError
from conftest import time_limit
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.studies.compare import compare_runs
from cifar_fastai.studies.report import read_run, report_runs
from cifar_fastai.runs.train import train
from cifar_fastai.runs.export import export_run, load_run

posix = pytest.mark.skipif(os.name!='posix', reason='FIFOs and sockets are files on POSIX only')
config = RunConfig('toynet_s1_k3', 'digits', epochs=2, bs=32, fraction=0.1, lr=0.05, schedule='onecycle', seed=1)
flags = '--model toynet_s1_k3 --dataset digits --epochs 2 --bs 32 --fraction 0.1 --lr 0.05 --sched onecycle --seed 1'.split()

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    'Every test works in a folder of its own'
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.fixture(autouse=True, scope='module')
def digits():
    'The digits are made once'
    old,images = datasets['digits'],digit_images()
    datasets['digits'] = replace(old, make=lambda: images)
    yield
    datasets['digits'] = old

def small(name='small', exps='exps', **kw):
    'Train for a second'
    row,resume = kw.pop('row', '3.3/lenet'),kw.pop('resume', False)
    with redirect_stdout(StringIO()):
        return train(replace(config, **kw), name, exps=exps, device='cpu', row=row, resume=resume)

@pytest.fixture(scope='module')
def trained(tmp_path_factory): return small(exps=tmp_path_factory.mktemp('exps'))

@pytest.fixture
def finished(trained): return Path(shutil.copytree(trained, 'exps/small/1'))

@pytest.fixture
def interrupted(finished):
    'The same run, interrupted after its first epoch'
    serialize.save_tree(finished/'last.safetensors',
        serialize.load_tree(finished/'last.safetensors') | dict(epoch=1, finished=False))
    return finished

def refused(f, *words):
    'The one sentence that `f()` is refused with'
    with pytest.raises(UserError) as e: f()
    said = str(e.value)
    assert '\n' not in said and len(said)<600 and all(o in said for o in words), said
    return said

def tree_of(folder):
    'Every path below `folder` with its type, permissions and content'
    def state(p):
        st = p.lstat()
        return st.st_mode,os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
    return {o.relative_to(folder).as_posix():state(o) for o in sorted(Path(folder).rglob('*'))}

# -- outputs

def make_socket(p):
    with socket.socket(socket.AF_UNIX) as s: s.bind(str(p))

def make_device(p):
    try: os.mknod(p, 0o20600, os.makedev(1, 3))
    except PermissionError: pytest.skip('device nodes can be made by root only')

def link_to_file(p):
    Path('precious').write_text('precious')
    p.symlink_to('precious')

special = dict(folder=os.mkdir, link=link_to_file, dangling=lambda p: p.symlink_to('nowhere'))
if os.name=='posix': special |= dict(fifo=os.mkfifo, socket=make_socket, device=make_device)

def picture(out): cifar_compare('exps/small/1', 'exps/small/1', out)
def bench(out):
    from cifar_fastai.bench import save_bench
    save_bench(out, 'digits')
def text(out):
    with serialize.atomic_write(out, 'w') as f: f.write('new')
writers = dict(picture=picture, bench=bench, text=text)

@pytest.mark.parametrize('kind', special)
@pytest.mark.parametrize('writer', writers)
def test_only_regular_files_are_replaced(finished, writer, kind):
    special[kind](Path('out.png'))
    before = tree_of('.')
    refused(lambda: writers[writer]('out.png'), 'out.png')
    assert tree_of('.')==before

@pytest.mark.parametrize('name',
    ['config.yaml', 'environment.json', 'log.csv', 'curves.png', 'best.safetensors', 'last.safetensors', '.lock',
        'Config.YAML'])
@pytest.mark.parametrize('writer', writers)
def test_files_of_a_run_are_not_outputs(finished, writer, name):
    Path('scratch').symlink_to('exps/small')
    before = tree_of('.')
    for folder in ('exps/small/1', 'exps/../exps/small/1', 'scratch/1'):
        refused(lambda: writers[writer](f'{folder}/{name}'), name, 'belongs to a run')
    assert tree_of('.')==before
    writers[writer]('exps/small/1/mine.png')

@pytest.mark.parametrize('out', ['', '.', '..', 'a\0b', 'x'*300, 'file/out.png', 'gone/out.png', '\ud800'])
@pytest.mark.parametrize('writer', writers)
def test_places_that_cannot_be_written(finished, writer, out):
    Path('file').write_text('precious')
    Path('gone').symlink_to('nowhere')
    before = tree_of('.')
    refused(lambda: writers[writer](out))
    assert tree_of('.')==before

@pytest.mark.parametrize('kind', special)
@pytest.mark.parametrize('name', ['report.md', 'report.csv', 'report.png', 'report.html'])
def test_reports_replace_regular_files_only(finished, name, kind):
    rep = report_runs('exps')
    Path('out').mkdir()
    special[kind](Path('out')/name)
    before = tree_of('.')
    refused(lambda: rep.save('out'), name)
    assert tree_of('.')==before

@pytest.mark.parametrize('kind', ['fifo', 'socket', 'device', 'dangling'])
@posix
def test_exports_go_to_folders(finished, kind):
    special[kind](Path('out'))
    before = tree_of('.')
    with time_limit(): refused(lambda: export_run(finished, 'out'), 'out')
    assert tree_of('.')==before

def test_commands_refuse_before_they_work(finished, monkeypatch):
    'A bad --out is refused before the curve is computed, the runs compared or the benchmark begun'
    from cifar_fastai import bench,cli
    from cifar_fastai.studies import compare
    def no(*args, **kwargs): raise AssertionError('began')
    for mod,name in ((run.RunPlan, 'learner'), (compare, 'compare_runs'), (bench, 'epoch_cost')):
        monkeypatch.setattr(mod, name, no)
    for cmd in (lambda o: cli.cifar_lr_find(config, out=o), lambda o: cli.cifar_compare(finished, finished, o),
        lambda o: cli.cifar_bench(out=o)):
        refused(lambda: cmd('exps/small/1/log.csv'), 'belongs to a run')

def test_linked_folders_are_followed(finished):
    'Scratch disks are links'
    Path('disk').mkdir()
    Path('scratch').symlink_to('disk')
    text('scratch/a/out.txt')
    assert Path('disk/a/out.txt').read_text()=='new'
    Path('linked').symlink_to('disk', target_is_directory=True)
    folder = small(exps='linked/exps')
    assert Path('disk/exps/small/1/best.safetensors').exists() and read_run(folder).finished

def test_a_failed_write_leaves_nothing():
    Path('out').write_text('old')
    for e in (OSError(28, 'No space left on device'), KeyError('x'), KeyboardInterrupt()):
        with pytest.raises((UserError, KeyError, KeyboardInterrupt)), serialize.atomic_write('out', 'w') as f:
            f.write('half')
            raise e
    assert [o.name for o in Path().iterdir()]==['out'] and Path('out').read_text()=='old'

@posix
@pytest.mark.parametrize('umask,mode', [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_permissions_follow_the_umask(umask, mode):
    old = os.umask(umask)
    try:
        text('out')
        serialize.save_tensors('weights.safetensors', dict(a=torch.zeros(3)))
    finally: os.umask(old)
    for o in ('out', 'weights.safetensors'): assert os.stat(o).st_mode&0o777==mode

# -- the disk

@posix
@pytest.mark.parametrize('write', [lambda: serialize.save_tree('out', dict(a=torch.zeros(3))), lambda: text('out')],
    ids=['tensors', 'text'])
def test_what_is_renamed_was_synced(monkeypatch, write):
    'The very file that gets the name is on the disk before it does, and then its folder is'
    seen,fsync,rename = [],os.fsync,os.replace
    def sync(fd):
        seen.append(os.fstat(fd).st_ino)
        fsync(fd)
    def move(src, dst):
        seen.append('rename')
        rename(src, dst)
    monkeypatch.setattr(os, 'fsync', sync)
    monkeypatch.setattr(os, 'replace', move)
    write()
    assert seen==[os.stat('out').st_ino, 'rename', os.stat('.').st_ino]

@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('strace'), reason='strace is not installed')
def test_what_the_kernel_sees():
    'The same, as system calls: the last write to the file that is renamed comes before its fsync'
    code = f"import torch; from cifar_fastai.serialize import *; save_tree({str(Path.cwd()/'out')!r}, dict(a=torch.zeros(3)))"
    subprocess.run(['strace', '-f', '-y', '-e', 'trace=/^(rename|fsync|fdatasync|write|pwrite)', '-o', 'calls',
        sys.executable, '-c', code], check=True)
    calls = [o.split(' ', 1)[1].strip() for o in Path('calls').read_text().splitlines() if str(Path.cwd()) in o]
    at = {k:max(i for i,o in enumerate(calls) if re.match(p, o))
        for k,p in dict(renamed=r'rename.*/out"', folder=rf'fsync\(\d+<{Path.cwd()}>').items()}
    source = re.search(r'"([^"]*)"', calls[at['renamed']])[1].split('/')[-1]
    synced = max(i for i,o in enumerate(calls) if re.match(rf'fsync\(\d+<.*/{re.escape(source)}>', o))
    assert synced<at['renamed']<at['folder'] and not any(o.startswith(('write', 'pwrite', 'rename'))
        for o in calls[synced+1:at['renamed']])

@pytest.mark.parametrize('name', ['.tmpAbC123', '.tmp-0123456789abcdef'])
def test_leftovers_of_a_kill_are_removed(interrupted, name):
    'When the run starts again, and not while another process runs it'
    (interrupted/name).write_bytes(b'half a checkpoint')
    holder = subprocess.Popen([sys.executable, '-c', "import sys; from filelock import FileLock\nwith "
        "FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()",
        str(interrupted/'.lock')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline()=='held\n'
    refused(lambda: small(resume=True), 'another process')
    assert list(interrupted.glob('.tmp*'))
    holder.communicate('')
    small(resume=True)
    assert not list(interrupted.glob('.tmp*'))

# -- names and places of runs

bad_names = ['..', '.', '../up', 'a/b', '/abs', 'a\\b', '\\\\host\\share', 'C:x', 'a\0b', 'a\nb', '', ' ', '.hidden',
    'CON', 'nul.txt', 'com1', 'dot.', 'space ', 'x'*300, 'é'*200, 'a*b', '\ud800']

@pytest.mark.parametrize('name', bad_names)
def test_names_stay_in_their_folder(name, tmp_path):
    refused(lambda: small(name), 'name')
    assert not list(tmp_path.iterdir()) and not (tmp_path.parent/'up').exists()

@pytest.mark.parametrize('name', ['../up', '/abs', 'a\\b', '..'])
@pytest.mark.parametrize('where', ['flag', 'file'])
def test_names_of_a_command(capsys, tmp_path, where, name):
    argv = flags+['--name', name]
    if where=='file':
        Path('c.yaml').write_text(json.dumps(dict(name=name)))
        argv = flags+['--config', 'c.yaml']
    before = tree_of('.')
    with pytest.raises(SystemExit) as e: cifar_train(argv=argv)
    err = capsys.readouterr().err
    assert e.value.code==2 and err.count('\n')==1 and 'name' in err and tree_of('.')==before

@pytest.mark.parametrize('name', ['é', 'a b', 'ss64_c', '3.9-ss64_cm_lr0.1', 'x'*200, 'base+more'])
def test_names_that_are_fine(name): assert run.check_name(name)==name

def as_a_file(p): p.write_text('precious')
places = {'a file':as_a_file, 'a dangling link':lambda p: p.symlink_to('nowhere'),
    'a loop':lambda p: p.symlink_to(p.name)}

@pytest.mark.parametrize('where', ['exps', 'exps/small', 'exps/small/1'])
@pytest.mark.parametrize('what', places)
def test_exps_that_is_no_folder(where, what):
    Path(where).parent.mkdir(parents=True, exist_ok=True)
    places[what](Path(where))
    before = tree_of('.')
    refused(small, 'exps')
    assert tree_of('.')==before

@pytest.mark.parametrize('exps', ['a\0b', '/'.join(['x'*250]*20), 'x'*300, '\ud800'])
def test_exps_that_cannot_be(exps):
    refused(lambda: small(exps=exps))
    assert not list(Path().iterdir())

def unprivileged(f):
    'What `f()` raises in a process without rights; None if nothing'
    r,w = os.pipe()
    if not os.fork():
        try:
            if os.getuid()==0: os.setuid(65534)
            f()
            said = ''
        except BaseException as e: said = f'{type(e).__name__}: {e}'
        os.write(w, said.encode())
        os._exit(0)
    os.close(w)
    os.wait()
    with os.fdopen(r) as o: return o.read()

@posix
@pytest.mark.parametrize('where', ['exps', 'exps/small', 'exps/small/1'])
@pytest.mark.parametrize('mode', [0o555, 0o000])
def test_exps_read_only(where, mode):
    Path().chmod(0o777)
    Path('exps/small/1').mkdir(parents=True)
    for o in ('exps', 'exps/small', 'exps/small/1'): os.chmod(o, 0o777)
    os.chmod(where, mode)
    if where=='exps/small': Path('exps/small/1').rmdir()
    if where=='exps': shutil.rmtree('exps/small')
    said = unprivileged(small)
    os.chmod(where, 0o777)
    assert said.startswith('UserError: ') and 'exps' in said and '\n' not in said, said

@pytest.mark.parametrize('kind', special)
def test_a_lock_that_is_no_file(kind):
    Path('exps/small/1').mkdir(parents=True)
    special[kind](Path('exps/small/1/.lock'))
    if kind=='link': Path('precious').rename('exps/small/1/precious')
    before = tree_of('.')
    with time_limit(): refused(small, '.lock')
    assert tree_of('.')==before

def test_a_folder_that_vanishes(monkeypatch):
    'A run whose folder was removed ends, and does not make half a folder'
    class Vanish(Callback):
        def before_train(self):
            if self.epoch==1: shutil.rmtree('exps')
    monkeypatch.setattr(run, 'run_monitors', lambda row=None: [Vanish()])
    refused(small, 'exps', 'removed')
    assert not list(Path().rglob('*'))

# -- what is a run

@pytest.mark.parametrize('kw',
    [dict(schedule='warmup_multistep(warmup=-1.)'), dict(tricks='KD("nowhere")'), dict(schedule='multistep((9,8))'),
        dict(tricks='CutMix() MixUp()'), dict(tricks='ShakeDrop()')], ids=str)
def test_a_refused_run_leaves_nothing(kw):
    'And its name is free'
    try: small(**kw)
    except UserError: assert not Path('exps').exists()
    else: shutil.rmtree('exps')
    small()

@pytest.mark.parametrize('event', ['before_fit', 'before_epoch', 'before_train'])
def test_a_run_that_fails_before_its_first_batch_leaves_nothing(monkeypatch, event):
    def fail(self): raise UserError('No.')
    real = run.run_monitors
    monkeypatch.setattr(run, 'run_monitors', lambda row=None: [*real(row), type('Fails', (Callback,), {event:fail})()])
    refused(small, 'No.')
    assert not Path('exps').exists()
    monkeypatch.setattr(run, 'run_monitors', real)
    small(lr=0.1)

def test_a_folder_without_training_is_not_a_run(finished):
    'A process that was killed before its first checkpoint leaves settings, which another run may replace'
    for o in finished.iterdir():
        if o.name not in ('config.yaml', 'environment.json', '.lock'): o.unlink()
    small(lr=0.1)
    assert read_run(finished).config['lr']==0.1 and read_run(finished).finished

def test_weights_without_settings_are_not_continued(finished):
    (finished/'config.yaml').unlink()
    before = tree_of('.')
    for resume in (False, True): refused(lambda: small(resume=resume), 'config.yaml')
    assert tree_of('.')==before

@pytest.mark.parametrize('env', [dict(WORLD_SIZE='2', RANK='0'), dict(WORLD_SIZE='2', RANK='1'), dict(WORLD_SIZE='16')],
    ids=str)
def test_several_processes(monkeypatch, env):
    for k,v in env.items(): monkeypatch.setenv(k, v)
    refused(small, 'WORLD_SIZE', 'or unset WORLD_SIZE')
    assert not Path('exps').exists()

# -- the best epoch

@pytest.mark.parametrize('accs,best', [([0.5,0.5,0.5], 0), ([0.3,0.7,0.7], 1), ([0.7,0.3,0.7], 0), ([0.1,0.2,0.3], 2)])
def test_the_first_of_equal_epochs_is_the_best(monkeypatch, accs, best):
    'In the weights, the closing lines, the reader, the comparison and the export'
    epoch = []
    class Count(Callback):
        def before_epoch(self): epoch[:] = [self.epoch]
    real = run.run_monitors
    monkeypatch.setattr(run, 'run_monitors', lambda row=None: [Count(), *real(row)])
    def accuracy(inp, targ): return torch.tensor(accs[epoch[0]])
    monkeypatch.setattr(run, 'accuracy', accuracy)
    folder = small(epochs=3)
    with safe_open(folder/'best.safetensors', 'pt') as f: assert f.metadata()['epoch']==str(best)
    assert f'at best (epoch {best+1}, selected on the test images)' in run.report(folder)
    assert read_run(folder).best_epoch==best and f'(epoch {best+1})' in str(compare_runs(folder, folder))
    facts = json.loads((export_run(folder, 'out')/'config.json').read_text())
    assert facts['figures']['epoch']==best

# -- resuming

def image_folder(path, x, y):
    from PIL import Image
    for split in ('train', 'test'):
        for i,(a,b) in enumerate(zip(x, y)):
            p = path/split/str(int(b))/f'{i}.png'
            p.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(a.numpy()).save(p)

@pytest.mark.parametrize('what', ['pixels', 'labels'])
def test_resuming_with_other_data_is_refused(monkeypatch, tmp_path, what):
    monkeypatch.setenv('CIFAR_FASTAI_CACHE', str(tmp_path/'cache'))
    x,y = digit_images().train_x[:40],torch.arange(40)%4
    image_folder(Path('images'), x, y)
    kw = dict(dataset='images', fraction=1., bs=16)
    folder = small(**kw)
    serialize.save_tree(folder/'last.safetensors',
        serialize.load_tree(folder/'last.safetensors') | dict(epoch=1, finished=False))
    shutil.rmtree('images')
    image_folder(Path('images'), 255-x if what=='pixels' else x, y if what=='pixels' else (y+1)%4)
    before = tree_of('exps')
    refused(lambda: small(resume=True, **kw), 'different data')
    assert tree_of('exps')==before
    shutil.rmtree('images')
    image_folder(Path('images'), x, y)
    small(resume=True, **kw)

def edit(path, **kw): path.write_text(json.dumps(json.loads(path.read_text()) | kw))

@pytest.mark.parametrize('changed',
    [dict(torch='1.0'), dict(numpy='1.0', fastai='1.0'), dict(device='another CPU'), dict(threads=999),
        dict(deterministic=True)], ids=str)
def test_resuming_elsewhere_warns_once(interrupted, changed):
    'One sentence that names what differs; the run is recorded as resumed there'
    edit(interrupted/'environment.json', **changed)
    with pytest.warns(UserWarning) as ws: small(resume=True)
    said = [str(o.message) for o in ws if 'bitwise identical' in str(o.message)]
    assert len(said)==1 and '\n' not in said[0] and all(k in said[0] for k in changed), said
    env = read_run(interrupted).environment
    assert env[next(iter(changed))]==next(iter(changed.values())) and env['resumed'][0]['epoch']==1 and {*changed}<={*env['resumed'][0]}

def test_resuming_in_the_same_place_does_not_warn(interrupted, recwarn):
    small(resume=True)
    assert not [o for o in recwarn
        if 'bitwise identical' in str(o.message)] and 'resumed' not in read_run(interrupted).environment

@pytest.mark.parametrize('n', [1, 2])
def test_threads_are_a_setting_of_a_run(monkeypatch, n):
    'Set while a run trains, recorded, and as before afterwards, whatever happens'
    before,seen = torch.get_num_threads(),[]
    class Look(Callback):
        def before_batch(self): seen.append(torch.get_num_threads())
    monkeypatch.setattr(run, 'run_monitors', lambda row=None: [Look()])
    r = replace(config, threads=n)
    assert json.loads((train(r, 'a', device='cpu', bar=False)/'environment.json').read_text())['threads']==n
    assert set(seen)=={n} and torch.get_num_threads()==before
    with pytest.raises(ZeroDivisionError), run.cpu_threads(n): 1/0
    assert torch.get_num_threads()==before

def test_determinism_is_recorded():
    for on in (False, True):
        with redirect_stdout(StringIO()): folder = train(config, f'a{on}', device='cpu', same_bits=on)
        assert read_run(folder).environment['deterministic'] is on

def test_what_a_run_records_of_its_data(finished):
    d = json.loads((finished/'environment.json').read_text())['data']
    assert list(d)==['source', 'split', 'digest', 'train_images', 'test_images']
    dls = cifar_dls('digits', device='cpu')
    assert d['source']==dls.source_digest and d['split']==dict(rule='stratified', fraction=0.1, valid='test',
        holdout=None) and d['digest']!=d['source']

# -- damage

def sub(pattern, to):
    def f(b): return re.sub(pattern.encode(), to.encode() if isinstance(to, str) else to, b, count=1)
    return f

anything = { # any file of a run
    'empty':lambda b: b'', 'half':lambda b: b[:len(b)//2], 'one byte short':lambda b: b[:-1],
    'garbage':lambda b: b'\x80\x04no such thing', 'not UTF-8':lambda b: b[:9]+b'\xff\xfe'+b[9:],
    'NUL':lambda b: b[:9]+b'\0'+b[9:], 'blank':lambda b: b' \n', 'deep lists':lambda b: b'['*50_000,
    'deep dicts':lambda b: b'{"a":'*50_000, 'a number':lambda b: b'1\n', 'null':lambda b: b'null\n',
    'a list':lambda b: b'[]\n', 'a string':lambda b: b'"a"\n'}
instead = { # of the file there is something else
    'missing':lambda p: None, **special}
values = {'nan':'.nan', 'inf':'.inf', 'huge':'9'*400, '5,000 digits':'9'*5000, 'list':'[1, 2]', 'dict':'{a: 1}',
    'text':'many', 'date':'2001-01-01', 'true':'true', 'surrogate':'"\\ud800"', 'negative':'-1', 'bomb':'[*x, *x]'}
bomb = 'model: &a [1,1,1,1,1,1,1,1,1,1]\n' + ''.join(f'k{i}: &{b} [{", ".join(["*"+a]*10)}]\n'
    for i,(a,b) in enumerate(zip('abcdefghi', 'bcdefghij')))
of_config = {f'{k} {n}':sub(rf'(?m)^{k}: .*$', lambda m, k=k, v=v: f'{k}: {v}'.encode()) for k in ('epochs', 'lr',
    'dataset', 'init', 'row', 'seed', 'schedule', 'tricks', 'fraction', 'subset') for n,v in values.items()}
of_config |= {'alias bomb':lambda b: bomb.encode(),
    'python tag':lambda b: b'model: !!python/object/apply:os.system ["true"]\n', 'unknown key':lambda b: b+b'bsz: 1\n',
    'key twice':lambda b: b+b'bs: 1\n', 'no seed':sub(r'(?m)^seed: .*\n', ''), 'no model':sub(r'(?m)^model: .*\n', '')}
jsons = {'nan':'NaN', 'inf':'Infinity', 'huge':'9'*400, '5,000 digits':'9'*5000, 'list':'[1]', 'dict':'{"a": 1}',
    'null':'null', 'text':'"many"', 'true':'true', 'surrogate':'"\\ud800"', 'negative':'-1', 'deep':'['*5000+']'*5000}
of_environment = {f'{k} {n}':sub(rf'"{k}": (?:\{{[^}}]*\}}|[^,\n]*)', lambda m, k=k, v=v: f'"{k}": {v}'.encode())
    for k in ('torch', 'device', 'threads', 'data', 'source', 'split', 'digest', 'train_images', 'cifar_fastai',
        'commit', 'rule') for n,v in jsons.items()}
def cell(column, v):
    def f(b):
        rows = list(csv.reader(b.decode().splitlines()))
        rows[1][rows[0].index(column)] = v
        return '\n'.join(','.join(r) for r in rows).encode()+b'\n'
    return f
of_log = {f'{k} {v[:9]}':cell(k, v) for k in ('epoch', 'lr', 'train_loss', 'accuracy', 'seconds', 'peak_memory_mib',
    'top5') for v in ('nan', 'inf', '-inf', '1e308', '1e999', '9'*400, '9'*5000, '-1', '', 'x', '0x1',
        '1_0', '\u0663')}
of_log |= {'a header alone':lambda b: b.splitlines(keepends=True)[0],
    'a row more':lambda b: b+b.splitlines(keepends=True)[-1],
    'a cell more':lambda b: b+b','*30+b'\n', 'columns twice':sub('lr', 'accuracy'),
    'no accuracy':sub('accuracy', 'precision'),
    'a huge cell':lambda b: b+b'1'*200_000+b'\n'}

def tensors(change):
    'A file of flat tensors, changed'
    def f(p):
        sd = load_file(p)
        save_file(change(sd), p)
    return f
def tree_file(change):
    'The tree in a checkpoint, changed'
    def f(p): serialize.save_tree(p, change(serialize.load_tree(p)))
    return f
def header(text):
    'A safetensors file whose tree is `text`'
    def f(p): serialize.save_tensors(p, dict(a=torch.zeros(2)), dict(cifar_fastai=text))
    return f
of_weights = {'a key less':tensors(lambda sd: dict(list(sd.items())[1:])),
    'a key more':tensors(lambda sd: sd | dict(more=torch.zeros(1))),
    'no keys':tensors(lambda sd: {}), 'other shapes':tensors(lambda sd: {k:torch.zeros(2, 3) for k in sd}),
    'no numbers':tensors(lambda sd: {k:v>0 for k,v in sd.items()})}
headers = {'deep tree':'['*50_000, 'no tree':'x', 'a list':'[]', 'a bare number':'1',
    'two notes':'{"_tensor": "0", "_dict": []}',
    'a tensor that is not there':'{"_dict": [["model", {"_tensor": "9"}]]}', 'unhashable':'{"_dict": [[[1], 2]]}',
    'pairs of three':'{"_dict": [[1, 2, 3]]}', 'unknown note':'{"_what": 1}',
    'no array':'{"_dict": [["model", {"_numpy": 3}]]}', 'nan':'{"_dict": [["epoch", NaN], ["model", Infinity]]}',
    'model is text':'{"_dict": [["epoch", 1], ["model", "x"]]}', 'epoch is text':'{"_dict": [["epoch", "x"]]}',
    'epoch is a tensor':'{"_dict": [["epoch", {"_tensor": "a"}]]}'}
odd = dict(text='x', null=None, list=[1], dict={1:2}, negative=-1, huge=10**30, nan=float('nan'), tensor=torch.zeros(3))
of_checkpoint = {f'header {k}':header(v) for k,v in headers.items()}
for k in ('epoch', 'train_iter', 'model', 'opt', 'scaler', 'random', 'tricks', 'recorder'):
    of_checkpoint[f'without {k}'] = tree_file(lambda sd, k=k: {a:b for a,b in sd.items() if a!=k})
    for n,v in odd.items(): of_checkpoint[f'{k} {n}'] = tree_file(lambda sd, k=k, v=v: sd | {k:v})
def shapes(o):
    'The same tree with matrices of another shape'
    if isinstance(o, dict): return {k:shapes(v) for k,v in o.items()}
    if isinstance(o, list): return [shapes(v) for v in o]
    return torch.zeros(2, 3) if isinstance(o, torch.Tensor) and o.ndim>1 else o

of_checkpoint |= {'shapes of the model':tree_file(lambda sd: sd | dict(model=shapes(sd['model']))),
    'shapes of the optimizer':tree_file(lambda sd: sd | dict(opt=shapes(sd['opt']))),
    'half an epoch without the rest':tree_file(lambda sd: sd | dict(iter=1)),
    'half an epoch of text':tree_file(lambda sd: sd | dict(iter='x', start=1, sums=2, pct_train='y'))}

names = ['config.yaml', 'environment.json', 'log.csv', 'best.safetensors', 'last.safetensors']
by_bytes = [(n, k, f) for n in names
    for k,f in {**anything, **{'config.yaml':of_config, 'environment.json':of_environment, 'log.csv':of_log}.get(n,
        {})}.items()]
by_path = [(n, k, f) for n in names
    for k,f in {**instead, **{'best.safetensors':of_weights, 'last.safetensors':of_checkpoint}.get(n, {})}.items()]

def damage(folder, name, how, f):
    p = folder/name
    if (name, how, f) in by_bytes: return p.write_bytes(f(p.read_bytes()))
    if how in instead: p.unlink()
    f(p)

def drawn(rep):
    rep.plot()
    rep.frame.to_csv()
    return rep.markdown()+rep.html()
quick = dict(read_run=lambda f: read_run(f), report=lambda f: drawn(report_runs('exps')),
    compare=lambda f: str(compare_runs(f, 'exps/other/1')),
    drawn=lambda f: compare_runs('exps/other/1', f).plot(), closing=lambda f: run.report(f))
slow = dict(export=lambda f: export_run(f, 'out'), export_last=lambda f: export_run(f, 'out', 'last'),
    load_run=lambda f: load_run(f),
    load_last=lambda f: load_run(f, weights='last'), resume=lambda f: small(resume=True), again=lambda f: small())

def survey(folder, readers):
    'Every reader gives a result or one sentence, in time, and writes nothing outside of the run'
    bad = []
    for k,read in readers.items():
        try:
            with time_limit(): read(folder)
        except UserError as e:
            if '\n' in str(e) or len(str(e))>1500 or not str(e).isprintable(): bad.append(f'{k}: {e}'[:200])
        except Exception as e: bad.append(f'{k}: {type(e).__name__}: {e}'[:300])
    assert not bad, '\n'.join(bad)

def samples(n):
    'All damage; in CI as much of it as `n` for each file, the first and others spread over it'
    res = []
    for name in names:
        all_of_it = [o for o in by_bytes+by_path if o[0]==name]
        few = {o[1] for o in all_of_it[::-(-len(all_of_it)//n)]}
        res += [pytest.param(*o, id=f'{o[0]}, {o[1]}', marks=[] if o[1] in few else pytest.mark.slow)
            for o in all_of_it]
    return res

@pytest.mark.parametrize('name,how,f', samples(25))
def test_damage(finished, name, how, f):
    'Readers that need neither data nor network'
    shutil.copytree(finished, 'exps/other/1')
    damage(finished, name, how, f)
    survey(finished, quick)

@pytest.mark.parametrize('name,how,f', samples(12))
def test_damage_of_what_is_loaded(interrupted, name, how, f):
    'Readers that load weights or train'
    damage(interrupted, name, how, f)
    survey(interrupted, slow)

def test_a_finished_run_with_an_empty_log(finished, capsys):
    (finished/'log.csv').write_text('')
    with pytest.raises(SystemExit) as e:
        cifar_train(argv=flags+['--name', 'small', '--row', '3.3/lenet', '--half', 'False'])
    err = capsys.readouterr().err
    assert e.value.code==2 and 'log.csv' in err and err.count('\n')==1
