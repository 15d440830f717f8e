"""The projected error function of PER, and the sliced Wasserstein distance it bounds.

Regularizing activations in neural networks via distribution matching with the Wasserstein metric, Joo et al., ICLR 2020
(arXiv 2002.05366; equation numbers are those of the submission). With theta uniform on the unit sphere of R^d,

    L(h)  = E_theta psi(<theta, h>),   psi(t) = t erf(t / sqrt 2) + sqrt(2 / pi) exp(-t^2 / 2)       (eq. 5)
    dL/dh = E_theta [erf(<theta, h> / sqrt 2) theta]                                                 (eq. 6)

psi(t) = E|t - z| with z ~ N(0, 1); so the mean of L over samples bounds their sliced W1 distance to N(0, I) from above.
"""

import math
from typing import Any

import torch
from torch import Tensor

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers.first_order import first_only
from hyperzoo.layers.precision import full_dtype
from hyperzoo.regularizers.exact_error import ExactError, SquaredNorm, entries

REDUCTIONS = ("mean", "batch", "sum")
VIEWS = ("location", "flatten")
_HELD = {"cpu": 2**20}  # projections computed at a time, by device [default: 2^26]


def projected_error(
    x: Tensor,
    *,
    slices: int | None = None,
    reduce: str = "mean",
    view: str = "location",
    axis: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Penalize activations by their mean distance to a Gaussian along one-dimensional projections (PER).

    The mean of L(h) = sqrt(2 / pi) 1F1(-1/2; d/2; -|h|^2 / 2) over vectors h, to 1e-6 in float32: 0.798 at h = 0, its
    minimum, and 1.128 for h ~ N(0, I). With `slices`, it is the mean of psi(<theta_k, h_i>) over vectors h_i and unit
    vectors theta_k, with gradient eq. 6 (see above).

    Shapes:
        x: activations after the nonlinearity: vectors (B, d), sequences (B, T, d), maps (B, d, ...) with at least four
        axes, or any other layout with `axis`.   return: (), float32 also under autocast.
    Args:
        slices: directions drawn per call, 1 or more, shared by all vectors (paper: 256) [default: all directions,
            which is cheaper and without noise].
        reduce: divide the sum over vectors by their number ('mean'), by B ('batch', eq. 5), or not at all ('sum').
        view: 'location' makes one vector per position of a map or step of a sequence, 'flatten' one per sample.
        axis: the axis whose entries form one vector, for 'location' [default: 2 of three axes, otherwise 1]. Pass -1
            for maps (B, H, W, d) and 1 for sequences (B, d, T).
        generator: CPU source of the directions [default: torch's global generator].
    Raises:
        InputError: fewer than one slice, an unknown reduce or view, an axis that is the batch or missing in x, no
            vector, or x that is not floating point.
    Differs:
        Algorithm 1 of the submission omits the 1 / B of eq. 5, which is reduce='sum'. Has first derivatives only.
    Example:
        >>> projected_error(torch.zeros(4, 3))
        tensor(0.7979)
        >>> projected_error(torch.tensor([[3.0, 4.0]]))      # |h| = 5, d = 2
        tensor(3.2474)
    """
    check_choices(slices, reduce, view, axis)
    if slices is None:
        axes = axes_of(x, view, axis)
        errors = ExactError.apply(SquaredNorm.apply(x, axes)[1], entries(x, axes))
    else:
        x, axis = as_vectors(x, view, axis)
        errors = SampledError.apply(x, axis, draw_directions(x, axis, slices, generator), None, None)
    return reduced(errors, len(x), reduce)


@torch.no_grad()
def sliced_wasserstein(
    x: Tensor,
    *,
    slices: int = 256,
    view: str = "location",
    axis: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Measure how far activations are from a Gaussian: the sliced W1 distance to N(0, I), by sorting.

    Along each direction, W1 = int_0^1 |t_(ceil(n u)) - Phi^-1(u)| du over the n sorted projections t_(i). The integral
    has a closed form, because -phi(Phi^-1(u)) is an antiderivative of Phi^-1. PER bounds this distance (section 3).

    Shapes:
        x: as for `projected_error`.   return: () float64, the mean over directions.
    Args:
        slices, view, axis, generator: as for `projected_error`.
    Raises:
        InputError: as `projected_error`.
    Example:
        >>> sliced_wasserstein(torch.zeros(4, 3))      # all mass at 0: E|z| = sqrt(2 / pi)
        tensor(0.7979, dtype=torch.float64)
    """
    check_choices(slices, "mean", view, axis)
    x, axis = as_vectors(x, view, axis)
    rows = x.movedim(axis, -1).reshape(-1, x.shape[axis]).double()
    t = (rows @ draw_directions(rows, 1, slices, generator)).sort(dim=0).values
    share = torch.arange(len(t) + 1, dtype=t.dtype, device=t.device)[:, None] / len(t)
    quantile = torch.special.ndtri(share)
    below, above = quantile[:-1], quantile[1:]
    crossing = torch.minimum(torch.maximum(t, below), above)  # where t meets the quantile function, within its step
    cost: Tensor = t * (2 * torch.special.ndtr(crossing) - share[:-1] - share[1:])
    cost += 2 * _normal_density(crossing) - _normal_density(below) - _normal_density(above)
    return cost.sum(0).mean()


class SampledError(torch.autograd.Function):
    """Mean over directions (d, K) of psi of each vector along `axis`, or `errors` if given; its gradient is eq. 6.

    With `rows` from `draw_rows`, only these vectors have a gradient. The backward pass recomputes the projections, some
    samples at a time, instead of storing them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axis: int, directions: Tensor, errors: Tensor | None, rows: Tensor | None) -> Tensor:
        if errors is not None:
            return errors.clone()
        parts = torch.split(x.movedim(axis, -1), _part_size(x, axis, directions))
        return torch.cat([_psi(_project(part, directions)).mean(-1) for part in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.axis, directions, _, rows = inputs
        ctx.save_for_backward(x, directions, rows)

    @staticmethod
    @first_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, directions, rows = ctx.saved_tensors
        back = directions.T / directions.shape[1]
        grad_x = torch.empty_like(x) if rows is None else torch.zeros_like(x)
        size = _part_size(x, ctx.axis, directions)
        vectors, into = x.movedim(ctx.axis, -1), grad_x.movedim(ctx.axis, -1)
        parts: list[Any] = [slice(start, start + size) for start in range(0, len(x), size)]
        if rows is not None:
            places = torch.unravel_index(rows[0], grad.shape)
            parts = [*zip(*(place.split(size * grad[0].numel()) for place in places), strict=True)]
            grad = grad.index_put(places, grad[places] * rows[1])
        with torch.autocast(x.device.type, enabled=False):
            for part in parts:
                into[part] = ((_project(vectors[part], directions).erf_() @ back) * grad[part].unsqueeze(-1)).to(
                    x.dtype
                )
        return grad_x, None, None, None, None


def _part_size(x: Tensor, axis: int, directions: Tensor) -> int:
    """The number of samples whose projections are computed at a time."""
    projections_per_sample = x[0].numel() // x.shape[axis] * directions.shape[1]
    return max(1, _HELD.get(x.device.type, 2**26) // projections_per_sample)


def _project(vectors: Tensor, directions: Tensor) -> Tensor:
    """Projections divided by sqrt 2, (..., K)."""
    with torch.autocast(vectors.device.type, enabled=False):
        return vectors.to(directions.dtype) @ (directions / math.sqrt(2))


def _psi(t: Tensor) -> Tensor:
    """psi(sqrt 2 t)."""
    return math.sqrt(2) * t * torch.erf(t) + math.sqrt(2 / math.pi) * torch.exp(-t * t)


def _normal_density(t: Tensor) -> Tensor:
    return torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def draw_directions(x: Tensor, axis: int, slices: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors (d, slices), drawn on the CPU so that they do not depend on the device."""
    drawn = torch.randn(x.shape[axis], slices, generator=generator, dtype=full_dtype(x), device="cpu")
    unit: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=0)
    return unit.to(x.device, non_blocking=x.is_cuda)


def draw_rows(count: int, share: float, generator: torch.Generator | None) -> Tensor:
    """A random part of `count` vectors, (2, n): numbers in ascending order, and how many vectors each stands for.

    The vectors are divided into n = share * count groups of neighbors, of sizes that differ by at most 1, and one of
    each group is drawn. So a sum over the drawn ones, times their group sizes, is an unbiased estimate of the sum.
    """
    bounds = torch.linspace(0, count, max(1, round(share * count)) + 1, dtype=torch.float64, device="cpu").long()
    sizes = bounds.diff()
    drawn = torch.rand(len(sizes), generator=generator, dtype=torch.float64, device="cpu")
    return torch.stack([bounds[:-1] + (drawn * sizes).long(), sizes])


def axes_of(x: Tensor, view: str, axis: int | None) -> tuple[int, ...]:
    """The axes that make up one vector of activations: for 'location' the given axis [default: by the rank of x]."""
    if x.dim() < 2 or not x.is_floating_point() or x.numel() == 0:
        kind = str(x.dtype).removeprefix("torch.")
        raise InputError(
            f"activations must be floating point of shape (batch, features), (batch, steps, features) or "
            f"(batch, channels, ...) and not empty; got {kind} {tuple(x.shape)}"
        )
    if view == "flatten":
        return tuple(range(1, x.dim()))
    if axis is None:
        return (1 if x.dim() != 3 else 2,)
    if not -x.dim() < axis < x.dim():
        raise InputError(
            f"axis={axis} is the batch or missing in activations of shape {tuple(x.shape)}; choose an axis from 1 to "
            f"{x.dim() - 1}, or -1 for the last"
        )
    return (axis % x.dim(),)


def as_vectors(x: Tensor, view: str, axis: int | None = None) -> tuple[Tensor, int]:
    """x, flattened if the view asks for it, and the axis of its vectors; samples stay in front."""
    axes = axes_of(x, view, axis)
    return (x.flatten(1) if len(axes) > 1 else x), axes[0]


def reduced(errors: Tensor, batch: int, reduce: str) -> Tensor:
    """The errors of all vectors, reduced to one number."""
    if reduce == "mean":
        return errors.mean()
    return errors.sum() / batch if reduce == "batch" else errors.sum()


def check_choices(slices: int | None, reduce: str, view: str, axis: int | None) -> None:
    """Raise InputError unless `projected_error` accepts these arguments."""
    if slices is not None:
        check_number("slices (None for all directions)", slices, low=1, whole=True)
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce must be one of {', '.join(REDUCTIONS)}; got {reduce!r}")
    if view not in VIEWS:
        raise InputError(f"view must be one of {', '.join(VIEWS)}; got {view!r}")
    if axis is None:
        return
    if not isinstance(axis, int) or isinstance(axis, bool) or axis == 0:
        raise InputError(f"axis must be a whole number other than 0, the batch, or None; got {axis!r}")
    if view == "flatten":
        raise InputError(f"view='flatten' makes one vector of each sample; got axis={axis} with it, so leave axis out")
