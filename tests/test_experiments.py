'The published rows: that the table is the published one, that every row is the recipe it stands for, and runs of rows.'
import csv, hashlib, json
from dataclasses import FrozenInstanceError,asdict,replace
from pathlib import Path
import cifar_fastai, pytest
from cifar_fastai.zoo.registry import list_models
from cifar_fastai.optimizers import optimizers
from cifar_fastai.core import UserError
from cifar_fastai.studies.experiments import experiment, experiments, plan, reproduce, run_experiment, run_name
from cifar_fastai.studies.experiments import select_experiments, variants
from cifar_fastai.runs.config import read_config, registry_table
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.runs.train import RunPlan, create_tricks

table = Path(cifar_fastai.__file__).parent/'published.csv'
with table.open(newline='') as f: rows = list(csv.DictReader(f))

def test_table_is_frozen():
    'The 92 rows as they were published: a change to the file has to be meant'
    assert len(rows)==92 and hashlib.sha256(table.read_bytes()).hexdigest()=='f060d4bd0db3547f44e475df86992956b55bc9458849dddc72b36595bd3ea6be'

def test_table_is_the_published_one():
    'Beside a checkout that has the specification, the two are the same, except that notes say more'
    spec = next((o for o in (p/'shared/spec/published.csv' for p in Path(__file__).parents[1:]) if o.exists()), None)
    if spec is None: pytest.skip('the published table lies nowhere beside the checkout')
    with spec.open(newline='') as f: want = list(csv.DictReader(f))
    assert [r | dict(note='') for r in rows]==[r | dict(note='') for r in want]
    assert all(r['note']==w['note'] or r['note'].startswith(w['note']+'; '*bool(w['note'])) for r,w in zip(rows, want))

def test_notes():
    'What is uncertain about a figure stands in the note of its row'
    for r in rows:
        tricks,note = r['tricks'].split('+'),r['note']
        says = {'learning rate is uncertain':r['table']=='1.0' and r['model'].startswith(('coatnet', 'swin')),
            'images uncertain':r['table']=='3.10', 'one epoch earlier':r['table']=='3.9',
            'cropped with padding 4':r['table']=='3.8', '--wd-bn-bias True --init default':r['table']=='3.8',
            'AutoAugment differed':'autoaugment' in tricks,
            'boxes were black':'random_erase' in tricks and r['table']!='3.1'}
        assert [k for k in says if k in note]==[k for k,v in says.items() if v], note

def number(s): return float(s) if s else None

@pytest.mark.parametrize('e,r', list(zip(experiments(), rows)), ids=[e.id for e in experiments()])
def test_row(e, r):
    'An experiment is its row: network, length, batch, data, optimizer, schedule, tricks by their callbacks, and every figure'
    q = e.config
    assert (e.table, q.model, q.epochs, q.bs, q.lr, e.note)==(r['table'], r['model'], int(r['epochs']), int(r['bs']),
        float(r['lr']), r['note'])
    assert (q.wd, q.dataset, q.loss, q.precision, q.drop_last)==(5e-4, 'cifar10', 'CrossEntropy', 'fp32', False)
    assert (q.data['fraction'], q.data['rule'], q.data['seed'])=={'full':(1, 'stratified', 42),
        'half':(0.5, 'first', 42), 'fraction 0.3':(0.3, 'stratified', 42)}[r['data']]
    settings = dict(cutout=('Cutout', dict(length=16, holes=1)), mixup=('MixUp', dict(alpha=1)),
        autoaugment=('AutoAugment', {}), ricap=('RICAP', dict(beta=0.3)),
        sam=('SAM', dict(rho=0.5)), asam=('ASAM', dict(rho=0.5, eta=0)),
        random_erase=('RandomErasing', dict(p=0.5, area=(0.02,0.4), aspect=(0.3,1/0.3), log_aspect=False)),
        label_smooth=('LabelSmoothing', dict(eps=0.1)))
    made = {type(o).__name__:o for o in create_tricks(q)}
    assert set(made)=={settings[t][0] for t in e.tricks}
    assert all(getattr(made[name], k)==v for name,kw in (settings[t] for t in e.tricks) for k,v in kw.items())
    divide = r['table']=='3.8'
    assert (q.wd_bn_bias, q.init, q.optimizer)==((False, 'kaiming_normal', 'nesterov') if divide
        else (True, None, r['optimizer']))
    assert q.schedule==('warmcosine(warmup=20.0, period=300.0)' if divide else r['schedule'])
    defaults = {k:d for k,(_,d) in optimizers.items()}[q.optimizer]
    assert defaults['momentum']==0.9
    want = {k:number(r[c]) for k,c in dict(top1='published_top1', error='published_error', loss='published_loss',
        paper_error='paper_error',
        train_top1='published_train_top1', gpu_mem_mb='published_gpu_mem_mb',
        weight_mib='published_weight_mib').items()}
    assert e.published==want and experiment(e.id) is e and not e.changes(asdict(replace(q, seed=1)))
    with pytest.raises(FrozenInstanceError): e.id = 'x'

def test_rows_can_run():
    'Every configuration names what is registered'
    for e in experiments():
        for v in variants(e):
            RunPlan(v.config)
            assert v.config.model in list_models() and experiment(v.id).config==v.config
    assert len({v.id for e in experiments() for v in variants(e)})==92+8

def test_shortened(tmp_path):
    'A shortened run says so in its name and its config, and is not the row'
    kw = dict(epochs=1, fraction=0.1, dataset='digits', model='toynet_s1_k3', seed=3, exps=tmp_path)
    folder = run_experiment('3.9/ss64_cm', **kw, bar=False)
    assert folder.relative_to(tmp_path)==Path('3.9-ss64_cm_toynet_s1_k3_digits_epochs1_fraction0.1/3')
    cfg = read_config(folder/'config.yaml')
    assert cfg['row']=='3.9/ss64_cm' and set(experiment('3.9/ss64_cm').changes(cfg))=={'model', 'dataset',
        'fraction', 'epochs'}
    before = (folder/'last.safetensors').stat().st_mtime_ns
    assert run_experiment('3.9/ss64_cm', **kw)==folder and (folder/'last.safetensors').stat().st_mtime_ns==before
    with pytest.raises(UserError, match="no setting 'epoch': did you mean 'epochs'"):
        run_experiment('3.9/ss64_cm', epoch=1)
    with pytest.raises(UserError, match="no experiment '3.9/ss64_mcc'"): run_experiment('3.9/ss64_mcc')

def test_use_is_recorded(tmp_path):
    "Table 3.4's runs log what they use of the processor"
    folder = run_experiment('3.4/toynet_s1_k3_bs32', epochs=1, fraction=0.1, dataset='digits', exps=tmp_path, bar=False)
    assert RunFolder(folder).log()[0]['cpu_percent']>0

def test_a_failing_row(tmp_path, monkeypatch):
    'Whatever goes wrong with a row, the rest goes on, and what went wrong is said'
    import cifar_fastai.runs.train as run
    real,lines = run.train,[]
    def train(r, *args, **kwargs):
        if 'Cutout()' in r.tricks: raise RuntimeError('out of memory')
        return real(r, *args, **kwargs)
    monkeypatch.setattr(run, 'train', train)
    jobs = plan(select_experiments('3.5'), exps=tmp_path, epochs=1, fraction=0.05, dataset='digits',
        model='toynet_s1_k3')
    failed = reproduce(jobs, tmp_path, report_line=lines.append)
    assert len(failed)==2 and all(v=='RuntimeError: out of memory' for v in failed.values()) and sum('accuracy' in o
        for o in lines)==2
    assert sorted(j.state for j in plan(select_experiments('3.5'), exps=tmp_path, epochs=1, fraction=0.05,
        dataset='digits', model='toynet_s1_k3'))==['finished', 'finished', 'missing', 'missing']

def test_divide_recipe():
    'Table 3.8: norms and biases are not decayed, Nesterov, a warmup of 20 of 300 epochs'
    r = replace(experiment('3.8/pyramidnet272_autoaugment_random_erase_mixup').config, model='toynet_s1_k3',
        dataset='digits', fraction=0.01)
    learn = RunPlan(r).learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    decays = {n:g['weight_decay'] for g in learn.opt.opt.param_groups for n,p in learn.model.named_parameters()
        if any(p is q for q in g['params'])}
    matrix = {n:learn.model.get_parameter(n).ndim>1 for n in decays}
    assert {v for n,v in decays.items() if matrix[n]}=={5e-4} and {v for n,v in decays.items() if not matrix[n]}=={0.}
    assert all(g['nesterov'] for g in learn.opt.opt.param_groups)

def test_divide_schedule():
    'Table 3.8: up over 20 epochs, then a cosine of 300, so that the last epoch is at its 279th'
    import math
    from cifar_fastai.schedules import policies
    r = experiment('3.8/pyramidnet272_autoaugment_random_erase_mixup').config
    name,_,shape = r.call('schedule')
    at = [policies[name](r.lr, t, r.epochs, **shape) for t in range(r.epochs)]
    assert at[20]==max(at)==0.1 and at[299]==pytest.approx(0.05*(1
        +math.cos(math.pi*279/300))) and at[:21]==sorted(at[:21])

def test_changes_of_a_row():
    'Seed and threads are none; an override replaces a field as a whole; wrong values are refused'
    e,half = experiment('3.9/ss64_cm'),experiment('3.3/resnet20').config
    assert not e.changes(asdict(replace(e.config, seed=1, threads=2)))
    assert half.override(epochs=3).subset=='first' and half.override(fraction=0.1).subset=='seed' and half.override(fraction=0.1, subset='first').subset=='first'
    for kw in (dict(epochs=float('inf')), dict(epochs='3'), dict(tricks=1), dict(model=3), dict(epoch=3)):
        with pytest.raises(UserError): e.config.override(**kw)
    assert len(run_name(e, replace(e.config, tricks='EMA(0.9) '*100)).encode())<=150

def test_names_tell_apart():
    'What is changed of a row is in its name, and nothing in it that a folder cannot have'
    e = experiment('3.9/ss64_cm')
    changes = dict(tricks='EMA(0.9)'), dict(tricks='EMA(0.99)'), dict(tricks='EMA(decay=0.99) SWA'), dict(schedule='multistep((1,2))'), dict(schedule='multistep((12,))'), {}
    names = [run_name(e, replace(e.config, **kw)) for kw in changes]
    assert len(set(names))==6 and not any(set(n) & set('/()=, ') for n in names)

def test_registry_table():
    'The names, parameters and defaults in the package are those of the registries'
    import sys
    sys.path.insert(0, str(Path(__file__).parents[1]/'.ci'))
    try: import registry
    finally: sys.path.pop(0)
    want = json.loads(json.dumps(registry.table()))
    assert registry_table()==want, 'run python .ci/registry.py, and commit'
