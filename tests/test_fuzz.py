"""Generated input of every kind: each succeeds or is refused in one sentence, in time, and writes nothing but its outputs.

`fuzz_server` runs it. A failure prints the input with the command that replays it."""
import ast, inspect, os, re, shlex, shutil, sys, tempfile
from collections import Counter
from dataclasses import fields
from pathlib import Path
import pytest, torch
from cifar_fastai import cli
from cifar_fastai.runs.config import RunConfig
from cifar_fastai.runs.published import PublishedTricks
hypothesis = pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, Phase, given, settings, strategies as st # chkstyle: ignore
from hypothesis.strategies import composite, integers, just, lists, none, one_of, sampled_from # chkstyle: ignore
pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'),
    reason='forks after torch was imported, and looks into /proc')
from fuzz_server import Server, flags, verdict # chkstyle: ignore

# -- text

def safe(s):
    'Text that, taken for a path, stays in the folder of its input: neither absolute nor more than two folders up, and no home but its own'
    s = re.sub(r'(^|[^\w.])/+', r'\1', s)
    head,*rest = s.split('..')
    s = head + ''.join(('..' if i<2 else 'up')+o for i,o in enumerate(rest))
    return re.sub(r'~\w+', '~', s)

odd = ['', ' ', '0', '-1', '1', '2', '0.5', '-0.0', 'nan', 'inf', '-inf', '1e999', '1e308', '1e-320', '5e-4', '10**30',
    '9'*25, '9'*5000, '0'*400+'1',
    '18446744073709551615',
    '18446744073709551616', '0x10', '1_0', '１２', '٣', '+1', '1.', 'True', 'false', 'None', 'null', '~', 'a\0b',
    '\ud800', '\udcff', 'é', '日本',
    'e\u0301', '\u202e', '\u2028',
    '\ufeff', 'x'*255, 'x'*300, 'x'*5000, 'é'*130, '..', '../x', '.', './x', 'a/b', 'a//b', 'a\\b', '-', '--', '-x',
    '--x', '[]', '{}', '[', '"', "'",
    '\n', 'a\nb', 'a\r\nb', '\t',
    '\x1b[31m', 'a=b', '*', '?', '%s', '{x}', '$HOME', 'CON', 'nul.txt', '.lock', 'config.yaml', 'a,b', ',', '1,2,x',
    '60,120', '-1,5', ';', '#',
    ': ', '!!python/none', '&a', '*a', '@', '`', '|', '>']
words = one_of(sampled_from(odd), st.text(max_size=8).map(safe),
    st.from_regex(r'[-+]?[0-9]{0,4}(\.[0-9]{0,3})?(e[-+]?[0-9]{1,3})?', fullmatch=True))

def seldom(draw, n):
    'True once in `n` times'
    return draw(integers(0, n-1))==n-1

# -- values of settings

models = 'toynet_s1_k3', 'lenet', 'resnet20', 'toynet_s4_k5'
names = dict(model=models, dataset=['digits'], device=['cpu'], weights=['best', 'last'], milestones=['1', '1,2', ''],
    name=['a', 'b-1', 'mine.x'],
    crit=['ce', 'lsr'], init=['kaiming_normal', 'default', 'xavier_uniform'],
    sched='multistep warmup cosine warmcosine custom onecycle'.split(),
    optims='sgd nesterov adam adamw adabound adaboundw lars lion sam asam'.split(), table=['3.9', '3.4', '1.0'],
    data=['digits'], push=['user/name'],
    row=['3.1/wideresnet', '3.9/ss64_cm', '3.3/lenet', '3.4/toynet_s1_k3_bs32'],
    rows=['3.9/*', '3.1/wideresnet,3.3/*', '*cutmix*'],
    exps=['exps', 'out', 'a/b'], out=['o', 'o.png', 'a/o.json'])
small = dict(epochs=(1, 2), bs=(8, 64), seed=(0, 99), threads=(1, 2), cutout_length=(0, 40), seeds=(1, 2),
    workers=(1, 1), num_it=(30, 32),
    rounds=(1, 1), nw=(0, 4))
switches = sampled_from([None, 'True', 'False', 'true', 'x', ''])
numbers = one_of(st.floats(0, 1).map(repr), sampled_from(['0.1', '1', '0', '2']))

@composite
def value(draw, name, kind):
    'A value for a setting, as text: mostly of its type'
    if seldom(draw, 4): return draw(words)
    if name in names: return draw(sampled_from(names[name]))
    if name in small: return str(draw(integers(*small[name])))
    if 'float' in kind: return draw(numbers)
    return draw(switches) if 'true_or_false' in kind or 'Switch' in kind or 'bool' in kind else draw(words)

tricks = 'AGC ASAM GhostBatchNorm SelectiveBackprop WeightStandardization AutoAugment CutMix Cutout DKD EMA Flip GradientClip KD LabelSmoothing LookSAM Lookahead ManifoldMixUp MixUp ProgressiveResize RICAP RandAugment RandomCrop RandomErasing RandomResizedCrop RepeatedAugment ResizeMix \
SAM SWA ShakeDrop StochasticDepth TrivialAugment OneOf Chain'.split()
literals = one_of(sampled_from(['0', '1', '0.5', '-1', '2', '1e999', '-1e999', '10**30', '1e308', '9'*30, '9'*5000,
    'None', 'True', "'x'", "'lenet'", "'CPU'", "b'x'", '()', '(0.1, 0.2)', '(1, 2, 3)', '[]', '{}',
    '[[]]', '1j', '...', 'x', 'lambda: 0', 'f"{x}"', "'\\ud800'", "'x'*9", '-(-1)', '*[1]', '**{}', '"a" "b"', '0.1,',
    'MixUp', 'MixUp()', 'CutMix(p=0.5)', 'OneOf(MixUp())', "'exps'"]),
    st.floats(0, 1).map(repr), integers(-2, 40).map(str))
parameters = 'rho alpha beta p k eps decay start max_norm size length holes side pad mode teacher path T arch weights n m policy area aspect ratio warmup x'.split()

valid = ['EMA(0.9)', 'SAM(0.05)', 'MixUp(0.4)', 'CutMix(p=0.5)', 'Cutout(8)', 'Lookahead(k=3)', 'GradientClip(1.)',
    'OneOf(MixUp(), CutMix())', 'RandAugment(2)', 'ShakeDrop', 'ASAM()', 'RICAP(0.3)', 'LabelSmoothing(0.1)',
    'RandomErasing', 'Flip()', 'RandomCrop(4)', 'StochasticDepth(0.8)', "KD('lenet')", "DKD('lenet')", 'TrivialAugment', 'SWA()']

@composite
def call(draw):
    'A trick, mostly one that can be made'
    if not seldom(draw, 3): return draw(sampled_from(valid))
    args = [draw(one_of(literals, st.tuples(sampled_from(parameters), literals).map('='.join)))
        for _ in range(draw(integers(0, 2)))]
    name = draw(sampled_from(tricks+['Nope', 'True', 'None', '1', 'os.system', '__import__']))
    return name + draw(sampled_from(['', '({})', '({})', '({})', '( {} )', '({}', '{})', '[{}]',
        '({})()'])).format(', '.join(args))

calls = lists(call(), min_size=1,
    max_size=3).flatmap(lambda o: sampled_from([' ', ', ', ',', '', '\n', ';', ' + ']).map(lambda s: s.join(o)))
trick_text = one_of(calls, calls, calls, words,
    sampled_from(['('*3000, '['*3000, '-'*5000+'1', 'SAM '*600, 'EMA('*200+')'*200, 'OneOf('*100+'MixUp()'+')'*100,
        'a.b()', 'EMA(0.9)\0', '#', '\\', '"""']), st.text(max_size=20).map(safe))

# -- commands

def settings_of(f):
    'Name -> annotation of the flags of a command'
    res = {p.name:str(p.annotation) for p in inspect.signature(f.__wrapped__).parameters.values()
        if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}
    if res.pop('cfg', None) is not None:
        res |= {o.name:str(o.type) for c in (RunConfig, PublishedTricks) for o in fields(c)}
    return res

commands = {n:settings_of(getattr(cli, n)) for n in 'cifar_train cifar_lr_find cifar_reproduce cifar_report '
    'cifar_compare cifar_export cifar_zoo cifar_tricks cifar_bench cifar_study cifar_evaluate'.split()}
trains = 'cifar_train', 'cifar_lr_find'
default_out = dict(cifar_train=['exps'], cifar_reproduce=['exps'], cifar_report=['report'],
    cifar_lr_find=['lr_find.png'], cifar_bench=['bench.json'],
    cifar_compare=[], cifar_export=[], cifar_zoo=[], cifar_tricks=[], cifar_study=['studies'], cifar_evaluate=[])
cheap = dict(cifar_train=flags+['--epochs', '1', '--fraction', '0.03'],
    cifar_lr_find=flags+['--fraction', '0.03', '--num-it', '30'],
    cifar_bench=['--model', 'toynet_s1_k3', '--fraction', '0.02', '--rounds', '1'],
    cifar_study=flags+['--epochs', '1', '--fraction', '0.03', '--seeds', '1', '--device', 'cpu'],
    cifar_reproduce=['--rows', '3.1/wideresnet', '--model', 'toynet_s1_k3', '--dataset', 'digits', '--epochs', '1',
        '--fraction', '0.03', '--device', 'cpu', '--bs', '32'])
streams = sampled_from(['']*8+['closed', 'full'])

def written_to(outs): return [o for o in outs if o and '\0' not in o and not any('\ud800'<=c<='\udfff' for c in o)]

@composite
def argument(draw, cmd, skip=('workers',)):
    'The words of a flag, and where it makes the command write'
    k = draw(sampled_from([o for o in commands[cmd] if o not in skip]+['help', 'config', 'print_config', 'nope', 'pdb',
        'learning_rate'])) if cmd in commands else 'help'
    if k=='help' and commands.get(cmd) and not seldom(draw, 4): k = draw(sampled_from([*commands[cmd]]))
    v = draw(value(k, commands[cmd].get(k, 'str'))) if k!='tricks' else draw(trick_text)
    if k=='workers' and v.strip().isdigit(): v = '1'
    flag = '--'+draw(sampled_from([k, k.replace('_', '-')]))
    words = [flag] if v is None else draw(sampled_from([[flag, v], [f'{flag}={v}']]))
    return words,([v] if k in ('out', 'exps', 'studies') and v is not None else [])

def positional(cmd): return dict(cifar_compare=2, cifar_export=1, cifar_zoo=1, cifar_tricks=1, cifar_study=1, cifar_evaluate=1).get(cmd, 0)

@composite
def command_lines(draw):
    cmd = draw(sampled_from(['cifar_train']*4 + list(commands)))
    argv,outs = list(cheap.get(cmd, [])),list(default_out[cmd])
    if cmd=='cifar_reproduce' and not seldom(draw, 3): argv.append('--dry-run')
    n = draw(integers(0, positional(cmd)+1)) if seldom(draw, 6) else positional(cmd)
    usual = dict(cifar_zoo=['lenet', 'resnet*'], cifar_study=valid+['lr=0.2', 'label_noise=0.1', 'epochs=2', 'bs=16'])
    argv += [draw(words if seldom(draw, 5) else sampled_from(usual.get(cmd, ['r']))) for _ in range(n)]
    for _ in range(draw(integers(0, 4))):
        more,out = draw(argument(cmd))
        argv,outs = argv+more,outs+out
    if cmd in trains and not seldom(draw, 3): argv.append('--print-config')
    if seldom(draw, 12): argv.insert(draw(integers(0, len(argv))), draw(words))
    files = [('r', 'run', 'finished')] if 'r' in argv else []
    return dict(cmd=cmd, argv=argv, files=files, outputs=written_to(outs)+['r/export'], stdout=draw(streams),
        heavy=cmd in cheap)

yaml_values = one_of(words,
    sampled_from(['!!python/object/apply:os.getcwd []', '!!int x', '!!binary x', '2020-01-01', '1:30', '0o17',
        '.inf', '.nan', '[1, 2]', '{a: 1}', '&a 1', '*a', '[*a, *a]', '"\\ud800"', '"\\0"', '1e5', 'yes',
        'on', '<<', '|\n  x', '>-\n  x', "'", '? x', '- 1', '%x']))
deep = [b'['*20_000, b'{a: '*5000, b'a: '+b'['*3000+b']'*3000, b'- '*5000, b'? '*3000,
    b'a: &a ['+b'x,'*9+b']\n'+b'b: &b ['+b'*a,'*9+b']\nc: ['+b'*b,'*9+b']', b'bs: 32\nbs: 64', b'bs: 32\n"bs": 64',
    b'lr: '+b'9'*5000,
    b'"'*3, b'\0', b'bs: 32\0', b'\xff\xfe', 'bs: 32'.encode('utf-16'), b'\xed\xa0\x80', b'name: \xed\xa0\x80',
    b'\xef\xbb\xbfbs: 32', b'--- 1\n--- 2', b'a: 1\n...\nb', b'%YAML 9.9\n---\na: 1', b'bs: 32\r\nlr: 0.1\r', b'', b'#',
    b'~', b'bs']

@composite
def config_bytes(draw):
    'What a file with settings may hold'
    if seldom(draw, 5): return draw(one_of(sampled_from(deep), st.binary(max_size=60)))
    res = b''
    for _ in range(draw(integers(1, 4))):
        k = draw(sampled_from(['help', 'config', 'nope', '1', 'null', '<<', '? a'] if seldom(draw, 10)
            else [*commands['cifar_train'], 'wd-bn-bias']))
        v = draw(trick_text if k=='tricks' else yaml_values if seldom(draw, 5)
            else value(k, commands['cifar_train'].get(k, '')))
        res += f'{k}: {v}\n'.encode('utf-8', 'surrogatepass')
    if not seldom(draw, 5): return res
    i = draw(integers(0, len(res)))
    return res[:i] + draw(one_of(st.binary(max_size=4),
        sampled_from([b'\0', b'\t', b'\xff', b'[', b': ', b'\n\n', b'"']))) + res[i+draw(integers(0, 3)):]

kinds_of_file = sampled_from('fifo folder dangling loop link locked socket'.split())

@composite
def configs(draw):
    'A command with a file of settings'
    files = [('c.yaml', 'bytes', draw(config_bytes()))]
    kind = draw(integers(0, 15))
    if kind==15: files = [('c.yaml', 'special', draw(kinds_of_file))]
    if kind==14:
        files = [('c.yaml', 'fill', draw(sampled_from([b'a', b'\n', b'a: b\n', b'[', b'\0', b'- '])),
            draw(sampled_from([10**5, 10**6, 2*10**6])))]
    path = draw(words) if kind==13 else 'c.yaml'
    argv = ['--config', path, *cheap['cifar_train']] if not seldom(draw, 5) else [*cheap['cifar_train'],
        '--config', path]
    if not seldom(draw, 4): argv.append('--print-config')
    exps = re.findall(r'^exps: (.+)$', files[0][2].decode(errors='replace'), re.M) if files[0][1]=='bytes' else []
    return dict(cmd='cifar_train', argv=argv, files=files,
        outputs=written_to(['exps', *exps, *(o.strip().strip('\'"') for o in exps)]), heavy=True)

@composite
def trick_lines(draw):
    'Tricks, made, or trained with'
    s = draw(trick_text)
    if not seldom(draw, 3): return dict(code=f'create_tricks(RunConfig(tricks={s!a}))')
    return dict(cmd='cifar_train', argv=[*cheap['cifar_train'], '--tricks', s], outputs=['exps'], heavy=True)

# -- data

array_values = ['np.zeros((2, 3072))', 'np.zeros((2, 3072), np.int8)', 'np.zeros((3, 3072), np.uint8)',
    'np.zeros((2, 32, 32, 3), np.uint8)', 'np.zeros(3072, np.uint8)', 'np.zeros((0, 3072), np.uint8)',
    'np.uint8(1)', 'b"x"', '[]', 'None',
    '[0, 10]', '[0, -1]', '[0, 2**70]', '[0.5, 1]', '["a", "b"]', '[[0], [1]]', '[0]', '[True, False]', '{}', '{0:1}',
    '"ab"', 'np.array([0, 1])', 'np.array([0, 1.5])', 'np.array(["a", "b"])', 'np.array([None, 1])', '(0, 1)',
    '[float("nan"), 0]', '["\\ud800"]*10', '["a"]*10', '[str(i) for i in range(10)]', '[str(i) for i in range(1000)]',
    '[b"a"]*10', '[""]*10', 'list(range(10))', 'np.zeros((2, 3072), "M8[s]")', 'np.zeros((2, 3072), object)', '1',
    '1e999', '10**5000']
member_names = ['train/a/x.png', 'test/a/0.png', 'train/c/x.png', 'train/x.png', '../x.png', 'train/../../x.png', '..',
    'train', 'train/a', 'x', 'train.bin', 'test.bin', 'data_batch_1', 'batches.meta', 'train/\udcff/x.png',
    'a/b/c/train/a/x.png',
    'C:/x.png', 'train/a/\n.png', 'train/a/.x.png', '', 'train/a/', 'x'*300, 'train/a/x.gif', 'test/b/x.txt',
    'fine_label_names.txt', '__MACOSX/train/a/x.png']
member_bytes = one_of(st.binary(max_size=40),
    sampled_from([b'%!PS-Adobe-3.0 EPSF-3.0\n', b'\x89PNG\r\n\x1a\n'+bytes(20), b'GIF89a'+b'\xff'*20,
        b'P6 99999 99999 255\n', b'P5 1 1 255\n\0', b'BM'+bytes(60), b'II*\0\x08\0\0\0'+b'\xff'*40,
        b'RIFF\xff\xff\xff\xffWEBPVP8 ',
        b'\xff\xd8\xff\xe0'+bytes(10), b'cos\nsystem\n(S"true"\ntR.', b'\x80\x04N.', b'\x80\x04]\x94(j\xff\xff\xff\x7f.',
        b'\x80\x05\x8e'+b'\xff'*8, b'('*5000+b't.', b'<svg/>', b'\0'*3073]))
places = ['d', 'd.zip', 'd.tar', 'd.tgz', 'd.tar.gz', 'd.TGZ', 'cifar-10-batches-py', 'cifar-10-python.tar.gz',
    'cifar10', 'd.png', 'd 1', 'é', '日本.zip']
class_lists = sampled_from(['\n'.join('abcdefghij')]*3+['a', '', 'a\na', '\ud800', '\n'.join(map(str, range(300)))])

@composite
def layout(draw):
    'A data set: kind and arguments of what makes it, with members added'
    more = {draw(sampled_from(member_names)).encode('utf-8',
        'surrogateescape').decode(errors='surrogateescape'):draw(member_bytes)
        for _ in range(1+draw(integers(0, 1)) if seldom(draw, 3) else 0)}
    kind = draw(sampled_from(['images', 'images', 'python', 'binary']))
    if kind=='python':
        return 'python',draw(sampled_from(['', '', '', 'data', 'labels', 'names', 'meta',
            'batch'])),draw(sampled_from(array_values)),more
    if kind=='binary':
        return kind,draw(class_lists),draw(sampled_from([b'', b'', bytes(3073), b'x'])),draw(sampled_from([0, 9,
            10, 255])),more
    spec = {f'{s}/{c}':1+draw(integers(0, 1))-seldom(draw, 9) for s in ('train', 'test')
        for c in draw(sampled_from(['ab']*8+['a', 'abc', ['a', 'b'], ['é', 'b'], [' ', 'b'], ['a\n', 'b'],
            ['\udcff', 'b']]))}
    return 'images',spec,draw(sampled_from(['PNG', 'JPEG', 'BMP', 'GIF', 'PPM', 'TIFF',
        'WEBP'])),draw(sampled_from([(32, 32), (1, 1), (3, 500), (640, 480)])),more

places_in = integers(0, 10**6)
damage = one_of(st.tuples(just('flip'), places_in, integers(0, 7)), st.tuples(just('cut'), places_in),
    st.tuples(just('insert'), places_in, st.binary(min_size=1, max_size=9)),
    st.tuples(just('bytes'), st.binary(max_size=30)),
    st.tuples(just('fill'), sampled_from([b'\0', b'x', b'[', b'\n']), sampled_from([10, 10**5])))

@composite
def sources(draw):
    'A data set read in Python, or trained with'
    place = draw(sampled_from(places))
    files = [(place, *draw(layout()))]
    if seldom(draw, 3):
        inside = place if re.search('zip|tar|tgz|TGZ',
            place) else f"{place}/{draw(sampled_from(['train/a/0.png', 'test/a/0.png', 'cifar-10-batches-py/data_batch_1', 'cifar-10-batches-py/batches.meta', 'cifar-10-batches-bin/data_batch_2.bin', 'train', 'train/a']))}"
        files.append((inside, *draw(damage)) if draw(integers(0, 2))<2
            else (inside, 'special', draw(one_of(kinds_of_file, sampled_from(['linked folder', 'locked folder'])))))
    path = draw(words) if seldom(draw, 16) else place
    if not seldom(draw, 4):
        return dict(code=f'dls = cifar_dls({path!a}, bs=4)\nfor b in dls.train: pass\nfor b in dls.valid: pass',
            files=files)
    if seldom(draw, 4): return dict(code=f'cifar_dls("cifar10", root={path!a})', files=files)
    argv = [*cheap['cifar_train'], '--fraction', '1',
        *draw(sampled_from([['--dataset', path], ['--dataset', path], ['--dataset', 'cifar10', '--root', path],
            ['--dataset', 'cifar100', '--root', path]]))]
    return dict(cmd='cifar_train', argv=argv, files=files, outputs=['exps'], heavy=True)

# -- files of a run

run_files = 'config.yaml environment.json log.csv best.safetensors last.safetensors curves.png .lock'.split()
export_files = 'config.json model.safetensors README.md'.split()
json_values = one_of(none(), st.booleans(), integers(-2, 10**9),
    sampled_from([10**30, 2**63, -1, 1e308, 0.5, '', 'x', '\ud800', 'x'*5000, [], {},
        [[]], {'a':1}, 'remove', 'remove', '../x', [0]*1000, {'_tensor':'0'}, {'_dict':[]}, {'_tuple':[1]}, {'_numpy':1},
        {'x':1, 'y':2}]))

def encoded(s): return s.encode('utf-8', 'surrogatepass')
yaml_line = st.tuples(sampled_from([*commands['cifar_train']]),
    one_of(words, yaml_values)).map(lambda o: encoded(f'{o[0]}: {o[1]}'))
csv_cell = one_of(words, sampled_from(['epoch', 'accuracy', '0', '1'])).map(encoded)
csv_line = sampled_from([b'', b'0', b'0,1,2'])

@composite
def run_damage(draw, name):
    'A damage of a file of a run'
    path = draw(sampled_from(run_files[:5]*3+run_files if name!='e' else export_files))
    ways = [damage, damage]
    if path.endswith('json'): ways += [st.tuples(just('json'), integers(0, 10**4), json_values)]*4
    if path.endswith('yaml'): ways += [st.tuples(just('line'), integers(0, 60), lists(yaml_line, max_size=2))]*4
    if path.endswith('csv'):
        ways += [st.tuples(just('cell'), integers(0, 40), csv_cell),
            st.tuples(just('line'), integers(0, 4), lists(csv_line, max_size=2))]*2
    if path.endswith('safetensors'):
        ways += [st.tuples(just('header'), integers(0, 10**4), json_values, st.booleans())]*5
    if seldom(draw, 13): return f'{name}/{path}','special',draw(kinds_of_file)
    return f'{name}/{path}',*draw(one_of(ways))

@composite
def run_folders(draw):
    'A run or an exported one with damaged files, given to everything that reads one'
    kind = draw(sampled_from(['finished', 'interrupted', 'interrupted', 'row', 'exported']))
    name = 'e' if kind=='exported' else 'exps/a/666'
    files = [(name, 'run', kind)] + [draw(run_damage(name)) for _ in range(draw(sampled_from([1, 1, 1, 2, 3])))]
    if kind=='exported': return dict(code='learn = load_run("e")\nlearn.predict(torch.zeros(3, 32, 32))', files=files)
    use = draw(integers(0, 8))
    if use==0: return dict(code=f'read_run({name!r})\nreport({name!r})', files=files)
    if use==1: return dict(code=f'load_run({name!r}, weights={draw(sampled_from(["best", "last"]))!r})', files=files)
    if use==2: return dict(code=f'find_runs("exps", d := {{}})\nreport_runs("exps")', files=files)
    if use==3: return dict(cmd='cifar_report', argv=['--exps', 'exps', '--out', 'o'], files=files, outputs=['o'])
    if use==4:
        return dict(cmd='cifar_compare', argv=[name, 'r', *draw(sampled_from([[], ['--out', 'o.png']]))],
            files=[('r', 'run', 'finished'), *files], outputs=['o.png'])
    if use==5:
        return dict(cmd='cifar_export', argv=[name, '--out', 'o', *draw(sampled_from([[], ['--weights', 'last']]))],
            files=files, outputs=['o'])
    more = ['--row', '3.1/wideresnet'] if kind=='row' else []
    return dict(cmd='cifar_train',
        argv=[*flags, *more, '--name', 'a', *draw(sampled_from([['--resume'], ['--resume'], []]))], files=files,
        outputs=['exps'], heavy=True)

# -- arguments in Python

objects = one_of(sampled_from(['float("nan")', 'float("inf")', '-float("inf")', '1e308', '5e-324', '10**30', '10**400',
    '-1', '0', '1', '2', '0.5', 'True', 'None', '""', '"x"', '"1"', '"no"', 'b"1"', '[]', '{}', '()', '[1, 2]',
    '(0.1, 0.2)', '(1, 2, 3)', 'object()', '1j', 'np.ones(2)',
    'np.ones(1)', 'np.array(1.)', 'np.float32(0.5)', 'np.int8(3)', 'np.bool_(1)', 'torch.ones(2)', 'torch.tensor(0.5)',
    'torch.tensor(True)', 'torch.ones((), device="meta")', 'int', 'lambda *a: 0', 'range(3)', 'range(10**12)',
    '"\\ud800"', '"a\\0b"', '"x"*5000', 'Path("x")',
    'slice(None)', 'slice(1e-3, 0.1)', '{1: 2}', '[[1]]', '["a"]', 'Exception', 'nn.Linear(2, 2)', 'SAM', 'SAM()',
    'iter([])', '...', 'decimal.Decimal(1)', 'fractions.Fraction(1, 2)']), st.floats(0, 1).map(repr),
    integers(-3, 50).map(str))
head = 'import decimal, fractions\n'
learner = 'dls = cifar_dls("digits", bs=16, fraction=0.02)\n'
fit = 'with learn.no_bar(), learn.no_logging(): '

def arguments(names):
    'One or two of some named arguments'
    some = lists(st.tuples(sampled_from(names.split()), objects), min_size=1, max_size=2, unique_by=lambda o: o[0])
    return some.map(lambda o: ', '.join(map('='.join, o)))

@composite
def trick_arguments(draw):
    'A trick from its own signature, and an epoch with it'
    name = draw(sampled_from(tricks[:-2]))
    k = draw(lists(st.tuples(integers(0, 9), objects), min_size=1, max_size=2))
    code = f'ps = list(inspect.signature({name}).parameters)\n' + 'kw = {}\n' + ''.join(f'if ps: kw[ps[{i}%len(ps)]] = {v}\n' for i,v in k)
    if name in ('DKD', 'KD'):
        code += 'if "teacher" in ps and "teacher" not in kw: kw["teacher"] = create_model("lenet", n_out=10)\n'
    return code + learner + f'learn = cifar_learner("toynet_s1_k3", dls, cbs={name}(**kw))\n{fit}learn.fit(1, 0.01)'

epochs = sampled_from(['1', '1', '0', '-1', '1.5', '"1"', 'None', 'float("nan")', 'True', 'np.int64(1)',
    'torch.tensor(1)', '[1]', '10**30', 'float("inf")', 'object()', '1e999', 'np.ones(2)'])
policies = dict(fit_multistep='lr milestones gamma wd cbs', fit_cosine='lr lr_min wd',
    fit_warmup_multistep='lr warmup start milestones gamma', fit_warmcosine='lr warmup start lr_min period',
    fit_cosine_restarts='lr T_0 T_mult lr_min', fit_triangular='lr up',
    fit_policy='policy lr shape by', fit='lr wd', fit_one_cycle='lr_max pct_start div', fit_flat_cos='lr pct_start')
optimizers = dict(AdaBound='lr final_lr gamma betas eps weight_decay base_lr', AdaBoundW='lr final_lr betas',
    LARS='lr momentum weight_decay trust eps', Lion='lr betas weight_decay')
functions = dict(cifar_dls='dataset root bs fraction valid holdout pad flip seed device val_bs rule drop_last weights size',
    CropFlip='pad flip stream', create_model='name n_out in_chans',
    cifar_learner='arch dls cbs opt_func loss_func lr wd wd_bn_bias init metrics n_out',
    RunConfig='bs lr tricks epochs model seed fraction optimizer schedule loss subset precision init',
    policy_values='policy n_epoch lr n_iter by gamma warmup up T_0 T_mult lr_min start milestones',
    CrossEntropy='weight reduction eps ignore_index', OneOf='p', as_image='o', run_group='run', find_runs='exps',
    experiments='pattern', select_experiments='table rows all', create_opt_func='name momentum betas eps',
    plan='rows seeds exps epochs', load_run='path root weights', mean_interval='xs', paired='xs ys',
    stratified='y part seed', image_weights='weights ds', set_seed='s')
known = dict(create_model='lenet', cifar_learner='toynet_s1_k3')
checked = [o for o in functions if o not in ('run_group', 'mean_interval', 'paired', 'stratified', 'set_seed',
    'experiments', 'plan', 'CrossEntropy', 'find_runs', 'load_run', 'select_experiments')]

@composite
def python_code(draw):
    'Constructors, schedules, optimizers and functions with any arguments'
    kind = draw(integers(0, 9))
    if kind<4: return dict(code='import decimal, fractions, inspect\n'+draw(trick_arguments()))
    if kind<6:
        name = draw(sampled_from([*policies]))
        n = draw(epochs) if name[4:] not in ('', 'one_cycle', 'flat_cos') else '1'
        first = f'{draw(sampled_from(["multistep", "cosine", "nope"]))!r}, ' if name=='fit_policy' else ''
        args = draw(arguments(policies[name].replace('policy ', ''))) if name not in ('fit_one_cycle',
            'fit_flat_cos') else f'{policies[name].split()[0]}={draw(objects)}'
        return dict(code=head+learner
            +f'learn = cifar_learner("toynet_s1_k3", dls)\n{fit}learn.{name}({first}{n}, {args})')
    if kind==6:
        name = draw(sampled_from([*optimizers]))
        args = draw(arguments(optimizers[name]))
        return dict(code=head+f'p = nn.Parameter(torch.ones(3))\nkw = dict({args})\nkw = '
            f'{{k:v for k,v in kw.items() if k in inspect.signature({name}).parameters}}\no = {name}([p], '
            '**kw)\np.sum().backward()\no.step()\nassert p.isfinite().all()'.replace('import decimal',
                'import inspect, decimal'))
    name = draw(sampled_from(checked))
    args = draw(arguments(functions[name]))
    code = dict(cifar_dls='kw.setdefault("dataset", "digits")\nkw.setdefault("fraction", 0.05)\n',
        create_model='kw.setdefault("name", "lenet")\n', cifar_learner='kw.setdefault("arch", '
        '"toynet_s1_k3")\nkw.setdefault("dls", cifar_dls("digits", fraction=0.02))\n',
        policy_values='kw.setdefault("policy", "cosine")\nkw.setdefault("n_epoch", 3)\n',
        OneOf='kw = dict(p=kw.get("p"))\n', as_image='kw.setdefault("o", torch.zeros(3, 32, 32))\n',
        create_opt_func='kw.setdefault("name", "sgd")\n', load_run='kw.setdefault("path", "e")\n',
        image_weights='kw["ds"] = cifar_dls("digits", fraction=0.02).train_ds\nkw.setdefault("weights", "balanced")\n').get(name, '')
    call = 'OneOf(MixUp(), CutMix(), **kw)' if name=='OneOf' else f'{name}(**kw)'
    return dict(code=f'{head}kw = dict({args})\n{code}{call}', files=[('e', 'run', 'exported')])

# -- the test

kinds = dict(command=(command_lines(), 50, 1200), config=(configs(), 35, 800), tricks=(trick_lines(), 35, 800),
    data=(sources(), 35, 800), run=(run_folders(), 35, 900),
    python=(python_code(), 35, 900)) # strategy, and how many inputs of it are run in a short and in a long test

@pytest.fixture(scope='module')
def server():
    'Where an input may not read: it lies where every user may'
    if private := [p for p in (Path(torch.__file__), *Path(torch.__file__).parents) if os.getuid()==0
        and not p.stat().st_mode&0o004]:
        pytest.skip(f'{private[-1]} is private: the user that the inputs run as cannot import the packages in it')
    folder = tempfile.mkdtemp(prefix='fuzz')
    os.chmod(folder, 0o755)
    s = Server(folder)
    yield s
    s.close()
    shutil.rmtree(folder, ignore_errors=True)

def campaign(server, strategy, n):
    'The outcomes of `n` inputs with their numbers, and what was wrong: an input of each fault. One of five is run: hypothesis varies each a few times'
    outcomes,faults,seen = Counter(),{},set()
    @settings(max_examples=12*n, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(case):
        if outcomes.total()==n or ascii(case) in seen: return
        seen.add(ascii(case))
        if len(seen)%5!=1: return
        res = server.run(case)
        outcome,wrong = verdict(case, res)
        outcomes[outcome] += 1
        if wrong:
            faults.setdefault((wrong[:40], re.sub(r'[\d\W]+', ' ', res['err'].strip()[-160:])), (case, wrong, res))
    each()
    return outcomes,[fault(*o) for o in faults.values()]

def fault(case, wrong, res):
    replay = "'" + ascii(case).replace("'", "'\\''") + "'"
    return f"{wrong} after {res['seconds']:.1f} s: {res['err'][-600:]}\nreplay: python tests/fuzz_server.py {replay}\n"

def check(server, name, n):
    outcomes,faults = campaign(server, kinds[name][0], n)
    print(f'{name}: {sum(outcomes.values())} inputs, {dict(outcomes)}')
    assert not faults, f'{len(faults)} faults among {dict(outcomes)}:\n\n'+'\n'.join(faults)
    assert outcomes['refused']>n/20 and outcomes['success']>n/20, f'one-sided: {dict(outcomes)}'

@pytest.mark.parametrize('name', kinds)
def test_generated(server, name): check(server, name, kinds[name][1])

@pytest.mark.slow
@pytest.mark.parametrize('name', kinds)
def test_generated_more(server, name): check(server, name, kinds[name][2])


# -- the harness itself

train = dict(cmd='cifar_train', argv=cheap['cifar_train'], outputs=['exps'], heavy=True)
def broken(body):
    return dict(patch=f'import cifar_fastai.runs.train as run\ndef train(*args, **kwargs): {body}\nrun.train = train',
        **train)
broken_cases = dict(
    error=(dict(code='raise ValueError("no UserError")'), 'traceback'),
    key=(broken('raise KeyError("a")'), 'traceback'), code=(broken('sys.exit(3)'), 'exit code 3'),
    lines=(broken('sys.exit(sys.stderr.write("a\\nb\\n") and 2)'), 'not one sentence'),
    anonymous=(broken('sys.exit(sys.stderr.write("wrong\\n") and 2)'), 'not one sentence'),
    silent=(broken('sys.exit(2)'), 'not one sentence'), killed=(broken('os.kill(os.getpid(), 9)'), 'exit code -9'),
    unprintable=(dict(code='sys.exit(sys.stderr.write("python: \\x1b[31m is not a sentence.\\n") and 2)'), 'printable'),
    hangs=(dict(code='while True: pass', limit=1), 'too much time'),
    deaf=(broken('signal.pthread_sigmask(signal.SIG_BLOCK, [15]); time.sleep(9)') | dict(limit=2, soft=1),
        'too much time'),
    memory=(dict(code='x = b"x"*(1<<28)\ntime.sleep(9)', memory=1<<27), 'too much memory'),
    here=(dict(code='open("new", "w")'), "wrote ['a/b/new']"),
    input=(dict(code='open("c", "w")', files=[('c', 'bytes', b'precious')]), "wrote ['a/b/c']"),
    removed=(dict(code='os.unlink("c")', files=[('c', 'bytes', b'precious')]), "wrote ['a/b/c']"),
    above=(dict(code='open("../../new", "w")'), "wrote ['new']"),
    far=(dict(code='open("../../../new", "w")'), 'outside'))

@pytest.mark.parametrize('name', broken_cases)
def test_faults_are_found(server, name):
    'What is not a success or a documented error is reported, with the input that replays it'
    case,says = broken_cases[name]
    _,faults = campaign(server, just(case), 1)
    assert len(faults)==1 and says in faults[0]
    assert ast.literal_eval(shlex.split(faults[0].split('replay: ')[1])[2])==case

def test_outcomes(server):
    'Success and refusal are told apart, and a run that is told to end is interrupted'
    for case,outcome in ((train, 'success'), (train | dict(argv=[*train['argv'], '--bs', '0']), 'refused'),
        (dict(code='raise UserError("There is no sea.")'), 'refused'),
        (train | dict(argv=[*train['argv'], '--epochs', '99999'], soft=1), 'interrupted')):
        assert verdict(case, server.run(case))==(outcome, '')

# inputs that were faults
found = dict(world=train | dict(patch='os.environ["WORLD_SIZE"] = ""'),
    full_output=dict(cmd='cifar_zoo', argv=['--nope'], stdout='full'),
    no_device=dict(code='cifar_dls("digits", device=99)'),
    line_break=dict(cmd='cifar_train', argv=['--config', 'a\nb']),
    private_use=dict(cmd='cifar_train', argv=['--config', '\U000d2df4']),
    long_reason=dict(cmd='cifar_compare', argv=['r', 'r'],
        files=[('r', 'run', 'finished'), ('r/best.safetensors', 'header', 1256, 'x'*5000, False)]))

@pytest.mark.parametrize('name', found)
def test_found(server, name): assert verdict(found[name], server.run(found[name]))==('refused', '')
