"""Hand-written backward passes that hold the first derivative only."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

from hyperzoo.errors import InputError

Result = TypeVar("Result")


def first_only(backward: Callable[..., Result]) -> Callable[..., Result]:
    """Refuse second derivatives (`create_graph`) in the backward pass of an `autograd.Function`; a decorator.

    `torch.autograd.function.once_differentiable` refuses them only where the gradient that comes in needs one itself;
    a constant one passes, and what depends on the input is then missing from the second derivative without a word.
    Gradients are on in a backward pass only where it makes a graph. Compiled code refuses by itself.
    """

    @wraps(backward)
    def refusing(ctx: Any, *grads: Any) -> Result:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise InputError(
                "MHE, PER and decorrelated batch norm can be differentiated once, not twice: do without create_graph, "
                "or leave them out of what is differentiated again"
            )
        return backward(ctx, *grads)

    return refusing
