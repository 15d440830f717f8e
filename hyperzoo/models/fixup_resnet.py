"""Residual networks without normalization for 32 x 32 images, and matched baselines with batch norm.

`fixup_resnet*_cifar`: Fixup Initialization, Zhang et al., ICLR 2019 (arXiv 1901.09321), section 3.2, with the layers of
hongyi-zhang/Fixup (cifar/models/fixup_resnet_cifar.py). Residual branches start at zero, their first convolutions with
standard deviation sqrt(2 / (9 C_out)) L^(-1/2) for L blocks, and scalar biases and multipliers replace batch norm.
`resnet*_pad_cifar`: the networks of He et al., CVPR 2016 (arXiv 1512.03385), section 4.2, option A. In both, a shortcut
that changes the width has no parameters: it takes every second pixel and fills the new channels with zeros.
"""

from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.layers.scalar import ScalarBias, ScalarScale
from hyperzoo.models._create import Variant, create, register_variants, weight_cfgs
from hyperzoo.models._input import check_images
from hyperzoo.models._staged import Staged
from hyperzoo.models.resnet_cifar import WIDTHS, cfg_cifar

__all__ = ["FixupResNet"]
PAPERS = ("1901.09321", "1512.03385")  # arXiv numbers, on the cards of weights

torch.fx.wrap("check_images")


class FixupBlock(nn.Module):
    """bias - conv - bias - ReLU - bias - conv - scale - bias, plus the shortcut, then ReLU."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.bias1a = ScalarBias(**dd)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bias1b = ScalarBias(**dd)
        self.act1 = nn.ReLU(inplace=True)
        self.bias2a = ScalarBias(**dd)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False, **dd)
        self.scale = ScalarScale(**dd)
        self.bias2b = ScalarBias(**dd)
        self.shortcut = PadShortcut(stride, out_chs - in_chs) if out_chs != in_chs or stride > 1 else None
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.bias1a(x)
        out = self.act1(self.bias1b(self.conv1(shifted)))
        out = self.bias2b(self.scale(self.conv2(self.bias2a(out))))
        if self.shortcut is not None:
            x = self.shortcut(shifted)
        return self.act2(out + x)


class BatchNormBlock(nn.Module):
    """conv - BN - ReLU - conv - BN, plus the shortcut, then ReLU."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(out_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs, **dd)
        self.shortcut = PadShortcut(stride, out_chs - in_chs) if out_chs != in_chs or stride > 1 else None
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return self.act2(out + x)


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, and `channels` additional channels of zeros."""

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, 0, self.channels])


class FixupResNet(Staged):
    """A residual network with a 3 x 3 stem, without normalization or with batch norm.

    Shapes:
        x: (B, in_chans, H, W), float, normalized; any size, designed for 32 x 32.   return: (B, num_classes).
    Args:
        depth: weighted layers, 6n + 2.
        batch_norm: the baseline with batch norm instead of Fixup.
        widths: channels of the three stages, in ascending order.
        global_pool: a pooling type of timm, '' for none.
        drop_rate: dropout before the classifier, 0 to 1.
    Raises:
        InputError: a depth that is not 6n + 2, descending widths, or an input of another rank, channel count or dtype.
    """

    after = ("bias2",)

    def __init__(
        self,
        depth: int = 56,
        batch_norm: bool = False,
        widths: tuple[int, int, int] = WIDTHS,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"depth must be 6n + 2 with n of at least 1 (20, 56, 110); got {depth}")
        if len(widths) != 3 or list(widths) != sorted(widths):
            raise InputError(f"widths must be three numbers of channels in ascending order; got {widths!r}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False, **dd)
        self.norm1 = nn.BatchNorm2d(widths[0], **dd) if batch_norm else ScalarBias(**dd)
        self.act1 = nn.ReLU(inplace=True)
        block = BatchNormBlock if batch_norm else FixupBlock
        stages, in_chs = [], widths[0]
        for out_chs, stride in zip(widths, (1, 2, 2), strict=True):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(block(in_chs, out_chs, stride if i == 0 else 1, **dd))
                in_chs = out_chs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.feature_info = [
            dict(num_chs=width, reduction=reduction, module=f"layer{i + 1}")
            for i, (width, reduction) in enumerate(zip(widths, (1, 2, 4), strict=True))
        ]
        self.num_features = widths[2]
        self.bias2 = nn.Identity() if batch_norm else ScalarBias(**dd)  # it commutes with average pooling
        self._add_head(num_classes, global_pool, **dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Fixup, with a classifier of zeros; for the baseline, the convolutions as in `resnet_cifar.py`."""
        blocks = [module for module in self.modules() if isinstance(module, FixupBlock)]
        for block in blocks:
            nn.init.normal_(block.conv1.weight, std=(2 / (9 * block.conv1.out_channels) / len(blocks)) ** 0.5)
            nn.init.zeros_(block.conv2.weight)
        if blocks:
            for parameter in self.fc.parameters():
                nn.init.zeros_(parameter)
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return dict(stem=r"^conv1|norm1", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    def _before(self, x: Tensor) -> Tensor:
        return self.act1(self.norm1(self.conv1(check_images(x, self.in_chans))))

    def _after(self, x: Tensor) -> Tensor:
        return self.bias2(x)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._before(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._checkpointed(x)
        else:
            x = self.layer3(self.layer2(self.layer1(x)))
        return self._after(x)


VARIANTS = {
    f"fixup_resnet{depth}_cifar": Variant(
        f"ResNet-{depth} for CIFAR without normalization (Fixup).", dict(depth=depth, batch_norm=False)
    )
    for depth in (56, 110)
} | {
    f"resnet{depth}_pad_cifar": Variant(
        f"ResNet-{depth} for CIFAR with batch norm and shortcuts without parameters.",
        dict(depth=depth, batch_norm=True),
    )
    for depth in (56, 110)
}
default_cfgs = weight_cfgs(dict.fromkeys(VARIANTS, cfg_cifar()))
register_variants(__name__, VARIANTS, partial(create, FixupResNet, feature_cfg=dict(out_indices=(0, 1, 2))))
