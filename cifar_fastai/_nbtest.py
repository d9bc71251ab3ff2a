'What `nbdev-test` runs before a notebook: one thread a worker, no warnings that carry local paths into stored outputs.'
import os, warnings

def setup(cells):
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    warnings.filterwarnings('ignore', category=FutureWarning, message='.*torch.jit.*')
    warnings.filterwarnings('ignore', category=DeprecationWarning, message='.*torch.jit.*')

def quiet():
    'Keep what differs from run to run out of stored outputs: progress bars, and the warning that names where fastai is'
    from fastai.basics import defaults
    from fastai.callback.progress import ProgressCallback
    if ProgressCallback in defaults.callbacks: defaults.callbacks.remove(ProgressCallback)
    warnings.filterwarnings('ignore', message='load_learner')
