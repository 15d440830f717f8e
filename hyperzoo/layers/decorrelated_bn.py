"""Decorrelated batch norm: whitens the channels of a batch (unit variance, no correlations).

Decorrelated Batch Normalization, Huang et al., CVPR 2018 (arXiv 1804.08450). Over the m positions of a batch,

    S = (1 / m) sum_i (x_i - mu)(x_i - mu)^T + eps I,   y_i = S^(-1/2) (x_i - mu),   out = gamma y + beta

with the symmetric root (ZCA), which changes the channels least.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers.first_order import first_only
from hyperzoo.layers.precision import full_precision


class InverseRoot(torch.autograd.Function):
    """S^(-1/2) of symmetric positive definite matrices S = U diag(s^2) U^T (..., n, n); and s and U, no gradient.

    `least`: the smallest possible eigenvalue; rounding may make the computed ones smaller, and even negative.

    The derivative is U (K * (U^T dS U)) U^T, K_ij = -1 / (s_i s_j (s_i + s_j)). It is finite
    for equal eigenvalues, unlike the derivative of the eigenvectors.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        root = values.clamp_min(least).sqrt()
        return (vectors / root.unsqueeze(-2)) @ vectors.mT, root, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    @first_only
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None]:
        _, root, vectors = ctx.saved_tensors
        rows, columns = root.unsqueeze(-1), root.unsqueeze(-2)
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        return vectors @ (inner / (-rows * columns * (rows + columns))) @ vectors.mT, None


class DecorrelatedBatchNorm(nn.Module):
    """Batch norm that whitens groups of channels (arXiv 1804.08450).

    Evaluation uses running averages of the mean and of S^(-1/2).

    Shapes:
        x: (B, C) or (B, C, ...).   return: the same shape and dtype; computed in float32 under autocast.
    Args:
        num_features: channels C.
        group_size: channels whitened together, a divisor of C; 1 gives plain batch norm.
        eps: added to the variances, above 0.
        momentum: weight of the current batch in the running averages, 0 to 1.
    Raises:
        InputError: a group size that does not divide C, eps not above 0, momentum out of its range; an input of another
            rank or channel count, or a training batch with fewer than two positions.
    Differs:
        Has first derivatives only and refuses second ones.
    Example:
        >>> x = torch.randn(500, 4) @ torch.randn(4, 4)
        >>> y = DecorrelatedBatchNorm(4, group_size=4, eps=1e-9)(x)
        >>> torch.allclose(y.T @ y / 500, torch.eye(4), atol=1e-2)
        True
    """

    running_mean: Tensor
    running_root: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        group_size: int = 16,
        eps: float = 1e-3,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if group_size < 1 or num_features < 1 or num_features % group_size:
            raise InputError(f"group_size must divide the {num_features} channels; got {group_size!r}")
        check_number("eps", eps, above=0)
        check_number("momentum", momentum, low=0, high=1)
        self.num_features = num_features
        self.group_size = group_size
        self.eps = eps
        self.momentum = momentum
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **dd))
        self.bias = nn.Parameter(torch.zeros(num_features, **dd))
        groups = num_features // group_size
        self.register_buffer("running_mean", torch.zeros(groups, group_size, 1, **dd))
        self.register_buffer("running_root", torch.eye(group_size, **dd).repeat(groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.size(1) != self.num_features:
            raise InputError(f"expected (batch, {self.num_features}, ...); got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            rows = full_precision(x).movedim(1, 0)  # (C, B, ...)
            groups, positions = self.num_features // self.group_size, x.numel() // self.num_features
            white = self._whitened(rows.reshape(groups, self.group_size, positions)).view(rows.shape).movedim(0, 1)
            shape = (1, -1, *(1 for _ in x.shape[2:]))
            out = (white * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)
        channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def _whitened(self, grouped: Tensor) -> Tensor:
        if not self.training:
            return self.running_root.to(grouped.dtype) @ (grouped - self.running_mean.to(grouped.dtype))
        positions = grouped.size(-1)
        if positions < 2:
            raise InputError(f"decorrelated batch norm needs at least 2 positions in training; got {positions}")
        mean = grouped.mean(-1, keepdim=True)
        centered = grouped - mean
        eye = torch.eye(self.group_size, device=grouped.device, dtype=grouped.dtype)
        root, *_ = InverseRoot.apply(centered @ centered.mT / positions + self.eps * eye, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_root.lerp_(root.to(self.running_root.dtype), self.momentum)
        return root @ centered

    def extra_repr(self) -> str:
        return f"{self.num_features}, group_size={self.group_size}, eps={self.eps:g}, momentum={self.momentum:g}"
