"""SphereNets for 32 x 32 images: the residual nets of `resnet_cifar.py` with every 3 x 3 convolution spherical.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 4: SphereConv - BN - ReLU; 1 x 1
shortcuts and the classifier stay plain. The operator is part of the name, because the same tensors compute another
function with another one: `spherenet20` has the cosine, `spherenet20_linear` the linear operator, and
`spherenet20_sigmoid` the sigmoid with k = 0.3.
Differs: widths 16, 32 and 64 where the paper's ResNet-32 has 96, 192 and 384; the classifier has a bias.
"""

from functools import partial
from typing import Any

from hyperzoo.layers import SphereConv2d
from hyperzoo.models._create import register, weight_cfgs
from hyperzoo.models.resnet_cifar import ResNetCifar, cfg_cifar, create_resnet_cifar

__all__: list[str] = []

_SUFFIXES = ("", "_linear", "_sigmoid")
default_cfgs = weight_cfgs(
    {f"spherenet{depth}{suffix}": cfg_cifar() for depth in (20, 32, 44, 56, 110) for suffix in _SUFFIXES}
)


def _create_spherenet(arch: str, pretrained: bool, depth: int, operator: str, **kwargs: Any) -> ResNetCifar:
    conv_layer = partial(SphereConv2d, operator=operator)
    return create_resnet_cifar(arch, pretrained, depth=depth, conv_layer=conv_layer, **kwargs)


@register
def spherenet20(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-20 for CIFAR with the cosine operator: 0.27 M parameters."""
    return _create_spherenet("spherenet20", pretrained, 20, "cosine", **kwargs)


@register
def spherenet20_linear(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-20 for CIFAR with the linear operator: 0.27 M parameters."""
    return _create_spherenet("spherenet20_linear", pretrained, 20, "linear", **kwargs)


@register
def spherenet20_sigmoid(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-20 for CIFAR with the sigmoid (k = 0.3) operator: 0.27 M parameters."""
    return _create_spherenet("spherenet20_sigmoid", pretrained, 20, "sigmoid", **kwargs)


@register
def spherenet32(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-32 for CIFAR with the cosine operator: 0.47 M parameters."""
    return _create_spherenet("spherenet32", pretrained, 32, "cosine", **kwargs)


@register
def spherenet32_linear(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-32 for CIFAR with the linear operator: 0.47 M parameters."""
    return _create_spherenet("spherenet32_linear", pretrained, 32, "linear", **kwargs)


@register
def spherenet32_sigmoid(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-32 for CIFAR with the sigmoid (k = 0.3) operator: 0.47 M parameters."""
    return _create_spherenet("spherenet32_sigmoid", pretrained, 32, "sigmoid", **kwargs)


@register
def spherenet44(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-44 for CIFAR with the cosine operator: 0.66 M parameters."""
    return _create_spherenet("spherenet44", pretrained, 44, "cosine", **kwargs)


@register
def spherenet44_linear(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-44 for CIFAR with the linear operator: 0.66 M parameters."""
    return _create_spherenet("spherenet44_linear", pretrained, 44, "linear", **kwargs)


@register
def spherenet44_sigmoid(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-44 for CIFAR with the sigmoid (k = 0.3) operator: 0.66 M parameters."""
    return _create_spherenet("spherenet44_sigmoid", pretrained, 44, "sigmoid", **kwargs)


@register
def spherenet56(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-56 for CIFAR with the cosine operator: 0.86 M parameters."""
    return _create_spherenet("spherenet56", pretrained, 56, "cosine", **kwargs)


@register
def spherenet56_linear(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-56 for CIFAR with the linear operator: 0.86 M parameters."""
    return _create_spherenet("spherenet56_linear", pretrained, 56, "linear", **kwargs)


@register
def spherenet56_sigmoid(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-56 for CIFAR with the sigmoid (k = 0.3) operator: 0.86 M parameters."""
    return _create_spherenet("spherenet56_sigmoid", pretrained, 56, "sigmoid", **kwargs)


@register
def spherenet110(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-110 for CIFAR with the cosine operator: 1.73 M parameters."""
    return _create_spherenet("spherenet110", pretrained, 110, "cosine", **kwargs)


@register
def spherenet110_linear(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-110 for CIFAR with the linear operator: 1.73 M parameters."""
    return _create_spherenet("spherenet110_linear", pretrained, 110, "linear", **kwargs)


@register
def spherenet110_sigmoid(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-110 for CIFAR with the sigmoid (k = 0.3) operator: 1.73 M parameters."""
    return _create_spherenet("spherenet110_sigmoid", pretrained, 110, "sigmoid", **kwargs)
