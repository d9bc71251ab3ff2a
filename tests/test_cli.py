'The commands: what is refused and how, where settings come from, and that the published commands work.'
import json,shlex
from dataclasses import asdict,replace
from pathlib import Path
import pytest
from cifar_fastai.cli import cifar_bench,cifar_compare,cifar_export,cifar_lr_find,cifar_report,cifar_reproduce,cifar_train,cifar_zoo
from cifar_fastai.experiments import experiment,experiments
from cifar_fastai.recipe import Recipe

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    'Runs lie in a folder of their own'
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('CIFAR_FASTAI_DATA', raising=False)

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
    (['--optims', 'adamm'], "no optimizer 'adamm': did you mean 'adam'"),
    (['--crit', 'cee'], "no criterion 'cee': did you mean 'ce'"),
    (['--mixup-alpah', '1'], "no flag '--mixup-alpah': did you mean '--mixup-alpha'"),
    (['--mixup', '--mixup-alpha', '-1'], 'alpha is -1.0: it must be a number in [0, inf)'),
    (['--sam', '--sam-rho', '-1'], 'rho is -1.0: it must be a number in [0, inf)'),
    (['--sam', '--asam', '--dataset', 'digits', '--model', 'resnet20'], 'use one of them'),
    (['--bs', '0', '--dataset', 'digits', '--model', 'resnet20'], 'bs is 0'),
    (['--bs', 'many'], "invalid int value: 'many'"),
    (['--sam', 'maybe'], "'maybe' must be True or False"),
    (['--epochs', '0'], 'epochs is 0: it must be a number in [1, inf)'),
    (['--milestones', '60;120'], 'write the epochs with commas between them'),
    (['--row', '3.9/ss64_cx'], "no experiment '3.9/ss64_cx': did you mean '3.9/ss64_c"),
    (['--config', 'no.yaml'], 'no.yaml cannot be read'),
    (['--tricks', 'EMMA(0.9)', '--model', 'resnet20'], "no trick 'EMMA': did you mean 'EMA'"),
    (['--tricks', 'EMA(0.9', '--model', 'resnet20'], 'write them as "EMA(0.99) ShakeDrop()"'),
    (['--tricks', 'EMA(decy=1)', '--model', 'resnet20'], 'EMA cannot be made of these arguments'),
    (['--fast', '--half', '--dataset', 'digits'], 'half and fast each say which part'),
    (['--fraction', '2', '--dataset', 'digits'], 'fraction is 2.0'),
    (['--gpu', '7', '--dataset', 'digits'], "There is no GPU '7' here"),
    (['--model', 'pyramidnet272', '--bs', '1000000', '--dataset', 'digits'], 'GiB or more')])
def test_refused(capsys, argv, says):
    'One sentence with what was wrong and what would be right, exit code 2, no traceback'
    assert says in refused(capsys, cifar_train, argv)

def test_zoo(capsys):
    '`cifar-zoo NAME` shows stages, a pattern a table, a wrong name the nearest'
    cifar_zoo(argv=['resnet20'])
    assert '272,474' in capsys.readouterr().out
    cifar_zoo(argv=['resnet2*'])
    assert 'pytorchcv resnet20_cifar10' in capsys.readouterr().out
    assert "did you mean 'resnet20'" in refused(capsys, cifar_zoo, ['resnet21'])

def test_bench(capsys):
    '`cifar-bench` writes ratios with what they were taken with'
    cifar_bench(argv='--fraction 0.02 --bs 16 --rounds 1 --model toynet_s1_k3'.split())
    got = json.loads(Path('bench.json').read_text())
    assert got['data']=='digits, 30 images' and 0.2<got['epoch']['bare']['ratio']<5 and got['epoch']['SAM']['ratio']>0 and 'ProgressiveResize' not in got['epoch'] and 'TensorDL' in got['data_cost']

@pytest.mark.parametrize('argv,says', [
    (['--table', '3.99'], "no table '3.99': did you mean '3.9'"), ([], 'Nothing was asked for'), (['--rows', '3.9/x*'], "no experiment '3.9/x*'"),
    (['--table', '3.9', '--seeds', '0'], 'seeds is 0'), (['--tabel', '3.9'], "no flag '--tabel': did you mean '--table'")])
def test_reproduce_refused(capsys, argv, says):
    'The same for a sweep'
    assert says in refused(capsys, cifar_reproduce, argv)

@pytest.mark.parametrize('text,says', [('modle: resnet20', "no setting in run.yaml 'modle': did you mean 'model'"), ('bs: many', "run.yaml: bs is 'many'"),
    ('- resnet20', 'run.yaml has no settings'), ('a: [', 'run.yaml is not YAML'), ('epochs: 2001-99-99', 'run.yaml is not YAML'), ('sam: perhaps', "run.yaml: sam is 'perhaps'")])
def test_config_refused(capsys, text, says):
    'A file with settings that are not there or cannot be'
    Path('run.yaml').write_text(text)
    with pytest.raises(SystemExit) as e: cifar_train(argv=['--config', 'run.yaml'])
    err = capsys.readouterr().err
    assert e.value.code==2 and says in err and err.count('\n')==1 and [o.name for o in Path().iterdir()]==['run.yaml']

def resolved(monkeypatch, argv):
    'The recipe and the other arguments with which `cifar-train` would train'
    import cifar_fastai.run as run
    seen = []
    monkeypatch.setattr(run, 'train', lambda recipe,*args: seen.append((recipe, args)))
    monkeypatch.setattr(run, 'report', lambda folder: '')
    cifar_train(argv=argv)
    return seen[0]

def test_precedence(monkeypatch, capsys):
    'Command line, then file, then row, then default'
    Path('run.yaml').write_text('model: resnet20\nepochs: 8\nweight-decay: 1e-3\n')
    argv = '--config run.yaml --row 3.9/ss64_cm --epochs 3 --gradient_clip=1.5'.split()
    r,(name,*_) = resolved(monkeypatch, argv)
    assert r==replace(experiment('3.9/ss64_cm').recipe, model='resnet20', epochs=3, weight_decay=1e-3, gradient_clip=1.5)
    assert name=='3.9-ss64_cm_resnet20_epochs3_weight_decay0.001_gradient_clip1.5'
    capsys.readouterr()
    cifar_train(argv=argv+['--print-config'])
    shown = {l.split(':')[0]:l for l in capsys.readouterr().out.splitlines()}
    for k,source in dict(model='run.yaml', epochs='command line', bs='row 3.9/ss64_cm', seed='default').items(): assert shown[k].endswith(f'# {source}')
    Path('again.yaml').write_text('\n'.join(shown.values()))
    assert resolved(monkeypatch, ['--config', 'again.yaml'])[0]==r

# as published beside the tables and in the reference's run script, but for backbones that are not here
transformers = [f"--model '{m}' --name \"{m}\" --sched 'cosine' --epochs 200" + (' --lr 0.01' if m[0]=='c' or m[:4]=='swin' else '')
    for m in 'vision_transformer mobilevit_s mobilevit_xs mobilevit_xxs coatnet_0 coatnet_1 coatnet_2 coatnet_3 cvt swin_t swin_s swin_b'.split()]
wideresnets = ['--dataset cifar10'+o for o in ('', ' --ricap True', ' --random-erase True', ' --mixup True')]
shakes = [f"--model 'shake_resnet26_2x64d' {o} --sched 'cosine' --epochs 200" for o in ('--name "base_shake"', '--cutout True  --name "shakeC"',
    '--mixup True --name "shakeM"', '--cutout True --mixup True --name "shakeMC"')]
divide = ["""--model 'pyramidnet272' --name 'divide-co-train' --autoaugmentation True --random-erase True --mixup True --epochs 300 --sched 'warmcosine'
    --optims 'nesterov' --bs 128 --root 'somewhere'"""]
letters = dict(c='--cutout True', m='--mixup True', a='--autoaugmentation True', r='--random-erase True')
pairs = {n:f"--model 'shake_resnet26_2x64d' --name 'ss64_{n}' {' '.join(letters[o] for o in n if n!='orgin')} --bs 64" for n in 'orgin c m a r cm ca cr ma mr ar'.split()}
spps = [f"--model 'spp_d{d}_p{p}' --name \"spp_d{d}_p{p}\" --sched 'cosine' --epochs 200 --fast True --dataset \"cifar10\"" for d in (11, 20, 29) for p in 'NABCD']
others = ['--model \'resnet20\' --name "fast_training" --sched \'cosine\' --epochs 1 --cutout True --sched "cosine" --lr 0.6 --bs 512 --nw 0 --fast True',
    "--model 'convnext_tiny' --name \"convnext_tiny\" --optims adamw --epochs 200 --lr 0.01 --bs 128 --nw 4",
    "--model 'cct_7_3x1' --name \"cct\" --sched 'warmcosine' --epochs 200 --cutout False --lr 5e-4 --bs 128 --nw 4 --optims \"sgd\" --weight-decay 3e-2 --gradient_clip 2.0",
    "--model 'poolformer_s12' --name \"poolformer_s12_dim128\" --sched 'cosine' --epochs 200 --lr 0.01"]
published = transformers + wideresnets + shakes + divide + [*pairs.values()] + spps + others

@pytest.mark.parametrize('command', published)
def test_published_commands(monkeypatch, capsys, command):
    'Each resolves to what it says, and trains for two steps (on digits, two at a time)'
    from fastai.callback.core import Callback,CancelFitException
    from cifar_fastai.run import recipe_fit,recipe_learner
    argv = shlex.split(command)
    r,(name,root,*_) = resolved(monkeypatch, argv)
    said = dict(zip([o[2:].replace('-', '_') for o in argv[::2]], argv[1::2]))
    assert name==said.pop('name', None) and root==said.pop('root', None) and capsys.readouterr().err.count('--nw has no meaning')==('nw' in said)
    for k,v in said.items():
        if k!='nw': assert getattr(r, k)==type(getattr(r, k))(v=='True' if v in ('True', 'False') else v), k
    assert [k for k,v in asdict(r).items() if v!=getattr(Recipe(), k)]==[k for k in asdict(r) if k in said and getattr(r, k)!=getattr(Recipe(), k)]
    class TwoSteps(Callback):
        steps = 0
        def after_step(self): self.steps += 1
        def after_batch(self):
            if self.training and self.steps==2: raise CancelFitException
    learn,two = recipe_learner(replace(r, dataset='digits', bs=2)),TwoSteps()
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): recipe_fit(learn, r, two)
    assert two.steps==2 and learn.train_iter==2 and any((a!=b).any() for a,b in zip(before, learn.model.parameters()))

@pytest.mark.parametrize('table,commands', [('3.2', wideresnets), ('3.9', [*pairs.values()]), ('3.10', spps), ('1.0', transformers)])
def test_commands_are_rows(monkeypatch, table, commands):
    'What the published commands say is what the published rows are'
    rows = {e.id.split('/')[1]:e.recipe for e in experiments(f'{table}/*')}
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
    assert out.count('missing')==8 and out.count('about')==9 and 'in all' in out and not list(Path().iterdir())
    cifar_reproduce(argv=argv+['--bs', '10000000'])
    assert capsys.readouterr().out.count('GiB or more')==8

def test_sweep(capsys):
    'A sweep runs what is missing, one row failing does not stop it, and it is not run again'
    argv = '--table 3.5 --dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64'.split()
    broken = Path('exps/3.5-shake_resnet26_2x64d_cutout_toynet_s1_k3_digits_bs64_fraction0.1_epochs1/0')
    broken.mkdir(parents=True)
    (broken/'config.yaml').write_text('a: [')
    with pytest.raises(SystemExit) as e: cifar_reproduce(argv=argv)
    out,err = capsys.readouterr()
    assert e.value.code==1 and out.count('accuracy')==3 and err.count('\n')==1 and 'cutout seed 0: ' in err and 'config.yaml is not YAML' in err
    runs = sorted(Path('exps').glob('*/0/log.csv'))
    before = [o.stat().st_mtime_ns for o in runs]
    (broken/'config.yaml').unlink()
    cifar_reproduce(argv=argv)
    assert [o.stat().st_mtime_ns for o in runs]==before and (broken/'log.csv').exists()
    cifar_report(argv=['--table', '3.5'])
    out = capsys.readouterr().out
    assert 'epochs' in out and sorted(o.name for o in Path('report').iterdir())==['report.csv', 'report.html', 'report.md', 'report.png']
    a,b = [o.parent for o in runs[:2]]
    cifar_compare(argv=[str(a), str(b), '--out', 'both.png'])
    out = capsys.readouterr().out
    assert 'mixup' in out and Path('both.png').exists()

def piped(command, args):
    'What a process of its own writes into a pipe'
    import subprocess,sys
    p = subprocess.run([sys.executable, '-c', f'from cifar_fastai.cli import {command}; {command}()', *args.split()], capture_output=True, text=True)
    assert p.returncode==0, p.stderr
    return p.stdout

def test_share_a_sweep():
    'Two processes take what the other is not at'
    out = piped('cifar_reproduce', '--table 3.5 --dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64 --workers 2')
    assert len(list(Path('exps').glob('*/0/log.csv')))==4 and out.count('accuracy')>=4

def test_no_bars_in_a_pipe():
    'A line an epoch, and no bars'
    out = piped('cifar_train', '--dataset digits --model toynet_s1_k3 --epochs 2 --fraction 0.1 --bs 64')
    assert out.count('accuracy')==3 and '|-' not in out

@pytest.mark.parametrize('argv', [['a', 'b'], ['--exps', 'nowhere', '--table', '3.5']])
def test_nothing_there(capsys, argv):
    'Runs that are not there are told in one sentence'
    refused(capsys, cifar_compare if argv[0]=='a' else cifar_report, argv)

def test_export(capsys):
    'A run exports to a folder that loads'
    from cifar_fastai.share import load_run
    cifar_train(argv='--dataset digits --model toynet_s1_k3 --epochs 1 --fraction 0.1 --bs 64 --name a'.split())
    cifar_export(argv=['exps/a/666'])
    assert 'load_run(' in capsys.readouterr().out
    learn = load_run('exps/a/666/export')
    with learn.no_bar(): assert len(learn.predict(load_run('exps/a/666').dls.valid_ds[0][0])[2])==10
    with pytest.raises(SystemExit): cifar_export(argv=['exps/a/667'])
    assert 'Traceback' not in capsys.readouterr().err
