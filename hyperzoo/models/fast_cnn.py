"""Fast CNNs for 32 x 32 images, with plain or spherical 3 x 3 convolutions: 93.9 % on CIFAR-10 for 1 PFLOP.

94% on CIFAR-10 in 3.29 Seconds on a Single GPU, Jordan, 2024 (arXiv 2404.00498), section 3: a 2 x 2 convolution without
padding, meant for patch-whitening filters (`layers.whitening`), then three groups of two 3 x 3 convolutions with
batch norm and GELU, 2 x 2 max pooling after the first convolution of each group, global max pooling and a linear
classifier without bias. The spherical form replaces each 3 x 3 convolution by `SphereConv2d` (Deep Hyperspherical
Learning, Liu et al., NeurIPS 2017, arXiv 1711.03189); whitening and classifier stay plain.
Differs: batch norm has a trainable scale; the factor 1/9 of the logits is part of the classifier's initialization.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn as nn
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.models._create import Variant, create, register_variants, weight_cfgs
from hyperzoo.models._input import check_images
from hyperzoo.models._staged import Staged
from hyperzoo.models._units import make_conv
from hyperzoo.models.resnet_cifar import cfg_cifar

__all__ = ["FastCNN"]
PAPERS = ("2404.00498",)  # arXiv numbers, on the cards of weights

torch.fx.wrap("check_images")

STEM = 24  # every whitening filter of three channels and its negative; a weight takes other channels with the same stem
WIDTHS = (64, 256, 256)
W96 = (96, 288, 288)
WIDE = (128, 384, 384)


class FastCNN(Staged):
    """A plain network of eight weighted layers: whitening, three groups of two convolutions, classifier.

    Shapes:
        x: (B, in_chans, H, W), float, normalized; 16 x 16 or larger, designed for 32 x 32.   return: (B, num_classes).
    Args:
        widths: channels of the three groups.
        operator, k: of the 3 x 3 convolutions, as for `SphereConv2d`; None for inner products.
        plain_first: give the first 3 x 3 convolution, which reads the whitened image, inner products in any case.
        global_pool: a pooling type of timm, '' for none.
        drop_rate: dropout before the classifier, 0 to 1.
    Raises:
        InputError: not three widths, an unknown operator, or an input of another rank, channel count or dtype.
    """

    head_bias = False

    def __init__(
        self,
        widths: tuple[int, int, int] = WIDTHS,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "max",
        drop_rate: float = 0.0,
        operator: str | None = None,
        k: float = 0.3,
        plain_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise InputError(f"widths must be three numbers of channels; got {widths!r}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        in_chs = STEM
        self.whiten = nn.Conv2d(in_chans, in_chs, 2, **dd)
        self.act = nn.GELU()
        stages: list[nn.Sequential] = []
        self.feature_info = []
        for i, width in enumerate(widths):
            first = None if plain_first and i == 0 else operator
            stage = OrderedDict(
                conv1=make_conv(in_chs, width, 3, operator=first, k=k, norm="batch", padding=1, **dd),
                pool=nn.MaxPool2d(2),
                bn1=nn.BatchNorm2d(width, **dd),
                act1=nn.GELU(),
                conv2=make_conv(width, width, 3, operator=operator, k=k, norm="batch", padding=1, **dd),
                bn2=nn.BatchNorm2d(width, **dd),
                act2=nn.GELU(),
            )
            stages.append(nn.Sequential(stage))
            self.feature_info.append(dict(num_chs=width, reduction=2 ** (i + 1), module=f"stage{i + 1}"))
            in_chs = width
        self.stage1, self.stage2, self.stage3 = stages
        self.num_features = in_chs
        self._add_head(num_classes, global_pool, **dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """3 x 3 convolutions: the identity for as many filters as there are input channels, torch's default for the
        rest. Classifier: normal with standard deviation 1 / in_features."""
        for stage in (self.stage1, self.stage2, self.stage3):
            for module in stage:
                if isinstance(module, nn.Conv2d):
                    nn.init.dirac_(module.weight[: module.in_channels])
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=1 / self.num_features)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return dict(stem=r"^whiten", blocks=r"^stage(\d+)" if coarse else r"^stage(\d+)\.(?:conv|bn)(\d+)")

    def _before(self, x: Tensor) -> Tensor:
        return self.act(self.whiten(check_images(x, self.in_chans)))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._before(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self._checkpointed(x)
        return self.stage3(self.stage2(self.stage1(x)))


VARIANTS = {
    "fast_cnn8": Variant("The fast CNN with 64, 256 and 256 channels: 1.97 M parameters.", dict(operator=None)),
    "fast_cnn8_w96": Variant(
        "The fast CNN with 96, 288 and 288 channels: 2.6 M parameters.", dict(widths=W96, operator=None)
    ),
    "fast_cnn8_wide": Variant(
        "The fast CNN with 128, 384 and 384 channels: 4.6 M parameters.", dict(widths=WIDE, operator=None)
    ),
    "fast_sphere_cnn8": Variant(
        "`fast_cnn8` with the cosine operator in every 3 x 3 convolution.", dict(operator="cosine")
    ),
    "fast_sphere_cnn8_w96": Variant(
        "`fast_cnn8_w96` with the cosine operator in every 3 x 3 convolution.", dict(widths=W96, operator="cosine")
    ),
    "fast_sphere_cnn8_wide": Variant(
        "`fast_cnn8_wide` with the cosine operator in every 3 x 3 convolution.", dict(widths=WIDE, operator="cosine")
    ),
}
default_cfgs = weight_cfgs(dict.fromkeys(VARIANTS, cfg_cifar() | dict(pool_size=(3, 3), first_conv="whiten")))
register_variants(__name__, VARIANTS, partial(create, FastCNN, feature_cfg=dict(out_indices=(0, 1, 2))))
