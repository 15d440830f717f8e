"""SphereNets: the residual networks of `resnet_cifar.py`, and timm's for ImageNet, with spherical convolutions.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 4: SphereConv - BN - ReLU; the 1 x 1
shortcuts and the classifier stay plain. A name without suffix has the cosine operator; `_linear`, `_sigmoid` (k = 0.3)
and `_learnable` name the others, because the same tensors compute another function with another operator. Other
combinations are arguments: `timm.create_model('spherenet20', depth=56, operator='linear')`.
Differs: only `spherenet32_wide` has the paper's widths of 96, 192 and 384 channels and its classifier without bias;
`spherenet20` has 16, 32 and 64 channels and a bias. The stride-2 convolutions pad both sides, as always in torch.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch.fx
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import BasicBlock, ResNet
from torch import Tensor

from hyperzoo.layers import sphereize
from hyperzoo.layers.operators import OPERATORS
from hyperzoo.models._create import Variant, create, register_variants, weight_cfgs
from hyperzoo.models._input import check_images
from hyperzoo.models.resnet_cifar import WIDE, ResNetCifar, cfg_cifar

__all__ = ["SphereNet", "SphereResNet"]
PAPERS = ("1711.03189",)  # arXiv numbers, on the cards of weights

torch.fx.wrap("check_images")


class SphereNet(ResNetCifar):
    """`ResNetCifar` with an operator in its 3 x 3 convolutions; shapes, arguments and errors as there."""

    def __init__(self, depth: int = 20, *, operator: str = "cosine", **kwargs: Any) -> None:
        super().__init__(depth, operator=operator, **kwargs)


class SphereResNet(ResNet):
    """timm's ResNet in which `sphereize` has replaced every convolution but those of the shortcuts.

    Shapes:
        x: (B, in_chans, H, W), float, normalized; any size, designed for 224 x 224.   return: (B, num_classes).
    Args:
        operator, k: as for `SphereConv2d`.
        kwargs: passed to `timm.models.ResNet`.
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


def _variants(arch: str, description: str, operators: Iterable[str], **args: Any) -> dict[str, Variant]:
    """One row per operator, whose suffix is appended to the name."""
    return {
        f"{arch}{OPERATORS[name].suffix}": Variant(f"{description}; {name} operator.", dict(args, operator=name))
        for name in operators
    }


VARIANTS = _variants("spherenet20", "SphereNet-20 for CIFAR, 0.27 M parameters", OPERATORS, depth=20) | _variants(
    "spherenet32_wide",
    "SphereNet-32 for CIFAR in the paper's widths of 96, 192 and 384 channels, 16.7 M parameters",
    ("cosine", "linear", "sigmoid"),
    depth=32,
    widths=WIDE,
    head_bias=False,
)
IMAGENET_VARIANTS = _variants(
    "spherenet18_imagenet",
    "SphereNet-18 for ImageNet, timm's resnet18 with 11.7 M parameters",
    ("cosine", "linear"),
    block=BasicBlock,
    layers=(2, 2, 2, 2),
)
default_cfgs = weight_cfgs(dict.fromkeys(VARIANTS, cfg_cifar()) | dict.fromkeys(IMAGENET_VARIANTS, _cfg_imagenet()))
register_variants(__name__, VARIANTS, partial(create, SphereNet, feature_cfg=dict(out_indices=(0, 1, 2))))
register_variants(__name__, IMAGENET_VARIANTS, partial(create, SphereResNet))
