'Everything at once: `from cifar_fastai.all import *`'
from fastai.vision.all import *
from fastai.callback.training import *
from .core import *
from .recipe import *
from .trick import *
from .data import *
from .augment import *
from .layers import *
from .backbones import *
from .losses import *
from .optimizers import *
from .schedules import *
from .mixers import *
from .sam import *
from .learner import *
from .checkpoint import *
from .run import *
