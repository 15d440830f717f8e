"""SphereNets: the residual nets of `resnet_cifar.py`, and timm's for ImageNet, with spherical convolutions.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 4: SphereConv - BN - ReLU; 1 x 1
shortcuts and the classifier stay plain. The operator is part of the name, because the same tensors compute another
function with another one: `spherenet20` has the cosine, `spherenet20_linear` the linear operator,
`spherenet20_sigmoid` the sigmoid with k = 0.3, `spherenet20_learnable` a sigmoid with a learned k for each filter.
Differs: only the `wide` ones have the paper's widths of 96, 192 and 384 and its classifier without bias; the others
have 16, 32 and 64 channels, and a bias. The stride-2 convolutions pad both sides, as always in torch.
"""

from typing import Any

import torch.fx
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import BasicBlock, ResNet
from torch import Tensor

from hyperzoo.layers import sphereize
from hyperzoo.models._create import create, register, weight_cfgs
from hyperzoo.models._input import check_images
from hyperzoo.models.resnet_cifar import WIDE, ResNetCifar, cfg_cifar, create_resnet_cifar

__all__ = ["SphereResNet"]
PAPERS = ("1711.03189",)  # arXiv numbers, on the cards of weights

torch.fx.wrap("check_images")


class SphereResNet(ResNet):
    """timm's ResNet with every convolution spherical but the shortcuts, by `sphereize`.

    Shapes:
        x: (B, in_chans, H, W), float, normalised; made for 224 x 224, takes any size.   return: (B, num_classes).
    Args:
        operator, k: as for `SphereConv2d`.
        kwargs: go on to `timm.models.resnet.ResNet`.
    Raises:
        InputError: an unknown operator, or an input of another rank, channel count or dtype.
    """

    def __init__(self, *args: Any, operator: str = "cosine", k: float = 0.3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sphereize(self, operator, k=k, exclude=["*.downsample.*"])

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(check_images(x, self.in_chans)))


def _cfg_imagenet() -> dict[str, Any]:
    return dict(
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        num_classes=1000,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        crop_pct=0.875,
        interpolation="bilinear",
        first_conv="conv1",
        classifier="fc",
        license="mit",
    )


_SUFFIXES = ("", "_linear", "_sigmoid", "_learnable")
default_cfgs = weight_cfgs(
    {f"spherenet{size}{suffix}": cfg_cifar() for size in (20, 32, 44, 56, 110, "32_wide") for suffix in _SUFFIXES}
    | {f"spherenet18_imagenet{suffix}": _cfg_imagenet() for suffix in _SUFFIXES}
)


def _create_spherenet(arch: str, pretrained: bool, depth: int, operator: str, **kwargs: Any) -> ResNetCifar:
    return create_resnet_cifar(arch, pretrained, depth=depth, operator=operator, **kwargs)


def _create_wide(arch: str, pretrained: bool, operator: str, **kwargs: Any) -> ResNetCifar:
    args: dict[str, Any] = dict(widths=WIDE, head_bias=False) | kwargs
    return _create_spherenet(arch, pretrained, 32, operator, **args)


def _create_imagenet(arch: str, pretrained: bool, operator: str, **kwargs: Any) -> SphereResNet:
    return create(SphereResNet, arch, pretrained, block=BasicBlock, layers=(2, 2, 2, 2), operator=operator, **kwargs)


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
def spherenet20_learnable(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-20 for CIFAR with a learned sigmoid for each filter: 0.27 M parameters."""
    return _create_spherenet("spherenet20_learnable", pretrained, 20, "learnable", **kwargs)


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
def spherenet32_learnable(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-32 for CIFAR with a learned sigmoid for each filter: 0.47 M parameters."""
    return _create_spherenet("spherenet32_learnable", pretrained, 32, "learnable", **kwargs)


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
def spherenet44_learnable(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-44 for CIFAR with a learned sigmoid for each filter: 0.66 M parameters."""
    return _create_spherenet("spherenet44_learnable", pretrained, 44, "learnable", **kwargs)


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
def spherenet56_learnable(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-56 for CIFAR with a learned sigmoid for each filter: 0.86 M parameters."""
    return _create_spherenet("spherenet56_learnable", pretrained, 56, "learnable", **kwargs)


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


@register
def spherenet110_learnable(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """SphereNet-110 for CIFAR with a learned sigmoid for each filter: 1.73 M parameters."""
    return _create_spherenet("spherenet110_learnable", pretrained, 110, "learnable", **kwargs)


@register
def spherenet32_wide(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """The paper's SphereNet-32 (96, 192 and 384 channels) with the cosine operator: 16.7 M parameters."""
    return _create_wide("spherenet32_wide", pretrained, "cosine", **kwargs)


@register
def spherenet32_wide_linear(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """The paper's SphereNet-32 (96, 192 and 384 channels) with the linear operator: 16.7 M parameters."""
    return _create_wide("spherenet32_wide_linear", pretrained, "linear", **kwargs)


@register
def spherenet32_wide_sigmoid(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """The paper's SphereNet-32 (96, 192 and 384 channels) with the sigmoid (k = 0.3) operator: 16.7 M parameters."""
    return _create_wide("spherenet32_wide_sigmoid", pretrained, "sigmoid", **kwargs)


@register
def spherenet32_wide_learnable(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """The paper's SphereNet-32 (96, 192 and 384 channels) with a learned sigmoid for each filter: 16.7 M parameters."""
    return _create_wide("spherenet32_wide_learnable", pretrained, "learnable", **kwargs)


@register
def spherenet18_imagenet(pretrained: bool = False, **kwargs: Any) -> SphereResNet:
    """SphereNet-18 for ImageNet with the cosine operator: timm's resnet18, 11.7 M parameters."""
    return _create_imagenet("spherenet18_imagenet", pretrained, "cosine", **kwargs)


@register
def spherenet18_imagenet_linear(pretrained: bool = False, **kwargs: Any) -> SphereResNet:
    """SphereNet-18 for ImageNet with the linear operator: timm's resnet18, 11.7 M parameters."""
    return _create_imagenet("spherenet18_imagenet_linear", pretrained, "linear", **kwargs)


@register
def spherenet18_imagenet_sigmoid(pretrained: bool = False, **kwargs: Any) -> SphereResNet:
    """SphereNet-18 for ImageNet with the sigmoid (k = 0.3) operator: timm's resnet18, 11.7 M parameters."""
    return _create_imagenet("spherenet18_imagenet_sigmoid", pretrained, "sigmoid", **kwargs)


@register
def spherenet18_imagenet_learnable(pretrained: bool = False, **kwargs: Any) -> SphereResNet:
    """SphereNet-18 for ImageNet with a learned sigmoid for each filter: timm's resnet18, 11.7 M parameters."""
    return _create_imagenet("spherenet18_imagenet_learnable", pretrained, "learnable", **kwargs)
