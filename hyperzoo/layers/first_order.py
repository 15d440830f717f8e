"""Guard for hand-written backward passes that have first derivatives only."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

from hyperzoo.errors import InputError

Result = TypeVar("Result")


def first_only(backward: Callable[..., Result]) -> Callable[..., Result]:
    """Decorate the backward pass of an `autograd.Function` so that it refuses second derivatives (`create_graph`).

    `torch.autograd.function.once_differentiable` refuses them only if the incoming gradient requires a gradient; for a
    constant one it silently drops the terms that depend on the input. Gradients are enabled in a backward pass only
    under `create_graph`. Compiled code refuses by itself.
    """

    @wraps(backward)
    def refusing(ctx: Any, *grads: Any) -> Result:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise InputError(
                "MHE, PER and decorrelated batch norm have no second derivatives: omit create_graph, "
                "or exclude them from what is differentiated twice"
            )
        return backward(ctx, *grads)

    return refusing
