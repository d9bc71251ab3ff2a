"One thread a worker: two workers whose kernels use every core each wait for one another, and take ten times as long."
import os, signal
from contextlib import contextmanager
import pytest
os.environ.update(OMP_NUM_THREADS='1',
    MPLBACKEND='agg') # read when torch and matplotlib are imported; what the tests start has them too
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background job inherits SIGINT as ignored

def pytest_configure(config):
    "Bits are compared with loops written out on the CPU: only `pytest -m cuda` sees a GPU"
    if 'cuda' not in config.option.markexpr: os.environ['CUDA_VISIBLE_DEVICES'] = ''

class TooLong(BaseException): pass # what is no `Exception` cannot be taken for damaged data

@contextmanager
def time_limit(seconds=20):
    'Fail instead of hanging'
    def late(*_): raise TooLong(f'still busy after {seconds} s')
    if not hasattr(signal, 'SIGALRM'): return (yield)
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)

@pytest.fixture
def full_disk(monkeypatch):
    'Called with `n`, the disk is full at the nth file that `save_files` writes: when it is written, or when it is flushed'
    import cifar_fastai.studies.report as results
    real,opened = results.atomic_write,[]
    class Full:
        def __init__(self, f, what): self.f,self.name,self.what = f,f.name,what
        def write(self, b): self.at('write')
        def flush(self): self.at('flush')
        def fileno(self): return self.f.fileno()
        def at(self, what):
            if what==self.what: raise OSError(28, 'No space left on device')
    def fill(n, what='write'):
        opened.clear()
        @contextmanager
        def full(path):
            with real(path) as f:
                opened.append(path)
                yield Full(f, what) if len(opened)==n else f
        monkeypatch.setattr(results, 'atomic_write', full)
    return fill
