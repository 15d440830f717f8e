"""Layers of their own kind: only what a published model needs."""

from hyperzoo.layers.sphere import SphereConv2d as SphereConv2d
from hyperzoo.layers.sphere import SphereLinear as SphereLinear
