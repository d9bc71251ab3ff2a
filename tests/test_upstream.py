"""The functions of fastai that the library extends, overrides, or relies on by a private name.

Each is known by a hash of its code, without comments, docstrings and layout. If a version of fastai changes one, read the change, see whether the
library still does what it says, and renew the line with what `python tests/test_upstream.py` prints."""
import hashlib, importlib, inspect, io, json, textwrap, tokenize
from pathlib import Path
import fastai.vision.all, pytest

relied_on = dict(o.split(':') for o in '''\
fastai.learner.Learner: _call_one _with_events fit _do_fit all_batches one_batch _set_device _split _do_one_batch _do_grad_opt _backward \
    _step _do_epoch _do_epoch_train _do_epoch_validate _end_cleanup _grab_cbs validation_context validate get_preds predict tta \
    show_results export create_opt add_cb remove_cb no_logging __getstate__ summary lr_find no_bar fine_tune fit_one_cycle fit_flat_cos fit_sgdr
fastai.learner.Recorder: before_fit after_batch before_epoch after_train after_validate after_epoch _train_mets _valid_mets
fastai.learner.AvgMetric: accumulate value
fastai.learner.AvgLoss: accumulate value
fastai.learner.AvgSmoothLoss: accumulate value
fastai.callback.core.Callback: __call__ __getattr__ __repr__
fastai.callback.core.TrainEvalCallback: before_fit after_batch before_train before_validate
fastai.callback.progress.ProgressCallback: before_fit after_batch after_fit
fastai.callback.progress.CSVLogger: before_fit after_fit _write_line
fastai.callback.schedule.ParamScheduler: before_fit before_batch _update_val
fastai.callback.schedule.LRFinder: before_fit before_batch after_batch after_fit
fastai.callback.fp16.MixedPrecision: before_fit before_batch after_loss before_backward before_step after_step after_fit
fastai.callback.training.GradientAccumulation: before_fit after_loss before_step
fastai.callback.mixup.MixHandler: before_train after_train after_cancel_train after_cancel_fit
fastai.callback.mixup.MixUp: before_batch
fastai.callback.mixup.CutMix: before_batch
fastai.callback.tracker.TrackerCallback: before_fit after_epoch
fastai.data.load.DataLoader: __init__ __iter__ get_idxs shuffle_fn create_batches new to sample
fastai.data.core.TfmdDL: __init__ new device to before_iter _one_pass _retain_dl decode_batch
fastai.data.core.DataLoaders: to new_empty device
fastai.interpret.Interpretation: from_learner
fastai.optimizer.OptimWrapper: __init__ set_hypers set_hyper _set_hyper param_lists
fastai.torch_core: get_random_states set_random_states'''.splitlines())

def owner_of(name):
    'A module or a class, by its full name'
    try: return importlib.import_module(name)
    except ImportError:
        module,_,cls = name.rpartition('.')
        return getattr(importlib.import_module(module), cls)

def original(o):
    "fastai's own function, under what extends it"
    o = getattr(o, 'extended', o)
    if isinstance(o, property): o = o.fget
    return inspect.unwrap(getattr(o, '__func__', o))

def tokens(source):
    'The code of a function: no comments, no docstrings, no layout'
    toks = [o for o in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline)
        if o.type not in (tokenize.COMMENT, tokenize.NL)]
    between = tokenize.NEWLINE,tokenize.INDENT,tokenize.DEDENT
    kept = [o for i,o in enumerate(toks)
        if not (o.type==tokenize.STRING and i and toks[i-1].type in between and toks[i+1].type==tokenize.NEWLINE)]
    return ' '.join('' if o.type in between else o.string for o in kept)

def digest(o): return hashlib.sha256(tokens(inspect.getsource(original(o))).encode()).hexdigest()[:12]

def digests():
    return {f'{cls}.{n}':digest(inspect.getattr_static(owner_of(cls), n)) for cls,names in relied_on.items()
        for n in names.split()}

known = json.loads((Path(__file__).parent/'upstream.json').read_text()) if __name__!='__main__' else {}

def test_upstream():
    importlib.import_module('cifar_fastai.all') # which extends some of them
    here = digests()
    changed = [k for k in here if here[k]!=known.get(k)]
    assert not changed, f"fastai {fastai.__version__} has another {', '.join(changed)} than the library was written for: read what changed, and renew tests/upstream.json."
    assert sorted(here)==sorted(known)

def test_a_comment_is_no_change():
    def f(a, b=1):
        'Says something'
        return a+b # and how
    def g(a, b=1):
        'Says something else'

        # on a line of its own
        return a + b
    def h(a, b=2): return a+b
    codes = [tokens(inspect.getsource(o)).partition('(')[2] for o in (f, g, h)]
    assert codes[0]==codes[1]!=codes[2]

def test_locked():
    'Development happens on the version of fastai that the lock file names, as far as this is it'
    lock = dict(o.split('==') for o in (Path(__file__).parents[1]/'.ci/lock.txt').read_text().splitlines() if '==' in o)
    assert {'fastai', 'torch', 'nbdev'}<=set(lock)
    if lock['fastai']!=fastai.__version__:
        pytest.skip(f"fastai {fastai.__version__} is installed, the lock file has {lock['fastai']}")

if __name__=='__main__': print(json.dumps(digests(), indent=0))
