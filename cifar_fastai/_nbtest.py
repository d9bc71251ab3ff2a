'What `nbdev-test` runs before a notebook: one thread a worker, no warnings that carry local paths into stored outputs.'
import os, warnings

def setup(cells):
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    warnings.filterwarnings('ignore', category=FutureWarning, message='.*torch.jit.*')
    warnings.filterwarnings('ignore', category=DeprecationWarning, message='.*torch.jit.*')

def quiet():
    'Keep progress bars and local paths out of stored outputs, and what other notebooks registered out of this one'
    from fastai.basics import defaults
    from fastai.callback.progress import ProgressCallback
    from cifar_fastai.trick import tricks
    if ProgressCallback in defaults.callbacks: defaults.callbacks.remove(ProgressCallback)
    tricks.update(tricks.load().of_modules) # another notebook, that ran in this process, may have registered its own
    warnings.filterwarnings('ignore', message='load_learner')
