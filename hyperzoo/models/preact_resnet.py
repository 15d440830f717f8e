"""Pre-activation ResNets and wide ResNets for 32 x 32 images: batch norm and ReLU precede each convolution.

Identity Mappings in Deep Residual Networks, He et al., ECCV 2016 (arXiv 1603.05027); Wide Residual Networks, Zagoruyko
and Komodakis, BMVC 2016 (arXiv 1605.07146). Both as trained with Manifold Mixup (Verma et al., ICML 2019,
arXiv 1806.05236), which settles what the papers leave open: PreActResNets have four stages, the first of 64 channels,
shortcuts from the pre-activated tensor, and no norm before the pooling. Wide ResNets have three stages, biases in the
convolutions, the stride in the second one, shortcuts from the block's input, and a norm before the pooling. Weights
have torch's default initialization. Differs: that last norm has torch's momentum of 0.1 instead of 0.9, which keeps
little more than the last batch.
"""

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
from hyperzoo.models.resnet_cifar import cfg_cifar

__all__ = ["PreActResNet"]
PAPERS = ("1603.05027", "1605.07146", "1806.05236")  # arXiv numbers, on the cards of weights

torch.fx.wrap("check_images")


class Basic(nn.Module):
    """Twice norm - ReLU - 3 x 3 convolution; plus x, or its projected pre-activation."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, bias: bool, **dd: Any) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=bias, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=bias, **dd)
        self.shortcut = _projection(in_chs, out_chs, stride, bias, **dd)
        self.projects = isinstance(self.shortcut, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(x))
        skip = self.shortcut(out) if self.projects else x
        return self.conv2(self.act2(self.bn2(self.conv1(out)))) + skip


class Bottleneck(nn.Module):
    """Norm - ReLU before convolutions of 1 x 1, 3 x 3 and 1 x 1; the first two have a quarter of the width."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, bias: bool, **dd: Any) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_chs, out_chs // 4, 1, bias=bias, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs // 4, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs // 4, out_chs // 4, 3, stride=stride, padding=1, bias=bias, **dd)
        self.bn3 = nn.BatchNorm2d(out_chs // 4, **dd)
        self.act3 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(out_chs // 4, out_chs, 1, bias=bias, **dd)
        self.shortcut = _projection(in_chs, out_chs, stride, bias, **dd)
        self.projects = isinstance(self.shortcut, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(x))
        skip = self.shortcut(out) if self.projects else x
        out = self.conv2(self.act2(self.bn2(self.conv1(out))))
        return self.conv3(self.act3(self.bn3(out))) + skip


class Wide(nn.Module):
    """As `Basic`, with the stride in the second convolution and a shortcut from x itself."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, bias: bool, **dd: Any) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=bias, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, stride=stride, padding=1, bias=bias, **dd)
        self.shortcut = _projection(in_chs, out_chs, stride, bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.act1(self.bn1(x)))
        return self.conv2(self.act2(self.bn2(out))) + self.shortcut(x)


def _projection(in_chs: int, out_chs: int, stride: int, bias: bool, **dd: Any) -> nn.Module:
    if stride == 1 and in_chs == out_chs:
        return nn.Identity()
    return nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=bias, **dd)


BLOCKS = {"basic": Basic, "bottleneck": Bottleneck, "wide": Wide}


class PreActResNet(Staged):
    """A 3 x 3 stem, and stages of pre-activation blocks.

    Shapes:
        x: (B, in_chans, H, W), float, normalized; any size, designed for 32 x 32.   return: (B, num_classes).
    Args:
        block: 'basic', 'bottleneck' or 'wide'.
        depths: blocks per stage, of three or four stages; each stage but the first has stride 2.
        widths: channels per stage; multiples of 4 for bottlenecks.
        stem_width: channels of the stem.
        stem_stride: 1; 2 for images of 64 x 64.
        conv_bias: whether the convolutions have biases.
        final_norm: whether batch norm and ReLU precede the pooling.
        global_pool: a pooling type of timm, '' for none.
        drop_rate: dropout before the classifier, 0 to 1.
    Raises:
        InputError: an unknown block, not three or four stages, or an input of another rank, channel count or dtype.
    """

    after = ("norm", "act")

    def __init__(
        self,
        block: str = "basic",
        depths: tuple[int, ...] = (2, 2, 2, 2),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        stem_width: int = 64,
        stem_stride: int = 1,
        conv_bias: bool = False,
        final_norm: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise InputError(f"block must be one of {', '.join(BLOCKS)}; got {block!r}")
        if len(depths) not in (3, 4) or len(widths) != len(depths) or min(depths) < 1:
            raise InputError(f"depths and widths must have the same length, 3 or 4; got {depths} and {widths}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, stride=stem_stride, padding=1, bias=conv_bias, **dd)
        stages, in_chs, reduction = [], stem_width, stem_stride
        self.feature_info = []
        for i, (depth, out_chs) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(BLOCKS[block](in_chs, out_chs, 2 if i and not j else 1, conv_bias, **dd))
                in_chs = out_chs
            stages.append(nn.Sequential(*blocks))
            reduction *= 2 if i else 1
            self.feature_info.append(dict(num_chs=out_chs, reduction=reduction, module=f"layer{i + 1}"))
        self.layer1, self.layer2, self.layer3 = stages[:3]
        self.layer4 = stages[3] if len(stages) == 4 else nn.Sequential()
        self.norm = nn.BatchNorm2d(in_chs, **dd) if final_norm else nn.Identity()
        self.act = nn.ReLU(inplace=True) if final_norm else nn.Identity()
        self.num_features = in_chs
        self._add_head(num_classes, global_pool, **dd)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return dict(stem=r"^conv1", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    def _before(self, x: Tensor) -> Tensor:
        return self.conv1(check_images(x, self.in_chans))

    def _after(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._before(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._checkpointed(x)
        else:
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self._after(x)


def _wide(depth: int, factor: int) -> dict[str, Any]:
    """The arguments of a wide ResNet of 6n + 4 layers."""
    return dict(
        block="wide",
        depths=((depth - 4) // 6,) * 3,
        widths=(16 * factor, 32 * factor, 64 * factor),
        stem_width=16,
        conv_bias=True,
        final_norm=True,
    )


VARIANTS = {
    "preact_resnet18": Variant("PreActResNet-18: 11.2 M parameters.", dict(depths=(2, 2, 2, 2))),
    "preact_resnet34": Variant("PreActResNet-34: 21.3 M parameters.", dict(depths=(3, 4, 6, 3))),
    "preact_resnet50": Variant(
        "PreActResNet-50, of bottlenecks: 23.5 M parameters.",
        dict(block="bottleneck", depths=(3, 4, 6, 3), widths=(256, 512, 1024, 2048)),
    ),
}
WIDE_VARIANTS = {
    "wrn16_4": Variant("Wide ResNet-16-4: 2.8 M parameters.", _wide(16, 4)),
    "wrn28_10": Variant("Wide ResNet-28-10: 36.5 M parameters.", _wide(28, 10)),
}
default_cfgs = weight_cfgs(
    dict.fromkeys(VARIANTS, cfg_cifar() | dict(pool_size=(4, 4))) | dict.fromkeys(WIDE_VARIANTS, cfg_cifar())
)
register_variants(__name__, VARIANTS, partial(create, PreActResNet, feature_cfg=dict(out_indices=(0, 1, 2, 3))))
register_variants(__name__, WIDE_VARIANTS, partial(create, PreActResNet, feature_cfg=dict(out_indices=(0, 1, 2))))
