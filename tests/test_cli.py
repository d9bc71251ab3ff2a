'The commands: what is refused and how, where settings come from, and that the published commands work.'
import json, os, re, shlex, signal, subprocess, sys, time
from dataclasses import asdict, fields, replace
from pathlib import Path
import pytest
from cifar_fastai.cli import cifar_bench, cifar_compare, cifar_export, cifar_lr_find, cifar_report, cifar_reproduce
from cifar_fastai.cli import cifar_train, cifar_tricks, cifar_zoo
from cifar_fastai.core import UserError
from cifar_fastai.studies.cluster import LauncherOptions
from cifar_fastai.studies.experiments import experiment, experiments
from cifar_fastai.studies.launch import run_workers
from cifar_fastai.runs.config import RunConfig, limits, parse_calls, read_config
from cifar_fastai.runs.published import PublishedTricks, translate

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    'Runs lie in a folder of their own'
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('CIFAR_FASTAI_DATA', raising=False)

commands = cifar_train,cifar_lr_find,cifar_reproduce,cifar_report,cifar_compare,cifar_export,cifar_zoo,cifar_tricks,cifar_bench

def refused(capsys, cmd, argv):
    'The one line with which `argv` is refused; nothing is left behind'
    with pytest.raises(SystemExit) as e: cmd(argv=argv)
    out,err = capsys.readouterr()
    assert e.value.code==2 and err.count('\n')==1 and 'Traceback' not in err and not list(Path().iterdir())
    return err

@pytest.mark.parametrize('argv,says', [
    (['--model', 'resnet21'], "no backbone 'resnet21': did you mean 'resnet20'"),
    (['--dataset', 'digit'], "no data set 'digit': did you mean 'digits'"),
    (['--sched', 'cosin'], "no fit policy 'cosin': did you mean 'cosine'"),
    (['--schedule', 'cosin'], "no schedule 'cosin': did you mean 'cosine'"),
    (['--schedule', 'cosine(gamma=0.1)'], "no parameter of cosine 'gamma'"),
    (['--optims', 'adamm'], "no optims 'adamm': did you mean 'adam'"),
    (['--optimizer', 'adamm'], "no optimizer 'adamm': did you mean 'adam'"),
    (['--crit', 'cee'], "no crit 'cee': did you mean 'ce'"),
    (['--loss', 'CrosEntropy'], "no loss 'CrosEntropy': did you mean 'CrossEntropy'"),
    (['--precision', 'fp8'], "no precision 'fp8': did you mean"),
    (['--subset', 'frist'], "no subset 'frist': did you mean 'first'"),
    (['--mixup-alpah', '1'], "no flag '--mixup-alpah': did you mean '--mixup-alpha'"),
    (['--mixup', '--mixup-alpha', '-1'], 'mixup_alpha is -1.0: it must be a number in [0, 1000].'),
    (['--sam', '--sam-rho', '-1'], 'sam_rho is -1.0: it must be a number in [0, 100].'),
    (['--sam', '--asam', '--dataset', 'digits', '--model', 'resnet20'], 'use one of them'),
    (['--bs', '0', '--dataset', 'digits', '--model', 'resnet20'], 'bs is 0'),
    (['--bs', 'many'], "invalid int value: 'many'"),
    (['--sam', 'maybe'], "'maybe' must be True or False"),
    (['--epochs', '0'], 'epochs is 0: it must be an integer in [1, 100000].'),
    (['--milestones', '60;120'], 'write epochs as 60,120,160'),
    (['--row', '3.9/ss64_cx'], "no experiment '3.9/ss64_cx': did you mean '3.9/ss64_c"),
    (['--config', 'no.yaml'], 'no.yaml cannot be read'),
    (['--tricks', 'EMMA(0.9)', '--model', 'resnet20'], "no trick 'EMMA': did you mean 'EMA'"),
    (['--tricks', 'EMA(0.9', '--model', 'resnet20'], 'it must be written as calls, such as "EMA(0.99) ShakeDrop()"'),
    (['--tricks', 'EMA(decy=1)', '--model', 'resnet20'], "no parameter of EMA 'decy': did you mean 'decay'"),
    (['--fast', '--half', '--dataset', 'digits'], 'half and fast each select the training images'),
    (['--fraction', '2', '--dataset', 'digits'], 'fraction is 2.0'),
    (['--gpu', '7', '--dataset', 'digits'], "There is no device 'cuda:7' on this machine: there is cpu"),
    (['--model', 'pyramidnet272', '--bs', '1000000', '--dataset', 'digits'], 'GiB or more'),
    (['--gamma', '0.1', '--sched', 'cosine', '--dataset', 'digits'],
        'gamma is 0.1: the cosine schedule does not use it')])
def test_refused(capsys, argv, says):
    'One sentence with what was wrong and what would be right, exit code 2, no traceback'
    assert says in refused(capsys, cifar_train, argv)

def test_zoo(capsys):
    '`cifar-zoo NAME` shows stages, a pattern a table, a wrong name the nearest'
    cifar_zoo(argv=['resnet20'])
    out = capsys.readouterr().out
    assert '272,474' in out and 'pytorchcv resnet20_cifar10' in out
    cifar_zoo(argv=['resnet2*'])
    assert 'pytorchcv' in capsys.readouterr().out
    assert "did you mean 'resnet20'" in refused(capsys, cifar_zoo, ['resnet21'])

def test_tricks(capsys):
    '`cifar-tricks` lists tricks with their defaults, without torch'
    cifar_tricks(argv=[])
    assert '\nSAM(rho=0.05,' in capsys.readouterr().out
    cifar_tricks(argv=['*Mix*'])
    names = re.findall(r'^(\w+)\(', capsys.readouterr().out, re.M)
    assert names==['AugMix', 'CutMix', 'ManifoldMixUp', 'MixUp', 'ResizeMix']
    assert "did you mean 'MixUp'" in refused(capsys, cifar_tricks, ['MixPu'])
    code,out,_ = ended("import sys\nfrom cifar_fastai.cli import "
        "cifar_tricks\ncifar_tricks(argv=[])\nassert 'torch' not in sys.modules")
    assert code==0 and 'MixUp(alpha=1.0,' in out

def test_bench(capsys):
    '`cifar-bench` writes ratios with what they were taken with'
    cifar_bench(argv='--fraction 0.02 --bs 16 --rounds 1 --model toynet_s1_k3'.split())
    got = json.loads(Path('bench.json').read_text())
    assert got['data']=='digits, 30 images' and 0.2<got['epoch']['bare']['ratio']<5 and got['epoch']['SAM']['ratio']>0
    assert sorted(got)==['data', 'data_cost', 'epoch', 'machine', 'settings', 'tricks'] and 'TensorDL' in got['data_cost']

@pytest.mark.parametrize('argv,says', [
    (['--table', '3.99'], "no table '3.99': did you mean '3.9'"), ([], 'No rows were selected'),
    (['--rows', '3.9/x*'], "no experiment '3.9/x*'"),
    (['--table', '3.9', '--seeds', '0'], 'seeds is 0: it must be an integer in [1, 1000].'),
    (['--tabel', '3.9'], "no flag '--tabel': did you mean '--table'")])
def test_reproduce_refused(capsys, argv, says):
    'The same for a sweep'
    assert says in refused(capsys, cifar_reproduce, argv)

huge = [('epochs', '1'+'0'*30, 1), ('bs', '1'+'0'*30, 1), ('seed', str(2**64), 0), ('seed', '-1', 0),
    ('threads', '0', 1), ('cutout_length', '1'+'0'*30, 0)]
reals = [f.name for c in (RunConfig, PublishedTricks) for f in fields(c) if f.type is float]
outside = [(k, v) for k in reals for v in ('inf', '-inf', 'nan', '1e308', '-1')] + [(k, v) for k,v,_ in huge]
outside += [('fraction', '1e-300'), ('fraction', '0'), ('random_erase_r', '0')]

@pytest.mark.parametrize('name,v', outside)
def test_numbers_have_limits(capsys, name, v):
    'Every numeric flag of a run is finite and within limits, which the message shows with the name of the flag'
    err = refused(capsys, cifar_train, [f'--{name}={v}', '--model', 'toynet_s1_k3', '--dataset', 'digits'])
    assert err.startswith(f'cifar-train: {name} is ') and ': it must be a' in err and ' in [' in err

def test_all_numbers_have_limits():
    'No numeric field of a configuration, no numeric published flag, and no numeric parameter of a command is without'
    from typing import get_type_hints
    hints = [get_type_hints(o) for o in (RunConfig, PublishedTricks, LauncherOptions, *commands)]
    assert {k for h in hints for k,t in h.items() if t in (int, float)} - {'nw'}=={*limits} # --nw is ignored

@pytest.mark.parametrize('cmd,argv,says',
    [(cifar_lr_find, '--num-it 0', 'num_it is 0'), (cifar_lr_find, '--num-it '+'9'*30, 'num_it is 9'),
        (cifar_bench, '--rounds 0', 'rounds is 0'),
        (cifar_bench, '--bs -1', 'bs is -1'), (cifar_bench, '--fraction nan', 'fraction is nan'),
        (cifar_reproduce, '--all --seeds '+'9'*30, 'seeds is 9'), (cifar_reproduce, '--all --workers 0', 'workers is 0'),
        (cifar_reproduce, '--all --workers '+'9'*30, 'workers is 9'),
        (cifar_reproduce, '--all --epochs '+'9'*30, 'epochs is 9'), (cifar_reproduce, '--all --lr inf', 'lr is inf'),
        (cifar_train, '--epochs '+'9'*5000, 'invalid int value'),
        (cifar_train, '--root nowhere --dataset digits', "root is 'nowhere'"),
        (cifar_reproduce, '--all --root nowhere', "root is 'nowhere'"),
        (cifar_train, '--gpu ²', "no device '²'"), (cifar_train, '--device '+'9'*4000, 'There is no device'),
        (cifar_train, '--gpu -1', "no device '-1'"), (cifar_train, '--nesterov --momentum 0 '
            '--model toynet_s1_k3 --dataset digits', 'Nesterov momentum needs'),
        (cifar_train, '--init kaimin --dataset digits', "no init 'kaimin'"),
        (cifar_train, '--milestones -1', 'milestones is -1'), (cifar_train, '--milestones '+'9'*4000, 'milestones is'),
        (cifar_train, '--sched warmup --warmup 300', 'warmup is 300'),
        (cifar_train, '--schedule warmcosine(warmup=300)', 'warmup is 300'),
        (cifar_train, '--random-erase --random-erase-sl 0.5', 'area is (0.5, 0.4)'),
        *[(cifar_train, f'--{k}=', f'{k} is empty') for k in ('config', 'name', 'row', 'root', 'model', 'exps', 'device')],
        (cifar_reproduce, '--rows=', 'rows is empty'), (cifar_report, '--out=', 'out is empty'),
        *[(cifar_train, f'--{k}=a\0b', f'{k} contains') for k in ('name', 'root', 'dataset', 'model', 'tricks', 'row',
            'exps', 'config')], (cifar_train, '--name=a\udcffb', 'name contains'),
        (cifar_train, '--name='+'a'*10_000, 'name has 10000 characters')])
def test_values_refused(capsys, cmd, argv, says):
    'What a flag cannot be, before anything is read or written'
    err = refused(capsys, cmd, argv.split(' '))
    assert says in err and len(err)<400

@pytest.mark.parametrize('tricks',
    ['1', 'None', 'True()', '3+', 'EMA(0.9', 'EMA(0.9))', 'EMA()], [SWA()', 'EMA(x=)', 'EMA(*[1])',
        "EMA(**{'decay':1})", 'EMA(decay=0.5, decay=0.9)', 'x.EMA()', 'lambda: 1', '$', '"EMA"', 'EMA() + SWA()',
        '-'*3000+'1', '('*1500, 'EMA('*300+')'*300, 'EMA(' + '-'*1900 + '1)', 'EMA({[]:1})', "EMA(open('x'))",
        'Cutout(holes=10**30)', 'EMA(x)', 'EMA(1j)', 'MixUp(1e999)', 'MixUp(nan)', 'OneOf(MixUp(), EMA(), p=0.5)',
        'OneOf(1)', 'OneOf()', 'MixUp(alhpa=1)',
        'MixUp(1, 2, 3)', 'EMA('+'9'*1900+')', 'EMA "x"', 'EMA()'*500, '\\', '#EMA', 'MixUp([1])', 'EMA(EMA())',
        'OneOf(MixUp(), CutMix(), p=[0.5])'])
def test_tricks_refused(capsys, tricks):
    'Whatever is written for `--tricks`, what is wrong with it is a sentence'
    assert len(refused(capsys, cifar_train, ['--tricks='+tricks, '--model', 'toynet_s1_k3', '--dataset', 'digits']))<400

def test_nested_tricks():
    'Mixers within `OneOf` and `Chain`, separated by commas or spaces, and strings that contain spaces'
    from cifar_fastai.runs.train import create_tricks
    text = "OneOf(MixUp(0.2), Chain(CutMix(p=0.1), RICAP()), p=0.5)\n ShakeDrop(alpha=(-1, 1)),EMA"
    _,a,b = create_tricks(RunConfig(tricks=text))
    assert repr(a.mixers[0])=='MixUp(alpha=0.2)' and [type(o).__name__ for o in a.mixers[1].mixers]==['CutMix', 'RICAP']
    assert a.p==0.5 and a.mixers[1].mixers[0].p==0.1 and b.alpha==(-1, 1)
    assert parse_calls("KD('my  folder/x (1)')")==[('KD', ['my  folder/x (1)'], {})]

def test_calls_have_one_form():
    'The same call written in different ways is the same configuration, and its text is read as itself'
    ways = ['MixUp(0.2) Cutout()', 'MixUp(alpha=0.2), Cutout(16)', ['MixUp(0.2)', 'Cutout(length=16, holes=1)'],
        'MixUp(alpha=.2)Cutout']
    assert len({str(RunConfig(tricks=o)) for o in ways[:3]})==1 and RunConfig(tricks=ways[0]).tricks==['Cutout()',
        'MixUp(alpha=0.2)']
    for o in ('RandomErasing(0.3, (0.1, 0.2))', "OneOf(MixUp(1), Chain(CutMix(), RICAP(0.1)), p=(0.5, 0.25))",
        "KD('resnet20', path='a b.safetensors')"):
        cfg = RunConfig(tricks=o)
        assert RunConfig(tricks=cfg.tricks)==cfg and RunConfig(tricks=' '.join(cfg.tricks))==cfg
    assert RunConfig(schedule='multistep((60, 120), 0.2)')==RunConfig(schedule='multistep(milestones=(60,120), '
        'gamma=0.2)')

def test_unknown_errors_keep_their_traceback(monkeypatch):
    'A bug is no sentence'
    import cifar_fastai.runs.train as run
    def train(*args): raise ZeroDivisionError
    monkeypatch.setattr(run, 'train', train)
    with pytest.raises(ZeroDivisionError): cifar_train(argv=['--dataset', 'digits'])

bad_configs = dict(nul=b'model: "a\\0b"', raw_nul=b'model: a\0b', surrogate=b'model: "\\uD800"',
    deep=b'model: '+b'['*100_000, deep_map=b'{a: '*50_000, digits=b'epochs: '+b'9'*5000,
    digits2=b'lr: 0x'+b'f'*5000,
    twice=b'bs: 1\nbs: 2', twice_spelled=b'weight-decay: 1\nweight_decay: 1', latin=b'model: \xe9',
    tag=b'model: !!python/object/apply:os.getpid []', own_tag=b'model: !x y', alias=b'model: &a x\nname: *a',
    bomb=b'a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]', merge=b'<<: {bs: 1}', list_value=b'bs: [64]',
    map_value=b'bs: {a: 1}', key=b'? [a]\n: 1', documents=b'bs: 1\n---\nbs: 2', empty=b'', comment=b'# x',
    null_key=b'null: 1', number_key=b'1: 1', true=b'epochs: true', half=b'epochs: 1.5', utf16='bs: 64'.encode('utf-16'),
    large=b'# '+b'x'*2_000_000, inf=b'lr: .inf', nan=b'lr: .nan')

@pytest.mark.parametrize('text', bad_configs.values(), ids=bad_configs)
def test_bad_config(capsys, text):
    'Whatever a file of settings holds, what is wrong with it is a sentence'
    Path('run.yaml').write_bytes(text)
    with pytest.raises(SystemExit) as e: cifar_train(argv=['--config', 'run.yaml', '--dataset', 'digits'])
    err = capsys.readouterr().err
    assert e.value.code==2 and err.count('\n')==1 and len(err)<400 and [o.name for o in Path().iterdir()]==['run.yaml']
    if text.startswith(b'bs: 1'): assert 'twice' in err or 'YAML' in err

@pytest.mark.parametrize('kind', ['fifo', 'folder', 'null', 'socket', 'dangling', 'nul'])
def test_config_is_a_file(capsys, kind):
    'What is not a regular file is refused, and not waited for'
    import socket
    f,s = {'null':'/dev/null', 'nul':'a\0b'}.get(kind, 'run.yaml'),socket.socket(socket.AF_UNIX)
    if kind=='fifo': os.mkfifo(f)
    if kind=='folder': Path(f).mkdir()
    if kind=='socket': s.bind(f)
    if kind=='dangling': Path(f).symlink_to('nowhere')
    with pytest.raises(UserError): read_config(f)
    with pytest.raises(SystemExit) as e: cifar_train(argv=['--config', f])
    s.close()
    err = capsys.readouterr().err
    assert e.value.code==2 and err.count('\n')==1

def test_config_of_a_run_is_one():
    'The configuration that a run stores is read as itself'
    from cifar_fastai.runs.config import write_config
    cfgs = RunConfig(tricks='EMA(0.9) SAM', schedule='warmup_multistep(gamma=0.3)'),RunConfig(lr=1e-5,
        schedule='multistep((1,2))')
    for r in (*cfgs, experiment('3.8/pyramidnet272_autoaugment_random_erase_mixup').config):
        Path('run.yaml').write_text(write_config(asdict(r)))
        assert RunConfig(**read_config('run.yaml'))==r

def ended(code, *, stdout=subprocess.PIPE, **kwargs):
    'Exit code, output and errors of a process'
    p = subprocess.run([sys.executable, '-c', code], stdout=stdout, stderr=subprocess.PIPE, text=True,
        timeout=120, **kwargs)
    return p.returncode,p.stdout,p.stderr

def test_refusals_are_quick():
    'Help, and what can be refused without torch, does without it'
    for argv in (['--help'], ['--print-config'], ['--bs', '0'], ['--tricks', '1'], ['--tricks', 'MixPu()'],
        ['--tricks', 'MixUp(alhpa=1)'], ['--config', 'no.yaml'], ['--mixpu'],
        ['--milestones', 'x'], ['--model', 'resnet21'], ['--optims', 'x'], ['--schedule', 'x'], ['--init', 'x']):
        code,out,err = ended(f"""import sys
from cifar_fastai.cli import cifar_train
try: cifar_train(argv={argv!r})
finally: assert 'torch' not in sys.modules, 'torch'""")
        assert code==(0 if argv[0] in ('--help', '--print-config') else 2) and 'AssertionError' not in err, err

@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('call',
    ["cifar_zoo(argv=['resnet2*'])", "cifar_train(argv=['--help'])", "cifar_train(argv=['--print-config'])"])
def test_closed_pipe(monkeypatch, call, unbuffered):
    'Whoever stops reading, as `head -1` does, ends a command without a word, at the end of the interpreter too'
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    r,w = os.pipe()
    os.close(r)
    code,_,err = ended(f'from cifar_fastai.cli import *; {call}', stdout=w)
    os.close(w)
    assert code in (0, 141) and not err # argparse ignores it for --help

@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_no_output(monkeypatch, unbuffered):
    'A closed standard output is none, and a full one is told in a sentence'
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    code = "from cifar_fastai.cli import cifar_train; cifar_train(argv=['--print-config'])"
    assert subprocess.run(['sh', '-c', f'{sys.executable} -c "{code}" >&-'], capture_output=True).returncode==0
    if not Path('/dev/full').exists(): return
    for argv,says in ('--print-config', 'No space left'),('--nope',
        'There is no flag'): # a refusal writes nothing there
        with open('/dev/full', 'w') as f: got,_,err = ended(code.replace('--print-config', argv), stdout=f)
        assert got==2 and err.count('\n')==1 and says in err

def test_other_broken_pipes(monkeypatch):
    'A pipe that is not the output is a bug'
    import cifar_fastai.runs.train as run
    def train(*args): raise BrokenPipeError
    monkeypatch.setattr(run, 'train', train)
    with pytest.raises(BrokenPipeError): cifar_train(argv=['--dataset', 'digits'])

def test_interrupted(monkeypatch, capsys):
    'Ctrl-C where nothing is saved, or a second one, ends at once'
    import cifar_fastai.runs.train as run
    def train(*args): os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(run, 'train', train)
    with pytest.raises(SystemExit) as e: cifar_train(argv=['--dataset', 'digits'])
    assert e.value.code==130 and capsys.readouterr().err.count('\n')<=1

@pytest.mark.slow
def test_second_interrupt():
    'The same in a process that trains: the first Ctrl-C saves after the batch, a second one does not wait for it'
    code = """from fastai.vision.all import Callback
import time
from cifar_fastai.runs.train import RunPlan
real = RunPlan.learner
class Slow(Callback):
    def before_batch(self):
        print('batch', flush=True)
        time.sleep(30)
def slow(self, **kwargs):
    learn = real(self, **kwargs)
    return learn.add_cb(Slow())
RunPlan.learner = slow
from cifar_fastai.cli import cifar_train
cifar_train()"""
    p = subprocess.Popen([sys.executable, '-c', code, *'--dataset digits --model toynet_s1_k3 --epochs 1'.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while 'batch' not in p.stdout.readline(): pass
    for _ in range(2):
        p.send_signal(signal.SIGINT)
        time.sleep(0.5)
    out,err = p.communicate(timeout=20)
    assert p.returncode==130 and 'Traceback' not in err

# published name of a schedule, and the settings that its policy takes
shapes = dict(multistep=dict(milestones='2,4', gamma=0.3), warmup=dict(milestones='3', gamma=0.3, warmup=2.),
    warmcosine=dict(warmup=2., period=9.),
    cosine={}, custom={}, cosine_restarts={}, onecycle={})
small = RunConfig('toynet_s1_k3', 'digits')
def translated(cfg=small, **flags): return cfg.override(**translate(flags, cfg))

def rates(fit):
    'The learning rate of every batch of a fit'
    from fastai.vision.all import nn
    from cifar_fastai.data.loaders import cifar_dls
    from cifar_fastai.learner import cifar_learner
    learn = cifar_learner(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), cifar_dls('digits', fraction=0.05, bs=32))
    with learn.no_bar(), learn.no_logging(): fit(learn)
    return learn.recorder.lrs

@pytest.mark.parametrize('sched,names',
    [(k, names) for k,v in shapes.items() for names in {(), *((o,) for o in v), tuple(v)}])
def test_schedule_settings(sched, names):
    "The fit of a configuration has the rates of the policy: what was not given is the policy's default"
    from cifar_fastai.runs.published import epoch_list
    from cifar_fastai.runs.train import RunPlan
    given = {k:shapes[sched][k] for k in names}
    r = translated(replace(small, epochs=6, lr=0.05), sched=sched, **given)
    policy = dict(warmup='warmup_multistep', custom='triangular').get(sched, sched)
    def own(learn):
        if sched=='onecycle': return learn.fit_one_cycle(6, 0.05)
        getattr(learn, f'fit_{policy}')(6, 0.05, **{k:epoch_list(v) if k=='milestones' else v for k,v in given.items()})
    assert rates(lambda learn: RunPlan(r).fit(learn))==rates(own)

@pytest.mark.parametrize('sched', shapes)
@pytest.mark.parametrize('k,v', dict(milestones='1', gamma=0.5, warmup=1., period=6.).items())
def test_settings_without_effect(sched, k, v):
    'A setting that the schedule does not take is refused, and none that it takes'
    from cifar_fastai.runs.train import RunPlan
    cfg = replace(small, epochs=6)
    if k in shapes[sched]: assert RunPlan(translated(cfg, sched=sched, **{k:v})).schedule.name
    else:
        with pytest.raises(UserError, match=f'{k} is .*the {sched} schedule does not use it'):
            translated(cfg, sched=sched, **{k:v})

def test_row_with_another_schedule(monkeypatch):
    "A row's settings of its schedule do not outlive it: another schedule has its own defaults, and another length the row's proportions"
    row = '3.8/pyramidnet272_autoaugment_random_erase_mixup'
    def of(argv): return resolved(monkeypatch, ['--row', row, *argv.split()])[0]
    assert of('').schedule=='warmcosine(warmup=20.0, period=300.0)'
    assert of('--sched multistep').schedule==of('--schedule multistep').schedule=='multistep'
    assert of('--sched warmup').schedule=='warmup_multistep' and of('--sched warmup --warmup 3').schedule=='warmup_multistep(warmup=3.0)'
    assert of('--epochs 30').schedule=='warmcosine(warmup=2.0, period=30.0)'
    assert of('--epochs 30 --warmup 5').schedule=='warmcosine(warmup=5.0, period=30.0)'
    assert of('--init default').init is None and of('--wd-bn-bias True').wd_bn_bias

def test_default_rate_follows_the_optimizer(monkeypatch):
    'A learning rate that nobody gave is that of the optimizer; a given one stays'
    for argv,lr in ('--optims adam', 1e-3), ('--optimizer adam', 1e-3), ('--optims sam',
        0.1), ('--optimizer lion --lr 0.1', 0.1), ('--optims adam --row 3.9/ss64_c', 0.1):
        assert resolved(monkeypatch, argv.split())[0].lr==lr

def test_data_of_a_configuration(monkeypatch):
    'Which images: --fraction draws by the seed, --half and --fast are fixed, table 3.3 has the first of each set'
    from cifar_fastai.runs import train as run
    seen = []
    class Seen(Exception): pass
    def cifar_dls(*args, **kwargs):
        seen.append(kwargs)
        raise Seen
    monkeypatch.setattr(run, 'cifar_dls', cifar_dls)
    def of(seed=666, drop_last=False, fraction=1., **flags):
        cfg = replace(small, seed=seed, drop_last=drop_last, fraction=fraction)
        with pytest.raises(Seen): run.RunPlan(translated(cfg, **flags)).learner()
        return seen[-1]
    for seed in (1, 2):
        assert of(fraction=0.5, seed=seed)['seed']==seed and of(fraction=0.5, seed=seed)['fraction']==0.5
        for kw in (dict(half=True), dict(fast=True), dict(first_half=True), {}): assert of(**kw, seed=seed)['seed']==42
        assert of(seed=seed)['rule']=='stratified' and not of()['drop_last']
    assert of(first_half=True)['rule']=='first' and of(first_half=True)['fraction']==0.5
    assert of(half=True)['fraction']==0.5 and of(half=True)['rule']=='stratified' and of(fast=True)['fraction']==0.3
    assert of(drop_last=True)['drop_last'] is True
    for a,b in (('half', 'first_half'), ('fast', 'first_half')):
        with pytest.raises(UserError, match='use one of them'): translated(**{a:True, b:True})

def test_seeds_draw_other_images(monkeypatch):
    'Two seeds train on other images with --fraction, and on the same with --half'
    from cifar_fastai.runs.train import RunPlan
    def images(seed, **kw): return RunPlan(replace(small, seed=seed, **kw), device='cpu').learner().dls.train_ds.x
    half = dict(fraction=0.5, subset='fixed')
    assert (images(1, **half)==images(2, **half)).all() and (images(2, fraction=0.5)==images(2, fraction=0.5)).all()
    assert (images(1, fraction=0.5)!=images(2, fraction=0.5)).any()

@pytest.mark.parametrize('kw,says',
    [(dict(drop_last='False'), "drop_last is 'False'"), (dict(model=None), 'model is None'),
        (dict(epochs='9'), "epochs is '9'"),
        (dict(tricks=1), 'tricks is 1'), (dict(tricks=[1]), 'tricks is'), (dict(lr=[0.1]), 'lr is'),
        (dict(seed=1.5), 'seed is 1.5'), (dict(schedule=None), 'schedule is None'),
        (dict(optimizer='sgd adam'), 'it must be one call'), (dict(schedule=''), 'schedule is empty'),
        (dict(init=1), 'init is 1'), (dict(precision=16), 'precision is 16')])
def test_types(kw, says):
    'A configuration made in Python is checked where it is created'
    with pytest.raises(UserError, match=re.escape(says)): replace(small, **kw)

on_flags = 'half fast ricap random-erase autoaugmentation cutout mixup cutmix nesterov amp'.split()
valued = {'--model':'resnet20', '--name':'x', '--dataset':'cifar100', '--root':'.', '--bs':'32', '--epochs':'3',
    '--lr':'0.2', '--learning-rate':'0.2', '--momentum':'0.8', '--weight-decay':'1e-3', '--seed':'7', '--nw':'4',
    '--gradient-clip':'2.0', '--ricap-beta':'0.4',
    '--random-erase-prob':'0.4', '--random-erase-sl':'0.03', '--random-erase-sh':'0.5', '--random-erase-r':'0.4',
    '--mixup-alpha':'0.5', '--cutmix-prob':'0.4', '--beta':'0.9', '--smooth-factor':'0.2', '--gpu':'0',
    '--milestones':'60,120,160', '--gamma':'0.1'}
listed = [[k, v] for k,v in valued.items()] + [[f'--{k}', v] for k in on_flags
    for v in ('True', 'False')] + [['--optims', o]
        for o in 'sgd nesterov adam adamw adabound adaboundw sam asam'.split()]
listed += [['--sched', o] for o in 'multistep warmup cosine warmcosine custom onecycle'.split()] + [['--crit', o]
    for o in ('ce', 'lsr')]

native = {'--weight-decay':dict(wd=1e-3), '--momentum':dict(optimizer='sgd(momentum=0.8)'),
    '--gradient-clip':dict(tricks=['GradientClip()']),
    '--milestones':dict(schedule='multistep(milestones=(60, 120, 160))'),
    '--gamma':dict(schedule='multistep(gamma=0.1)'),
    '--half':dict(fraction=0.5, subset='fixed'), '--fast':dict(fraction=0.3, subset='fixed'),
    '--amp':dict(precision='fp16'), '--nesterov':dict(optimizer='nesterov'),
    '--ricap':dict(tricks=['RICAP()']), '--random-erase':dict(tricks=['RandomErasing(log_aspect=False)']),
    '--autoaugmentation':dict(tricks=['AutoAugment()']),
    '--cutout':dict(tricks=['Cutout()']), '--mixup':dict(tricks=['MixUp()']), '--cutmix':dict(tricks=['CutMix()']),
    'sam':dict(tricks=['SAM()']), 'asam':dict(tricks=['ASAM()']), 'lsr':dict(tricks=['LabelSmoothing()']),
    **{o:dict(optimizer=o, lr=1e-3) for o in 'adam adamw adabound adaboundw'.split()},
    'nesterov':dict(optimizer='nesterov'),
    'warmup':dict(schedule='warmup_multistep'), 'custom':dict(schedule='triangular'),
    **{o:dict(schedule=o) for o in 'cosine warmcosine onecycle'.split()}}

@pytest.mark.parametrize('argv', listed, ids=' '.join)
def test_every_published_flag(monkeypatch, argv):
    'Each flag of the published command line sets what it says, and nothing else'
    r,(name,root,_,_,_,device,*_) = resolved(monkeypatch, argv)
    k,v = argv[0][2:].replace('-', '_').replace('learning_rate', 'lr'),argv[1]
    plain = asdict(RunConfig())
    changed = {o:w for o,w in asdict(r).items() if w!=plain[o]}
    others = dict(name=name, root=root, gpu=device)
    if k in others: assert others[k]==v and not changed
    elif k in plain: assert changed=={k:type(plain[k])(v)}
    else: assert changed==({} if v=='False' else native.get(v, native.get(argv[0], {})))

arguments = {'--ricap --ricap-beta 0.4':'RICAP(beta=0.4)', '--mixup --mixup-alpha 0.5':'MixUp(alpha=0.5)',
    '--cutmix --cutmix-prob 0.4 --beta 0.9':'CutMix(beta=0.9, p=0.4)',
    '--crit lsr --smooth-factor 0.2':'LabelSmoothing(eps=0.2)', '--cutout --cutout-length 8':'Cutout(length=8)',
    '--optims sam --sam-rho 0.5':'SAM(rho=0.5)',
    '--asam --asam-rho 1 --asam-eta 0':'ASAM(rho=1.0, eta=0.0)', '--gradient-clip 1':'GradientClip(max_norm=1.0)',
    '--random-erase --random-erase-prob 0.4 --random-erase-sl 0.03 --random-erase-sh 0.5 --random-erase-r 0.4':
    'RandomErasing(p=0.4, area=(0.03, 0.5), aspect=(0.4, 2.5), log_aspect=False)'}

@pytest.mark.parametrize('argv', arguments)
def test_published_arguments(monkeypatch, argv):
    'The flags of an argument change the trick, and do nothing without it'
    assert resolved(monkeypatch, argv.split())[0].tricks==[arguments[argv]]
    words = argv.split()
    flags = [o for o in zip(words, words[1:]) if o[0].startswith('--') and not o[1].startswith('--')
        and o[0] not in ('--crit', '--optims', '--gradient-clip')]
    assert resolved(monkeypatch, [o for f in flags for o in f])[0].tricks==[]
    row = ['--row', '3.2/wideresnet_random_erase'] if 'erase' in argv else []
    if row: assert resolved(monkeypatch, [*row, *words[1:]])[0].tricks==[arguments[argv]]

def test_published_flags_change_a_row(monkeypatch):
    'A published flag adds, changes or removes a trick of a row; --tricks replaces them all'
    def of(argv): return resolved(monkeypatch, ['--row', '3.9/ss64_cm', *argv.split()])[0].tricks
    assert of('')==['Cutout()',
        'MixUp()'] and of('--mixup False')==['Cutout()'] and of('--mixup-alpha 0.2')==['Cutout()', 'MixUp(alpha=0.2)']
    assert of('--optims sam')==['Cutout()', 'MixUp()',
        'SAM()'] and of('--tricks EMA')==['EMA()'] and of('--tricks EMA --cutout')==['Cutout()', 'EMA()']

@pytest.mark.parametrize('text,says',
    [('modle: resnet20', "no setting in run.yaml 'modle': did you mean 'model'"),
        ('bs: many', "run.yaml: bs is 'many'"),
        ('- resnet20', 'run.yaml has no settings'), ('a: [', 'run.yaml is not YAML'),
        ('epochs: 2001-99-99', 'run.yaml is not YAML'), ('sam: perhaps', "run.yaml: sam is 'perhaps'")])
def test_config_refused(capsys, text, says):
    'A file with settings that are not there or cannot be'
    Path('run.yaml').write_text(text)
    with pytest.raises(SystemExit) as e: cifar_train(argv=['--config', 'run.yaml'])
    err = capsys.readouterr().err
    assert e.value.code==2 and says in err and err.count('\n')==1 and [o.name for o in Path().iterdir()]==['run.yaml']

def resolved(monkeypatch, argv):
    'The configuration and the other arguments with which `cifar-train` would train'
    import cifar_fastai.runs.train as run
    seen = []
    monkeypatch.setattr(run, 'train', lambda cfg,*args: seen.append((cfg, args)))
    monkeypatch.setattr(run, 'report', lambda folder: '')
    cifar_train(argv=argv)
    return seen[0]

def test_precedence(monkeypatch, capsys):
    'Command line, then file, then row, then default'
    Path('run.yaml').write_text('model: resnet20\nepochs: 8\nweight-decay: 1e-3\n')
    argv = '--config run.yaml --row 3.9/ss64_cm --epochs 3 --gradient_clip=1.5'.split()
    r,(name,*_) = resolved(monkeypatch, argv)
    tricks = ['Cutout()', 'GradientClip(max_norm=1.5)', 'MixUp()']
    assert r==replace(experiment('3.9/ss64_cm').config, model='resnet20', epochs=3, wd=1e-3, tricks=tricks)
    assert name=='3.9-ss64_cm_resnet20_epochs3_tricks-Cutout_GradientClip-max_norm-1.5_MixUp_wd0.001'
    capsys.readouterr()
    cifar_train(argv=argv+['--print-config'])
    shown = {l.split(':')[0]:l for l in capsys.readouterr().out.splitlines()}
    for k,source in dict(model='run.yaml', epochs='command line', bs='row 3.9/ss64_cm', seed='default').items():
        assert shown[k].endswith(f'# {source}')
    Path('again.yaml').write_text('\n'.join(shown.values()))
    assert resolved(monkeypatch, ['--config', 'again.yaml'])[0]==r

# as published beside the tables and in the reference's run script, but for backbones that are not here
transformers = [f"--model '{m}' --name \"{m}\" --sched 'cosine' --epochs 200"
    + (' --lr 0.01' if m[0]=='c' or m[:4]=='swin' else '')
    for m in 'vision_transformer mobilevit_s mobilevit_xs mobilevit_xxs coatnet_0 coatnet_1 coatnet_2 '
    'coatnet_3 cvt swin_t swin_s swin_b'.split()]
wideresnets = ['--dataset cifar10'+o for o in ('', ' --ricap True', ' --random-erase True', ' --mixup True')]
shakes = [f"--model 'shake_resnet26_2x64d' {o} --sched 'cosine' --epochs 200"
    for o in ('--name "base_shake"', '--cutout True  --name "shakeC"',
        '--mixup True --name "shakeM"', '--cutout True --mixup True --name "shakeMC"')]
divide = ["""--model 'pyramidnet272' --name 'divide-co-train' --autoaugmentation True --random-erase True --mixup True --epochs 300 --sched 'warmcosine'
    --optims 'nesterov' --bs 128 --root 'somewhere'"""]
letters = dict(c='--cutout True', m='--mixup True', a='--autoaugmentation True', r='--random-erase True')
pairs = {n:f"--model 'shake_resnet26_2x64d' --name 'ss64_{n}' {' '.join(letters[o] for o in n if n!='orgin')} --bs 64"
    for n in 'orgin c m a r cm ca cr ma mr ar'.split()}
spps = [f"--model 'spp_d{d}_p{p}' --name \"spp_d{d}_p{p}\" --sched 'cosine' --epochs 200 "
    "--fast True --dataset \"cifar10\"" for d in (11, 20, 29) for p in 'NABCD']
others = ['--model \'resnet20\' --name "fast_training" --sched \'cosine\' --epochs 1 --cutout True --sched "cosine" '
    '--lr 0.6 --bs 512 --nw 0 --fast True',
    "--model 'convnext_tiny' --name \"convnext_tiny\" --optims adamw --epochs 200 --lr 0.01 --bs 128 --nw 4",
    "--model 'cct_7_3x1' --name \"cct\" --sched 'warmcosine' --epochs 200 --cutout False --lr 5e-4 --bs 128 --nw 4 "
    "--optims \"sgd\" --weight-decay 3e-2 --gradient_clip 2.0",
    "--model 'poolformer_s12' --name \"poolformer_s12_dim128\" --sched 'cosine' --epochs 200 --lr 0.01"]
published = transformers + wideresnets + shakes + divide + [*pairs.values()] + spps + others

@pytest.mark.parametrize('command', published)
def test_published_commands(monkeypatch, capsys, command):
    'Each resolves to what it says, and trains for two steps (on digits, two at a time)'
    from fastai.callback.core import Callback,CancelFitException
    from cifar_fastai.runs.train import RunPlan
    argv = shlex.split(command)
    Path('somewhere').mkdir()
    r,(name,root,*_) = resolved(monkeypatch, argv)
    given = dict(zip([o[2:].replace('-', '_') for o in argv[::2]], argv[1::2]))
    assert name==given.pop('name', None) and root==given.pop('root', None)
    assert capsys.readouterr().err.count('--nw is ignored')==('nw' in given)
    want = {k:v for k,v in given.items() if k in asdict(r)}
    assert {k:str(getattr(r, k)) for k in want}=={k:str(type(getattr(r, k))(v)) for k,v in want.items()}
    tricks = [native[f"--{k.replace('_', '-')}"]['tricks'][0] for k,v in given.items() if v=='True'
        and k not in ('fast', 'half')]
    assert sorted(r.tricks)==sorted(tricks + ['GradientClip()']*('gradient_clip' in given))
    assert r.schedule==given.get('sched', 'multistep') and r.optimizer==given.get('optims',
        'sgd') and r.fraction==(0.3 if 'fast' in given else 1)
    class TwoSteps(Callback):
        steps = 0
        def after_step(self): self.steps += 1
        def after_batch(self):
            if self.training and self.steps==2: raise CancelFitException
    plan,two = RunPlan(replace(r, dataset='digits', bs=2)),TwoSteps()
    learn = plan.learner()
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): plan.fit(learn, two)
    assert two.steps==2 and learn.train_iter==2 and any((a!=b).any() for a,b in zip(before, learn.model.parameters()))

@pytest.mark.parametrize('table,commands',
    [('3.2', wideresnets), ('3.9', [*pairs.values()]), ('3.10', spps), ('1.0', transformers)])
def test_commands_are_rows(monkeypatch, table, commands):
    'What the published commands say is what the published rows are'
    rows = {e.id.split('/')[1]:e.config for e in experiments(f'{table}/*')}
    for command in commands:
        r,(name,*_) = resolved(monkeypatch, shlex.split(command))
        if table=='3.2': assert r in rows.values()
        elif name in rows: assert r==rows.pop(name)
    assert table=='3.2' or not rows

def test_lr_find(capsys):
    '`cifar-lr-find` suggests a rate and draws the curve'
    cifar_lr_find(argv='--dataset digits --model toynet_s1_k3 --bs 64 --num-it 30 --mixup'.split())
    out = capsys.readouterr().out
    assert 1e-6 < float(out.split('learning rate: ')[1].split()[0]) < 10 and Path('lr_find.png').read_bytes()[:4]==b'\x89PNG'

def test_dry_run(capsys):
    'What is to run, and about how long it takes, or why it cannot'
    argv = '--table 3.5 --seeds 2 --dataset digits --model toynet_s1_k3 --epochs 2 --dry-run'.split()
    cifar_reproduce(argv=argv)
    out = capsys.readouterr().out
    assert out.count('missing')==8 and out.count('about')==9 and 'in total' in out and not list(Path().iterdir())
    cifar_reproduce(argv=argv+['--bs', '10000000'])
    assert capsys.readouterr().out.count('GiB or more')==8

def test_sweep(capsys):
    'A sweep runs what is missing, one row failing does not stop it, and it is not run again'
    argv = '--table 3.5 --dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64'.split()
    broken = Path('exps/3.5-shake_resnet26_2x64d_cutout_toynet_s1_k3_digits_epochs1_bs64_fraction0.1/0')
    broken.mkdir(parents=True)
    (broken/'config.yaml').write_text('a: {\n')
    (broken/'log.csv').write_text('epoch')
    with pytest.raises(SystemExit) as e: cifar_reproduce(argv=argv)
    out,err = capsys.readouterr()
    assert e.value.code==1 and out.count('accuracy')==3 and len([o for o in err.splitlines() if 'runs finished' not in o])==1 and 'cutout seed 0: ' in err and 'config.yaml is not flat YAML' in err
    runs = sorted(o for o in Path('exps').glob('*/0/log.csv') if o.parent!=broken)
    before = [o.stat().st_mtime_ns for o in runs]
    for o in broken.iterdir(): o.unlink()
    cifar_reproduce(argv=argv)
    assert [o.stat().st_mtime_ns for o in runs]==before and (broken/'log.csv').exists()
    cifar_report(argv=['--table', '3.5'])
    out = capsys.readouterr().out
    assert 'epochs' in out and sorted(o.name for o in Path('report').iterdir())==['report.csv', 'report.html',
        'report.md', 'report.png']
    a,b = [o.parent for o in runs[:2]]
    cifar_compare(argv=[str(a), str(b), '--out', 'both.png'])
    out = capsys.readouterr().out
    assert 'mixup' in out and Path('both.png').exists()

def piped(command, args):
    'What a process of its own writes into a pipe'
    p = subprocess.run([sys.executable, '-c', f'from cifar_fastai.cli import {command}; {command}()', *args.split()],
        capture_output=True, text=True)
    assert p.returncode==0, p.stderr
    return p.stdout

def test_share_a_sweep():
    'Two processes share the rows, with the arguments that the command got; one of them killed, its row is still run'
    import psutil
    argv = '--table 3.5 --dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64 --workers 2'.split()
    p = subprocess.Popen([sys.executable, '-c', 'from cifar_fastai.cli import '
        f'cifar_reproduce; cifar_reproduce(argv={argv!r})', '--no-such-flag'], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    while not list(Path('exps').glob('*/0/.lock')):
        assert p.poll() is None, p.stderr.read()
        time.sleep(0.02)
    os.kill(psutil.Process(p.pid).children()[0].pid, signal.SIGKILL)
    out,err = p.communicate(timeout=300)
    assert len(out.splitlines())>=8, 'each of the two processes goes over all four rows'
    assert p.returncode==0 and len(list(Path('exps').glob('*/0/log.csv')))==4 and 'SIGKILL' in err, err

crash = """import os,signal,sys
n = 0
while os.path.exists(f'start{n}'): n += 1
while True:
    try: f = open(f'start{n}', 'x')
    except FileExistsError: n += 1
    else: break
f.write(' '.join(sys.argv[1:]))
f.close()
if n<%d: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(%d)"""

@pytest.mark.parametrize('crashes,code,ends,starts',
    [(0, 0, 0, 2), (1, 0, 0, 3), (2, 0, 0, 4), (99, 0, 137, 6), (0, 1, 1, 2), (0, 143, 143, 2)])
def test_killed_workers(capfd, crashes, code, ends, starts):
    'A worker that a signal killed is started again, a bounded number of times; one that ended by itself is not'
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    end = run_workers(2, crash%(crashes, code), ['--a=1'])
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]==handlers
    files = list(Path().glob('start*'))
    assert end==ends and len(files)==starts and capfd.readouterr().err.count('SIGKILL')==min(crashes, 5)
    assert all(o.read_text()=='--a=1' for o in files)

waits = """import os,signal,sys,time
def end(*_):
    open(f'ended{os.getpid()}', 'w').close()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open(f'start{os.getpid()}', 'w').close()
time.sleep(60)"""

@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_workers(capfd, signum):
    'A signal to the parent alone ends the workers, once each; none is started again'
    sent = []
    def interrupt():
        if len(list(Path().glob('start*')))==2 and not sent: sent.append(os.kill(os.getpid(), signum))
    assert run_workers(2, waits, [], waiting=interrupt)==128+signum
    assert len(list(Path().glob('start*')))==len(list(Path().glob('ended*')))==2 and capfd.readouterr().err==''

@pytest.mark.parametrize('argv,says',
    [('--model resnet21', "no backbone 'resnet21'"),
        ('--dataset nowhere/x.tgz', "no folder or archive 'nowhere/x.tgz'"), ('--device cuda:99', 'no device'),
        ('--fraction 2', 'fraction is 2.0'), ('--epochs 0', 'epochs is 0')])
@pytest.mark.parametrize('workers', ['', ' --workers 2'])
def test_bad_sweep(capsys, argv, says, workers):
    'Bad input to a sweep is refused before anything runs'
    assert says in refused(capsys, cifar_reproduce, f'--table 3.5 {argv}{workers}'.split())

def test_no_bars_in_a_pipe():
    'A line an epoch, and no bars'
    out = piped('cifar_train', '--dataset digits --model toynet_s1_k3 --epochs 2 --fraction 0.1 --bs 64')
    assert out.count('accuracy')==2 and len(re.findall(r'^ +[12] ', out, re.M))==2 and '|-' not in out and '█' not in out

@pytest.mark.parametrize('argv', [['a', 'b'], ['--exps', 'nowhere', '--table', '3.5']])
def test_nothing_there(capsys, argv):
    'Runs that are not there are told in one sentence'
    refused(capsys, cifar_compare if argv[0]=='a' else cifar_report, argv)

def test_export(capsys):
    'A run exports to a folder that loads'
    from cifar_fastai.runs.export import load_run, push_run
    cifar_train(argv='--dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64 --name a'.split())
    cifar_export(argv=['exps/a/666'])
    assert 'load_run(' in capsys.readouterr().out
    hub = pytest.importorskip('huggingface_hub')
    with pytest.raises(UserError, match='Upload to a/b failed'):
        push_run('exps/a/666/export', 'a/b', api=hub.HfApi(endpoint='http://127.0.0.1:9', token='x'))
    learn = load_run('exps/a/666/export')
    with learn.no_bar(): assert len(learn.predict(load_run('exps/a/666').dls.valid_ds[0][0])[2])==10
    with pytest.raises(SystemExit): cifar_export(argv=['exps/a/667'])
    assert 'Traceback' not in capsys.readouterr().err

@pytest.mark.parametrize('argv,says', [(['--tricks', 'SAM(rho=-1)'], 'SAM: rho is -1: it must be a number in [0, 1000]'),
    (['--tricks', 'Cutout(2.5)'], 'Cutout: length is 2.5: it must be an integer in [0, 1024]'),
    (['--optimizer', 'sgd(momentum=1.0)'], 'sgd: momentum is 1.0: it must be a number in [0, 1)'),
    (['--schedule', 'multistep(gamma=2.0)'], 'multistep: gamma is 2.0: it must be a number in [0, 1]'),
    (['--loss', 'CrossEntropy(smoothing=2.0)'], 'CrossEntropy: smoothing is 2.0: it must be a number in [0, 1]')])
def test_ranges_without_torch(argv, says):
    'Ranges of arguments are checked before torch is imported'
    code = f'import sys; from cifar_fastai.cli import cifar_train\ntry: cifar_train(argv={argv!r})\nexcept SystemExit: print("torch" in sys.modules)'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert says in p.stderr and p.stdout=='False\n'

@pytest.mark.parametrize('columns', [80, 120])
def test_cost_of_tricks(capsys, monkeypatch, columns):
    "The stored measurements, with what was measured, in a table that fits"
    monkeypatch.setenv('COLUMNS', str(columns))
    bench = json.loads((Path(__file__).parents[1]/'nbs/benchmarks/bench.json').read_text())
    cifar_tricks(argv=[])
    out = capsys.readouterr().out
    lines = out.splitlines()
    at = lines[0].index('cost')
    shown = {re.match(r'\w+', o)[0]:o[at:at+4].strip() for o in lines[1:] if re.match(r'\w+\(', o)}
    assert max(map(len, lines))<=columns and len(shown)>30 and shown['OneOf']==''
    assert all(v==f"{bench['tricks'][k]['ratio']:.2f}" for k,v in shown.items() if v) and 'relative to plain training' in out
    assert 'resnet20, batch size 128, x86_64 CPU, 1 thread' in ' '.join(out.split())
    cifar_tricks(argv=['SAM'])
    assert f"Cost: {shown['SAM']} times an epoch of plain training" in capsys.readouterr().out
