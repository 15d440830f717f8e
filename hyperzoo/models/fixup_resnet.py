"""Residual networks without normalization for 32 x 32 images, and their batch-norm twins; shortcuts without parameters.

`fixup_resnet*_cifar`: Fixup Initialization, Zhang et al., ICLR 2019 (arXiv 1901.09321), section 3.2, with the layers of
hongyi-zhang/Fixup (cifar/models/fixup_resnet_cifar.py). Residual branches start at zero, their first convolutions with
standard deviation sqrt(2 / (9 C_out)) L^(-1/2) for L blocks, and scalar biases and multipliers stand where batch norm
would be. `resnet*_pad_cifar`: the networks of He et al., CVPR 2016 (arXiv 1512.03385), section 4.2, option A. In both,
a shortcut that changes the width takes every second pixel and fills the new channels with zeros.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.layers.scalar import ScalarBias, ScalarScale
from hyperzoo.models._create import create, register, weight_cfgs
from hyperzoo.models._input import check_images
from hyperzoo.models._units import make_head
from hyperzoo.models.resnet_cifar import WIDTHS, cfg_cifar

__all__ = ["FixupResNet"]

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
    """Every `stride`-th pixel, and `channels` more channels of zeros."""

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, 0, self.channels])


class FixupResNet(nn.Module):
    """A residual network with a 3 x 3 stem, without normalization or with batch norm.

    Shapes:
        x: (B, in_chans, H, W), float, normalised; made for 32 x 32, takes any size.   return: (B, num_classes).
    Args:
        depth: weighted layers, 6n + 2.
        batch_norm: the twin.
        widths: channels of the three stages, not falling.
        global_pool: a pooling type of timm, '' for none.
        drop_rate: dropout before the classifier, 0 to 1.
    Raises:
        InputError: a depth that is not 6n + 2, falling widths, or an input of another rank, channel count or dtype.
    """

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
            raise InputError(f"widths must be three numbers of channels, none below the one before; got {widths!r}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
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
        self.global_pool, self.fc = make_head(self.num_features, num_classes, global_pool, bias=True, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.bias2 = nn.Identity() if batch_norm else ScalarBias(**dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Fixup for its blocks, with a classifier of zeros; convolutions beside batch norm as in `resnet_cifar.py`."""
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

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head: num_classes = 0 leaves the pooled features, global_pool = '' the map."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        like = self.conv1.weight
        self.global_pool, self.fc = make_head(
            self.num_features, num_classes, pool, bias=True, device=like.device, dtype=like.dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of the stages in `indices` (the last n for a number, all for None), beside the last features."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt must be 'NCHW'; got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        x = self._stem(x)
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            if stop_early and i > last:
                break
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last one asked for, and the head; returns the indices that stay."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        for i in range(last + 1, len(self.feature_info)):
            setattr(self, f"layer{i + 1}", nn.Sequential())
        if prune_head:
            self.bias2 = nn.Identity()
            self.reset_classifier(0, "")
        return take

    def _stem(self, x: Tensor) -> Tensor:
        return self.act1(self.norm1(self.conv1(check_images(x, self.in_chans))))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.bias2(self.global_pool(x))
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


_DEPTHS = (20, 56, 110)
default_cfgs = weight_cfgs(
    {arch: cfg_cifar() for depth in _DEPTHS for arch in (f"fixup_resnet{depth}_cifar", f"resnet{depth}_pad_cifar")}
)


def _architecture(depth: int, batch_norm: bool = False) -> Callable[..., FixupResNet]:
    """The registered function of one network."""
    arch = f"resnet{depth}_pad_cifar" if batch_norm else f"fixup_resnet{depth}_cifar"

    def entry(pretrained: bool = False, **kwargs: Any) -> FixupResNet:
        args: dict[str, Any] = dict(depth=depth, batch_norm=batch_norm) | kwargs
        return create(FixupResNet, arch, pretrained, feature_cfg=dict(out_indices=(0, 1, 2)), **args)

    entry.__name__ = entry.__qualname__ = arch
    entry.__doc__ = f"ResNet-{depth} for CIFAR {'with batch norm' if batch_norm else 'without normalization (Fixup)'}."
    return register(entry)


fixup_resnet20_cifar = _architecture(20)
fixup_resnet56_cifar = _architecture(56)
fixup_resnet110_cifar = _architecture(110)
resnet20_pad_cifar = _architecture(20, batch_norm=True)
resnet56_pad_cifar = _architecture(56, batch_norm=True)
resnet110_pad_cifar = _architecture(110, batch_norm=True)
