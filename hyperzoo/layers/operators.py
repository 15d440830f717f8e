"""The operators of SphereConv, g(arccos c), as functions of the cosine c.

    cosine     g = cos(theta)                = c
    linear     g = 1 - 2 theta / pi          = (2 / pi) arcsin(c)
    sigmoid    g = coth(pi / 4k) tanh((pi / 2 - theta) / 2k) = coth(pi / 4k) tanh(arcsin(c) / 2k)
    learnable  the sigmoid with a k of its own for each filter, k = |raw| + 0.05, raw a parameter

(arXiv 1711.03189, section 2). g(0) = 1, g(pi / 2) = 0, g(pi) = -1. No arccos is ever taken, so parallel vectors have no
infinite gradient; linear and sigmoid clamp the cosine to 1 - 1e-6 in size, where arcsin would have one.
"""

import math
from typing import Any

import torch
from torch import Tensor

OPERATORS = ("cosine", "linear", "sigmoid", "learnable")
FIRST_RAW_K = 0.7  # so a learnable k starts at 0.75


def angular(cosine: Tensor, operator: str, k: float) -> Tensor:
    """g(arccos c), by the functions of torch; in compiled code, float32 takes `FastAngular` instead."""
    if operator == "cosine":
        return cosine
    if not torch.jit.is_scripting():
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and cosine.dtype == torch.float32:
            return FastAngular.apply(cosine, operator, k)
    largest = 1 - 1e-6
    angle = torch.asin(cosine.clamp(-largest, largest))
    if operator == "linear":
        return angle * (2 / math.pi)
    return torch.tanh(angle * (0.5 / k)) * (1 / math.tanh(math.pi / (4 * k)))


def steepness(raw_k: Tensor) -> Tensor:
    """The k that a raw parameter stands for, |raw| + 0.05: never 0; float32, or float64 for a float64 parameter."""
    wide = raw_k if raw_k.dtype == torch.float64 else raw_k.float()
    return wide.abs() + 0.05


def learnable_angular(cosine: Tensor, k: Tensor) -> Tensor:
    """The sigmoid of `angular` with a tensor of k that broadcasts to c; it gets a gradient like c."""
    if not torch.jit.is_scripting():
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and cosine.dtype == torch.float32:
            return FastLearnable.apply(cosine, k)
    largest = 1 - 1e-6
    angle = torch.asin(cosine.clamp(-largest, largest))
    return torch.tanh(angle * (0.5 / k)) * (1 / torch.tanh(math.pi / 4 / k))


class FastAngular(torch.autograd.Function):
    """Linear and sigmoid in arithmetic that a compiler fuses into one loop, with the derivative written by hand.

    Worth it only when fused: in eager mode each operation would be a pass over memory. The error is at most 2.4e-7
    times the sum of coth(pi / 4k) and the steepest slope of g. `exp` is faster than `tanh` and `expm1`.
    """

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, operator: str, k: float) -> Tensor:
        ctx.save_for_backward(cosine)
        ctx.operator, ctx.k = operator, k
        angle = _arcsin(cosine.abs().clamp(max=_LARGEST))
        if operator == "linear":
            return torch.copysign(angle * (2 / math.pi), cosine)
        return torch.copysign(_tanh(angle * (0.5 / k)) * (1 / math.tanh(math.pi / (4 * k))), cosine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (cosine,) = ctx.saved_tensors
        size = cosine.abs()
        slope = torch.rsqrt((1 - size) * (1 + size))
        if ctx.operator == "linear":
            slope = slope * (2 / math.pi)
        else:
            bell = _bell(_arcsin(size.clamp(max=_LARGEST)) * (-1 / ctx.k))
            slope = slope * bell * (0.5 / (ctx.k * math.tanh(math.pi / (4 * ctx.k))))
        return torch.where(size > _LARGEST, 0, grad * slope), None, None


class FastLearnable(torch.autograd.Function):
    """`learnable_angular` in the arithmetic of `FastAngular`.

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
        # what depends on k alone stays outside the sums
        rising = _sum_per_filter(grad * out, k) / top
        falling = _sum_per_filter(grad * torch.copysign(angle * bell, cosine), k)
        grad_k = (u / torch.sinh(u).square() * rising - steepest * falling) / k
        return torch.where(size > _LARGEST, 0, grad * slope), grad_k


def _sum_per_filter(x: Tensor, k: Tensor) -> Tensor:
    """Sum of x in the shape of k, image by image first, so that the compiled loop stays within the cache."""
    if k.dim() == 3:
        x = x.sum((-2, -1), keepdim=True)
    return x.sum_to_size(k.shape)


_LARGEST = 1 - 1e-6
# (arcsin(s) - s) / s^3 in powers of s^2, highest first: the relative error of arcsin on [0, 1/2], 5e-9, is the smallest
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
    """tanh for x >= 0. All digits near 0, by the series: the next sphere layer may divide by a norm of small values."""
    square = x * x
    series = ((62 / 2835 * square - 17 / 315) * square + 2 / 15) * square - 1 / 3
    return torch.where(x < 0.25, x + x * square * series, 1 - 2 / (1 + torch.exp(2 * x)))


def _bell(x: Tensor) -> Tensor:
    """1 / cosh(x / 2)^2 for x <= 0, with all its digits however small."""
    e = torch.exp(x)
    share = 1 / (1 + e)
    return 4 * (e * share) * share
