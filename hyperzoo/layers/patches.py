"""Sums over the channels and patches of an image: the squared norms that a sphere layer divides by.

Two forms of each: one for compilers, tracers and `torch.func`, and a lean one for eager training.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.layers.precision import full_dtype, full_precision, inverse_root, joined, on_cpu, parts


class Geometry(NamedTuple):
    """Where a convolution applies its filters: the arguments of `torch.nn.functional.conv2d`."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def channel_sums(x: Tensor, groups: int) -> Tensor:
    """Sums over the channels of each group in full precision, (B, groups, H, W).

    For bfloat16 on a CPU by a convolution with ones, which accumulates in float32 and rounds once: this takes a quarter
    of the time of a sum that converts every element first.
    """
    if x.dtype == torch.bfloat16 and on_cpu(x):
        return F.conv2d(x, x.new_ones(groups, x.size(-3) // groups, 1, 1), groups=groups).float()
    x = x if groups == 1 else x.unflatten(-3, [groups, x.size(-3) // groups])
    return x.sum(-3, keepdim=groups == 1, dtype=full_dtype(x))


def energy(x: Tensor, groups: int) -> Tensor:
    """Sum of squares over the channels of each group in full precision, (B, groups, H, W)."""
    x = full_precision(x)
    return channel_sums(x * x, groups)


def lean_energy(x: Tensor, groups: int) -> Tensor:
    """As `energy`, without a copy in full precision: on a CPU the squares of bfloat16 are rounded."""
    if not on_cpu(x):
        x = x if groups == 1 else x.unflatten(-3, [groups, x.size(-3) // groups])
        return torch.linalg.vector_norm(x, dim=-3, keepdim=groups == 1, dtype=full_dtype(x)).square()
    return channel_sums(x * x, groups) if x.dtype == torch.bfloat16 else energy(x, groups)


def by_parts(sums: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Sums over channels, part by part, so that the products stay in the cache: up to four times faster for float32.

    In bfloat16 all at once, because `channel_sums` is then a convolution, which takes long to start.
    """
    if tensors[0].dtype == torch.bfloat16 or not on_cpu(tensors[0]):
        return sums(*tensors)
    return joined([sums(*part) for part in zip(*map(parts, tensors), strict=True)])


def box_sum(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Sums over the patches of a convolution, (B, groups, H', W'): rows, then columns."""
    kernel, stride, padding, dilation = weight.shape[-2:], geometry.stride, geometry.padding, geometry.dilation
    x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    height = (x.size(-2) - dilation[0] * (kernel[0] - 1) - 1) // stride[0] * stride[0] + 1
    rows = x[..., : height : stride[0], :]
    for i in range(1, kernel[0]):
        rows = rows + x[..., i * dilation[0] : i * dilation[0] + height : stride[0], :]
    width = (x.size(-1) - dilation[1] * (kernel[1] - 1) - 1) // stride[1] * stride[1] + 1
    box = rows[..., : width : stride[1]]
    for j in range(1, kernel[1]):
        box = box + rows[..., j * dilation[1] : j * dilation[1] + width : stride[1]]
    return box


def lean_box_sum(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """As `box_sum`, but where `pools` allows a pooling, a single operation."""
    if not pools(x, weight, geometry):
        return box_sum(x, weight, geometry)
    return F.avg_pool2d(x, weight.shape[-2:], geometry.stride, geometry.padding, divisor_override=1)


def box_transpose(grad: Tensor, weight: Tensor, geometry: Geometry, like: Tensor) -> Tensor:
    """The gradient that `lean_box_sum` passes on, (B, groups, H, W) with the sides of `like`."""
    pixels = like.new_zeros(len(like), geometry.groups, *like.shape[-2:], dtype=grad.dtype)
    if pools(like, weight, geometry):
        kernel, stride, padding = weight.shape[-2:], geometry.stride, geometry.padding
        return torch.ops.aten.avg_pool2d_backward(grad, pixels, kernel, stride, padding, False, True, 1)
    with torch.enable_grad():
        boxes = box_sum(pixels.requires_grad_(), weight, geometry)
    return torch.autograd.grad(boxes, pixels, grad)[0]


def pools(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the pooling of torch gives the box sums: without dilation, padded by half a patch at most, on a GPU.

    On a CPU it takes up to five times as long as `box_sum`.
    """
    little = all(2 * zeros <= side for zeros, side in zip(geometry.padding, weight.shape[-2:], strict=True))
    return not on_cpu(x) and geometry.dilation == (1, 1) and little


def inverse_norm(squares: Tensor, weight: Tensor, geometry: Geometry, eps: float) -> Tensor:
    """1 / sqrt(|p|^2 + eps) of every patch from the squares of its pixels, (B, groups, H', W')."""
    return inverse_root(box_sum(squares, weight, geometry), eps)
