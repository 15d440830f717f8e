"""The check at the door of an image model; model files make it a leaf for fx, so that tracing sees no control flow."""

import torch
from torch import Tensor

from hyperzoo.errors import InputError


def check_images(x: Tensor, in_chans: int) -> Tensor:
    """Return x, floating point of shape (B, in_chans, H, W), or raise InputError with what was got and expected."""
    if not torch.jit.is_scripting():
        if x.dim() != 4 or x.shape[1] != in_chans or not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise InputError(
                f"the model expects floating-point images (batch, {in_chans}, height, width); "
                f"got {kind} {tuple(x.shape)}. Normalise with hyperzoo.preprocess(name)"
            )
    return x
