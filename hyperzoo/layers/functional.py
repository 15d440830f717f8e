"""The functions behind the sphere layers, which see only the angle between input and filter.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 2. With p the flattened input patch
(zero padding included) and w a filter,

    c = <p, w> / (sqrt(|p|^2 + eps) sqrt(|w|^2 + eps)),    out = g(arccos c),    g: see `operators.py`

`_plain_conv` is the definition and works in every mode; `_EagerConv` computes the same cosine with less memory in eager
training.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from hyperzoo.layers._torch import is_in_functorch
from hyperzoo.layers.operators import angular, steepness
from hyperzoo.layers.patches import (
    Geometry,
    box_transpose,
    by_parts,
    channel_sums,
    energy,
    inverse_norm,
    lean_box_sum,
    lean_energy,
)
from hyperzoo.layers.precision import full_precision, inverse_root, on_cpu, parts


class Response(NamedTuple):
    """The response of a sphere layer to an angle: the operator's name, its steepness, and the eps of the norms."""

    operator: str
    k: float
    eps: float


def inverse_filter_norms(w: Tensor, eps: float) -> Tensor:
    """1 / sqrt(|w|^2 + eps) of every filter, (O, 1, ...)."""
    dims = list(range(1, w.dim()))
    return inverse_root((w * w).sum(dims, keepdim=True), eps)


def unit_rows(weight: Tensor, eps: float) -> Tensor:
    """Filters scaled to length |w| / sqrt(|w|^2 + eps), in the dtype of the weight."""
    w = full_precision(weight)
    return (w * inverse_filter_norms(w, eps)).to(weight.dtype)


def _in_range_of(x: Tensor, factor: Tensor) -> Tensor:
    """The factor in the dtype of x, because products of one dtype are several times faster on a CPU; for float16, whose
    range is too small, the factor stays float32."""
    return factor if x.dtype == torch.float16 else factor.to(x.dtype)


def per_filter(inverse: Tensor, filters: int) -> Tensor:
    """(B, groups, H', W') -> a factor that broadcasts against (B, filters, H', W')."""
    groups = inverse.size(-3)
    return inverse if groups == 1 else inverse.repeat_interleave(filters // groups, -3)


def _plain_conv(
    x: Tensor, weight: Tensor, geometry: Geometry, response: Response, raw_k: Tensor | None = None
) -> Tensor:
    stride, padding, dilation, groups = geometry
    product = F.conv2d(x, unit_rows(weight, response.eps), None, stride, padding, dilation, groups)
    inverse = inverse_norm(energy(x, groups), weight, geometry, response.eps)
    cosine = full_precision(product) * per_filter(inverse, weight.size(0))
    if raw_k is not None:
        return angular(cosine, response.operator, steepness(raw_k)[:, None, None]).to(product.dtype)
    return angular(cosine, response.operator, response.k).to(product.dtype)


class _EagerConv(torch.autograd.Function):
    """The cosine in `_plain_conv` for eager training: saves input, output, which neighbors save anyway, and norms.

    With r and s the inverse norms of patches and filters, and u = s w, out = r <p, u>. A gradient g of out gives

        dx = conv_transpose(g r, u) - x box_transpose(r^2 sum_o g_o out_o)
        dw = s (v - u <u, v>),    v = the gradient of u

    Written out, because autograd of the norms takes about twice as many operations, and their number decides on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry, eps: float) -> Tensor:
        groups = geometry.groups
        w = full_precision(weight)
        s = inverse_filter_norms(w, eps)
        product = F.conv2d(x, (w * s).to(weight.dtype), None, *geometry)
        squares = by_parts(lambda part: lean_energy(part, groups), x)
        inverse = inverse_root(lean_box_sum(squares, weight, geometry), eps)
        out = product.mul_(per_filter(_in_range_of(product, inverse), weight.size(0)))
        ctx.save_for_backward(x, weight, out, inverse, s)
        ctx.settings = geometry, eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out, r, s = ctx.saved_tensors
        geometry, eps = ctx.settings
        stride, padding, dilation, groups = geometry
        if torch.is_grad_enabled():  # create_graph: the plain form has second derivatives
            x, weight = x.view_as(x), weight.view_as(weight)  # x may depend on weight: only this call is differentiated
            with torch.autocast(x.device.type, out.dtype, enabled=out.dtype != weight.dtype):
                again = _plain_conv(x, weight, geometry, Response("cosine", 1.0, eps))
            wanted = [t for t, needed in zip((x, weight), ctx.needs_input_grad, strict=False) if needed]
            grads = list(torch.autograd.grad(again, wanted, grad, create_graph=True))
            return *(grads.pop(0) if needed else None for needed in ctx.needs_input_grad[:2]), None, None
        rows = full_precision(weight) * s
        grad_product = (grad * per_filter(_in_range_of(grad, r), weight.size(0))).to(out.dtype)
        grad_x, v, _ = torch.ops.aten.convolution_backward(
            grad_product, x.to(out.dtype), rows.to(out.dtype), None, stride, padding, dilation, False, [0, 0],
            groups, [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )  # fmt: skip
        if grad_x is not None:
            along = by_parts(lambda a, b: channel_sums(a * b, groups), grad, out)
            per_pixel = box_transpose(along * r * r, weight, geometry, x)
            factor = per_filter(_in_range_of(grad_x, per_pixel), x.size(1))
            grad_x.addcmul_(x.to(grad_x.dtype), factor, value=-1)
        if v is not None:
            v = v.to(rows.dtype)
            across = torch.addcmul(v, rows, (v * rows).sum([1, 2, 3], keepdim=True), value=-1)
            v = (across * s).to(weight.dtype)
        return grad_x, v, None, None


class _EagerAngular(torch.autograd.Function):
    """`angular` for eager training on a CPU: saves the cosine alone, and computes in parts that stay in the cache.

    The backward pass computes each part again and differentiates it by autograd.
    """

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, operator: str, k: float | Tensor) -> Tensor:
        ctx.save_for_backward(cosine, *([k] if isinstance(k, Tensor) else []))
        ctx.operator, ctx.k = operator, None if isinstance(k, Tensor) else k
        return torch.cat([_rounded_angular(part, operator, k) for part in parts(cosine)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cosine, *learned = ctx.saved_tensors
        k = learned[0] if learned else ctx.k
        needed = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        pairs, create_graph = [(cosine.view_as(cosine), grad)], torch.is_grad_enabled()  # as in `_EagerConv`
        if create_graph:
            k = k.view_as(k) if needed[1] else k
        else:
            pairs = [(c.detach().requires_grad_(), g) for c, g in zip(parts(cosine), parts(grad), strict=True)]
            k = k.detach().requires_grad_() if needed[1] else k
        found = []
        with torch.enable_grad():
            for part, onto in pairs:
                wanted = [t for t, is_needed in zip((part, k), needed, strict=True) if is_needed]
                again = _rounded_angular(part, ctx.operator, k)
                found.append(torch.autograd.grad(again, wanted, onto, create_graph=create_graph))
        grads = [*zip(*found, strict=True)]
        of_cosine = torch.cat(grads.pop(0)) if needed[0] else None
        return of_cosine, None, torch.stack(grads.pop(0)).sum(0) if needed[1] else None


def _rounded_angular(cosine: Tensor, operator: str, k: float | Tensor) -> Tensor:
    return angular(full_precision(cosine), operator, k).to(cosine.dtype)


def sphere_conv2d(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    response: Response,
    raw_k: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The function behind `SphereConv2d`; a leaf for fx tracing. The dtype is the one a convolution would give."""
    out = _sphere_conv2d(x, weight, geometry, response, raw_k)
    if bias is not None:
        out = out + bias.to(out.dtype)[:, None, None]
    return out


def _sphere_conv2d(x: Tensor, weight: Tensor, geometry: Geometry, response: Response, raw_k: Tensor | None) -> Tensor:
    if not torch.jit.is_scripting():
        if _in_eager_training(x, weight):
            cosine: Tensor = _EagerConv.apply(x, weight, geometry, response.eps)
            if response.operator == "cosine":
                return cosine
            k = response.k if raw_k is None else steepness(raw_k)[:, None, None]
            return (_EagerAngular.apply if on_cpu(cosine) else _rounded_angular)(cosine, response.operator, k)
    return _plain_conv(x, weight, geometry, response, raw_k)


def pad_tf_same(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """Pad x with zeros by TensorFlow's SAME rule, so that ceil(H / stride) rows result; an odd zero goes last."""
    rows = (x.size(-2) + stride[0] - 1) // stride[0]
    columns = (x.size(-1) + stride[1] - 1) // stride[1]
    height = max((rows - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1 - x.size(-2), 0)
    width = max((columns - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 1 - x.size(-1), 0)
    return F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])


def _in_eager_training(x: Tensor, weight: Tensor) -> bool:
    """Whether reverse-mode autograd alone records the graph: no compiler, tracer, `torch.func` or forward-mode AD."""
    return (
        x.dim() == 4
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_functorch()
        and unpack_dual(x).tangent is None
        and unpack_dual(weight).tangent is None
    )


def sphere_linear(
    x: Tensor,
    weight: Tensor,
    response: Response,
    scale_by_norm: bool,
    raw_k: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The function behind `SphereLinear`; a leaf for fx tracing."""
    product = F.linear(x, unit_rows(weight, response.eps))
    wide = full_precision(x)
    squares = (wide * wide).sum(-1, keepdim=True)
    cosine = full_precision(product) * inverse_root(squares, response.eps)
    if raw_k is not None:
        out = angular(cosine, response.operator, steepness(raw_k))
    else:
        out = angular(cosine, response.operator, response.k)
    if scale_by_norm:
        out = out * torch.sqrt(squares + response.eps)
    out = out.to(product.dtype)
    if bias is not None:
        out = out + bias.to(out.dtype)
    return out
