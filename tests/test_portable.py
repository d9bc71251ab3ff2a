'Other systems: with what only POSIX has taken away, everything is imported, a network trains, stops and goes on, and a command runs'
import ast,subprocess,sys
from configparser import ConfigParser
from pathlib import Path
import yaml

root = Path(__file__).parents[1]

# as Windows has it; other people's packages have been imported before, and keep what they found
hide = '''
import os,signal,sys,warnings
import torch,fastai.vision.all,fastai.callback.training,sklearn.datasets,scipy.stats,matplotlib.pyplot,yaml,filelock,psutil,safetensors.torch,einops
import PIL.Image,subprocess,multiprocessing,tempfile,shutil,urllib.request,torch.utils.flop_counter,torch._dynamo
for o in 'resource fcntl termios pwd grp tty pty syslog crypt readline'.split(): sys.modules[o] = None
gone = """fork forkpty getuid geteuid getgid getegid setuid chown lchown fchown fchmod mkfifo mknod setsid killpg getpgid getpgrp nice
    sched_getaffinity sched_setaffinity uname O_DIRECTORY sync statvfs fdatasync getpriority wait3 sysconf openpty ctermid""".split()
for o in gone:
    if hasattr(os, o): delattr(os, o)
known = ('SIGINT', 'SIGTERM', 'SIGABRT', 'SIGFPE', 'SIGILL', 'SIGSEGV')
numbers = {int(getattr(signal, o)) for o in known}
for o in dir(signal):
    if o.startswith('SIG') and o[3]!='_' and o not in known: delattr(signal, o)
for o in ('alarm', 'setitimer', 'pthread_sigmask', 'siginterrupt', 'pause', 'sigwait'): vars(signal).pop(o, None)
def only_known(s, f, set_signal=signal.signal, numbers=numbers):
    if int(s) not in numbers: raise ValueError('invalid signal value')
    return set_signal(s, f)
def no_folder(path, *args, open_file=os.open, os=os, **kwargs):
    if not isinstance(path, int) and os.path.isdir(path): raise PermissionError(13, 'Permission denied', path)
    return open_file(path, *args, **kwargs)
signal.signal,os.open,shutil._use_fd_functions = only_known,no_folder,False
'''

def run(code, folder):
    'Run `code` in an interpreter of its own that has none of it, in `folder`'
    args = [sys.executable, '-X', 'warn_default_encoding', '-c', hide+code]
    res = subprocess.run(args, capture_output=True, text=True, encoding='utf-8', timeout=300, cwd=folder)
    assert not res.returncode, res.stderr[-3000:]
    return res.stdout

def test_trains(tmp_path):
    'Everything is imported, a fit with tricks, monitors and a checkpoint that listens to signals trains, is resumed, exported and loaded'
    out = run('''
warnings.filterwarnings('error', category=EncodingWarning, module='cifar_fastai')
from cifar_fastai.all import *
def learner(): return cifar_learner('lenet', cifar_dls('digits', fraction=0.1), cbs=[Cutout(8), EMA(), TrainAccuracy(), ImagesPerSecond(), PeakMemory(), CPUUse()])
for n,resume in ((1, False), (1, True)):
    learn = learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(n, cbs=Checkpoint('last.safetensors', resume=resume, signals=True))
learn = learner()
with learn.no_bar(), learn.no_logging(): learn.fit(1)
assert learn.recorder.history.peak_memory_mib.iloc[0]>10
learn.export('m.pkl')
warnings.simplefilter('ignore')
load_learner('m.pkl')
print(len(list_models()), 'done')
''', tmp_path)
    assert out.split()[-1]=='done'

def test_command_runs(tmp_path):
    'A run writes its files, is taken up again, and is reported'
    out = run('''
from cifar_fastai.cli import cifar_train
for epochs in (1, 2):
    sys.argv = ['cifar-train', '--dataset', 'digits', '--model', 'lenet', '--epochs', '1', '--name', f'r{epochs}', '--fraction', '0.1', '--deterministic']
    cifar_train()
print('done')
''', tmp_path)
    assert out.split()[-1]=='done' and len(list(tmp_path.rglob('log.csv')))==2

# modules that are not everywhere, and functions of `os` and `signal` that are not
posix = {'resource', 'fcntl', 'termios', 'pwd', 'grp', 'tty', 'pty', 'syslog', 'readline', 'crypt', 'nis',
    'spwd', 'posix'}
windows = {'msvcrt', 'winreg', 'winsound', '_winapi', 'nt'}

def test_imports_are_guarded():
    'What only some systems have is imported where that may fail, never at the top of a module'
    bad = []
    for path in (root/'cifar_fastai').rglob('*.py'):
        for o in ast.parse(path.read_text(encoding='utf-8')).body:
            names = [a.name for a in o.names] if isinstance(o, ast.Import) else [o.module or ''] if isinstance(o,
                ast.ImportFrom) else []
            bad += [f'{path.name}: {n}' for n in names if n.split('.')[0] in posix|windows]
    assert not bad

# what is tested elsewhere

workflows = {o.stem:yaml.safe_load(o.read_text(encoding='utf-8')) for o in (root/'.github/workflows').glob('*.yaml')}
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

def lower_bounds(): return dict(o.split(',')[0].split('>=') for o in cfg['requirements'].split() if '>=' in o)

def test_systems_are_tested():
    'Linux, macOS and Windows, on the oldest and the newest Python of the full check'
    jobs = workflows['test']['jobs']
    m = jobs['systems']['strategy']['matrix']
    assert {o.split('-')[0] for o in m['os']}=={'ubuntu', 'macos', 'windows'}
    pythons = sorted(jobs['test']['strategy']['matrix']['python'], key=lambda v: int(v.split('.')[1]))
    assert m['python']==[pythons[0], pythons[-1]] and pythons[0]==cfg['min_python']
    assert all(s.get('shell', 'bash')=='bash'
        for s in jobs['systems']['steps']) and jobs['systems']['defaults']['run']['shell']=='bash'

def test_versions_are_tested():
    'A scheduled job installs the lowest torch, fastai and fastcore of settings.ini, on the oldest Python, and another the newest'
    w = workflows['versions']
    assert 'schedule' in w[True] # YAML reads `on` as a boolean
    lowest,newest = (next(s['run'] for s in w['jobs'][k]['steps'] if 'torch' in s.get('run', ''))
        for k in ('lowest', 'newest'))
    for name,v in lower_bounds().items():
        if name in ('torch', 'fastai', 'fastcore', 'einops', 'safetensors', 'psutil'):
            assert f'{name}=={v}' in lowest, name
    assert '--upgrade' in newest and all(o in newest for o in ('torch', 'fastai', 'fastcore'))
    pythons = [next(s['with']['python-version'] for s in j['steps'] if 'setup-python' in s.get('uses', ''))
        for j in w['jobs'].values()]
    assert pythons==[cfg['min_python'], workflows['test']['jobs']['test']['strategy']['matrix']['python'][-1]]
