"""The operators of SphereConv, g(theta), in one table: `OPERATORS`. A new operator is one row of it.

    cosine     g = cos(theta)                = c
    linear     g = 1 - 2 theta / pi          = (2 / pi) arcsin(c)
    sigmoid    g = coth(pi / 4k) tanh((pi / 2 - theta) / 2k) = coth(pi / 4k) tanh(arcsin(c) / 2k)
    learnable  the sigmoid with one trainable k per filter, k = |raw| + 0.05

(arXiv 1711.03189, section 2). g(0) = 1, g(pi / 2) = 0, g(pi) = -1. The layers compute g from the cosine c without an
arccos, so parallel vectors have no infinite gradient; linear and sigmoid clamp c to +-(1 - 1e-6), because arcsin has an
infinite gradient at 1.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers.precision import full_precision

FIRST_RAW_K = 0.7  # a learnable k starts at 0.75

Curve = Callable[[Tensor, float | Tensor], Tensor]


@dataclass(frozen=True)
class Operator:
    """One operator.

    Args:
        name: the value of `operator=` in layers, losses, models and recipes.
        suffix: appended to the name of an architecture with this operator.
        label: legend entry of figures; `{k}` stands for the steepness.
        k: whether the operator ignores k, takes it as an argument, or learns one k per filter (`raw_k`).
        g: (cosine, k) -> response. TorchScript compiles it, so it is a module-level function with annotated arguments.
        continued: (theta, k) -> response for theta >= 0, also beyond pi; the angular losses evaluate it at m theta.
        fused: replaces g for float32 in code compiled by `torch.compile`; None for g itself.
    """

    name: str
    suffix: str
    label: str
    k: Literal["ignored", "given", "learned"]
    g: Curve
    continued: Curve
    fused: Curve | None = None


def check_operator(operator: str, k: float, eps: float) -> None:
    """Raise InputError unless the arguments describe the operator of a sphere layer."""
    if operator not in OPERATORS:
        raise InputError(f"operator must be one of {', '.join(OPERATORS)}; got {operator!r}")
    check_number("k, the steepness of the sigmoid,", k, above=0)
    check_number("eps", eps, low=0)


def angular(cosine: Tensor, operator: str, k: float | Tensor) -> Tensor:
    """g(arccos c) of one operator. A tensor k broadcasts against c and receives a gradient."""
    if not torch.jit.is_scripting():
        row = OPERATORS[operator]
        if row.fused is not None:
            if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and cosine.dtype == torch.float32:
                return row.fused(cosine, k)
        return row.g(cosine, k)
    return _scripted(cosine, operator, k)


def steepness(raw_k: Tensor) -> Tensor:
    """k = |raw| + 0.05, which is never 0; float32, or float64 for a float64 parameter."""
    return full_precision(raw_k).abs() + 0.05


def first_raw_k(operator: str, filters: int, *, like: Tensor) -> nn.Parameter | None:
    """The initial `raw_k`, one per filter, with the device and dtype of `like`; None unless the operator learns k."""
    if OPERATORS[operator].k != "learned":
        return None
    raw = torch.full((filters,), FIRST_RAW_K, device=like.device, dtype=like.dtype)
    return nn.Parameter(raw, requires_grad=like.requires_grad)


def _cosine(cosine: Tensor, k: float | Tensor) -> Tensor:
    return cosine


def _linear(cosine: Tensor, k: float | Tensor) -> Tensor:
    largest = 1 - 1e-6
    return torch.asin(cosine.clamp(-largest, largest)) * (2 / math.pi)


def _sigmoid(cosine: Tensor, k: float | Tensor) -> Tensor:
    largest = 1 - 1e-6
    angle = torch.asin(cosine.clamp(-largest, largest))
    if isinstance(k, Tensor):
        return torch.tanh(angle * (0.5 / k)) * (1 / torch.tanh(math.pi / 4 / k))
    return torch.tanh(angle * (0.5 / k)) * (1 / math.tanh(math.pi / (4 * k)))


def _cosine_continued(theta: Tensor, k: float | Tensor) -> Tensor:
    q = torch.floor(theta / math.pi)
    return torch.cos(theta - q * math.pi) - 2 * q


def _linear_continued(theta: Tensor, k: float | Tensor) -> Tensor:
    return 1 - theta * (2 / math.pi)


def _sigmoid_continued(theta: Tensor, k: float | Tensor) -> Tensor:
    end = torch.tanh(math.pi / (4 * k)) if isinstance(k, Tensor) else math.tanh(math.pi / (4 * k))
    return torch.tanh((math.pi / 2 - theta) / (2 * k)) / end


def _linear_fused(cosine: Tensor, k: float | Tensor) -> Tensor:
    response: Tensor = FusedLinear.apply(cosine)
    return response


def _sigmoid_fused(cosine: Tensor, k: float | Tensor) -> Tensor:
    response: Tensor = (FusedLearnable if isinstance(k, Tensor) else FusedSigmoid).apply(cosine, k)
    return response


class FusedLinear(torch.autograd.Function):
    """The linear operator in arithmetic that a compiler fuses into one loop, with a hand-written derivative.

    Slower in eager mode, where each operation is a pass over memory. The error is at most 2.4e-7 times the sum of
    coth(pi / 4k), or 1, and the steepest slope of g; this holds for `FusedSigmoid` too.
    """

    @staticmethod
    def forward(ctx: Any, cosine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine)
        return torch.copysign(_arcsin(cosine.abs().clamp(max=_LARGEST)) * (2 / math.pi), cosine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (cosine,) = ctx.saved_tensors
        size = cosine.abs()
        slope = torch.rsqrt((1 - size) * (1 + size)) * (2 / math.pi)
        return torch.where(size > _LARGEST, 0, grad * slope)


class FusedSigmoid(torch.autograd.Function):
    """The sigmoid with a fixed k in the arithmetic of `FusedLinear`. `exp` is faster than `tanh` and `expm1`."""

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, k: float) -> Tensor:
        ctx.save_for_backward(cosine)
        ctx.k = k
        angle = _arcsin(cosine.abs().clamp(max=_LARGEST))
        return torch.copysign(_tanh(angle * (0.5 / k)) * (1 / math.tanh(math.pi / (4 * k))), cosine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (cosine,) = ctx.saved_tensors
        size = cosine.abs()
        slope = torch.rsqrt((1 - size) * (1 + size))
        bell = _bell(_arcsin(size.clamp(max=_LARGEST)) * (-1 / ctx.k))
        slope = slope * bell * (0.5 / (ctx.k * math.tanh(math.pi / (4 * ctx.k))))
        return torch.where(size > _LARGEST, 0, grad * slope), None


class FusedLearnable(torch.autograd.Function):
    """The sigmoid with a tensor k in the arithmetic of `FusedLinear`.

    With u = pi / 4k, v = arcsin(c) / 2k:  dg / dk = (u / sinh(u)^2 tanh(v) - coth(u) v / cosh(v)^2) / k.
    """

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, k: Tensor) -> Tensor:
        angle = _arcsin(cosine.abs().clamp(max=_LARGEST))
        out = torch.copysign(_tanh(angle * (0.5 / k)) * (1 / torch.tanh(math.pi / 4 / k)), cosine)
        ctx.save_for_backward(cosine, k, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        cosine, k, out = ctx.saved_tensors
        size = cosine.abs()
        angle = _arcsin(size.clamp(max=_LARGEST))
        bell = _bell(angle * (-1 / k))
        u = math.pi / 4 / k
        top = 1 / torch.tanh(u)
        steepest = top * 0.5 / k
        slope = torch.rsqrt((1 - size) * (1 + size)) * bell * steepest
        # Factors that depend on k alone stay outside the sums.
        rising = _sum_per_filter(grad * out, k) / top
        falling = _sum_per_filter(grad * torch.copysign(angle * bell, cosine), k)
        grad_k = (u / torch.sinh(u).square() * rising - steepest * falling) / k
        return torch.where(size > _LARGEST, 0, grad * slope), grad_k


def _sum_per_filter(x: Tensor, k: Tensor) -> Tensor:
    """Sum of x in the shape of k, per image first, so that the compiled loop stays within the cache."""
    if k.dim() == 3:
        x = x.sum((-2, -1), keepdim=True)
    return x.sum_to_size(k.shape)


_LARGEST = 1 - 1e-6
# (arcsin(s) - s) / s^3 in powers of s^2, highest first: minimizes the relative error of arcsin on [0, 1/2], to 5e-9
_ARCSIN = (0.0422191917896, 0.0241472553462, 0.0454771630466, 0.0749524161220, 0.1666675359010)


def _arcsin(x: Tensor) -> Tensor:
    """arcsin on [0, 1]: an odd polynomial up to 1/2, above it arcsin(x) = pi / 2 - 2 arcsin(sqrt((1 - x) / 2))."""
    outer = x > 0.5
    square = torch.where(outer, 0.5 - 0.5 * x, x * x)
    s = torch.where(outer, torch.sqrt(square), x)
    series = torch.full_like(x, _ARCSIN[0])
    for coefficient in _ARCSIN[1:]:
        series = series * square + coefficient
    angle = s + s * square * series
    return torch.where(outer, math.pi / 2 - 2 * angle, angle)


def _tanh(x: Tensor) -> Tensor:
    """tanh for x >= 0; a series keeps all digits near 0, because the next sphere layer may divide by a small norm."""
    square = x * x
    series = ((62 / 2835 * square - 17 / 315) * square + 2 / 15) * square - 1 / 3
    return torch.where(x < 0.25, x + x * square * series, 1 - 2 / (1 + torch.exp(2 * x)))


def _bell(x: Tensor) -> Tensor:
    """1 / cosh(x / 2)^2 for x <= 0, with full relative precision for small values."""
    e = torch.exp(x)
    share = 1 / (1 + e)
    return 4 * (e * share) * share


_ROWS = (
    Operator("cosine", "", "cosine", "ignored", _cosine, _cosine_continued),
    Operator("linear", "_linear", "linear", "ignored", _linear, _linear_continued, _linear_fused),
    Operator("sigmoid", "_sigmoid", "sigmoid, k = {k:g}", "given", _sigmoid, _sigmoid_continued, _sigmoid_fused),
    Operator("learnable", "_learnable", "learned sigmoid", "learned", _sigmoid, _sigmoid_continued, _sigmoid_fused),
)
OPERATORS = {row.name: row for row in _ROWS}


def _unknown(cosine: Tensor, operator: str, k: float | Tensor) -> Tensor:
    raise ValueError(operator)


def _branch(row: Operator, otherwise: Callable[[Tensor, str, float | Tensor], Tensor]) -> Any:
    g = row.g

    def branch(cosine: Tensor, operator: str, k: float | Tensor, name: str = row.name) -> Tensor:
        if operator == name:
            return g(cosine, k)
        return otherwise(cosine, operator, k)

    return branch


def _chain(rows: Iterable[Operator]) -> Any:
    """The table as nested branches for TorchScript, which cannot read a dictionary of functions.

    It takes functions from a closure, but constants only as default arguments.
    """
    chain: Any = _unknown
    for row in rows:
        chain = _branch(row, chain)
    return chain


_scripted = _chain(_ROWS)
