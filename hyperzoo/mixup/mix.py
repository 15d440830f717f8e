"""The convex combination of rows, with its own backward."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperzoo.errors import InputError


class Draw(NamedTuple):
    """The random choices for a batch: layer, lambda (), partner of each row (B,), and its inverse permutation (B,)."""

    layer: str
    lam: Tensor
    partner: Tensor
    inverse: Tensor


def mix(rows: Tensor, draw: Draw, again: Callable[[], AbstractContextManager[None]] | None = None) -> Tensor:
    """lambda h_i + (1 - lambda) h_p(i); exactly h_i for lambda = 1 or p(i) = i, exactly h_p(i) for lambda = 0.

    Shapes:
        rows: (B, ...).   return: the same shape, dtype and memory format.
    Args:
        again: makes the context in which the backward pass unpacks its saved tensors.
    Raises:
        InputError: a number of rows other than that of the draw.
    """
    if len(rows) != len(draw.partner):
        raise InputError(f"got {len(rows)} rows for a draw of {len(draw.partner)}: pass the whole batch to the model")
    mixed: Tensor = _Mix.apply(rows, draw.lam, draw.partner, draw.inverse, again)
    return mixed


class _Mix(torch.autograd.Function):
    """The formula of `mix`. Its transpose is the same with p inverted, so the gradient needs no scatter-add."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, lam: Tensor, partner: Tensor, inverse: Tensor, again: Callable[[], Any] | None) -> Tensor:
        return _combined(rows, lam, partner)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, lam, _, inverse, ctx.again = inputs
        ctx.save_for_backward(lam, inverse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.again is None:
            lam, inverse = ctx.saved_tensors
        else:
            with ctx.again():  # a checkpointed segment is recomputed here
                lam, inverse = ctx.saved_tensors
        return _combined(grads[0], lam, inverse), None, None, None, None


def _combined(rows: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    return rows[partner].lerp_(rows, lam.to(rows.dtype))  # in place, so one new tensor instead of two
