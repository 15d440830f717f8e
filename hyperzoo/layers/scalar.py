"""Layers with one number: a bias and a multiplier shared by all entries, as networks without normalization use them."""

import torch
import torch.nn as nn
from torch import Tensor


class ScalarBias(nn.Module):
    """x + b with one trainable number b, 0 at first (Fixup, Zhang et al., ICLR 2019, arXiv 1901.09321, section 3.2).

    Shapes:
        x: any.   return: the same.
    Example:
        >>> ScalarBias()(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class ScalarScale(nn.Module):
    """x * a with one trainable number a, 1 at first (Fixup, section 3.2).

    Shapes:
        x: any.   return: the same.
    Example:
        >>> ScalarScale()(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
