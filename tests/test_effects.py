"The comparison of arms, on results made by hand: every field against scipy or a formula"
import math
import numpy as np, pandas as pd, pytest
from scipy import stats
from cifar_fastai.runs.folder import TestResult
from cifar_fastai.studies.report import Page
from cifar_fastai.studies.effects import compare_arms, difference_text, effect_columns, flat, mean_text, p_text, run_labels, text_table
from cifar_fastai.studies.stats import detectable, holm

class FakeRun:
    def __init__(self, peak): self.peak_memory = peak

def results(values, seconds=1., peak=100., correct=None):
    'Seed -> result'
    tests = [None if correct is None else TestResult(np.array(c), np.zeros(len(c)), 'x') for c in correct or values]
    return {s:dict(value=float(v), seconds=seconds*(s+1), run=FakeRun(peak+s), test=tests[s] if correct else None)
        for s,v in enumerate(values)}

base,a,b = [90.,91.,89.,90.,92.],[91.,92.2,90.1,90.9,93.],[90.,90.,91.,89.,93.]
runs = dict(baseline=results(base), a=results(a, 2., 150.), b=results(b), short=results(a[:2]))

def test_every_field():
    ra,rb = compare_arms(runs, ['a', 'b'])
    for r,xs in ((ra, a), (rb, b)):
        d = np.subtract(xs, base)
        t = stats.ttest_rel(xs, base)
        lo,hi = t.confidence_interval(0.95)
        assert (r.n, r.missing)==(5, 0) and r.mean.value==pytest.approx(np.mean(xs)) and r.sd==pytest.approx(np.std(xs, ddof=1))
        assert (r.difference.value, r.difference.lo, r.difference.hi)==pytest.approx((d.mean(), lo, hi))
        assert r.sd_difference==pytest.approx(d.std(ddof=1)) and r.p==pytest.approx(t.pvalue)
        assert r.detectable==pytest.approx(detectable(d.std(ddof=1), 5, alpha=0.025))
        wins = [x for x in d if x]
        assert r.better.value==np.mean([x>0 for x in wins]) and r.better.n==len(wins)
    assert [ra.adjusted, rb.adjusted]==pytest.approx(holm([ra.p, rb.p]))
    assert ra.time==pytest.approx(2) and ra.memory==pytest.approx(154/104) and rb.time==1
    assert (ra.verdict, rb.verdict)==('helps', 'cannot be told')

def test_lower_is_better():
    r, = compare_arms(runs, ['a'], better=-1)
    assert r.verdict=='hurts' and r.difference.value>0 and r.better.value==0

def test_the_adjustment_decides():
    'p is below 5% alone, above it among four'
    xs = [x+d for x,d in zip(base, (1.0, 0.1, 1.4, 0.9, 0.5))]
    p = stats.ttest_rel(xs, base).pvalue
    assert 0.0125<p<0.05
    others = {k:results([x+e for x,e in zip(base, (1, -1, 1, -1, 0.5))]) for k in 'cde'}
    made = dict(baseline=results(base), a=results(xs), **others)
    assert compare_arms(made, ['a'])[0].verdict=='helps'
    assert compare_arms(made, [*'acde'])[0].verdict=='cannot be told'

def test_incomplete_and_short():
    r, = compare_arms(runs, ['short'], seeds=range(5))
    assert (r.n, r.missing, r.verdict)==(2, 3, 'incomplete (2 of 5)')
    r, = compare_arms(runs, ['short'])
    assert r.verdict=='no verdict (under 3 pairs)' and math.isnan(r.detectable) and r.missing==0
    r, = compare_arms(dict(baseline={}, a=results(a)), ['a'])
    assert r.n==0 and math.isnan(r.mean.value) and difference_text(r.difference)=='–'

def test_equal_differences_are_no_proof():
    'Three equal differences, as a small test set makes them: the sign test, not p = 0'
    r, = compare_arms(dict(baseline=results([90, 91, 92]), a=results([90.5, 91.5, 92.5])), ['a'])
    assert r.p==0.25 and r.verdict=='cannot be told'
    r, = compare_arms(dict(baseline=results([90, 91, 92]), a=results([90, 91, 92])), ['a'])
    assert r.p==1 and r.difference.value==0

def test_by_image():
    'McNemar per seed by the binomial distribution; the bootstrap is centred at the difference and covers the images'
    rng = np.random.default_rng(0)
    right = rng.random((3, 400))<0.6
    better = right.copy()
    better[:,:40] = True
    made = dict(baseline=results(100*right.mean(1), correct=[*right]), a=results(100*better.mean(1), correct=[*better]))
    r, = compare_arms(made, ['a'])
    ps = [stats.binomtest(int((better[i]&~right[i]).sum()), int((better[i]!=right[i]).sum())).pvalue for i in range(3)]
    assert r.mcnemar==sum(p<0.05 for p in ps)==3
    assert r.images.value==pytest.approx(100*(better.mean()-right.mean()))
    d = better.mean(0)-right.mean(0)
    half = 100*d.std(ddof=1)/400**0.5*1.96
    assert 0.5<(r.images.hi-r.images.lo)/(2*half)<2.5 # the images of one seed dominate

def test_power_of_the_verdict():
    'At the effect that is reported, a verdict among four arms is reached in about 80% of simulated studies'
    rng,n,hits = np.random.default_rng(0),10,0
    effect = detectable(1., n, alpha=0.05/4)
    for _ in range(1000):
        d = rng.normal(0, 1, (4, n))
        d[0] += effect
        hits += holm(list(stats.ttest_1samp(d, 0, axis=1).pvalue))[0]<0.05
    assert 0.77<=hits/1000<=0.87

@pytest.mark.parametrize('p,text', [(math.nan, ''), (0.0004, '<0.001'), (0.0449, '0.045'), (0.5, '0.50')])
def test_p_text(p, text): assert p_text(p)==text

def test_mean_text(): assert mean_text(91.26, 0.449)=='91.3 ± 0.4' and mean_text(1.23456, math.nan, 3)=='1.235' and mean_text(math.nan, math.nan)=='–'

@pytest.mark.parametrize('n,long', [(1, 1), (2, 10), (9, 3), (12, 60), (30, 150)])
def test_a_table_is_not_wider_than_a_page(n, long):
    'Every cell is there once, wrapped where it has to be; the first column names the rows of every part'
    made = {'run':['a'*long, 'b_'*long]} | {f'heading of {i}':[f'{i}.{"x"*long}', ''] for i in range(n)}
    text = text_table(made)
    assert max(map(len, text.splitlines()))<=100
    letters = ''.join(text.split())
    assert all(letters.count(str(i)+'.x')>=1 for i in range(n)) and letters.count('x')==n*long
    assert letters.count('a'*3 if long>2 else 'a')>=text.count('\n\n')

def test_a_small_table():
    assert text_table(dict(run=['a', 'bc'], x=['1.5', '10.2']))=='run       x\na       1.5\nbc     10.2'

def test_run_labels():
    'The ends of the paths, and more of them where they do not tell the runs apart'
    assert run_labels(['e/f/a/1', 'e/f/a/2'])==['a/1', 'a/2'] and run_labels(['e/a/1', 'f/a/1'])==['e/a/1', 'f/a/1']
    assert run_labels(['e/a/1', 'e/a/1'])==['a/1']*2 and run_labels(['x/y/a/1', 'ensemble of 2'])==['a/1', 'ensemble of 2']

class Blocks(Page):
    'One block of each kind, with text that Markdown and HTML have to escape'
    frames = property(lambda self: {'a.csv':pd.DataFrame(dict(x=[1]))})
    def blocks(self):
        yield from (('h1', 'A <title>'), ('p', 'word '*50), ('list', ['a|b', '*c*']))
        yield 'table',{'row':['<b>', 'c'], 'x|y':['1.5', '']},'Caption of the table.'
        for i in range(2): yield 'figure',f'Figure {i}. About <it>.',lambda ax: ax.plot([0, 1]),1.5
        yield 'h2','More'
        yield 'figure','Figure 2. About it.',lambda ax: ax.plot([0, 1]),1.5

def test_page(tmp_path):
    'The same blocks as text, Markdown and HTML; the picture has the first of adjacent figures'
    page = Blocks()
    text,md,html = str(page),page.markdown('p.png'),page.html()
    assert max(map(len, text.splitlines()))<=100 and '- a|b\n- *c*' in text and text.count('Caption of the table.')==1
    assert '# A &lt;title&gt;' in md and '- a\\|b\n- \\*c\\*' in md and '| &lt;b&gt; |' in md and '| x\\|y |' in md.replace('   ', ' ')
    assert md.endswith('![Figure 0. About &lt;it&gt;. Figure 2. About it.](p.png)\n') and '](' not in page.markdown()
    assert '<title>A &lt;title&gt;</title>' in html and html.count('<svg')==3 and 'aria-label="Figure 1"' in html
    assert '<b>' not in html and '<it>' not in html and html.index('Figure 1.')<html.index('More')
    assert len(page.plot().axes)==2
    assert [o.name for o in page.save(tmp_path)]==['report.md', 'report.html', 'report.png', 'a.csv']

def test_effect_columns():
    'A row per arm or reason; a column without a figure is left out'
    ra,rb = compare_arms(runs, ['a', 'b'])
    cols = effect_columns(['baseline', ra, rb], 2)
    assert list(cols)==['difference (unadjusted)', 'p, Holm', 'verdict', 'detectable']
    assert cols['difference (unadjusted)']==['baseline', *(difference_text(r.difference, 2) for r in (ra, rb))]
    assert cols['verdict']==['', 'helps', 'cannot be told'] and cols['detectable']==['', '', f'{rb.detectable:.2f}']
    none, = compare_arms(runs | dict(none={9:results(a)[0]}), ['none'])
    assert effect_columns([none])['difference (unadjusted)']==['no seed in common'] and 'p, Holm' not in effect_columns([none])
    d = ra.difference
    assert flat(dict(x=1, difference=d))==dict(x=1, difference=d.value, difference_lo=d.lo, difference_hi=d.hi, difference_n=5)
