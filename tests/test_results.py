'Reports over many runs: statistics by hand, what is refused, what is never mixed, and folders that are broken in every way'
import csv, json, math, random, re, shutil
from pathlib import Path
from dataclasses import asdict, replace
from html.parser import HTMLParser
import numpy as np, pytest, torch, yaml
from scipy import stats
from safetensors.torch import save_file
from cifar_fastai.core import UserError
from cifar_fastai.studies.experiments import experiments, variants
from cifar_fastai.runs.config import write_config
from cifar_fastai.runs.folder import RunFolder
from cifar_fastai.studies.report import *
from cifar_fastai.studies.compare import compare_runs
from cifar_fastai.studies.stats import holm, mean_interval, paired_p

digest = 'd1'*32
known = {v.id:v for e in experiments() for v in variants(e)}
base,cutout,mixup,both = '3.9/ss64_orgin','3.9/ss64_c','3.9/ss64_m','3.9/ss64_cm'

def write_run(exps, row, seed=1, accs=(0.5,0.7,0.6), name=None, env=None, data=None, epochs=None, n_log=None, **changes):
    "A run as it is stored: its last accuracies are `accs`, so that hundreds of epochs need not be typed"
    e = known[row] if row else experiments()[0]
    config = replace(e.config, seed=seed, **dict(epochs=epochs or e.config.epochs) | changes)
    first = config.subset=='first'
    folder = exps/(name or row.replace('/', '_'))/str(seed)
    folder.mkdir(parents=True)
    (folder/'config.yaml').write_text(write_config(dict(row=row) | asdict(config)))
    environment = dict(cifar_fastai='0.1.0', commit='a'*40, python='3.11', torch='2.6', fastai='2.8', numpy='2',
        device='CPU', threads=1, started='2025-01-01T00:00:00',
        data=dict(source=digest,
            split=dict(rule=config.data['rule'], fraction=config.fraction, valid='test', holdout=None),
            digest=f'{seed:064}', train_images=round(50_000*config.fraction), test_images=5_000 if first else 10_000)
        | (data or {}))
    (folder/'environment.json').write_text(json.dumps(environment | (env or {})))
    n = config.epochs if n_log is None else n_log
    accs = ([0.1]*n + list(accs))[-n:] if n else []
    same = dict(lr=0.1, seconds=60/max(n, 1), images_per_second=100)
    rows = [dict(epoch=i, train_loss=2-a, valid_loss=1-a, accuracy=a, top5=a, peak_memory_mib=300+i) | same
        for i,a in enumerate(accs)]
    if rows:
        with open(folder/'log.csv', 'w', newline='') as f:
            w = csv.DictWriter(f, rows[0])
            w.writeheader()
            w.writerows(rows)
    save_file(dict(w=torch.zeros(256, 1024)), folder/'best.safetensors')
    return folder

def line(report, row, i=0): return next(l for l in report.sections[i].lines if l['row']==row)

# -- statistics, by formulas written out

def by_hand_mean(ds):
    m = sum(ds)/len(ds)
    half = stats.t.ppf(0.975, len(ds)-1)*math.sqrt(sum((d-m)**2 for d in ds)/(len(ds)-1)/len(ds))
    return m,m-half,m+half

xs,ys = [91.2,91.9,91.5,90.8],[90.1,91.0,90.7]

def test_interval_by_hand():
    i = mean_interval([x-y for x,y in zip(xs, ys)])
    assert (i.value,i.lo,i.hi)==pytest.approx(by_hand_mean([x-y for x,y in zip(xs, ys)]), rel=1e-12)

@pytest.mark.parametrize('xs', [[1.], []])
def test_no_interval_of_one_run(xs):
    i = mean_interval(xs)
    assert math.isnan(i.lo) and math.isnan(i.hi) and str(i)==('+1.00, no interval (n = 1)' if xs else '–')

def test_no_interval_without_spread():
    i = mean_interval([1.,1.])
    assert math.isnan(i.lo) and 'no spread' in str(i)

# -- runs

def test_run(tmp_path):
    r = read_run(write_run(tmp_path, base, 3, accs=(0.5,0.75,0.7,0.75,0.6)))
    assert r.row==base and r.seed==3 and r.finished
    assert r.accuracy==0.6 and r.best_accuracy==0.75 and r.best_epoch==196
    assert r.seconds==pytest.approx(60) and r.peak_memory==499
    assert r.weight_mib==pytest.approx(1, abs=1e-3)

def test_find_runs_in_order_of_seeds(tmp_path):
    for s in (10,2,1): write_run(tmp_path, base, s)
    write_run(tmp_path, None, 5, name='a_own', model='resnet20')
    assert [(r.folder.parent.name,r.seed) for r in find_runs(tmp_path)]==[('3.9_ss64_orgin',s)
        for s in (1,2,10)]+[('a_own',5)]

def edit(path, **kw):
    d = yaml.safe_load(path.read_text())
    path.write_text(write_config(d | kw) if path.suffix=='.yaml' else json.dumps(d | kw))

broken = {
    'unknown key':(lambda f: edit(f/'config.yaml', epoch=3), "no setting 'epoch': did you mean 'epochs'"),
    'unknown row':(lambda f: edit(f/'config.yaml', row='3.9/ss64_cn'), "no row '3.9/ss64_cn'"),
    'row of no text':(lambda f: edit(f/'config.yaml', row=[1]), 'must be a string'),
    'wrong type':(lambda f: edit(f/'config.yaml', epochs='many'), "epochs is 'many'"),
    'true is no number':(lambda f: edit(f/'config.yaml', bs=True), 'bs is True'),
    'cut between lines':(lambda f: (f/'config.yaml').write_text(re.sub('(?m)^seed: .*\n', '',
        (f/'config.yaml').read_text())), 'lacks seed'),
    'cut in a word':(lambda f: (f/'config.yaml').write_text((f/'config.yaml').read_text()[:-3]), 'truncated'),
    'two parts of the data':(lambda f: edit(f/'config.yaml', fraction=0.5, subset='half'), "no subset 'half'"),
    'not yaml':(lambda f: (f/'config.yaml').write_text('a: {\n'), 'not flat YAML'),
    'a date that is none':(lambda f: (f/'config.yaml').write_text('a: 2001-99-99\n'), 'not YAML'),
    'a list':(lambda f: (f/'config.yaml').write_text('- 1\n'), 'has no settings'),
    'empty':(lambda f: (f/'config.yaml').write_text(''), 'is empty'),
    'no config':(lambda f: (f/'config.yaml').unlink(), 'config.yaml is missing'),
    'not text':(lambda f: (f/'config.yaml').write_bytes(b'\xff\xfe\x00'), 'not UTF-8 text'),
    'not json':(lambda f: (f/'environment.json').write_text('{"a": '), 'not valid JSON'),
    'json of another':(lambda f: (f/'environment.json').write_text('[1]'), 'does not describe the data'),
    'no digest':(lambda f: edit(f/'environment.json', data=dict(train_images=1, test_images=1)),
        'missing or invalid values: source, split, digest'),
    'data of words':(lambda f: edit(f/'environment.json',
        data=dict(source='a', split=dict(rule='stratified', fraction=1, valid='test', holdout=None), train_images='many',
            test_images=1, digest='a')), 'missing or invalid values: train_images'),
    'a number as device':(lambda f: edit(f/'environment.json', device=3), 'missing or invalid values: device'),
    'no environment':(lambda f: (f/'environment.json').unlink(), 'environment.json is missing'),
    'log cut in a line':(lambda f: (f/'log.csv').write_text((f/'log.csv').read_text()[:-2]), 'truncated'),
    'log short of a cell':(lambda f: (f/'log.csv').write_text((f/'log.csv').read_text()+'200,0.1\n'),
        'or is incomplete'),
    'log with a cell more':(lambda f: (f/'log.csv').write_text((f/'log.csv').read_text()+'200'+',1'*20+'\n'),
        'or is incomplete'),
    'log with a header alone':(lambda f: (f/'log.csv').write_text('epoch,train_loss,valid_loss,accuracy,seconds\n'),
        'has no epoch'),
    'log without losses':(lambda f: (f/'log.csv').write_text('epoch,accuracy\n0,.5\n'),
        'lacks train_loss, valid_loss, seconds'),
    'log of words':(lambda f: (f/'log.csv').write_text('epoch,train_loss,valid_loss,accuracy,seconds\n0,a,b,c,d\n'),
        'or is incomplete'),
    'epochs in disorder':(lambda f: (f/'log.csv').write_text('epoch,train_loss,valid_loss,accuracy,seconds\n1,1,1,.5,1\n'), 'or is incomplete'),
    'accuracy of 70':(lambda f: (f/'log.csv').write_text('epoch,train_loss,valid_loss,accuracy,seconds\n0,1,1,70,1\n'),
        r'in [0, 1]'),
    'another csv':(lambda f: (f/'log.csv').write_text('x,y\n1,2\n'), 'not the log of a run'),
    'more epochs than asked for':(lambda f: edit(f/'config.yaml', epochs=2), 'config.yaml only 2'),
    'weights cut off':(lambda f: (f/'best.safetensors').write_bytes((f/'best.safetensors').read_bytes()[:-5]),
        'not a valid file of weights')}

@pytest.mark.parametrize('how', broken)
def test_broken_files(tmp_path, how):
    "One sentence from `read_run`; in a report, left out with that reason"
    breaks,said = broken[how]
    f = write_run(tmp_path, base, 1)
    write_run(tmp_path, base, 2)
    breaks(f)
    with pytest.raises(UserError) as e: read_run(f)
    assert said in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(UserError): find_runs(tmp_path)
    rep = report_runs(tmp_path, '3.9')
    assert list(rep.left_out)==[f] and said in rep.left_out[f]
    assert line(rep, base)['n']==1
    assert said in rep.markdown().replace('\\', '') and 'Left out' in rep.html()

def test_fuzz(tmp_path):
    "Any file of a run deleted or cut anywhere: a sentence, or a run that counts no more than it holds"
    whole,rng = write_run(tmp_path/'whole', base, 1, epochs=4, accs=(.1,.2,.3,.4)),random.Random(0)
    files = 'config.yaml', 'environment.json', 'log.csv', 'best.safetensors'
    good = read_run(whole)
    seen = set()
    for i in range(200):
        f = tmp_path/'x'/'a'/'1'
        shutil.copytree(whole, f)
        path = f/files[i%4]
        if i<4: path.unlink()
        else:
            b = path.read_bytes()
            path.write_bytes(b[:rng.randrange(len(b))])
        try:
            r = read_run(f)
            assert r.config==good.config and r.environment==good.environment and r.log==good.log[:len(r.log)]
            assert r.weight_mib in (good.weight_mib, None)
            seen.add('read')
        except UserError as e:
            assert '\n' not in str(e)
            seen.add('refused')
        for ask in (lambda: report_runs(tmp_path/'x'), lambda: compare_runs(whole, f)):
            try: str(ask())
            except UserError as e: assert '\n' not in str(e)
        shutil.rmtree(tmp_path/'x')
    assert seen=={'read','refused'}

# -- reports

def sweep(exps, **kw):
    "Four rows of table 3.9, three seeds each but one for the last"
    for row,a in {base:(.91,.92,.93), cutout:(.93,.925,.95), mixup:(.90,.91,.93), both:(.94,)}.items():
        for s,x in enumerate(a, 1): write_run(exps, row, s, (x+.01, x), **kw)
    return exps

def test_report(tmp_path):
    rep = report_runs(sweep(tmp_path), '3.9')
    s, = rep.sections
    assert s.title=='Table 3.9' and not rep.mixed and not rep.unfinished and not rep.left_out
    l = line(rep, cutout)
    xs,ys = [93.,92.5,95.],[91.,92.,93.]
    assert (l['last_mean'],l['last_sd'])==pytest.approx((sum(xs)/3,math.sqrt(sum((x-sum(xs)/3)**2 for x in xs)/2)))
    assert l['best_mean']==pytest.approx(l['last_mean']+1) and l['n']==3 and l['seeds']=='1, 2, 3'
    d = l['difference']
    assert (d.value,d.lo,d.hi)==pytest.approx(by_hand_mean([2,.5,2])) and l['pairs']==3
    ps = [paired_p(xs, ys), paired_p([90.,91.,93.], ys), math.nan]
    assert [line(rep, o)['adjusted'] for o in (cutout, mixup, both)]==pytest.approx(holm(ps), nan_ok=True)
    assert [line(rep, o)['verdict'] for o in (cutout, mixup, both)]==['cannot be told']*2+['no verdict (under 3 pairs)']
    assert l['seconds']==pytest.approx(60) and l['peak_memory_mib']==499 and l['weight_mib']==pytest.approx(1, abs=1e-3)
    assert l['published_top1']==96.49

def test_columns(tmp_path):
    "The published layout: model, epochs, check marks, published, measured"
    cols = report_runs(sweep(tmp_path), '3.9').sections[0].columns
    assert list(cols)[:5]==['row','model','epochs','cutout','mixup']
    assert cols['row']==['ss64_orgin','ss64_c','ss64_m','ss64_cm']
    assert cols['cutout']==['','✓','','✓'] and cols['mixup']==['','','✓','✓']
    assert cols['published top-1, %']==['96.42','96.49','96.17','95.82']
    assert cols['last epoch, %']==['92.00 ± 1.00','93.50 ± 1.32','91.33 ± 1.53','94.00'] and cols['n']==['3',
        '3','3','1']
    assert cols['difference (unadjusted)'][0]=='baseline' and cols['difference (unadjusted)'][1].startswith('+1.50 [')
    assert cols['difference (unadjusted)'][3]=='+3.00' and cols['p, Holm'][::3]==['', ''] and cols['verdict'][1]=='cannot be told'
    assert cols['time, min']==['1.0']*4 and cols['weight, MiB']==['1.00']*4

def test_rows_of_a_report(tmp_path):
    sweep(tmp_path)
    assert report_runs(tmp_path, cutout).sections[0].columns['row']==['ss64_orgin','ss64_c'] # with its baseline
    assert list(report_runs(tmp_path, [base,both]).sections[0].runs)==[base,both]
    assert report_runs(tmp_path, '3.9/ss64_c*, 3.5').not_run[-1]=='table 3.5'
    assert '3.9/ss64_a' in report_runs(tmp_path).not_run and both not in report_runs(tmp_path).not_run
    with pytest.raises(UserError, match="no row or table '3.99': did you mean '3.9'"): report_runs(tmp_path, '3.99')

def test_settings_that_differ_between_rows_are_shown(tmp_path):
    for e in experiments('3.6/*'): write_run(tmp_path, e.id)
    assert set(report_runs(tmp_path, '3.6').sections[0].columns['schedule'])=={'multistep','cosine'}
    assert 'schedule' not in report_runs(sweep(tmp_path), '3.9').sections[0].columns

def test_shortened_runs_are_not_the_row(tmp_path):
    sweep(tmp_path, epochs=8, model='resnet20')
    rep = report_runs(tmp_path, '3.9')
    s, = rep.sections
    assert s.title=='Table 3.9, shortened: epochs 8 for 200, model resnet20 for shake_resnet26_2x64d'
    assert 'full row, published top-1, %' in s.columns and 'published top-1, %' not in s.columns
    for text in (rep.markdown(), rep.html()):
        assert 'for reference only' in text and 'shortened: epochs 8 for 200' in text
    assert s.columns['model']==['resnet20']*4 and s.columns['epochs']==['8']*4

def test_full_and_shortened_runs_are_never_mixed(tmp_path):
    sweep(tmp_path/'a')
    write_run(tmp_path/'b', base, 4, epochs=8)
    rep = report_runs(tmp_path, '3.9')
    assert [s.title for s in rep.sections]==['Table 3.9','Table 3.9, shortened: epochs 8 for 200']
    assert line(rep, base)['n']==3 and line(rep, base, 1)['n']==1
    assert 'form 2 groups, which differ in settings:' in rep.mixed[0] and rep.mixed[0] in rep.markdown()

@pytest.mark.parametrize('kw,differ',
    [(dict(data=dict(source='e'*64)), 'data'),
        (dict(data=dict(split=dict(rule='stratified', fraction=1., valid='holdout', holdout=0.1))), 'data'),
        (dict(data=dict(split=dict(rule='first', fraction=1., valid='test', holdout=None))), 'settings and data'),
        (dict(env=dict(commit='b'*40)), 'code'), (dict(env=dict(commit='a'*40+'+changes')), 'code'),
        (dict(env=dict(cifar_fastai='0.2.0')), 'code'), (dict(env=dict(commit=None)), 'code'),
        (dict(fraction=0.5, subset='fixed'), 'settings and data'), (dict(lr=0.05), 'settings'),
        (dict(dataset='digits'), 'settings and data'),
        (dict(data=dict(test_images=5000)), 'settings and data'),
        (dict(data=dict(train_images=40_000)), 'settings and data')])
def test_kinds_are_never_mixed(tmp_path, kw, differ):
    sweep(tmp_path)
    for s in (4,5): write_run(tmp_path, base, s, **kw)
    rep = report_runs(tmp_path, '3.9')
    assert sorted(line(rep, base, i)['n'] for i in range(2))==[2,3]
    assert f'which differ in {differ}:' in rep.mixed[0]

def test_subsets_drawn_by_the_seed_share_a_mean(tmp_path):
    "Runs of one source, fraction and rule are one line with its interval, whichever images the seed drew"
    for s in (1,2,3): write_run(tmp_path, base, s, (.5,.9+s/100), fraction=0.1)
    rep = report_runs(tmp_path)
    assert len({r.environment['data']['digest'] for r in rep.sections[0].every})==3
    assert not rep.mixed and line(rep, base)['n']==3 and not math.isnan(line(rep, base)['last_sd'])
    assert 'source d1d1d1d1; stratified, fraction 0.1' in rep.sections[0].caption and line(rep,
        base)['split']=='stratified, fraction 0.1'

def test_another_rule_of_the_split_is_a_change(tmp_path):
    "Where the source does not keep the order that a configuration needs"
    write_run(tmp_path, base, data=dict(split=dict(rule='first', fraction=1., valid='test', holdout=None)))
    assert report_runs(tmp_path).sections[0].title=='Table 3.9, changed: split first for stratified'

def test_fewer_test_images_are_a_change(tmp_path):
    write_run(tmp_path, base, data=dict(test_images=5000))
    assert report_runs(tmp_path).sections[0].title=='Table 3.9, shortened: test images 5,000 for 10,000'

def test_code_is_pooled_when_asked_for(tmp_path):
    sweep(tmp_path)
    write_run(tmp_path, base, 4, env=dict(commit='b'*40))
    write_run(tmp_path, base, 5, epochs=8)
    rep = report_runs(tmp_path, '3.9', pool_code=True)
    assert line(rep, base)['n']==4 and len(rep.sections)==2 # other epochs are not pooled
    assert 'made by 2 versions of the code' in rep.markdown() and 'aaaaaaaa, cifar_fastai 0.1.0 at bbbbbbbb' in rep.markdown()

def test_unfinished_runs_are_listed_not_counted(tmp_path):
    sweep(tmp_path)
    f = write_run(tmp_path, base, 4, n_log=150)
    g = write_run(tmp_path, base, 5, n_log=0)
    rep = report_runs(tmp_path, '3.9')
    assert rep.unfinished=={f:'150 of 200 epochs', g:'0 of 200 epochs'} and line(rep, base)['n']==3
    assert '150 of 200 epochs' in rep.markdown() and '150 of 200 epochs' in rep.html()

def test_the_same_run_twice_counts_once(tmp_path):
    sweep(tmp_path)
    f = write_run(tmp_path, base, 1, name='z_again')
    rep = report_runs(tmp_path, '3.9')
    assert line(rep, base)['n']==3 and 'the same row and seed as' in rep.left_out[f]

def test_without_baseline(tmp_path):
    "A baseline that was not run, one that shares no seed, and a table that has none"
    write_run(tmp_path/'a', cutout, 1)
    assert report_runs(tmp_path/'a').sections[0].columns['difference (unadjusted)']==['baseline not run']
    for s in (2,3): write_run(tmp_path/'a', base, s)
    cols = report_runs(tmp_path/'a').sections[0].columns
    assert cols['difference (unadjusted)'][1]=='no seed in common' and cols['verdict'][1].startswith('no verdict')
    write_run(tmp_path/'b', '3.3/lenet', 1)
    cols = report_runs(tmp_path/'b').sections[0].columns
    assert not [k for k in cols if 'difference' in k] and cols['published error, %']==['29.24']

def test_a_baseline_of_another_kind_is_none(tmp_path):
    write_run(tmp_path, cutout, 1, epochs=8)
    write_run(tmp_path, base, 1)
    rep = report_runs(tmp_path, '3.9')
    assert rep.sections[1].columns['difference (unadjusted)']==['baseline not run']

def test_runs_of_no_row(tmp_path):
    sweep(tmp_path)
    f = write_run(tmp_path, None, 5, name='own')
    assert report_runs(tmp_path).left_out=={f:'not a run of a published row'}

def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match='no folder'): report_runs(tmp_path/'none')
    with pytest.raises(UserError, match='no finished run of 3.9.$'): report_runs(tmp_path, '3.9')
    with pytest.raises(UserError, match='no finished run of 3.9/ss64_orgin, 3.9/ss64_c, 3.9/ss64_m, [.][.][.].$'):
        report_runs(tmp_path, [e.id for e in experiments('3.9/*')])
    write_run(tmp_path, base, 1, n_log=3)
    with pytest.raises(UserError, match=r'no finished run of 3.9 \(.*3 of 200 epochs\).$'): report_runs(tmp_path, '3.9')

def test_caption(tmp_path):
    s = report_runs(sweep(tmp_path), '3.9').sections[0]
    assert s.caption==('Data: cifar10, 50,000 training and 10,000 test images (source d1d1d1d1). Device: '
        'CPU. Seed: 1, 2, 3. Epochs: 200. '
        'Code: cifar_fastai 0.1.0 at aaaaaaaa.')

# -- files

def test_csv_holds_everything(tmp_path):
    rep = report_runs(sweep(tmp_path/'exps'), '3.9')
    rep.save(tmp_path/'out')
    rows = list(csv.DictReader(open(tmp_path/'out'/'report.csv', newline='')))
    assert [r['row'] for r in rows]==[base,cutout,mixup,both]
    d = line(rep, cutout)['difference']
    assert [float(rows[1][f'difference{o}']) for o in ('', '_lo', '_hi', '_n')]==[d.value,d.lo,d.hi,d.n]
    assert rows[3]['difference_lo']=='' and rows[3]['last_sd']==''
    for k in ('code', 'device', 'source', 'split', 'train_images', 'epochs', 'seeds', 'difference_hi', 'adjusted', 'verdict', 'tricks',
        'published_top1'):
        assert rows[1][k]

class Page(HTMLParser):
    "Collects what a page refers to, and whether its tags are closed"
    void = {'meta','link','br','img','hr','input'}
    def __init__(self, text):
        super().__init__()
        self.refs,self.stack,self.tags,self.text = [],[],[],''
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.refs += [v for k,v in attrs if k in ('src','href','xlink:href','data','srcset','poster','action')]
        if tag not in self.void: self.stack.append(tag)
    def handle_startendtag(self, tag, attrs): self.refs += [v for k,v in attrs if k in ('src','href','xlink:href')]
    def handle_endtag(self, tag): assert self.stack.pop()==tag
    def handle_data(self, data): self.text += data

def test_page_is_self_contained(tmp_path):
    sweep(tmp_path, epochs=8)
    text = report_runs(tmp_path, '3.9').html()
    page = Page(text)
    assert not page.stack and page.tags.count('svg')==4 and page.tags.count('figcaption')==4
    assert page.refs and all(o.startswith('#') for o in page.refs)
    assert not {'script','link','iframe','object','img'} & {*page.tags}
    assert not re.findall(r'url\((?!#)|@import', text)
    assert 'prefers-color-scheme: dark' in text and 'width=device-width' in text and 'currentColor' in text and '#010203' not in text
    assert page.text.count('50,000 training and 10,000 test images')==5

def test_foreign_text_stays_text(tmp_path):
    "A device or a folder named like a tag is shown, not obeyed"
    write_run(tmp_path, base, env=dict(device='<script>alert(1)</script>|'))
    write_run(tmp_path, base, 2, name='<b>', n_log=1)
    rep = report_runs(tmp_path, '3.9')
    assert 'script' not in Page(rep.html()).tags and '<script' not in rep.markdown() and '\\|' in rep.markdown()

def test_same_report_twice(tmp_path):
    "The same runs make the same page, bit for bit"
    sweep(tmp_path, epochs=8)
    a,b = (report_runs(tmp_path, '3.9') for _ in range(2))
    assert a.html()==b.html() and a.markdown()==b.markdown()

def test_save_report(tmp_path):
    paths = report_runs(sweep(tmp_path/'exps', epochs=8), '3.9').save(tmp_path/'out')
    assert [o.name for o in paths]==['report.md','report.html','report.png',
        'report.csv'] and sorted(paths)==sorted((tmp_path/'out').iterdir())
    assert (tmp_path/'out'/'report.png').read_bytes()[:4]==b'\x89PNG' and '](report.png)' in paths[0].read_text()

@pytest.mark.parametrize('fails', ['write', 'flush'])
def test_saved_whole_or_not_at_all(tmp_path, full_disk, fails):
    "A disk that is full at any of the four files leaves what was there, and nothing else"
    rep,out = report_runs(sweep(tmp_path/'exps', epochs=8), '3.9'),tmp_path/'out'
    rep.save(out)
    before = {o.name:o.read_bytes() for o in out.iterdir()}
    for n in range(1, 5):
        full_disk(n, fails)
        with pytest.raises(UserError, match='could not be written.*No space left'):
            replace(rep, not_run=['x']).save(out)
        assert {o.name:o.read_bytes() for o in out.iterdir()}==before

def test_folder_that_is_a_file(tmp_path):
    (tmp_path/'f').write_text('x')
    with pytest.raises(UserError, match='is not a folder'):
        report_runs(sweep(tmp_path/'exps', epochs=8), '3.9').save(tmp_path/'f')

# -- two runs

def test_compare(tmp_path):
    a = write_run(tmp_path, base, 1, (.5,.6,.7), epochs=3)
    b = write_run(tmp_path, mixup, 1, (.5,.65,.6), epochs=3, env=dict(torch='2.7'), data=dict(digest='e'*64))
    c = compare_runs(a, b)
    assert c.settings=={'tricks':([],['MixUp()']), 'row':(base,mixup)}
    assert c.environment=={'torch':('2.6','2.7'), 'data digest':(f'{1:064}','e'*64)}
    assert c.first_difference==(1,'train_loss')
    for o in ('The logs differ from epoch 2 on: train_loss is 1.4 and 1.35.', '70.00', '65.00 (epoch 2)'):
        assert o in str(c)
    assert len(c.plot().axes)==2

def test_compare_bit_for_bit(tmp_path):
    "The smallest difference is one, time is none"
    a,b,d = (write_run(tmp_path/k, base, 1, (.5,x), epochs=2)
        for k,x in dict(a=.6, b=.6, d=math.nextafter(.6, 0)).items())
    (b/'log.csv').write_text((b/'log.csv').read_text().replace(',30.0,', ',31.0,'))
    assert read_run(b).seconds!=read_run(a).seconds
    c = compare_runs(a, b)
    assert c.first_difference is None and not c.settings and not c.environment
    cpu = replace(c, b=replace(c.b, log=[l | dict(cpu_seconds=i) for i,l in enumerate(c.b.log)]),
        a=replace(c.a, log=[l | dict(cpu_seconds=9.) for l in c.a.log]))
    assert cpu.first_difference is None
    assert 'bitwise identical in the 2 common epochs' in str(c) and 'Identical settings.' in str(c)
    assert compare_runs(a, d).first_difference==(1,'train_loss')

def test_compare_unfinished(tmp_path):
    a,b = write_run(tmp_path, base, 1, epochs=3),write_run(tmp_path, base, 2, epochs=3, n_log=0)
    c = compare_runs(a, b)
    assert 'no common epoch' in str(c) and '0 of 3' in str(c)
    c.plot()
    with pytest.raises(UserError, match='no folder'): compare_runs(a, tmp_path/'none')

def test_baseline_of_another_table(tmp_path):
    "Table 3.6 is compared with the plain row of 3.5, which then stands first"
    plain,cosine = experiments('3.6/*')[0].baseline,experiments('3.6/*')[2].id
    for s in (1,2):
        write_run(tmp_path, cosine, s, (.5,.9+s/100))
        write_run(tmp_path, plain, s, (.5,.8+s/50))
    s, = report_runs(tmp_path, '3.6').sections
    assert s.columns['row']==[plain,
        cosine.split('/')[1]] and s.columns['difference (unadjusted)'][1].startswith('+8.50 [')

def test_a_sweep(tmp_path):
    "Each variant of a row that is a sweep is a row of a report"
    vs = [v for v in variants(experiments('3.4/*')[0])][1:3]
    for v in vs: write_run(tmp_path, v.id, model=v.config.model, bs=v.config.bs)
    for rows in ('3.4', ['3.4/ToyNet'], [v.id for v in vs]):
        s, = report_runs(tmp_path, rows).sections
        assert list(s.runs)==[v.id for v in vs] and s.title=='Table 3.4'

def test_fewer_pairs_than_runs_are_said(tmp_path):
    for s in (1,2,3): write_run(tmp_path, base, s, (.5,.9+s/100))
    for s in (2,3,4): write_run(tmp_path, cutout, s, (.5,.8+s*s/100))
    assert report_runs(tmp_path).sections[0].columns['difference (unadjusted)'][1].endswith('], 2 pairs')

def test_a_setting_younger_than_the_run(tmp_path):
    "A run of before there was a setting is read, with the setting's default"
    f = write_run(tmp_path, base)
    (f/'config.yaml').write_text(re.sub('drop_last: .*\n', '', (f/'config.yaml').read_text()))
    assert read_run(f).config['drop_last'] is False and report_runs(tmp_path).sections[0].title=='Table 3.9'

def test_text_is_not_wider_than_a_page(tmp_path, capsys):
    'Tables of a report and of a comparison in a terminal, with long names of runs; runs are named without the path'
    from cifar_fastai.cli import cifar_compare, cifar_report
    exps = tmp_path/('deep_'*20)
    for row in (base, cutout):
        folders = [write_run(exps, row, s, (.5,.9+s/100), name=f'{row[4:]}_'+'long_'*30, optimizer='adamw(betas=(0.8, 0.99), eps=1e-07)',
            epochs=5) for s in range(1, 4)]
    other = write_run(exps, cutout, 9, name='b'*190, epochs=7, lr=0.2)
    cifar_report(argv=['--exps', str(exps), '--out', str(tmp_path/'out')])
    text = capsys.readouterr().out.split('Without a finished run')[0]
    assert max(map(len, text.splitlines()))<=100 and 'ss64_orgin' in text and 'cannot be told' in text
    cifar_compare(argv=[str(folders[0]), str(other)])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()))<=100 and 'deep_' not in text and 'ss64_c_' in text and 'adamw' in text

def test_looking_early_is_stated(tmp_path):
    "The report says what the verdicts assume, and the simulated error if that does not hold; three seeds allow one look"
    from cifar_fastai.studies.stats import false_positive_rate
    for s in range(8):
        write_run(tmp_path/'a', base, s, (.5,.9+s%3/100))
        write_run(tmp_path/'a', cutout, s, (.5,.9+s%2/100))
    text = report_runs(tmp_path/'a', '3.9').markdown()
    assert 'it holds if the number of seeds was fixed before any result was looked at' in text
    assert f'in {false_positive_rate(range(3, 9)):.0%} of comparisons over 8 seeds' in text
    text = report_runs(sweep(tmp_path/'b'), '3.9').markdown()
    assert 'fixed before any result' in text and 'Looking' not in text

def test_runs_of_the_fast_recipe():
    "They have a page of their own, with the accuracy of the views that the published figure has; all stored runs are on it"
    stored = Path(__file__).parents[1]/'nbs/runs/speedrun'
    rep,runs = report_runs(stored, 'speedrun', pool_code=True),find_runs(stored)
    s, = rep.sections
    assert rep.title=='Results, table speedrun' and s.columns['row']==['airbench94', 'airbench94_muon'] and not rep.not_run
    for id,text in zip(s.runs, s.columns['last epoch with its views, %']):
        acc = [100*RunFolder(r.folder).test().accuracy for r in runs if r.row==id]
        assert len(acc)==3 and text==f'{np.mean(acc):.2f} ± {np.std(acc, ddof=1):.2f}'
    assert s.columns['full row, published top-1, %']==['94.01']*2
    text = rep.markdown()
    assert 'published figure of a fast recipe' in text and 'best test epoch of one run' not in text and 'Holm' not in text
    assert not Page(rep.html()).stack

def test_the_fast_recipe_among_others(tmp_path, capsys):
    from cifar_fastai.cli import cifar_report
    f = write_run(tmp_path/'exps', base)
    edit(f/'config.yaml', row='speedrun/airbench94')
    write_run(tmp_path/'exps', cutout)
    assert read_run(f).row=='speedrun/airbench94'
    rep = report_runs(tmp_path/'exps')
    assert {o.table for o in rep.sections}=={'3.9', 'speedrun'} and 'best test epoch of one run' in rep.markdown()
    for flags in (['--table', 'speedrun'], ['--rows', 'speedrun/*']):
        cifar_report(argv=[*flags, '--exps', str(tmp_path/'exps'), '--out', str(tmp_path/'out')])
        assert 'Results, table speedrun' in capsys.readouterr().out and (tmp_path/'out/report.html').exists()
