"""The mean energy of all pairs of rows, without memory quadratic in their number.

With c_ij the cosine of rows i and j, n_i = sqrt(|w_i|^2 + eps), and k = dF/dc, the gradient of a sum of F(c_ij) is

    dE/dw_i = sum_j k_ij w_j / (n_i n_j) - (sum_j k_ij c_ij) w_i / n_i^2

which is again a matrix product. So both passes cost as much as the products, unit rows are not stored, and no N x N
matrix outlives its block.
"""

import math
from typing import Any

import torch
from torch import Tensor

from hyperzoo.layers.first_order import first_only
from hyperzoo.layers.precision import inverse_root, on_cpu

BLOCK = 512  # rows: a block of float32 cosines is 1 MB, which fits the cache of a core
ENTRIES_ON_GPU = 2**22  # cosines of all layers in a block, 16 MB in float32
MARGIN = 1e-6  # cosines closer to a collision are clamped to this distance and have no gradient


def repulsion(c: Tensor, power: int, angular: bool, authors_code: bool) -> tuple[Tensor, Tensor]:
    """f_s of the distance of two directions and its derivative, as functions of their cosine."""
    if angular:
        angle = c.arccos()
        steep = ((1 - c) * (1 + c)).clamp(min=MARGIN * (2 - MARGIN)).rsqrt()  # - d angle / dc, finite at opposite rows
        if authors_code:
            angle, steep = angle / math.pi + 1e-4, steep / math.pi
        near = angle.reciprocal()
        if power == 0:
            return near.log(), near * steep
        if power == 1:
            return near, near * near * steep
        return near * near, 2 * near * near * near * steep
    near = (2 - 2 * c).reciprocal()  # distance^-2
    if power == 0:
        return (near.log(), 2 * near) if authors_code else (0.5 * near.log(), near)
    if power == 1:
        root = near.sqrt()
        return root, root * near
    return near, 2 * near * near


def _pair(c: Tensor, power: int, half_space: bool, angular: bool, authors_code: bool) -> tuple[Tensor, Tensor]:
    """F and dF/dc of each pair: f(c), in half space f(c) + f(-c); zero slope within `MARGIN` of a collision."""
    safe = c.clamp(MARGIN - 1 if half_space else -1, 1 - MARGIN)
    if half_space and power == 2 and not angular:  # 1 / (2 - 2c) + 1 / (2 + 2c) = 1 / (1 - c^2), in half the operations
        value = ((1 - safe) * (1 + safe)).reciprocal_()
        slope = (value * value).mul_(safe).mul_(2)
    else:
        value, slope = repulsion(safe, power, angular, authors_code)
        if half_space:
            mirrored, back = repulsion(-safe, power, angular, authors_code)
            value, slope = value.add_(mirrored), slope.sub_(back)
    collided = (c.abs() if half_space else c) > 1 - MARGIN
    return value, slope.masked_fill_(collided, 0)


def _block(w: Tensor) -> int:
    """Rows of a block: on a GPU more, so that there are few blocks."""
    layers = 1 if w.dim() == 2 else len(w)
    return BLOCK if on_cpu(w) else max(BLOCK, math.isqrt(ENTRIES_ON_GPU // layers))


def _inverse_norms(w: Tensor, eps: float) -> Tensor:
    """1 / sqrt(|w_i|^2 + eps); 1 for a zero row without eps, so that its cosines are 0 instead of NaN."""
    squares = torch.linalg.vector_norm(w, dim=-1).square()
    return inverse_root(squares if eps else squares.where(squares > 0, 1), eps)


class PairMean(torch.autograd.Function):
    """Mean of F over the pairs of rows, (L, N, D) -> (L,); 0 for one row.

    The second result, if `wanted`, is the gradient of the sum over pairs, which has no gradient itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        w: Tensor, power: int, half_space: bool, angular: bool, eps: float, authors_code: bool, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        n = w.size(1)
        inverse = _inverse_norms(w, eps)
        total, pull = w.new_zeros(w.size(0)), torch.zeros_like(inverse)
        grad = torch.zeros_like(w) if wanted else None
        size = _block(w)
        blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        for a, i in enumerate(blocks):
            for b in (
                *range(a + 1, len(blocks)),
                a,
            ):  # the diagonal block comes last, because its diagonal needs the complete pull
                j, own = blocks[b], a == b
                scale = inverse[:, i, None] * inverse[:, None, j]
                c = torch.bmm(w[:, i], w[:, j].mT).mul_(scale)
                if own:
                    c.diagonal(dim1=1, dim2=2).zero_()
                value, slope = _pair(c, power, half_space, angular, authors_code)
                if own:  # contains every pair twice
                    value.diagonal(dim1=1, dim2=2).zero_()
                    value *= 0.5
                total += value.sum((1, 2))
                if grad is None:
                    continue
                scale *= slope
                slope *= c
                pull[:, i] += slope.sum(2)
                if own:
                    scale.diagonal(dim1=1, dim2=2).copy_(-pull[:, i] * inverse[:, i].square())
                else:
                    pull[:, j] += slope.sum(1)
                    grad[:, j].baddbmm_(scale.mT, w[:, i])
                grad[:, i].baddbmm_(scale, w[:, j])
        return total / _pairs(n), grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        if output[1] is not None:
            ctx.save_for_backward(inputs[0], output[1])
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    @first_only
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        w, saved = ctx.saved_tensors
        return (grad / _pairs(w.size(1)))[:, None, None] * saved, None, None, None, None, None, None


def _pairs(n: int) -> float:
    return max(n * (n - 1) / 2, 1)


class LabelMean(torch.autograd.Function):
    """Mean of f over the pairs (row of a label, other row), labels counted with multiplicity: (N, D), (M,) -> ().

    The second result is the gradient of the sum over pairs, which has no gradient itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        w: Tensor, labels: Tensor, power: int, angular: bool, eps: float, authors_code: bool
    ) -> tuple[Tensor, Tensor]:
        n = w.size(0)
        inverse = _inverse_norms(w, eps)
        x, inverse_x = w[labels], inverse[labels]
        total, pull_x = w.new_zeros(()), torch.zeros_like(inverse_x)
        grad, grad_x = torch.empty_like(w), torch.zeros_like(x)
        size = _block(w)
        for start in range(0, n, size):
            j = slice(start, min(start + size, n))
            scale = inverse_x[:, None] * inverse[None, j]
            c = torch.mm(x, w[j].mT).mul_(scale)
            itself = labels[:, None] == torch.arange(j.start, j.stop, device=w.device)
            value, slope = _pair(c.masked_fill_(itself, 0), power, False, angular, authors_code)
            total += value.masked_fill_(itself, 0).sum()
            scale *= slope.masked_fill_(itself, 0)
            slope *= c
            pull_x += slope.sum(1)
            grad_x.addmm_(scale, w[j])
            grad[j] = scale.mT @ x - (slope.sum(0) * inverse[j].square())[:, None] * w[j]
        grad_x -= (pull_x * inverse_x.square())[:, None] * x
        return total / max(len(labels) * (n - 1), 1), grad.index_add_(0, labels, grad_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        w, labels = inputs[:2]
        ctx.pairs = max(len(labels) * (len(w) - 1), 1)
        ctx.save_for_backward(w, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @first_only
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors[1]
        return grad / ctx.pairs * saved, None, None, None, None, None
