"""Importing a model file registers its architectures with timm."""

from hyperzoo.models import mlp as mlp
from hyperzoo.models import preact_resnet as preact_resnet
from hyperzoo.models import resnet_cifar as resnet_cifar
from hyperzoo.models import sphere_cnn as sphere_cnn
from hyperzoo.models import spherenet as spherenet
