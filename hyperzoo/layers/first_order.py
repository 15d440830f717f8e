"""Guard for hand-written backward passes that have first derivatives only."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.layers._torch import is_in_functorch


def first_only(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorate the backward pass of an `autograd.Function` so that it refuses second derivatives (`create_graph`).

    `torch.autograd.function.once_differentiable` refuses them only if the incoming gradient requires a gradient; for a
    constant one it silently drops the terms that depend on the input. Gradients are enabled in a backward pass only
    under `create_graph`, and always in `torch.func`, where the gradient refuses to be differentiated instead. Compiled
    code refuses by itself.

    The function must save its differentiable inputs, and return a tuple.
    """

    @wraps(backward)
    def refusing(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if not is_in_functorch():
                raise _refusal()
            sources = [*ctx.saved_tensors, *(grad for grad in grads if grad is not None)]
            return tuple(grad if grad is None else _Refusing.apply(grad, *sources) for grad in backward(ctx, *grads))
        return backward(ctx, *grads)

    return refusing


class _Refusing(torch.autograd.Function):
    """A copy of the first argument, which may be differentiated with respect to none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise _refusal()


def _refusal() -> InputError:
    return InputError(
        "MHE, PER and decorrelated batch norm have no second derivatives: omit create_graph, "
        "or exclude them from what is differentiated twice"
    )
