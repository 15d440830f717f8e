"""A scalar bias and a scalar multiplier, shared by all entries, for networks without normalization."""

import torch
import torch.nn as nn
from torch import Tensor


class ScalarBias(nn.Module):
    """x + b with one trainable number b, initially 0 (Fixup, Zhang et al., ICLR 2019, arXiv 1901.09321, section 3.2).

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
    """x * a with one trainable number a, initially 1 (Fixup, section 3.2).

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
