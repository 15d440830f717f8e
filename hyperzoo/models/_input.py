"""The input check of image models. Model files wrap it as an fx leaf, so that tracing sees no control flow."""

import torch
from torch import Tensor

from hyperzoo.errors import InputError


def check_images(x: Tensor, in_chans: int) -> Tensor:
    """Return x if it is floating point of shape (B, in_chans, H, W); raise InputError otherwise."""
    if not torch.jit.is_scripting():
        if x.dim() != 4 or x.shape[1] != in_chans or not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise InputError(
                f"the model expects floating-point images (batch, {in_chans}, height, width); "
                f"got {kind} {tuple(x.shape)}. Prepare images with hyperzoo.preprocess(name)"
            )
    return x
