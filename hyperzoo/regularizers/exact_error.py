"""The projected error over all directions, in closed form: a function of the length of the vector alone.

With b = d / 2, K a Poisson number of mean |h|^2 / 2, and g(z) = Gamma(z + 1/2) / Gamma(z),

    L(h)  = sqrt(2 / pi)     1F1(-1/2; b; -|h|^2 / 2)      = sqrt(2 / pi)     E[g(b + K)] / g(b)
    dL/dh = sqrt(2 / pi) / d 1F1(1/2; b + 1; -|h|^2 / 2) h = sqrt(2 / pi) / d g(b + 1/2) E[1 / g(b + 1/2 + K)] h

(Kummer's transformation turns the terms of the series into Poisson weights). L also equals E|u| E|h + z| with
z ~ N(0, I) and u a coordinate of a random unit vector: the mean distance of a Gaussian from h. Training sums neither
series: with r = sqrt(|h|^2 + d + 8), L / r and r |dL/dh| / |h| are smooth in t = 1 - 2 (d + 8) / r^2, which runs from
-1 at h = 0 to 1 at infinity, so Chebyshev sums of at most 17 terms in float32 (5 for d = 650) represent them.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hyperzoo.layers.first_order import first_only
from hyperzoo.layers.precision import full_dtype, full_precision, joined, on_cpu, parts
from hyperzoo.regularizers.bundles import bundles

_NODES = 48  # Chebyshev nodes, enough for 1e-13 at d = 1, which needs the most
_JOINED = 2**20  # vectors: a series holds about six numbers for each
_OFFSET = 8  # r^2 = |h|^2 + d + 8; this value gives the shortest sums


class SquaredNorm(torch.autograd.Function):
    """Returns x itself, |h|^2 of each vector h along the given axes, and without gradient the sum of each sample.

    Use the first output downstream: its backward adds the gradient of |h|^2, in one pass over memory and without
    storing a separate gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        measured = [_moments(part, axes) for part in parts(x)]
        squares, total = (joined(found) for found in zip(*measured, strict=True))
        return x.detach(), squares, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.axes = inputs
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    @first_only
    def backward(ctx: Any, onto: Tensor | None, grad: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        if grad is None:
            return onto, None
        (x,) = ctx.saved_tensors
        pull = 2 * grad
        for axis in ctx.axes:
            pull = pull.unsqueeze(axis)
        if onto is None:
            return (x * pull).to(x.dtype), None
        if x.dtype == pull.dtype:
            return torch.addcmul(onto, x, pull), None
        sums = [torch.addcmul(*part).to(x.dtype) for part in zip(parts(onto), parts(x), parts(pull, x), strict=True)]
        return joined(sums), None


class ExactError(torch.autograd.Function):
    """L of vectors of d entries as a function of |h|^2, in any shape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(squares: Tensor, d: int) -> Tensor:
        r = torch.sqrt(squares + (d + _OFFSET))
        return r * _chebyshev(_series(d, r.dtype)[0], _position(r, d))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        squares, ctx.d = inputs
        ctx.save_for_backward(squares)

    @staticmethod
    @first_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (squares,) = ctx.saved_tensors
        r = torch.sqrt(squares + (ctx.d + _OFFSET))
        slope = _chebyshev(_series(ctx.d, r.dtype)[1], _position(r, ctx.d))  # r |dL/dh| / |h|
        return grad / r * slope / 2, None


def exact_errors(kept: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """L for several tensors (squared norms, d); on a GPU one series for several of equal d, up to `_JOINED` vectors."""
    errors: dict[int, Tensor] = {}
    for members in _groups(kept):
        squares, d = [kept[i][0] for i in members], kept[members[0]][1]
        together = ExactError.apply(joined([each.flatten() for each in squares]), d)
        pieces = together.split([each.numel() for each in squares])
        errors |= {i: piece.view(each.shape) for i, piece, each in zip(members, pieces, squares, strict=True)}
    return [errors[i] for i in range(len(kept))]


def _groups(kept: Sequence[tuple[Tensor, int]]) -> list[list[int]]:
    """Numbers of tensors to compute together: each alone on a CPU, where joining them costs time and memory."""
    return bundles(((d, x.dtype, x.device), x.numel(), 0 if on_cpu(x) else _JOINED) for x, d in kept)


def _moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sums of squares along the axes, and sums of each sample, in full precision."""
    samples, wide = tuple(range(1, x.dim())), full_dtype(x)
    if not on_cpu(x):  # without a copy in full precision
        return torch.linalg.vector_norm(x, dim=axes, dtype=wide).square(), x.sum(samples, dtype=wide)
    x = full_precision(x)
    return x.square().sum(axes), x.sum(samples)


def entries(x: Tensor, axes: tuple[int, ...]) -> int:
    """The number d of entries of a vector."""
    d = 1
    for axis in axes:  # math.prod does not compile
        d *= x.shape[axis]
    return d


def _position(r: Tensor, d: int) -> Tensor:
    """t as a function of r, without a square that could overflow."""
    return 1 - (math.sqrt(2 * (d + _OFFSET)) / r).square()


def _chebyshev(coefficients: tuple[float, ...], t: Tensor) -> Tensor:
    """sum_k c_k T_k(t), by Clenshaw's recurrence b_k = 2 t b_(k+1) - b_(k+2) + c_k.

    It runs on s_k b_k with the signs s = 1, 1, -1, -1, ... by k, so that no pass over memory negates b_(k+2).
    """
    b, b_next, twice = torch.zeros_like(t), torch.zeros_like(t), 2 * t
    for k in reversed(range(1, len(coefficients))):
        c = coefficients[k] * (1 - k // 2 % 2 * 2)
        b, b_next = b_next.addcmul_(twice, b, value=1 - k % 2 * 2).add_(c), b
    return b_next.addcmul_(t, b).add_(coefficients[0])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _series(d: int, dtype: torch.dtype) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return series(d, dtype)


@lru_cache(maxsize=512)
def series(d: int, dtype: torch.dtype) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Chebyshev coefficients of L / r and of r |dL/dh| / |h| for d entries, truncated at the precision of the dtype."""
    angles = (torch.arange(_NODES, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / _NODES)
    samples = []
    for t in angles.cos().tolist():
        r = math.sqrt(2 * (d + _OFFSET) / (1 - t))
        value, slope = _value_and_slope(d, (d + _OFFSET) * (1 + t) / (1 - t) / 2)
        samples.append((value / r, slope * r))
    waves = torch.cos(torch.outer(torch.arange(_NODES, dtype=torch.float64, device="cpu"), angles))
    series = (waves @ torch.tensor(samples, dtype=torch.float64, device="cpu")) * (2 / _NODES)
    series[0] /= 2
    kept = (series.abs() > torch.finfo(dtype).eps / 4 * series[0].abs()).cumsum(0).argmax(0) + 1
    value_terms, slope_terms = kept.tolist()
    return tuple(series[:value_terms, 0].tolist()), tuple(series[:slope_terms, 1].tolist())


def _value_and_slope(d: int, mean: float) -> tuple[float, float]:
    """L and |dL/dh| / |h| at |h|^2 / 2 = mean, as Poisson averages within 12 standard deviations."""
    width = 12 * math.sqrt(mean) + 40
    k = torch.arange(max(0, int(mean - width)), int(mean + width), dtype=torch.float64, device="cpu")
    weight = torch.softmax(k * math.log(mean) - torch.lgamma(k + 1), 0)
    b = torch.tensor(d / 2, dtype=torch.float64, device="cpu")
    value = weight @ (_log_half_step(b + k) - _log_half_step(b)).exp()
    slope = weight @ (_log_half_step(b + 0.5) - _log_half_step(b + 0.5 + k)).exp()
    return math.sqrt(2 / math.pi) * float(value), math.sqrt(2 / math.pi) / d * float(slope)


def _log_half_step(z: Tensor) -> Tensor:
    """log(Gamma(z + 1/2) / Gamma(z)); for large z Stirling's series, to 5e-14, because lgamma would cancel."""
    large = z.clamp(min=30)
    stirling = large.log() / 2 - 1 / (8 * large) + 1 / (192 * large**3) - 1 / (640 * large**5)
    return torch.where(z < 30, torch.lgamma(z + 0.5) - torch.lgamma(z), stirling)
