"""The units of the networks for small images: a convolution of any kind, and its normalization."""

from typing import Any

from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d, SphereNorm

NORMS = ("batch", "sphere", "sphere+batch", "none")
BN_EPS = 1e-3


def make_conv(
    in_chs: int, out_chs: int, kernel_size: int, *, operator: str | None, k: float, norm: str, **kwargs: Any
) -> nn.Conv2d:
    """A convolution without bias: inner products (operator None), angles, or angles rescaled by SphereNorm."""
    if operator is None:
        return nn.Conv2d(in_chs, out_chs, kernel_size, bias=False, **kwargs)
    layer = SphereNorm if "sphere" in norm else SphereConv2d
    return layer(in_chs, out_chs, kernel_size, operator=operator, k=k, **kwargs)


def make_norm(channels: int, norm: str, **dd: Any) -> nn.Module:
    """The module after a convolution: batch norm, or the identity if `norm` has none."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, **dd) if "batch" in norm else nn.Identity()


def check_norm(norm: str, operator: str | None) -> None:
    """Raise InputError for an unknown norm, or SphereNorm without angles."""
    if norm not in NORMS:
        raise InputError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if "sphere" in norm and operator is None:
        raise InputError(
            f"norm={norm!r} rescales angles, but this network computes inner products. Pass norm='batch' or 'none', or "
            "use a sphere network"
        )
