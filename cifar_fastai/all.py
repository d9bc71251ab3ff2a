"""What a user of the toolkit needs: `from cifar_fastai.all import *`

Runs, experiments and other reports are imported from their modules, as in `from cifar_fastai.runs.train import train`."""
import warnings as _warnings
with _warnings.catch_warnings(): # of fastai, about calls of torch and pandas that it makes when it is imported
    _warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated')
    _warnings.filterwarnings('ignore', "The 'mode.chained_assignment' option is deprecated")
    from fastai.vision.all import *
from fastai.callback.training import *
from .core import UserError
from .rng import RandomStream
from .serialize import load_weights
from .loop import ManagedCallback, inference, no_trace
from .trick import Trick, learner_tricks, tricks
from .distributed import Distributed, process_group
from .data.sources import cached_images, download_archive, read_images, stratified
from .data.datasets import DataSet, RemoteFile, corrupted_sets, datasets, digit_images, find_data
from .data.loaders import (CifarDataLoaders, CropFlip, ImageTensors, NormalizeImages, TensorDL, channel_stats, cifar_dls,
    image_weights)
from .augment.pixels import PixelTrick
from .augment.geometry import Flip, ProgressiveResize, RandomCrop, RandomResizedCrop
from .augment.autoaugment import AutoAugment, ImagePolicy, RandAugment, TrivialAugment, autoaugment_policies
from .augment.repeat import RepeatedAugment
from .augment.occlusion import Cutout, Occlusion, RandomErasing
from .zoo.shake import (BranchTrick, ShakeDrop, ShakeDropLayer, ShakeShakeLayer, StochasticDepth, StochasticDepthLayer,
    linear_decay)
from .zoo.registry import (Backbone, backbones, create_model, init_weights, inits, list_models, model_summary,
    register_models, zoo_table)
from .losses import BinaryCrossEntropy, CrossEntropy, LabelSmoothing, LossTrick, losses
from .optimizers import LARS, AdaBound, AdaBoundW, Lion, Muon, create_opt_func, optimizers
from .schedules import (PolicyScheduler, cosine, cosine_restarts, epochwise, multistep, plot_policy, policies, policy_values,
    triangular, warmcosine, warmup_multistep)
from .callback.mixers import Chain, CutMix, Mixer, MixUp, OneOf, ResizeMix, RICAP
from .callback.manifold import ManifoldMixUp
from .callback.sam import ASAM, SAM, LookSAM, SecondPass
from .callback.distill import DKD, KD, TeacherTrick
from .callback.average import EMA, SWA, Averager, Lookahead, update_bn
from .callback.whiten import Whiten
from .callback.augmix import AugMix
from .callback.selective import SelectiveBackprop
from .callback.surgery import GhostBatchNorm, WeightStandardization
from .callback.monitor import (AGC, CPUUse, GPUUse, GradientClip, ImagesPerSecond, Monitor, NonFiniteLoss, PeakMemory,
    StopOnNonFinite, TrainAccuracy, ValidateEvery)
from .runs.checkpoint import Checkpoint
from .runs.export import load_run
from .learner import cifar_learner
from .studies.study import load_study, study
