"""SphereConv: convolution and linear layers that see only the angle between input and filter.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 2. With p the flattened input patch
(zero padding included) and w a filter,

    c = <p, w> / (sqrt(|p|^2 + eps) sqrt(|w|^2 + eps)),    out = g(arccos c)

    cosine   g = cos(theta)                = c
    linear   g = 1 - 2 theta / pi          = (2 / pi) arcsin(c)
    sigmoid  g = coth(pi / 4k) tanh((pi / 2 - theta) / 2k) = coth(pi / 4k) tanh(arcsin(c) / 2k)

g(0) = 1, g(pi / 2) = 0, g(pi) = -1. No arccos is ever taken, so parallel vectors have no infinite gradient.
"""

import math

import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError

OPERATORS = ("cosine", "linear", "sigmoid")
_MAX_COSINE = 1 - 1e-6  # arcsin has an infinite slope at 1


def _full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32, in which eps = 1e-4 and the angles still mean something."""
    return x if x.dtype == torch.float64 else x.float()


def _unit_rows(weight: Tensor, eps: float) -> Tensor:
    """Filters as rows of length |w| / sqrt(|w|^2 + eps), in the dtype of the weight."""
    w = _full_precision(weight)
    dims = list(range(1, w.dim()))
    return (w * torch.rsqrt((w * w).sum(dims, keepdim=True) + eps)).to(weight.dtype)


def _inverse_patch_norm(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int, eps: float
) -> Tensor:
    """1 / sqrt(|p|^2 + eps) of every patch, (B, groups, H', W'): a box sum over one channel, rows then columns."""
    x = _full_precision(x)
    energy = x * x
    if groups == 1:
        energy = energy.sum(-3, keepdim=True)
    else:
        energy = energy.unflatten(-3, [groups, energy.size(-3) // groups]).sum(-3)
    energy = F.pad(energy, [padding[1], padding[1], padding[0], padding[0]])
    height = (energy.size(-2) - dilation[0] * (kernel[0] - 1) - 1) // stride[0] * stride[0] + 1
    rows = energy[..., :height : stride[0], :]
    for i in range(1, kernel[0]):
        rows = rows + energy[..., i * dilation[0] : i * dilation[0] + height : stride[0], :]
    width = (energy.size(-1) - dilation[1] * (kernel[1] - 1) - 1) // stride[1] * stride[1] + 1
    box = rows[..., :width : stride[1]]
    for j in range(1, kernel[1]):
        box = box + rows[..., j * dilation[1] : j * dilation[1] + width : stride[1]]
    return torch.rsqrt(box + eps)


def _angular(cosine: Tensor, operator: str, k: float) -> Tensor:
    """g(arccos c) from the cosine c."""
    if operator == "cosine":
        return cosine
    angle = torch.asin(cosine.clamp(-_MAX_COSINE, _MAX_COSINE))
    if operator == "linear":
        return angle * (2 / math.pi)
    return torch.tanh(angle * (0.5 / k)) * (1 / math.tanh(math.pi / (4 * k)))


def sphere_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    operator: str,
    k: float,
    eps: float,
) -> Tensor:
    """The function behind `SphereConv2d`; a leaf for fx tracing. The result has the dtype the convolution would have."""
    product = F.conv2d(x, _unit_rows(weight, eps), None, stride, padding, dilation, groups)
    inverse = _inverse_patch_norm(x, list(weight.shape[-2:]), stride, padding, dilation, groups, eps)
    if groups > 1:
        inverse = inverse.repeat_interleave(weight.size(0) // groups, -3)
    return _angular(_full_precision(product) * inverse, operator, k).to(product.dtype)


def sphere_linear(x: Tensor, weight: Tensor, operator: str, k: float, eps: float, scale_by_norm: bool) -> Tensor:
    """The function behind `SphereLinear`; a leaf for fx tracing."""
    product = F.linear(x, _unit_rows(weight, eps))
    wide = _full_precision(x)
    squared = (wide * wide).sum(-1, keepdim=True) + eps
    out = _angular(_full_precision(product) * torch.rsqrt(squared), operator, k)
    if scale_by_norm:
        out = out * torch.sqrt(squared)
    return out.to(product.dtype)


torch.fx.wrap("sphere_conv2d")
torch.fx.wrap("sphere_linear")


def _check(operator: str, k: float, eps: float) -> None:
    if operator not in OPERATORS:
        raise InputError(f"operator must be one of {', '.join(OPERATORS)}; got {operator!r}")
    if not (isinstance(k, (int, float)) and 0 < k < math.inf):
        raise InputError(f"k, the steepness of the sigmoid, must be a number above 0; got {k!r}")
    if not (isinstance(eps, (int, float)) and 0 <= eps < math.inf):
        raise InputError(f"eps must be a number of at least 0; got {eps!r}")


class SphereConv2d(nn.Conv2d):
    """Convolution whose output depends only on the angle between filter and patch (arXiv 1711.03189, section 2).

    Out = g(theta) in [-1, 1], theta the angle between the filter and the zero-padded patch; see the module for g.

    Shapes:
        x: (B, C, H, W).   return: (B, O, H', W'), H' and W' as for `torch.nn.Conv2d`; channels-last stays channels-last.
    Args:
        kernel_size, stride, padding, dilation, groups: as for `torch.nn.Conv2d`; zero padding only.
        operator: 'cosine', 'linear' or 'sigmoid'.
        k: steepness of the sigmoid, above 0; the paper uses 0.1, 0.3 and 0.7. Ignored by the other operators.
        eps: added to the squared norms of filter and patch. With 0 an all-zero patch gives NaN.
    Raises:
        InputError: an unknown operator, k not above 0, or a negative eps.
    Differs:
        The patch norm follows the stride (the authors' code takes it at stride 1). Linear and sigmoid clamp the cosine to
        1 - 1e-6 in size, so parallel vectors give 0.9991 for linear. Padding is symmetric, as always in torch.
        Norms and angles are float32 under autocast; the result has the dtype a convolution would have.
    Example:
        >>> layer = SphereConv2d(3, 8, 3, padding=1, operator='linear')
        >>> layer(torch.zeros(2, 3, 32, 32)).abs().max().item()      # an all-zero patch gives exactly 0
        0.0
    """

    operator: str
    k: float
    eps: float

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        operator: str = "cosine",
        k: float = 0.3,
        eps: float = 1e-4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check(operator, k, eps)
        if isinstance(padding, str):
            raise InputError(f"padding must be a number of pixels or a pair of them; got {padding!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False, device=device, dtype=dtype
        )
        self.operator = operator
        self.k = float(k)
        self.eps = float(eps)

    def forward(self, x: Tensor) -> Tensor:
        return sphere_conv2d(
            x, self.weight, self.stride, self.padding, self.dilation, self.groups, self.operator, self.k, self.eps
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr().replace(', bias=False', '')}, {_operator_repr(self.operator, self.k, self.eps)}"


class SphereLinear(nn.Linear):
    """Linear layer whose output depends only on the angle between input and weight row (arXiv 1711.03189, section 2).

    Out_j = g(theta_j) in [-1, 1]; with `scale_by_norm`, sqrt(|x|^2 + eps) g(theta_j), the logits of a W-Softmax classifier
    (section 3 of the paper), which bounded outputs cannot be.

    Shapes:
        x: (..., D).   return: (..., O).
    Args:
        operator, k, eps: as for `SphereConv2d`.
        scale_by_norm: multiply by the same eps-ed norm of x that the cosine was divided by.
    Raises:
        InputError: an unknown operator, k not above 0, or a negative eps.
    Example:
        >>> layer = SphereLinear(2, 1, eps=0)
        >>> _ = layer.weight.data.copy_(torch.tensor([[2.0, 0.0]]))
        >>> layer(torch.tensor([[0.0, 3.0], [5.0, 0.0]])).flatten().tolist()
        [0.0, 1.0]
    """

    operator: str
    k: float
    eps: float
    scale_by_norm: bool

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        operator: str = "cosine",
        k: float = 0.3,
        eps: float = 1e-4,
        scale_by_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check(operator, k, eps)
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)
        self.operator = operator
        self.k = float(k)
        self.eps = float(eps)
        self.scale_by_norm = scale_by_norm

    def forward(self, x: Tensor) -> Tensor:
        return sphere_linear(x, self.weight, self.operator, self.k, self.eps, self.scale_by_norm)

    def extra_repr(self) -> str:
        scaled = ", scale_by_norm=True" if self.scale_by_norm else ""
        size = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{size}, {_operator_repr(self.operator, self.k, self.eps)}{scaled}"


def _operator_repr(operator: str, k: float, eps: float) -> str:
    steepness = f", k={k:g}" if operator == "sigmoid" else ""
    return f"operator={operator}{steepness}, eps={eps:g}"
