"""Tensors and settings for the public functions of methods, and the formulas in float64 to compare them with."""

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.special import hyp1f1
from torch import Tensor, nn

from hyperzoo import layers, losses, mixup, regularizers
from hyperzoo.errors import HyperzooError

SPECIAL = [0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1e30, 1e10, 1e-30, -1e-300]
SETTINGS = [0, -1, 1, 2, 3, 0.5, math.nan, math.inf, 1e300, 1e-300, 10**400, None, "x", True, [], 2**63]
SHAPES = [(), (0,), (5,), (0, 3), (3, 0), (1, 1), (2, 3, 4), (2, 3, 0, 4), (1, 3, 2, 2, 2)]
OTHER_DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


class Function(NamedTuple):
    """A public function.

    Args:
        call: of the tensors and settings.
        shapes: of good tensors; a tuple with "labels" in front is one of class indices.
        settings: names of keyword arguments that take numbers.
        formula: in float64, of the tensors; None: the values are compared with nothing but NaN.
        torchs: it raises what the layer of torch raises for a shape or dtype, as its documentation says nothing else.
    """

    call: Callable[..., Any]
    shapes: tuple[Any, ...]
    settings: tuple[str, ...] = ()
    formula: Callable[..., Tensor] | None = None
    torchs: bool = False


def _energy(w: Tensor) -> Tensor:
    u = w / (w.square().sum(1, keepdim=True) + 1e-4).sqrt()
    cosine = (u @ u.T).clamp(max=1 - 1e-6)
    n = len(w)
    return torch.zeros(()) if n == 1 else (0 * u.sum() + 1 / (2 - 2 * cosine)[~torch.eye(n, dtype=torch.bool)]).mean()


def _angle(w: Tensor) -> Tensor:
    if w.size(-2) == 1:
        return w.new_full(w.shape[:-2], math.pi)
    u = w / (w.square().sum(-1, keepdim=True) + 1e-4).sqrt()
    cosine = u @ u.mT
    cosine = cosine.masked_fill(torch.eye(w.size(-2), dtype=torch.bool), -2).amax(-1)
    return cosine.clamp(-1 + 1e-5, 1 - 1e-5).arccos().mean(-1)


def _gram(w: Tensor) -> Tensor:
    return (w @ w.mT - torch.eye(w.size(-2), dtype=w.dtype)).square().sum((-2, -1)) / 2


def _constancy(x: Tensor, beta: Tensor) -> Tensor:
    first, second = x[:5].var(0), x[5:10].var(0)
    return (1 - first / (second + beta)).square().mean()


def _projected(x: Tensor) -> Tensor:
    axis = 1 if x.dim() != 3 else 2
    squares, size = x.square().sum(axis), x.size(axis)
    values = math.sqrt(2 / math.pi) * hyp1f1(-0.5, size / 2, -squares.numpy() / 2)
    return torch.as_tensor(values, dtype=torch.float64).mean()


def _cosines(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w) / (x.square().sum(-1, keepdim=True) + 1e-4).sqrt() / (w.square().sum(1) + 1e-4).sqrt()


def _sphere_linear(x: Tensor, weight: Tensor, **settings: Any) -> Tensor:
    layer = layers.SphereLinear(4, 3, **settings)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer(x)


def _sphere_conv(x: Tensor, norm: bool = False, **settings: Any) -> Tensor:
    kind = layers.SphereNorm if norm else layers.SphereConv2d
    return kind(3, 4, 3, padding=1, **settings)(x).detach()


def _mixed(kind: Callable[..., Any]) -> Callable[..., Tensor]:
    def call(x: Tensor, y: Tensor, **settings: Any) -> Tensor:
        mixed, targets = kind(3, generator=torch.Generator().manual_seed(0), **settings)(x, y)
        assert mixed.shape == x.shape and targets.shape == (len(x), 3)
        assert targets.isfinite().all() and torch.allclose(targets.sum(1), torch.ones(len(x), dtype=targets.dtype))
        return mixed

    return call


def _angular(x: Tensor, w: Tensor, y: Tensor, **settings: Any) -> Tensor:
    return losses.AngularSoftmax("linear", **{"margin": 4, **settings})(x, w, y)


ROWS = ((5, 4),)
FUNCTIONS = {
    "hyperspherical_energy": Function(regularizers.hyperspherical_energy, ROWS, ("power", "eps"), _energy),
    "label_energy": Function(regularizers.label_energy, ((5, 4), ("labels", 6)), ("power", "eps")),
    "nearest_angle": Function(regularizers.nearest_angle, ROWS, (), _angle),
    "orthogonality_penalty": Function(regularizers.orthogonality_penalty, ROWS, (), _gram),
    "lp_penalty": Function(regularizers.lp_penalty, ((4, 3),), ("p",), lambda x: x.abs().sum() / len(x)),
    "variance_constancy": Function(regularizers.variance_constancy, ((10, 3), (3,)), ("group",), _constancy),
    "projected_error": Function(
        lambda x, **settings: regularizers.projected_error(x, **{"slices": None, **settings}),
        ((4, 6),),
        ("reduce", "view"),
        _projected,
    ),
    "projected_error, sampled": Function(
        partial(regularizers.projected_error, slices=256), ((4, 6),), ("reduce", "view")
    ),
    "sliced_wasserstein": Function(regularizers.sliced_wasserstein, ((4, 6),), ("view",)),
    "SoftTarget": Function(
        lambda x, t, **kind: losses.SoftTarget(**kind)(x, t),
        ((4, 3), (4, 3)),
        ("kind",),
        lambda x, t: -(t * x.log_softmax(1)).sum(1).mean(),
    ),
    "AngularSoftmax": Function(
        _angular,
        ((4, 5), (3, 5), ("labels", 4)),
        ("margin", "eps", "k", "accumulate", "label_smoothing", "annealing"),
    ),
    "SphereLinear": Function(_sphere_linear, ((6, 4), (3, 4)), ("eps", "k"), _cosines, torchs=True),
    "SphereConv2d": Function(_sphere_conv, ((2, 3, 6, 6),), ("eps", "k"), torchs=True),
    "SphereNorm": Function(
        lambda x, **settings: _sphere_conv(x, norm=True, **settings),
        ((2, 3, 6, 6),),
        ("beta", "gamma", "eps"),
        torchs=True,
    ),
    "whitening_filters": Function(lambda x: layers.whitening_filters(x, (3, 3)), ((4, 3, 6, 6),)),
    "Mixup": Function(_mixed(mixup.Mixup), ((4, 3, 5, 5), ("labels", 4)), ("alpha", "smoothing")),
    "CutMix": Function(_mixed(mixup.CutMix), ((4, 3, 5, 5), ("labels", 4)), ("alpha", "smoothing")),
}


def attempt(case: Any, rng: random.Random) -> None:
    """Call one function with one hostile input, and compare what it returns; `case.shown` is the input."""
    name = rng.choice([*FUNCTIONS])
    function = FUNCTIONS[name]
    tensors = [_tensor(rng, shape) for shape in function.shapes]
    settings = {key: rng.choice(SETTINGS) for key in function.settings if rng.random() < 0.25}
    case.shown = name, settings, tensors
    torch.manual_seed(rng.getrandbits(32))
    try:
        got = function.call(*tensors, **settings)
    except (RuntimeError, TypeError, IndexError, UserWarning) as error:  # UserWarning: complex values made real
        if function.torchs and not isinstance(error, HyperzooError) and _is_foreign(tensors, function.shapes):
            return
        raise
    got = got.detach()
    poisoned = any(tensor.is_floating_point() and tensor.isnan().any() for tensor in tensors)
    if poisoned and got.dim() == 0:
        assert not got.isfinite(), f"{got} of an input with NaN"
    if function.formula and not settings:
        with torch.no_grad():
            wanted = function.formula(*(tensor.double() for tensor in tensors))
        assert got.shape == wanted.shape
        close = (got.double() - wanted).abs() <= (0.1 if name.endswith("energy") else 0.02) * wanted.abs() + 0.02
        assert (close | ~got.isfinite()).all(), f"{got} instead of {wanted}"
        plain = all(tensor.is_floating_point() and (tensor.abs() < 1e4).all() for tensor in tensors)
        assert not plain or got.isfinite().equal(wanted.isfinite()), f"{got} instead of {wanted}"


def _is_foreign(tensors: list[Tensor], shapes: tuple[Any, ...]) -> bool:
    """Whether a shape or dtype is another than that of a good input."""
    return any(x.shape != shape or x.dtype != torch.float32 for x, shape in zip(tensors, shapes, strict=True))


def _tensor(rng: random.Random, shape: Any) -> Tensor:
    """A good tensor in half of the cases; else with special values, another shape or another dtype."""
    draw = torch.Generator().manual_seed(rng.getrandbits(32))
    labels, kind = shape[0] == "labels", rng.randrange(8)
    shape = rng.choice(SHAPES) if kind == 0 else shape[1:] if labels else shape
    if labels:
        x = torch.randint(3, shape, generator=draw)
        if kind in (1, 2) and x.numel():
            x.view(-1)[rng.randrange(x.numel())] = rng.choice((-1, 3, 100, -100, 2**62))
    else:
        x = torch.randn(shape, generator=draw).double()  # whose range holds all special values
        if kind == 1 and x.numel():
            x.view(-1)[rng.randrange(x.numel())] = rng.choice(SPECIAL)
        if kind == 2:
            x.fill_(rng.choice(SPECIAL))
        x = x.float()
    return x.to(rng.choice(OTHER_DTYPES)) if kind == 3 else x
