"""ResNets for 32 x 32 images: a 3 x 3 stem and three stages of 16, 32 and 64 channels, or 96, 192 and 384.

Deep Residual Learning for Image Recognition, He et al., CVPR 2016 (arXiv 1512.03385), section 4.2: 6n + 2 weighted
layers. Differs: shortcuts that change the width are 1 x 1 convolutions with batch norm (option B), and the batch-norm
eps is 1e-3. Both follow the SphereNet code, so that these networks are matched baselines of the SphereNets.
"""

from collections.abc import Callable
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
from hyperzoo.models._units import check_norm, make_conv, make_norm

__all__ = ["ResNetCifar"]
PAPERS = ("1512.03385",)  # arXiv numbers, on the cards of weights

torch.fx.wrap("check_images")
WIDTHS = (16, 32, 64)
WIDE = (96, 192, 384)


class BasicBlock(nn.Module):
    """conv - norm - ReLU - conv - norm, plus the shortcut, then ReLU."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, *, operator: str | None, k: float, norm: str, **dd: Any):
        super().__init__()
        conv: Callable[..., nn.Conv2d] = partial(make_conv, operator=operator, k=k, norm=norm, **dd)
        self.conv1 = conv(in_chs, out_chs, 3, stride=stride, padding=1)
        self.bn1 = make_norm(out_chs, norm, **dd)
        self.act1 = nn.ReLU(inplace=norm != "none")  # a bare cosine must not be overwritten
        self.conv2 = conv(out_chs, out_chs, 3, padding=1)
        self.bn2 = make_norm(out_chs, norm, **dd)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_chs != out_chs:  # inner products, except where SphereNorm is their only normalization
            conv = partial(conv, operator=operator if norm == "sphere" else None)
            self.shortcut = nn.Sequential(conv(in_chs, out_chs, 1, stride=stride), make_norm(out_chs, norm, **dd))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))


class ResNetCifar(Staged):
    """A residual network with a 3 x 3 stem.

    Shapes:
        x: (B, in_chans, H, W), float, normalized; any size, designed for 32 x 32.   return: (B, num_classes).
    Args:
        depth: weighted layers on the main path, 6n + 2.
        widths: channels of the three stages.
        operator, k: of the 3 x 3 convolutions, as for `SphereConv2d`; None for inner products.
        norm: 'batch'; 'sphere' for SphereNorm instead of batch norm, 'sphere+batch' for both; or 'none'.
        head_bias: whether the classifier has a bias.
        global_pool: a pooling type of timm, '' for none.
        drop_rate: dropout before the classifier, 0 to 1.
    Raises:
        InputError: a depth that is not 6n + 2, an unknown operator or norm, SphereNorm without an operator, or an input
            of another rank, channel count or dtype.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, int, int] = WIDTHS,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        operator: str | None = None,
        k: float = 0.3,
        norm: str = "batch",
        head_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"depth must be 6n + 2 with n of at least 1 (20, 32, 44, 56, 110); got {depth}")
        check_norm(norm, operator)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        kind: dict[str, Any] = {"operator": operator, "k": k, "norm": norm, **dd}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = make_conv(in_chans, widths[0], 3, padding=1, **kind)
        self.bn1 = make_norm(widths[0], norm, **dd)
        self.act1 = nn.ReLU(inplace=norm != "none")
        stages, in_chs = [], widths[0]
        for out_chs, stride in zip(widths, (1, 2, 2), strict=True):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(BasicBlock(in_chs, out_chs, stride if i == 0 else 1, **kind))
                in_chs = out_chs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.feature_info = [
            dict(num_chs=width, reduction=reduction, module=f"layer{i + 1}")
            for i, (width, reduction) in enumerate(zip(widths, (1, 2, 4), strict=True))
        ]
        self.num_features = widths[2]
        self.head_bias = head_bias
        self._add_head(num_classes, global_pool, **dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Convolutions: normal with standard deviation sqrt(2 / fan_in)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return dict(stem=r"^conv1|bn1", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    def _before(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv1(check_images(x, self.in_chans))))

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._before(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self._checkpointed(x)
        return self.layer3(self.layer2(self.layer1(x)))


def cfg_cifar() -> dict[str, Any]:
    """timm's cfg of a network for CIFAR, with channel means and deviations of the CIFAR-10 training images."""
    return dict(
        input_size=(3, 32, 32),
        pool_size=(8, 8),
        fixed_input_size=False,
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        crop_pct=1.0,
        interpolation="bilinear",
        first_conv="conv1",
        classifier="fc",
        license="mit",
    )


VARIANTS = {
    f"resnet{depth}_cifar": Variant(
        f"ResNet-{depth} for CIFAR, {depth} weighted layers: {millions} M parameters.",
        dict(depth=depth, operator=None),
    )
    for depth, millions in ((20, 0.27), (32, 0.47), (44, 0.66), (56, 0.86), (110, 1.73))
} | {
    "resnet32_wide_cifar": Variant(
        "ResNet-32 with 96, 192 and 384 channels and no bias in the classifier, the baseline of `spherenet32_wide`: "
        "16.7 M parameters.",
        dict(depth=32, widths=WIDE, head_bias=False, operator=None),
    ),
}
default_cfgs = weight_cfgs(dict.fromkeys(VARIANTS, cfg_cifar()))
register_variants(__name__, VARIANTS, partial(create, ResNetCifar, feature_cfg=dict(out_indices=(0, 1, 2))))
