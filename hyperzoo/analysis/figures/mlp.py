"""Multilayer perceptrons with a bottleneck, for figures of hidden states.

Manifold Mixup, Verma et al., ICML 2019 (arXiv 1806.05236): for a two-dimensional spiral, nine weighted layers with a
bottleneck of 2, whose widths the paper does not state. Leaky ReLUs between the layers; hidden states are mixed at the
bottleneck.

Not registered with timm, because the inputs are vectors of a fixed size.
"""

import math

import torch.nn as nn
from torch import Tensor

from hyperzoo.errors import InputError

__all__ = ["BottleneckMLP", "mlp_spiral"]


class BottleneckMLP(nn.Module):
    """Linear layers with leaky ReLUs in between; `bottleneck` is the narrow layer, before its leaky ReLU.

    Shapes:
        x: (B, ...) with `in_features` values per row.   return: (B, num_classes).
    Args:
        before, after: widths of the layers before and after the bottleneck, at least one each.
        bottleneck: width, 1 or more.
    Raises:
        InputError: no layer before or after the bottleneck; an input of another size or dtype.
    Example:
        >>> import torch
        >>> model = BottleneckMLP(2, 3, before=(8,), bottleneck=2, after=(8,))
        >>> model(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, before: tuple[int, ...], bottleneck: int, after: tuple[int, ...]
    ) -> None:
        super().__init__()
        if not before or not after:
            raise InputError(f"a bottleneck needs layers before and after it; got before={before} and after={after}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.before = _layers(in_features, before)
        self.bottleneck = nn.Linear(before[-1], bottleneck)
        self.act = nn.LeakyReLU()
        self.after = _layers(bottleneck, after)
        self.fc = nn.Linear(after[-1], num_classes)
        self.num_features = after[-1]
        self.feature_info = [dict(num_chs=bottleneck, reduction=1, module="bottleneck")]

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.dim() < 2 or math.prod(x.shape[1:]) != self.in_features:
            kind = str(x.dtype).removeprefix("torch.")
            raise InputError(f"expected floating-point rows of {self.in_features} values; got {kind} {tuple(x.shape)}")
        return self.fc(self.after(self.act(self.bottleneck(self.before(x.flatten(1))))))


def _layers(in_features: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(in_features, width), nn.LeakyReLU()]
        in_features = width
    return nn.Sequential(*layers)


def mlp_spiral(width: int = 128) -> BottleneckMLP:
    """The network for points in the plane: nine weighted layers with a bottleneck of 2."""
    return BottleneckMLP(2, 2, before=(width,) * 4, bottleneck=2, after=(width,) * 3)
