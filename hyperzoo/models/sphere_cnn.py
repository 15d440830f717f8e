"""Plain networks without shortcuts for 32 x 32 images: CNN-n of the SphereNet paper, and baselines of inner products.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 4: n convolutions of 3 x 3 in three
stages of 128, 192 and 256 channels, each with batch norm and ReLU, and 2 x 2 max pooling after each stage; then `fc6`,
a 4 x 4 convolution without padding and ReLU; then a plain classifier without bias. n counts the 3 x 3 convolutions, as
in the paper. `sphere_cnn9` has the cosine operator, and a suffix names another one; `plain_cnn9` has inner products.
Differs: `fc6` has batch norm, as in the authors' logged runs (not in their last version; `fc6_norm=False`). The
batch-norm eps is the authors' 1e-3. Maps of another size than 4 x 4 before `fc6` are averaged to 4 x 4.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers.operators import OPERATORS
from hyperzoo.models._create import Variant, create, register_variants, weight_cfgs
from hyperzoo.models._staged import Staged
from hyperzoo.models._units import check_norm, make_conv, make_norm
from hyperzoo.models.resnet_cifar import cfg_cifar

__all__ = ["SphereCNN"]
PAPERS = ("1711.03189",)  # arXiv numbers, on the cards of weights

torch.fx.wrap("average_to_4x4")
WIDTHS = (128, 192, 256)


def average_to_4x4(x: Tensor) -> Tensor:
    """Average a map to 4 x 4, the size that `fc6` expects; an fx leaf."""
    if x.size(-2) == 4 and x.size(-1) == 4:
        return x
    return F.adaptive_avg_pool2d(x, (4, 4))


class To4x4(nn.Module):
    """`average_to_4x4`."""

    def forward(self, x: Tensor) -> Tensor:
        return average_to_4x4(x)


class SphereCNN(Staged):
    """A plain network: three stages of convolutions and max pooling, a hidden layer, a classifier.

    Shapes:
        x: (B, in_chans, H, W), float, normalized; 8 x 8 or larger, designed for 32 x 32.   return: (B, num_classes).
    Args:
        depth: number of 3 x 3 convolutions, a multiple of 3.
        widths: channels of the three stages; `fc6` has as many as the last.
        operator, k: of all convolutions, as for `SphereConv2d`; None for inner products.
        norm: 'batch'; 'sphere' for SphereNorm instead of batch norm, 'sphere+batch' for both; or 'none'.
        fc6_norm: whether `fc6` is normalized too.
        relu: whether the stages have ReLUs.
        negative_slope: of these ReLUs, 0 to 1. The deeper the network, the nearer to 1: see `depth.md`.
        identity_init: start every 3 x 3 convolution but the first as the identity, which passes similarity and gradient
            on through any depth; additional filters, where a stage has more channels, start as usual.
        global_pool: a pooling type of timm, '' for none; the map after `fc6` is 1 x 1.
        drop_rate: dropout before the classifier, 0 to 1.
    Raises:
        InputError: a depth that is not a multiple of 3, not three widths, an unknown operator or norm, SphereNorm
            without an operator, a slope outside 0 to 1, or an input of another rank, channel count or dtype.
    """

    head_bias = False
    after = ("fc6",)

    def __init__(
        self,
        depth: int = 9,
        widths: Sequence[int] = WIDTHS,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        operator: str | None = "cosine",
        k: float = 0.3,
        norm: str = "batch",
        fc6_norm: bool = True,
        relu: bool = True,
        negative_slope: float = 0.0,
        identity_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth < 3 or depth % 3:
            raise InputError(f"depth must be a multiple of 3 (3, 9, 18, 45, 60, 69); got {depth}")
        if len(widths) != 3:
            raise InputError(f"widths must be three numbers of channels; got {widths!r}")
        check_norm(norm, operator)
        check_number("negative_slope", negative_slope, low=0, high=1)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        kind: dict[str, Any] = {"operator": operator, "k": k, **dd}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.identity_init = identity_init
        slope = negative_slope if relu else 1.0

        stages, in_chs = [], in_chans
        for out_chs in widths:
            units = []
            for _ in range(depth // 3):
                units.append(_unit(in_chs, out_chs, 3, norm, slope, padding=1, **kind))
                in_chs = out_chs
            stages.append(nn.Sequential(*units))
        self.stage1, self.pool1 = stages[0], nn.MaxPool2d(2)  # in the order in which timm's feature list runs them
        self.stage2, self.pool2 = stages[1], nn.MaxPool2d(2)
        self.stage3, self.pool3 = stages[2], nn.MaxPool2d(2)
        self.fc6: nn.Module = _unit(in_chs, in_chs, 4, norm if fc6_norm else "none", slope=1.0, **kind)
        self.feature_info = [
            dict(num_chs=width, reduction=2**i, module=f"stage{i + 1}") for i, width in enumerate(widths)
        ]
        self.num_features = in_chs
        self._add_head(num_classes, global_pool, **dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Convolutions and classifier: normal with standard deviation sqrt(2 / fan_in), or see `identity_init`."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if self.identity_init:
            for unit in [*self.stage1[1:], *self.stage2, *self.stage3]:
                nn.init.dirac_(unit.conv.weight[: unit.conv.in_channels])

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return dict(stem=r"^stage1\.0\.", blocks=r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)")

    def _after(self, x: Tensor) -> Tensor:
        return self.fc6(x)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._before(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._checkpointed(x)
        else:
            x = self.pool1(self.stage1(x))
            x = self.pool2(self.stage2(x))
            x = self.pool3(self.stage3(x))
        return self._after(x)


def _unit(
    in_chs: int, out_chs: int, size: int, norm: str, slope: float, padding: int = 0, **kind: Any
) -> nn.Sequential:
    """conv - norm - ReLU with a slope for negative values; before a 4 x 4 kernel, the map is averaged to its size."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if size == 4:
        parts["size"] = To4x4()
    parts["conv"] = make_conv(in_chs, out_chs, size, norm=norm, padding=padding, **kind)
    parts["bn"] = make_norm(out_chs, norm, device=kind["device"], dtype=kind["dtype"])
    inplace = norm != "none"  # a bare cosine must not be overwritten
    if slope == 0:
        parts["act"] = nn.ReLU(inplace)
    else:
        parts["act"] = nn.LeakyReLU(slope, inplace) if slope < 1 else nn.Identity()
    return nn.Sequential(parts)


OF_THE_PAPER = ("cosine", "linear", "sigmoid")  # the operators of Table 2
SIZES: dict[int, Iterable[str]] = {
    3: OF_THE_PAPER,
    9: OPERATORS,
    18: OF_THE_PAPER,
    45: OF_THE_PAPER,
    60: OF_THE_PAPER,
    69: ("cosine", "linear"),
}
"""Convolutions, and the operators of the networks with a name of their own."""


def _variants(depth: int, operators: Iterable[str]) -> dict[str, Variant]:
    rows: dict[str, str | None] = {f"plain_cnn{depth}": None}
    rows |= {f"sphere_cnn{depth}{OPERATORS[name].suffix}": name for name in operators}
    return {
        arch: Variant(
            f"CNN-{depth} of the SphereNet paper with {f'the {name} operator' if name else 'inner products'}.",
            dict(depth=depth, operator=name),
        )
        for arch, name in rows.items()
    }


VARIANTS = {arch: row for depth, operators in SIZES.items() for arch, row in _variants(depth, operators).items()}
default_cfgs = weight_cfgs(
    dict.fromkeys(VARIANTS, cfg_cifar() | dict(pool_size=(1, 1), first_conv="stage1.0.conv")),
)
register_variants(__name__, VARIANTS, partial(create, SphereCNN, feature_cfg=dict(out_indices=(0, 1, 2))))
