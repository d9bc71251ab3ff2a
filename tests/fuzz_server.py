"""Runs one input of the fuzz test after another, each in a process forked from one that has imported everything.

An input is a dict of literals: `files` to make, then `cmd` with `argv`, or `code` in Python. Replay one, and see all it says, with

    python tests/fuzz_server.py "the input, as the test prints it"

Each has a folder of its own, and where the server runs as root, a user of its own: nothing it does can touch anything else."""
import ast, encodings, faulthandler, importlib, io, json, os, pickle, pkgutil, re, resource, select, shutil, signal, socket, struct, subprocess, sys
import tarfile, tempfile, time, traceback, warnings, zipfile
from contextlib import suppress
from pathlib import Path

limit,soft = 30,8 # seconds: an input may take, a training may go on before it is asked to end
uid = 61234 # no account: every file of this user was made here

# -- files of an input

def images(spec, fmt='PNG', size=(32,32)):
    'Name -> bytes of pictures in class folders; `spec`: `{"train/a": 2}`'
    from PIL import Image
    res = {}
    for folder,n in spec.items():
        for i in range(n):
            b = io.BytesIO()
            Image.new('RGB', size, (40*i%256, len(folder)*9%256, 99)).save(b, fmt)
            res[f'{folder}/{i}.{fmt.lower()}'] = b.getvalue()
    return res

def python_batches(change='', value=None):
    'Name -> bytes of the batches of CIFAR-10, with `change` (`data` or `labels` of the first, or `meta`) to `value`, an expression'
    import numpy as np
    value = eval(value, dict(np=np)) if value is not None else None
    d = {f'data_batch_{i}':dict(data=np.zeros((2, 3072), np.uint8), labels=[0, 1]) for i in range(1, 6)}
    d |= {'test_batch':dict(data=np.zeros((2, 3072), np.uint8), labels=[0, 1]),
        'batches.meta':dict(label_names=list('abcdefghij'))}
    if change in ('data', 'labels'): d['data_batch_1'][change] = value
    if change=='names': d['batches.meta']['label_names'] = value
    if change=='meta': d['batches.meta'] = value
    if change=='batch': d['data_batch_1'] = value
    return {f'cifar-10-batches-py/{k}':pickle.dumps(v) for k,v in d.items()}

def binary_batches(names='\n'.join('abcdefghij'), tail=b'', label=0):
    d = {f'data_batch_{i}.bin':bytes(3073) for i in range(1, 6)} | {'test_batch.bin':bytes(3073)}
    d['data_batch_2.bin'] = bytes([label])+bytes(3072)+tail
    return {f'cifar-10-batches-bin/{k}':v
        for k,v in d.items()} | {'cifar-10-batches-bin/batches.meta.txt':names.encode('utf-8', 'surrogatepass')}

makers = dict(images=images, python=python_batches, binary=binary_batches)

def pack(path, members):
    'A folder or an archive of `members`'
    low = str(path).lower()
    if low.endswith('.zip'):
        with zipfile.ZipFile(path, 'w') as z, warnings.catch_warnings():
            warnings.simplefilter('ignore') # of names that are there twice
            for k,v in members.items(): z.writestr(k, v)
    elif '.tar' in low or low.endswith('.tgz'):
        with tarfile.open(path, 'w:gz' if low.endswith('gz') else 'w') as t:
            for k,v in members.items():
                m = tarfile.TarInfo(k)
                m.size = len(v)
                t.addfile(m, io.BytesIO(v))
    else:
        for k,v in members.items():
            p = path/k
            p.parent.mkdir(parents=True, exist_ok=True)
            p.write_bytes(v)

def leaves(o, path=()):
    'Where the leaves of JSON are'
    items = o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else []
    for k,v in items:
        yield (*path, k)
        yield from leaves(v, (*path, k))

def with_leaf(o, i, value):
    'JSON with one part replaced by `value`, or removed if that is "remove"'
    paths = list(leaves(o))
    if not paths: return value
    *above,k = paths[i%len(paths)]
    at = o
    for p in above: at = at[p]
    if value=='remove': del at[k]
    else: at[k] = value
    return o

def dumps(o): return json.dumps(o).encode('utf-8', 'surrogatepass')

def damage_header(b, i, value, deep):
    'A safetensors file with a changed header: `deep` goes into the tree of a checkpoint'
    n, = struct.unpack('<Q', b[:8])
    head = json.loads(b[8:8+n])
    tree = head.get('__metadata__', {}).get('cifar_fastai')
    if deep and tree:
        head['__metadata__']['cifar_fastai'] = dumps(with_leaf(json.loads(tree), i, value)).decode('utf-8', 'replace')
    else: head = with_leaf(head, i, value)
    h = dumps(head)
    h += b' '*(-len(h)%8)
    return struct.pack('<Q', len(h)) + h + b[8+n:]

def damaged(b, how, *args):
    'Bytes with a damage'
    if how=='flip':
        b = bytearray(b)
        if b: b[args[0]%len(b)] ^= 1<<args[1]%8
        return bytes(b)
    if how=='cut': return b[:args[0]%(len(b)+1)]
    if how=='insert': return b[:(i := args[0]%(len(b)+1))] + args[1] + b[i:]
    if how=='bytes': return args[0]
    if how=='fill': return args[0]*args[1]
    if how=='json': return dumps(with_leaf(json.loads(b), *args)) + b'\n'
    if how=='line': # of text: replaced, removed or doubled
        lines = b.split(b'\n')
        i = args[0]%len(lines)
        return b'\n'.join([*lines[:i], *args[1], *lines[i+1:]])
    if how=='cell': # of a CSV file
        cells = re.split(b'([,\n])', b)
        cells[args[0]%((len(cells)+1)//2)*2] = args[1]
        return b''.join(cells)
    if how=='header': return damage_header(b, *args)
    raise ValueError(how)

def special(p, kind):
    'Something at `p` that is not a regular file'
    if kind=='fifo': os.mkfifo(p)
    if kind=='folder': p.mkdir()
    if kind=='dangling': p.symlink_to('nowhere')
    if kind=='loop': p.symlink_to(p.name)
    if kind=='link': p.symlink_to('elsewhere')
    if kind=='linked folder': p.symlink_to('.')
    if kind=='locked': p.write_bytes(b'') or p.chmod(0)
    if kind=='locked folder': p.mkdir(0)
    if kind=='socket':
        with socket.socket(socket.AF_UNIX) as s, suppress(OSError): s.bind(p.name if p.parent==Path() else str(p))

def build(files, templates):
    'Make the files of an input, in order'
    for name,kind,*args in files:
        p = Path(os.fsdecode(name) if isinstance(name, bytes) else name)
        with suppress(Exception): # no such name in this file system, or nothing to damage
            p.parent.mkdir(parents=True, exist_ok=True)
            if kind=='run': shutil.copytree(templates/args[0], p, dirs_exist_ok=True)
            elif kind in makers: pack(p, makers[kind](*args[:-1]) | args[-1])
            elif kind=='special':
                if p.is_symlink() or p.is_file(): p.unlink()
                elif p.is_dir(): shutil.rmtree(p)
                special(p, *args)
            elif kind=='chmod': p.chmod(args[0])
            elif p.is_file() or not os.path.lexists(p):
                p.write_bytes(damaged(p.read_bytes() if p.is_file() else b'', kind, *args))

def tree_of(folder):
    'Every path below `folder` with what changes when it is written to'
    res,todo = {},[folder]
    while todo:
        with suppress(OSError), os.scandir(todo.pop()) as d:
            for o in d:
                s = o.stat(follow_symlinks=False)
                if o.is_dir(follow_symlinks=False): todo.append(o.path)
                res[os.path.relpath(o.path, folder)] = (s.st_mode,
                    s.st_ino) + ((s.st_size, s.st_mtime_ns) if not o.is_dir(follow_symlinks=False) else ())
    return res

# -- processes

def in_child(case, box, templates, pipe):
    'What happens in the process of an input'
    os.setsid()
    for k,n in dict(RLIMIT_FSIZE=1<<28, RLIMIT_CORE=0, RLIMIT_NOFILE=256, RLIMIT_CPU=2*limit).items():
        resource.setrlimit(getattr(resource, k), (n, n))
    if os.getuid()==0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.umask(0o022)
    os.environ.update(HOME=str(box/'home'), TMPDIR=str(box/'home'), CIFAR_FASTAI_CACHE=str(box/'home'/'cache'),
        FASTAI_HOME=str(box/'home'/'fastai'), USER='fuzz',
        HF_HUB_OFFLINE='1', HF_HOME=str(box/'home'/'hf'))
    tempfile.tempdir = None
    os.chdir(box/'a'/'b')
    faulthandler.dump_traceback_later(limit-2, file=2)
    build(case.get('files', []), templates)
    with os.fdopen(pipe, 'wb') as f: pickle.dump(tree_of(box), f)
    err = os.open(box/'home'/'err', os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    out = os.open('/dev/full', os.O_WRONLY) if case.get('stdout')=='full' else os.open(box/'home'/'out',
        os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    if case.get('stdout')=='closed':
        r,out = os.pipe()
        os.close(r)
    for fd,to in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)): os.dup2(fd, to)
    faulthandler.dump_traceback_later(limit-2, file=2)
    run_case(case)

def run_case(case):
    'Run a command, or Python code'
    from cifar_fastai import all,cli
    from cifar_fastai.runs import checkpoint,config,export,folder,published,train
    from cifar_fastai.studies import compare,experiments,report,stats
    names = {k:v for m in (config, published, checkpoint, folder, train, export, experiments, stats, report, compare, all) for k,v in vars(m).items()}
    if 'patch' in case: exec(case['patch'], dict(vars(sys.modules['fuzz_server'])))
    if 'cmd' in case: return getattr(cli, case['cmd'])(argv=case['argv'])
    warnings.simplefilter('ignore')
    try: exec(case['code'], names | vars(sys.modules['fuzz_server']))
    except all.UserError as e: sys.exit(sys.stderr.write(f'python: {e}\n') and 2)

def child(*args):
    'The exit code of a process of Python'
    code = 99
    try:
        in_child(*args)
        code = 0
    except SystemExit as e: code = e.code if isinstance(e.code, int) else 0 if e.code is None else 98
    except BaseException: traceback.print_exc()
    finally:
        with suppress(BaseException): sys.stdout.flush()
        with suppress(BaseException): sys.stderr.flush()
        os._exit(code)

def memory(pid):
    'Bytes that a process has to itself'
    with suppress(OSError, ValueError, IndexError):
        rss,shared = map(int, Path(f'/proc/{pid}/statm').read_text().split()[1:3])
        return (rss-shared)*os.sysconf('SC_PAGE_SIZE')
    return 0

def watch(pid, case):
    'Wait for a process: its exit code, and why it was told to end, if it was'
    start,told,wait,base = time.monotonic(),'',0.002,memory(pid)
    while True:
        done,status,_ = os.wait4(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status),told
        took,wait = time.monotonic()-start,min(wait*1.5, 0.1)
        why = 'time' if took>case.get('limit', limit) else 'memory' if memory(pid)>base+case.get('memory',
            3<<30) else ''
        if why:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -9,why
        if case.get('heavy') and not told and took>case.get('soft', soft):
            told = 'soft'
            os.kill(pid, signal.SIGTERM)
        time.sleep(wait)

def fork(*args):
    r,w = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.close(r)
        child(*args, w)
    os.close(w)
    data,end = b'',time.monotonic()+limit
    with os.fdopen(r, 'rb', buffering=0) as f:
        while select.select([f], [], [], max(0, end-time.monotonic()))[0] and (more := f.read(1<<16)): data += more
    return pid,pickle.loads(data) if data.endswith(b'.') else {}

def text(path): return path.read_bytes()[-20_000:].decode(errors='replace') if path.exists() else ''

def outside():
    'Files of the user of an input in places that everyone may write to'
    if os.getuid(): return []
    res = []
    for d in {tempfile.gettempdir(), '/tmp', '/var/tmp', '/dev/shm'}:
        with suppress(OSError), os.scandir(d) as it:
            res += [o.path for o in it if o.stat(follow_symlinks=False).st_uid==uid]
    return res

class Boxes:
    'Folders for inputs, below one'
    def __init__(self, root):
        self.root,self.n,self.strays = Path(root),0,set(outside())
        self.templates,self.area = self.root/'templates',self.root/'area'
        for o in (self.root, self.templates, self.area): o.mkdir(parents=True, exist_ok=True)
        self.own(self.area)

    def own(self, p):
        if os.getuid()==0: os.chown(p, uid, uid)

    def run(self, case, keep=None):
        'Run an input; `keep`: copy its working folder there'
        self.n += 1
        box,start = self.area/str(self.n),time.monotonic()
        for o in (box, box/'a', box/'a'/'b', box/'home'):
            o.mkdir()
            self.own(o)
        pid,before = fork(case, box, self.templates)
        code,told = watch(pid, case)
        after = tree_of(box)
        there = {str(o) for d in (self.area, self.root) for o in d.iterdir()
            if o not in (box, self.area, self.templates)} | set(outside())
        written = [k for k in before.keys()|after.keys() if before.get(k)!=after.get(k) and not k.startswith('home')]
        res = dict(code=code, told=told, out=text(box/'home'/'out'), err=text(box/'home'/'err'),
            seconds=time.monotonic()-start, written=sorted(written),
            outside=sorted(there-self.strays))
        self.strays |= there
        if keep: shutil.copytree(box/'a'/'b', keep)
        os.system(f'chmod -R u+rwX {box}') if os.getuid() else None
        shutil.rmtree(box, ignore_errors=True)
        return res

flags = '--dataset digits --model toynet_s1_k3 --epochs 2 --bs 32 --fraction 0.1 --lr 0.05 --sched onecycle --device cpu'.split()

def prepare(root):
    'Import everything, and train the runs that are damaged'
    os.environ.update(OMP_NUM_THREADS='1', MPLBACKEND='agg')
    os.environ.pop('WORLD_SIZE', None)
    import torch
    torch.set_num_threads(1)
    import cifar_fastai, sklearn.datasets, matplotlib.pyplot, scipy.stats, huggingface_hub # chkstyle: ignore
    for package in cifar_fastai,encodings: # what is imported later may lie where another user may not read
        for o in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):
            with suppress(ImportError): importlib.import_module(o.name)
    from dataclasses import replace
    from cifar_fastai.data import sources
    from cifar_fastai.data.datasets import datasets, digit_images
    im = digit_images()
    datasets['digits'] = replace(datasets['digits'], make=lambda: im)
    def no_network(*args, **kwargs): raise OSError('there is no network in this test')
    sources.urlopen = no_network
    sys.modules['fuzz_server'] = sys.modules[__name__]
    boxes = Boxes(root)
    train = 'import cifar_fastai.cli\ncifar_fastai.cli.cifar_train(argv=%r)\n'
    half = 'from cifar_fastai.serialize import load_tree, save_tree\np = "exps/a/666/last.safetensors"\nsave_tree(p, load_tree(p) | dict(epoch=1))\n'
    a = flags+['--name', 'a']
    for name,code in dict(finished=train%(a,), interrupted=train%(a,)+half,
        row=train%(a+['--row', '3.1/wideresnet'],)).items():
        res = boxes.run(dict(code=code), boxes.templates/f'{name}0')
        assert res['code']==0, res
        (boxes.templates/f'{name}0'/'exps'/'a'/'666').rename(boxes.templates/name)
    res = boxes.run(dict(files=[('r', 'run', 'finished')], code='export_run("r", "e")'), boxes.templates/'exported0')
    assert res['code']==0, res
    (boxes.templates/'exported0'/'e').rename(boxes.templates/'exported')
    return boxes

# -- outcomes

notes = '--nw is ignored', 'is resumed with' # what a command may say beside its outcome

def within(path, folder): return path==folder or path.startswith(folder+os.sep)

def verdict(case, res):
    'What became of an input, and what is wrong with that, if anything is'
    name = case['cmd'].replace('_', '-') if 'cmd' in case else 'python'
    code,err = res['code'],res['err']
    lines = [o for o in err.splitlines() if not any(n in o for n in notes)]
    if res['told'] in ('time', 'memory'): return 'ended',f"took too much {res['told']}"
    if res['outside']: return 'outside',f"files outside of its folder: {res['outside']}"
    outputs = [os.path.normpath(os.path.join('a', 'b', o)) for o in case.get('outputs', [])]
    if bad := [o for o in res['written'] if not any(within(o, p) or within(p, o) for p in outputs)]:
        return 'outside',f'wrote {bad}, its outputs are {outputs}'
    if 'Traceback' in err: return 'traceback','ended in a traceback'
    if code==0: return 'success',''
    if code in (143, -15) and res['told']=='soft': return 'interrupted',''
    if code==141 and case.get('stdout')=='closed': return 'closed pipe',''
    if code==1 and name=='cifar-reproduce' and lines and all(o.startswith('failed: ') for o in lines):
        return 'failed rows',''
    if code!=2: return 'other',f'ended with exit code {code}'
    if len(lines)!=1 or not lines[0].startswith(f'{name}: '): return 'other',f'is not one sentence: {len(lines)} lines'
    if not lines[0].isprintable() or not 15<len(lines[0])<1000: return 'other','is not a printable sentence'
    return 'refused',''

class Server:
    'Runs inputs in a server of its own'
    def __init__(self, root):
        self.p = subprocess.Popen([sys.executable, __file__, 'serve', str(root)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self):
        line = self.p.stdout.readline()
        assert line, 'the server has ended'
        return ast.literal_eval(line)

    def run(self, case):
        self.p.stdin.write(ascii(case)+'\n')
        self.p.stdin.flush()
        return self.answer()

    def close(self):
        self.p.stdin.close()
        self.p.wait(60)

def serve(root):
    boxes,answers = prepare(root),os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    print(ascii('ready'), file=answers, flush=True)
    for line in sys.stdin: print(ascii(boxes.run(ast.literal_eval(line))), file=answers, flush=True)

def replay(case):
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        res = prepare(d).run(case)
    print(res['out'], res['err'], *(f'{k}: {v}' for k,v in res.items() if k not in ('out', 'err')),
        verdict(case, res), sep='\n')

if __name__=='__main__':
    if sys.argv[1]=='serve': serve(sys.argv[2])
    else: replay(ast.literal_eval(sys.argv[1]))
