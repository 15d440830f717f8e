"""The only file that uses private API of torch."""

import torch
from torch import Tensor, nn


def is_in_functorch() -> bool:
    """Whether a transform of `torch.func`, such as `vmap` or `grad`, is running."""
    return torch._C._are_functorch_transforms_active()


def cpu_computes_bf16() -> bool:
    """Whether oneDNN has bfloat16 instructions on this processor and need not emulate them."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def writes_to(x: Tensor) -> int:
    """How often a tensor has been written to in place, itself or through a view."""
    return x._version


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after the forward or backward pass of this module itself."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )


def uncompiled(model: nn.Module) -> nn.Module:
    """The model inside the wrapper of `torch.compile`; a model without one is returned as it is."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner
