"""Rows of a batch are mixed: what was drawn, and the convex combination with its gradient."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperzoo.errors import InputError


class Draw(NamedTuple):
    """What was drawn for a batch: a layer, lambda (), the partner of every row (B,), and the inverse of that (B,)."""

    layer: str
    lam: Tensor
    partner: Tensor
    inverse: Tensor


def mix(rows: Tensor, draw: Draw, again: Callable[[], AbstractContextManager[None]] | None = None) -> Tensor:
    """lambda h_i + (1 - lambda) h_p(i): exactly h_i for lambda = 1 and for p(i) = i, exactly h_p(i) for lambda = 0.

    Shapes:
        rows: (B, ...), kept in dtype and memory format.   return: the same.
    Args:
        again: makes a `with` around the moment in the backward pass in which saved tensors are asked for.
    Raises:
        InputError: another number of rows than was drawn.
    """
    if len(rows) != len(draw.partner):
        raise InputError(f"{len(draw.partner)} rows were drawn, and {len(rows)} came: give the model the whole batch")
    mixed: Tensor = _Mix.apply(rows, draw.lam, draw.partner, draw.inverse, again)
    return mixed


class _Mix(torch.autograd.Function):
    """The formula; its transpose is the same with p inverted, so that the gradient needs no scattered sums."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, lam: Tensor, partner: Tensor, inverse: Tensor, again: Callable[[], Any] | None
    ) -> Tensor:
        ctx.save_for_backward(lam, inverse)
        ctx.again = again
        return _combined(rows, lam, partner)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.again is None:
            lam, inverse = ctx.saved_tensors
        else:
            with ctx.again():  # what is saved in a checkpointed segment comes from running it again, here
                lam, inverse = ctx.saved_tensors
        return _combined(grads[0], lam, inverse), None, None, None, None


def _combined(rows: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
    return rows[partner].lerp_(rows, lam.to(rows.dtype))  # in place: one new tensor, not two
