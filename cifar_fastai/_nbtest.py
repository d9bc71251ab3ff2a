'What `nbdev-test` runs before a notebook: one thread a worker, no warnings that carry local paths into stored outputs.'
import os, warnings

def setup(cells):
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    warnings.filterwarnings('ignore', category=FutureWarning, message='.*torch.jit.*')
    warnings.filterwarnings('ignore', category=DeprecationWarning, message='.*torch.jit.*')
