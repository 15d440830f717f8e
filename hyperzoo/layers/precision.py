"""Full precision: float64 stays float64, every other dtype becomes float32.

Inverse lengths in it, and parts of a batch whose copies in it stay in the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperzoo.layers._torch import is_in_functorch

_HELD = 2**17  # entries of a part


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


def on_cpu(x: Tensor) -> bool:
    """Whether operations are cheap to start, and passes over memory dear; on a GPU it is the other way round."""
    return x.device.type == "cpu"


def inverse_root(squares: Tensor, eps: float) -> Tensor:
    """1 / sqrt(squares + eps), but NaN where the squares overflow: 0 would hide it, and its gradient is NaN anyway."""
    return torch.rsqrt(squares + eps) + 0 * squares


def parts(x: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """The samples of x in groups whose copies in full precision stay in the cache of a CPU.

    Args:
        like: the tensor that determines the number of samples in a group [default: x].
    """
    if torch.compiler.is_compiling() or not on_cpu(x) or is_in_functorch():
        return (x,)  # a compiler needs no groups
    entries = (x if like is None else like).shape[1:].numel()
    return x.split(max(1, _HELD // max(1, entries)))


def joined(found: Sequence[Tensor]) -> Tensor:
    """Results of `parts` as one tensor, without a copy if there is only one."""
    return found[0] if len(found) == 1 else torch.cat([*found])
