"""The only file that uses private API of torch."""

import torch
from torch import Tensor


def is_in_functorch() -> bool:
    """Whether a transform of `torch.func`, such as `vmap` or `grad`, is running."""
    return torch._C._are_functorch_transforms_active()


def cpu_computes_bf16() -> bool:
    """Whether oneDNN has bfloat16 instructions on this processor and need not emulate them."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def writes_to(x: Tensor) -> int:
    """How often a tensor has been written to in place, itself or through a view."""
    return x._version
