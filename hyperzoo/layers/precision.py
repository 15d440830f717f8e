"""Full precision: float64 stays float64, every other dtype becomes float32; and inverse lengths in it."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """x in full precision; TorchScript compiles it.

    Example:
        >>> full_precision(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()


def full_dtype(x: Tensor) -> torch.dtype:
    """The dtype of `full_precision(x)`."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def inverse_root(squares: Tensor, eps: float) -> Tensor:
    """1 / sqrt(squares + eps), but NaN where the squares overflow: 0 would hide it, and its gradient is NaN anyway."""
    return torch.add(torch.rsqrt(squares + eps), squares, alpha=0)
