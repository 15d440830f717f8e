"""Sphere layers and norms; `sphereize` converts any model."""

from hyperzoo.layers.decorrelated_bn import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from hyperzoo.layers.fold import fold as fold
from hyperzoo.layers.recurrent_bn import BatchNormLSTM as BatchNormLSTM
from hyperzoo.layers.sphere import SphereConv2d as SphereConv2d
from hyperzoo.layers.sphere import SphereLinear as SphereLinear
from hyperzoo.layers.sphere_classifier import sphereize_classifier as sphereize_classifier
from hyperzoo.layers.sphere_norm import SphereNorm as SphereNorm
from hyperzoo.layers.sphereize import SphereizeReport as SphereizeReport
from hyperzoo.layers.sphereize import sphereize as sphereize
from hyperzoo.layers.whitening import whiten_ as whiten_
from hyperzoo.layers.whitening import whitening_filters as whitening_filters
