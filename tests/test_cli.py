'The commands: what a run leaves, what is refused and how, and going on after a kill.'
import csv,json,os,signal,subprocess,sys,time
from pathlib import Path
import pytest
from safetensors import safe_open
from cifar_fastai.cli import cifar_bench,cifar_train,cifar_zoo

small = '--dataset digits --model resnet20 --half True --bs 64 --sched onecycle --lr 0.05 --mixup True'.split()

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
    (['--mixup', '--mixup-alpha', '-1'], 'alpha is -1.0: it must be a number 0 or more'),
    (['--sam', '--sam-rho', '-1'], 'rho is -1.0: it must be a number 0 or more'),
    (['--sam', '--asam', '--dataset', 'digits', '--model', 'resnet20'], 'use one of them'),
    (['--bs', '0', '--dataset', 'digits', '--model', 'resnet20'], 'bs is 0'),
    (['--bs', 'many'], "invalid int value: 'many'"),
    (['--sam', 'maybe'], "'maybe' must be True or False"),
    (['--epochs', '0'], 'epochs is 0: it must be a number 1 or more'),
    (['--milestones', '60;120'], 'write the epochs with commas between them')])
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

def test_run(capsys):
    'A run leaves what it says, is not run twice, and its folder is refused to another'
    cifar_train(argv=small+['--epochs', '2', '--name', 'a', '--nw', '4'])
    out,err = capsys.readouterr()
    assert 'exps/a/666/ holds log.csv' in out and '--nw has no meaning here' in err
    folder = Path('exps/a/666')
    assert {o.name for o in folder.iterdir()}=={'config.json', 'log.csv', 'curves.png', 'last.safetensors', 'best.safetensors'}
    rows = list(csv.DictReader(open(folder/'log.csv')))
    assert list(rows[0])=='epoch train_loss valid_loss accuracy seconds'.split() and [r['epoch'] for r in rows]==['0', '1']
    assert json.loads((folder/'config.json').read_text())['mixup'] is True
    with safe_open(folder/'best.safetensors', 'pt') as f: assert '0.0.weight' in f.keys()
    before = {o:o.stat().st_mtime_ns for o in folder.iterdir()}
    cifar_train(argv=small+['--epochs', '2', '--name', 'a'])
    assert {o:o.stat().st_mtime_ns for o in folder.iterdir()}==before
    with pytest.raises(SystemExit): cifar_train(argv=small+['--epochs', '3', '--name', 'a'])
    assert 'epochs 2 there and 3 here' in capsys.readouterr().err

def test_killed_and_resumed(capsys):
    'Killed in the second epoch and gone on with: the checkpoint is bitwise that of the uninterrupted run'
    argv = small+['--epochs', '3', '--sam', 'True']
    p = subprocess.Popen([sys.executable, '-c', f'from cifar_fastai.cli import cifar_train; cifar_train(argv={argv + ["--name", "b"]})'], stdout=subprocess.DEVNULL)
    last = Path('exps/b/666/last.safetensors')
    start = time.time()
    while not last.exists() and time.time()-start<300: time.sleep(0.05)
    time.sleep(0.5)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    with pytest.raises(SystemExit): cifar_train(argv=argv+['--name', 'b'])
    assert 'go on with --resume' in capsys.readouterr().err
    cifar_train(argv=argv+['--name', 'b', '--resume', 'True'])
    cifar_train(argv=argv+['--name', 'c'])
    assert last.read_bytes()==Path('exps/c/666/last.safetensors').read_bytes()
    logs = [[{k:v for k,v in r.items() if k!='seconds'} for r in csv.DictReader(open(f'exps/{n}/666/log.csv'))] for n in 'bc']
    assert logs[0]==logs[1] and len(logs[0])==3
