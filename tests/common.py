'What several tests need'
from contextlib import contextmanager
from fastai.torch_core import set_seed

@contextmanager
def silent(learn):
    'Without progress bar and without a table'
    with learn.no_bar(), learn.no_logging(): yield

def fit_of(n=1, seed=None):
    'A function that fits `n` epochs, seeded first unless `seed` is None'
    def fit(learn, n=n, seed=seed, **kwargs):
        if seed is not None: set_seed(seed)
        with silent(learn): learn.fit(n, **kwargs)
        return learn
    return fit

fit = fit_of()
