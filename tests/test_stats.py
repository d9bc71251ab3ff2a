'Statistics against definitions written out, exact enumeration and figures of the literature'
import itertools, math
import numpy as np, pytest, torch
from scipy import stats
from cifar_fastai.studies.evaluate import calibration_error, measures
from cifar_fastai.studies.stats import false_positive_rate, holm, mcnemar, mean_interval, paired_p

@pytest.mark.parametrize('n', [2, 3, 5, 20])
def test_interval(n):
    "Student's interval by the formula, with the quantile from the integral of the density"
    xs = np.random.default_rng(n).normal(90, 2, n)
    i = mean_interval(list(xs))
    half = (i.hi-i.lo)/2
    t,df = half*math.sqrt(n)/xs.std(ddof=1),n-1
    grid = np.linspace(-t, t, 200_001)
    density = math.gamma((df+1)/2)/math.sqrt(df*math.pi)/math.gamma(df/2)*(1+grid**2/df)**(-(df+1)/2)
    assert np.trapezoid(density, grid)==pytest.approx(0.95, abs=1e-6)
    assert i.value==pytest.approx(xs.mean()) and i.value-i.lo==pytest.approx(half)

def test_holm_is_closed_testing():
    "An adjusted p is the largest Bonferroni p of a set of hypotheses that has the one in question"
    rng = np.random.default_rng(0)
    for n in range(1, 6):
        for _ in range(20):
            ps = list(rng.random(n)**2)
            sets = [o for k in range(1, n+1) for o in itertools.combinations(range(n), k)]
            want = [max(min(1., len(o)*min(ps[j] for j in o)) for o in sets if i in o) for i in range(n)]
            assert holm(ps)==pytest.approx(want)

def test_mcnemar_by_enumeration():
    "The share of all ways to toss a coin per image of disagreement that are as uneven as the result"
    for b,c in itertools.product(range(6), repeat=2):
        x,y = np.array([1]*b+[0]*c+[1, 0]),np.array([0]*b+[1]*c+[1, 0])
        tosses = list(itertools.product((0, 1), repeat=b+c))
        assert mcnemar(x, y)==pytest.approx(np.mean([abs(2*sum(o)-b-c)>=abs(b-c) for o in tosses]))

def test_paired_p_by_permutation():
    'Close to the share of sign changes with a larger mean, for many pairs'
    rng = np.random.default_rng(0)
    x = rng.normal(0.4, 1, 40)
    signs = rng.choice([-1, 1], size=(40_000, 40))
    assert paired_p(x, np.zeros(40))==pytest.approx((abs((signs*x).mean(1))>=abs(x.mean())).mean(), abs=0.006)

def test_measures_by_loops():
    'Image by image; confidences of 0, 1 and of the edges of bins are counted once'
    g = torch.Generator().manual_seed(0)
    p = torch.cat([(3*torch.randn(200, 7, generator=g)).softmax(1), torch.eye(7)[:5], torch.full((4, 7), 1/7),
        torch.tensor([[0.4, 0.6, 0, 0, 0, 0, 0], [0.2, 0.8, 0, 0, 0, 0, 0]])]).double()
    y = torch.randint(0, 7, (len(p),), generator=g)
    y[200:205] = torch.arange(5) # a probability of 0 has an infinite loss
    y[-2:] = 1
    hits,top5,nll,bins = 0,0,0.,{}
    for q,t in zip(p.tolist(), y.tolist()):
        order = sorted(range(7), key=lambda k: -q[k])
        hits += order[0]==t
        top5 += t in order[:5]
        nll -= math.log(q[t])
        bins.setdefault(min(int(max(q)*15), 14), []).append((max(q), order[0]==t))
    ece = sum(abs(sum(c-h for c,h in o)) for o in bins.values())/len(p)
    m = measures(p, y)
    assert m['accuracy']==pytest.approx(hits/len(p)) and m['top5']==pytest.approx(top5/len(p), abs=4/len(p)) # ties
    assert m['nll']==pytest.approx(nll/len(p)) and m['ece']==calibration_error(p, y)==pytest.approx(ece)

# looking early

def test_false_positive_rate_by_hand():
    "Study after study, in a loop; one look has 5%"
    rng,looks,wrong = np.random.default_rng(1),(5, 10),0
    for _ in range(4000):
        d = rng.normal(size=10)
        wrong += any(abs(d[:n].mean())*math.sqrt(n)/d[:n].std(ddof=1)>stats.t.ppf(0.975, n-1) for n in looks)
    assert false_positive_rate(looks)==pytest.approx(wrong/4000, abs=0.012)
    assert all(abs(false_positive_rate([n])-0.05)<0.005 for n in (3, 10, 50))

def test_false_positive_rates_of_the_literature():
    "Two, three and five looks at equal intervals (Armitage, McPherson and Rowe 1969, for a known variance)"
    for k,rate in {2:0.083, 3:0.107, 5:0.142}.items():
        assert false_positive_rate([100*i for i in range(1, k+1)])==pytest.approx(rate, abs=0.007)
