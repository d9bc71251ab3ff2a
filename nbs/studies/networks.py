"Networks of the studies in this folder"
from cifar_fastai.zoo.registry import create_model

def resnet8(n_out=10):
    "ResNet-20 (1512.03385) with one block per stage instead of three: 78,042 parameters"
    return create_model('resnet20', n_out, depths=(1,1,1))
