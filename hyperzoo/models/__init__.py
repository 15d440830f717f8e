"""Importing a model file registers its architectures with timm."""

from hyperzoo.models import _timm as _timm
from hyperzoo.models import cnn_cifar as cnn_cifar
from hyperzoo.models import fast_cnn as fast_cnn
from hyperzoo.models import fixup_resnet as fixup_resnet
from hyperzoo.models import lstm_lm as lstm_lm
from hyperzoo.models import plain_cnn as plain_cnn
from hyperzoo.models import preact_resnet as preact_resnet
from hyperzoo.models import resnet_cifar as resnet_cifar
from hyperzoo.models import sphere_cnn as sphere_cnn
from hyperzoo.models import sphereized as sphereized
from hyperzoo.models import spherenet as spherenet
