"""Sums over the channels and patches of an image: the squared norms that a sphere layer divides by.

The lean forms are for eager mode: fewer passes over memory on a CPU, fewer operations on a GPU.
"""

from collections.abc import Callable, Sequence
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
    return _by_group(x, groups).sum(-3, keepdim=groups == 1, dtype=full_dtype(x))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(..., C, H, W) -> (..., groups, C / groups, H, W); one group stays as it is."""
    if groups == 1:
        return x
    return x.reshape(list(x.shape[:-3]) + [groups, x.size(-3) // groups] + list(x.shape[-2:]))  # noqa: RUF005  TorchScript


def energy(x: Tensor, groups: int) -> Tensor:
    """Sum of squares over the channels of each group in full precision, (B, groups, H, W)."""
    x = full_precision(x)
    return channel_sums(x * x, groups)


def lean_energy(x: Tensor, groups: int) -> Tensor:
    """As `energy`, without a copy in full precision: on a CPU the squares of bfloat16 are rounded."""
    if not on_cpu(x):
        length = torch.linalg.vector_norm(_by_group(x, groups), dim=-3, keepdim=groups == 1, dtype=full_dtype(x))
        return length.square()
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
    """As `box_sum`, but a single operation where `_pools`, and none for patches of one pixel."""
    if _is_pointwise(weight, geometry):
        return x
    if _pools(x, weight, geometry):
        return F.avg_pool2d(x, weight.shape[-2:], geometry.stride, geometry.padding, divisor_override=1)
    return box_sum(x, weight, geometry)


def box_transpose(grad: Tensor, weight: Tensor, geometry: Geometry, like: Tensor) -> Tensor:
    """The gradient that `lean_box_sum` passes on, (B, groups, H, W) with the sides of `like`."""
    if _is_pointwise(weight, geometry):
        return grad
    pixels = like.new_zeros(len(like), geometry.groups, *like.shape[-2:], dtype=grad.dtype)
    if _pools(like, weight, geometry):
        kernel, stride, padding = weight.shape[-2:], geometry.stride, geometry.padding
        return torch.ops.aten.avg_pool2d_backward(grad, pixels, kernel, stride, padding, False, True, 1)
    with torch.enable_grad():
        boxes = box_sum(pixels.requires_grad_(), weight, geometry)
    return torch.autograd.grad(boxes, pixels, grad)[0]


def fits_pooling(kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether torch's pooling can sum over these patches: no dilation, padded by half a patch at most."""
    little = all(2 * zeros <= side for zeros, side in zip(padding, kernel, strict=True))
    return little and tuple(dilation) == (1, 1)


def _pools(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether pooling is also the faster form: on a CPU it takes up to five times as long as `box_sum`."""
    return not on_cpu(x) and fits_pooling(weight.shape[-2:], geometry.padding, geometry.dilation)


def _is_pointwise(weight: Tensor, geometry: Geometry) -> bool:
    return tuple(weight.shape[-2:]) == geometry.stride == (1, 1) and geometry.padding == (0, 0)


def inverse_norm(squares: Tensor, weight: Tensor, geometry: Geometry, eps: float) -> Tensor:
    """1 / sqrt(|p|^2 + eps) of every patch from the squares of its pixels, (B, groups, H', W')."""
    return inverse_root(box_sum(squares, weight, geometry), eps)
