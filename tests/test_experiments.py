'The published rows: that the table is the published one, that every row is the recipe it stands for, and runs of rows.'
import csv,hashlib
from dataclasses import FrozenInstanceError,asdict,replace
from pathlib import Path
import pytest
from cifar_fastai import experiments as ex
from cifar_fastai.backbones import list_models
from cifar_fastai.core import UserError
from cifar_fastai.experiments import choose,experiment,experiments,plan,reproduce,run_experiment,run_name,variants
from cifar_fastai.recipe import read_config
from cifar_fastai.run import check_recipe,read_log,recipe_learner,recipe_tricks

table = Path(ex.__file__).parent/'published.csv'
with table.open(newline='') as f: rows = list(csv.DictReader(f))

def test_table_is_frozen():
    'The 92 rows as they were published: a change to the file has to be meant'
    assert len(rows)==92 and hashlib.sha256(table.read_bytes()).hexdigest()=='f1cb47e3307dcc4a4309e0b8b5329a731e8d3e191618822f90dbd6df3ee0b5bc'

def test_table_is_the_published_one():
    'Beside a checkout that has the specification, the two are the same file'
    spec = Path(__file__).parents[2]/'shared/spec/published.csv'
    if not spec.exists(): pytest.skip('the published table lies nowhere beside the checkout')
    assert spec.read_bytes()==table.read_bytes()

def number(s): return float(s) if s else None

@pytest.mark.parametrize('e,r', list(zip(experiments(), rows)), ids=[e.id for e in experiments()])
def test_row(e, r):
    'An experiment is its row: network, length, batch, data, optimizer, schedule, tricks by their callbacks, and every figure'
    q = e.recipe
    assert (e.table, q.model, q.epochs, q.bs, q.lr, q.sched, q.optims, e.note)==(r['table'], r['model'], int(r['epochs']), int(r['bs']), float(r['lr']), r['schedule'], r['optimizer'], r['note'])
    assert q.part=={'full':1, 'half':0.5, 'fraction 0.3':0.3}[r['data']] and (q.weight_decay, q.momentum, q.milestones, q.gamma, q.dataset)==(5e-4, 0.9, '', 0.2, 'cifar10')
    callbacks = dict(cutout='Cutout()', mixup='MixUp()', autoaugment='AutoAugment()', random_erase='RandomErasing()', ricap='RICAP()', sam='SAM(rho=0.5)', asam='ASAM(eta=0.0)', label_smooth='LabelSmoothing(eps=0.2)')
    assert {repr(o) for o in recipe_tricks(q)}=={callbacks[t] for t in r['tricks'].split('+') if t} | {'GradientClip()'}
    assert q.wd_bn_bias==(r['table']!='3.8') and (q.init, q.warmup)==(('kaiming_normal', 20) if r['table']=='3.8' else (None, None))
    want = {k:number(r[c]) for k,c in dict(top1='published_top1', error='published_error', loss='published_loss', paper_error='paper_error',
        train_top1='published_train_top1', gpu_mem_mb='published_gpu_mem_mb', weight_mib='published_weight_mib').items()}
    assert e.published==want and experiment(e.id) is e and not e.changes(asdict(replace(q, seed=1)))
    with pytest.raises(FrozenInstanceError): e.id = 'x'

def test_rows_can_run():
    'Every recipe names what is there'
    for e in experiments():
        for v in variants(e):
            check_recipe(v.recipe)
            assert v.recipe.model in list_models() and experiment(v.id).recipe==v.recipe
    assert len({v.id for e in experiments() for v in variants(e)})==92+8

def test_shortened(tmp_path):
    'A shortened run says so in its name and its config, and is not the row'
    kw = dict(epochs=1, fraction=0.1, dataset='digits', model='toynet_s1_k3', seed=3, exps=tmp_path)
    folder = run_experiment('3.9/ss64_cm', **kw, bar=False)
    assert folder.relative_to(tmp_path)==Path('3.9-ss64_cm_toynet_s1_k3_digits_fraction0.1_epochs1/3')
    cfg = read_config(folder/'config.yaml')
    assert cfg['row']=='3.9/ss64_cm' and set(experiment('3.9/ss64_cm').changes(cfg))=={'model', 'dataset', 'fraction', 'epochs'}
    before = (folder/'last.safetensors').stat().st_mtime_ns
    assert run_experiment('3.9/ss64_cm', **kw)==folder and (folder/'last.safetensors').stat().st_mtime_ns==before
    with pytest.raises(UserError, match="no setting 'epoch': did you mean 'epochs'"): run_experiment('3.9/ss64_cm', epoch=1)
    with pytest.raises(UserError, match="no experiment '3.9/ss64_mcc'"): run_experiment('3.9/ss64_mcc')

def test_use_is_recorded(tmp_path):
    "Table 3.4's runs log what they use of the processor"
    folder = run_experiment('3.4/toynet_s1_k3_bs32', epochs=1, fraction=0.1, dataset='digits', exps=tmp_path, bar=False)
    assert read_log(folder/'log.csv')[0]['cpu_percent']>0

def test_a_failing_row(tmp_path, monkeypatch):
    'Whatever goes wrong with a row, the rest goes on, and what went wrong is said'
    import cifar_fastai.run as run
    real,said = run.train,[]
    def train(r, *args, **kwargs):
        if r.cutout: raise RuntimeError('out of memory')
        return real(r, *args, **kwargs)
    monkeypatch.setattr(run, 'train', train)
    jobs = plan(choose('3.5'), exps=tmp_path, epochs=1, fraction=0.05, dataset='digits', model='toynet_s1_k3')
    failed = reproduce(jobs, tmp_path, say=said.append)
    assert len(failed)==2 and all(v=='RuntimeError: out of memory' for v in failed.values()) and sum('accuracy' in o for o in said)==2
    assert sorted(j.state for j in plan(choose('3.5'), exps=tmp_path, epochs=1, fraction=0.05, dataset='digits', model='toynet_s1_k3'))==['done', 'done', 'missing', 'missing']

def test_divide_recipe():
    'Table 3.8: norms and biases are not decayed, Nesterov, a warmup of 20 of 300 epochs'
    r = replace(experiment('3.8/pyramidnet272_autoaugment_random_erase_mixup').recipe, model='toynet_s1_k3', dataset='digits', fraction=0.01)
    learn = recipe_learner(r)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    decays = {n:g['weight_decay'] for g in learn.opt.opt.param_groups for n,p in learn.model.named_parameters() if any(p is q for q in g['params'])}
    matrix = {n:learn.model.get_parameter(n).ndim>1 for n in decays}
    assert {v for n,v in decays.items() if matrix[n]}=={5e-4} and {v for n,v in decays.items() if not matrix[n]}=={0.}
    assert all(g['nesterov'] for g in learn.opt.opt.param_groups)

def test_names_tell_apart():
    'What is changed of a row is in its name, and nothing in it that a folder cannot have'
    e = experiment('3.9/ss64_cm')
    names = [run_name(e, replace(e.recipe, **kw)) for kw in (dict(tricks='EMA(0.9)'), dict(tricks='EMA(0.99)'), dict(tricks='EMA(decay=0.99) SWA'), dict(milestones='1,2'), dict(milestones='12'), {})]
    assert len(set(names))==6 and not any(set(n) & set('/()=, ') for n in names)
