"""Sphere layers for inference: the filters are normalized once instead of at every call."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.layers._torch import has_hooks
from hyperzoo.layers.functional import pad_tf_same, per_filter, unit_rows
from hyperzoo.layers.operators import angular, steepness
from hyperzoo.layers.patches import Geometry, fits_pooling, inverse_norm, lean_energy
from hyperzoo.layers.precision import full_precision, inverse_root
from hyperzoo.layers.sphere import SphereConv2d, SphereLinear
from hyperzoo.layers.sphere_norm import SphereNorm


def fold(model: nn.Module) -> nn.Module:
    """Copy a model for inference, in evaluation mode, with sphere layers whose filters have unit length already.

    The outputs are those of the model up to rounding, and a call skips all work that depends on the weights alone: it
    pays for small batches, where that work takes as long as the convolution. `hyperzoo export` folds by itself.

    Args:
        model: any module, also a single layer. It is not changed. Sphere layers with hooks or parametrizations, and
            subclasses of them, are copied as they are.
    Returns:
        The copy. Its filters are buffers called `filters`, so it has nothing to train, and its state dict does not load
        into the model. `weight` of a folded layer is the same tensor, for code that reads its dtype, device or shape.
    Example:
        >>> net = nn.Sequential(SphereConv2d(3, 8, 3), nn.ReLU())
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.allclose(fold(net)(x), net(x), atol=1e-6)
        True
    """
    copied = copy.deepcopy(model).eval()
    folded: dict[nn.Module, nn.Module] = {}
    for module in copied.modules():
        if has_hooks(module):
            continue
        if isinstance(module, SphereConv2d) and type(module) in (SphereConv2d, SphereNorm):
            folded[module] = FoldedConv2d(module)
        elif type(module) is SphereLinear:
            folded[module] = FoldedLinear(module)
    if copied in folded:
        return folded[copied]
    for name, module in list(copied.named_modules(remove_duplicate=False)):
        if module in folded:
            copied.set_submodule(name, folded[module])
    return copied


class _Folded(nn.Module):
    """Unit filters and the response to a cosine, shared by both folded layers."""

    filters: Tensor
    k: float | Tensor
    bias: Tensor | None
    beta: Tensor | None
    gamma: Tensor | None

    def __init__(self, layer: SphereConv2d | SphereLinear, shape: tuple[int, ...]) -> None:
        """`shape` makes one number per filter broadcast against the output."""
        super().__init__()
        self.operator, self.eps = layer.operator, layer.eps
        with torch.no_grad():
            self.register_buffer("filters", unit_rows(layer.weight, layer.eps))
            k = layer.k if layer.raw_k is None else steepness(layer.raw_k).reshape(shape)
            if isinstance(k, Tensor):
                self.register_buffer("k", k)
            else:
                self.k = k
            for name in ("beta", "gamma", "bias"):
                values = getattr(layer, name, None)
                self.register_buffer(name, None if values is None else values.detach().reshape(shape))
        self.eval()

    @property
    def weight(self) -> Tensor:
        """The unit filters, in the shape of the layer's weight."""
        return self.filters

    def _response(self, product: Tensor, inverse: Tensor) -> Tensor:
        return angular(full_precision(product) * inverse, self.operator, self.k)

    def _affine(self, out: Tensor) -> Tensor:
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        if self.beta is not None and self.gamma is not None:
            out = out * self.beta.to(out.dtype) + self.gamma.to(out.dtype)
        return out


class FoldedConv2d(_Folded):
    """`SphereConv2d` or `SphereNorm` for inference, see `fold`: (B, C, H, W) -> (B, O, H', W')."""

    def __init__(self, layer: SphereConv2d) -> None:
        super().__init__(layer, (-1, 1, 1))
        self.in_channels, self.out_channels, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self.geometry = Geometry(layer.stride, layer.padding, layer.dilation, layer.groups)
        self.tf_same = layer.tf_same
        # one operation, where `inverse_norm` takes a dozen
        self.pools = fits_pooling(layer.kernel_size, layer.padding, layer.dilation)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        kernel = self.kernel_size
        if self.tf_same:
            x = pad_tf_same(x, kernel, stride, dilation)
        product = F.conv2d(x, self.filters, None, stride, padding, dilation, groups)
        energy = self._energy(x)
        if self.pools:
            box = F.avg_pool2d(energy, kernel, stride, padding) * (kernel[0] * kernel[1])
            inverse = inverse_root(box, self.eps)
        else:
            inverse = inverse_norm(energy, self.filters, self.geometry, self.eps)
        out = self._response(product, per_filter(inverse, self.filters.size(0)))
        return self._affine(out.to(product.dtype))

    def _energy(self, x: Tensor) -> Tensor:
        """Sum of squares over the channels of each group, (B, groups, H, W), by what is fastest for the layout."""
        groups = self.geometry.groups
        if groups == 1 and x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last):
            length: Tensor = torch.linalg.vector_norm(x, dim=-3, keepdim=True)
            return length * length
        return lean_energy(x, groups)


class FoldedLinear(_Folded):
    """`SphereLinear` for inference, see `fold`: (..., D) -> (..., O)."""

    def __init__(self, layer: SphereLinear) -> None:
        super().__init__(layer, (-1,))
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.scale_by_norm = layer.scale_by_norm

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(x, self.filters)
        wide = full_precision(x)
        squares = (wide * wide).sum(-1, keepdim=True)
        out = self._response(product, inverse_root(squares, self.eps))
        if self.scale_by_norm:
            out = out * torch.sqrt(squares + self.eps)
        return self._affine(out.to(product.dtype))
