"""CNN-11 for 32 x 32 images, a plain network without shortcuts and, by default, without normalization.

Ten convolutions of 5 x 5, 3 x 3, 2 x 2 and 1 x 1 with biases, and a classifier (Regularizing activations in
neural networks, Joo et al., ICLR 2020, arXiv 2002.05366; the layers are those of avirambh/vcl_pytorch, models/ELU.py,
with k = 1, which matches the parameter counts of the paper). The name states the activation; `_bn` adds batch norm
before it. ReLU and leaky ReLU have one scalar bias after each activation.
Differs: the initial variance of the weights preserves the second moment of the activations (arXiv 1502.01852, He et
al.), where that code keeps torch's default, at least three times smaller. The last dropout follows the pooling. Pooling
rounds up, so that any size works. The slope of leaky ReLU, which no source states, is torch's 0.01.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn as nn
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.layers.scalar import ScalarBias
from hyperzoo.models._create import Variant, create, register_variants, weight_cfgs
from hyperzoo.models._staged import Staged
from hyperzoo.models._units import BN_EPS
from hyperzoo.models.resnet_cifar import cfg_cifar

__all__ = ["CNN11"]
PAPERS = ("2002.05366", "1502.01852")  # arXiv numbers, on the cards of weights

# (channels, kernel size) of the convolutions of each stage; max pooling and dropout follow all stages but the last
STAGES = (
    ((192, 5),),
    ((192, 1), (240, 3)),
    ((240, 1), (260, 2)),
    ((260, 1), (280, 2)),
    ((280, 1), (300, 2)),
    ((300, 1),),
)
DROP_RATES = (0.0, 0.1, 0.2, 0.3, 0.4)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
}
SECOND_MOMENT = {"relu": 0.5, "leaky_relu": 0.50005, "elu": 0.644944}  # E[act(z)^2] for z ~ N(0, 1)


class CNN11(Staged):
    """A plain network of six stages of convolutions, with max pooling after the first five.

    Shapes:
        x: (B, in_chans, H, W), float, normalized; any size, designed for 32 x 32.   return: (B, num_classes).
    Args:
        activation: 'relu', 'leaky_relu' or 'elu'.
        batch_norm: whether batch norm precedes each activation.
        stage_drop_rates: dropout after the five pools, 0 to 1.
        global_pool: a pooling type of timm, '' for none; 32 x 32 pixels end in a 1 x 1 map.
        drop_rate: dropout before the classifier, 0 to 1.
    Raises:
        InputError: an unknown activation, not five rates, or an input of another rank, channel count or dtype.
    """

    def __init__(
        self,
        activation: str = "elu",
        batch_norm: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
        stage_drop_rates: tuple[float, ...] = DROP_RATES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        if len(stage_drop_rates) != 5:
            raise InputError(f"stage_drop_rates must be five numbers; got {stage_drop_rates!r}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.activation = activation

        in_chs = in_chans
        self.feature_info = []
        stages, pools = [], []
        for i, stage in enumerate(STAGES):
            units = []
            for out_chs, size in stage:
                units.append(_unit(in_chs, out_chs, size, activation, batch_norm, **dd))
                in_chs = out_chs
            stages.append(nn.Sequential(*units))
            rate = (*stage_drop_rates, 0.0)[i]
            pools.append(nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(rate)))
            self.feature_info.append(dict(num_chs=in_chs, reduction=2**i, module=f"stage{i + 1}"))
        self.stage1, self.pool1 = stages[0], pools[0]  # in the order in which timm's feature list runs them
        self.stage2, self.pool2 = stages[1], pools[1]
        self.stage3, self.pool3 = stages[2], pools[2]
        self.stage4, self.pool4 = stages[3], pools[3]
        self.stage5, self.pool5 = stages[4], pools[4]
        self.stage6 = stages[5]
        self.num_features = in_chs
        self._add_head(num_classes, global_pool, **dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Convolutions: normal with variance 1 / (E[act(z)^2] fan_in), z ~ N(0, 1); all biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=(SECOND_MOMENT[self.activation] * fan_in) ** -0.5)
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return dict(stem=r"^stage1\.", blocks=r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)")

    def forward_features(self, x: Tensor) -> Tensor:
        x = self._before(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self._checkpointed(x)
        x = self.pool1(self.stage1(x))
        x = self.pool2(self.stage2(x))
        x = self.pool3(self.stage3(x))
        x = self.pool4(self.stage4(x))
        x = self.pool5(self.stage5(x))
        return self.stage6(x)


def _unit(in_chs: int, out_chs: int, size: int, activation: str, batch_norm: bool, **dd: Any) -> nn.Sequential:
    """conv - batch norm - activation - scalar bias; even kernels reach one pixel further to the right and below."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if size % 2 == 0:
        parts["pad"] = nn.ZeroPad2d((size // 2 - 1, size // 2, size // 2 - 1, size // 2))
    parts["conv"] = nn.Conv2d(in_chs, out_chs, size, padding=size // 2 if size % 2 else 0, **dd)
    if batch_norm:
        parts["bn"] = nn.BatchNorm2d(out_chs, eps=BN_EPS, **dd)
    parts["act"] = ACTIVATIONS[activation]()
    if activation != "elu":
        parts["shift"] = ScalarBias(**dd)
    return nn.Sequential(parts)


VARIANTS = {
    f"cnn11_{name}{'_bn' * batch_norm}": Variant(
        f"CNN-11 for CIFAR with {name}{' and batch norm' * batch_norm}: 1.64 M parameters.",
        dict(activation=name, batch_norm=batch_norm),
    )
    for name in ACTIVATIONS
    for batch_norm in (False, True)
}
default_cfgs = weight_cfgs(
    dict.fromkeys(VARIANTS, cfg_cifar() | dict(pool_size=(1, 1), first_conv="stage1.0.conv")),
)
register_variants(__name__, VARIANTS, partial(create, CNN11, feature_cfg=dict(out_indices=tuple(range(6)))))
