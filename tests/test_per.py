"""Values and gradients of the projected error and of the sliced Wasserstein distance equal their formulas."""

import json
import math
from pathlib import Path

import pytest
import scipy.special
import scipy.stats
import torch

from hyperzoo.errors import InputError
from hyperzoo.regularizers import projected_error, projections, sliced_wasserstein
from hyperzoo.regularizers.exact_error import ExactError

ORACLES = {case["id"]: case for case in json.loads((Path(__file__).parent / "assets/per_oracles.json").read_text())}
DIMENSIONS = (1, 2, 3, 4, 5, 8, 17, 64, 650, 4096)
ZERO = math.sqrt(2 / math.pi)  # the error at 0, for every d
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def psi(t):
    """E|t - z| in the paper's form."""
    return t * torch.erf(t / math.sqrt(2)) + ZERO * torch.exp(-t * t / 2)


def close(got, case, expected):
    """Compare by the rule of the oracles, with their tolerance for the dtype."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == expected.shape
    tolerance = case["tolerance"] if got.dtype == torch.float64 else case["tolerance_float32"]
    assert ((got.detach().double() - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all()


def value_and_gradient(h, **args):
    h = h.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = projected_error(h, **args)
    value.backward()
    return value.detach(), h.grad


def by_angle(norms, d, nodes=40_000):
    """Value and gradient length by quadrature over the angle between direction and vector, density sin^(d-2)."""
    if d == 1:
        return psi(norms), torch.erf(norms / math.sqrt(2))
    angle = (torch.arange(nodes, dtype=torch.float64) + 0.5) * (math.pi / 2 / nodes)  # the midpoint rule
    density = (torch.log(angle.sin()) * (d - 2)).exp()
    density /= density.sum()
    t = norms[:, None] * angle.cos()
    return psi(t) @ density, torch.erf(t / math.sqrt(2)) @ (density * angle.cos())


@BOTH
@pytest.mark.parametrize("d", [2, 8, 64, 650])
def test_exact_oracles(d, dtype):
    case = ORACLES[f"per_exact_d{d}"]
    vectors = {
        "zeros": torch.zeros(d),
        "ones_times_0.5": torch.full((d,), 0.5),
        "ones": torch.ones(d),
        "ones_times_3": torch.full((d,), 3.0),
        "first_axis_5": torch.eye(d)[0] * 5,
    }
    assert set(vectors) == set(case["expected"])
    for name, h in vectors.items():
        expected = case["expected"][name]
        value, grad = value_and_gradient(h[None].to(dtype), slices=None)
        close(value, case, expected["value"])
        close(grad[0, 0], case, expected["grad_first_component"])
        close(grad.norm(), case, expected["grad_norm"])


@BOTH
def test_one_dimension_is_psi(dtype):
    case = ORACLES["per_one_dimension"]
    for t, value, slope in zip(case["inputs"]["t"], case["expected"]["value"], case["expected"]["grad"], strict=True):
        h = torch.tensor([[t]], dtype=dtype)
        for slices in (1, 5):  # in one dimension theta is 1 or -1, and psi is even
            got, grad = value_and_gradient(h, slices=slices, generator=generator())
            close(got, case, value)
            close(grad, case, [[slope]])
        got, grad = value_and_gradient(h, slices=None)
        close(got, {**case, "tolerance": 1e-11}, value)  # a Chebyshev sum
        close(grad, {**case, "tolerance": 1e-11}, [[slope]])


@BOTH
def test_sequences_and_maps_of_the_oracles(dtype):
    case = ORACLES["per_lstm_T2_B2_H3"]
    h = torch.tensor(case["inputs"]["h"], dtype=dtype)
    for reduce in ("sum", "mean", "batch"):
        close(projected_error(h, slices=None, reduce=reduce), case, case["expected"][reduce])
    close(value_and_gradient(h, slices=None)[1], case, case["expected"]["grad_of_mean"])
    each = [projected_error(v[None], slices=None) for v in h.reshape(-1, 3)]
    close(torch.stack(each), case, case["expected"]["per_vector_t_major"])

    case = ORACLES["per_conv_location_vs_flatten"]
    h = torch.tensor(case["inputs"]["h"], dtype=dtype)
    for last in (h, h.contiguous(memory_format=torch.channels_last)):
        for reduce in ("sum", "mean", "batch"):
            expected = case["expected"]["location"][reduce]
            close(projected_error(last, slices=None, reduce=reduce), case, expected)
        for reduce in ("sum", "mean"):
            expected = case["expected"]["flatten"][reduce]
            close(projected_error(last, slices=None, reduce=reduce, view="flatten"), case, expected)


def test_gaussian_data_has_the_closed_form_for_every_d():
    """E over h ~ N(0, sigma^2 I) of the exact error, by quadrature over the length of h."""
    case = ORACLES["per_gaussian_data"]
    for d in (1, 3, 64):
        length = torch.linspace(0, math.sqrt(d) + 12, 4001, dtype=torch.float64)
        density = torch.as_tensor(scipy.stats.chi(d).pdf(length))
        for sigma, expected in zip(case["inputs"]["sigma"], case["expected"], strict=True):
            errors = ExactError.apply((sigma * length).square(), d)
            mean = torch.trapezoid(errors * density) / torch.trapezoid(density)
            assert float(mean) == pytest.approx(expected, rel=1e-5)  # 4000 steps


def test_approximation_by_the_root_mean_square():
    case = ORACLES["per_rms_approximation"]
    for d in case["inputs"]["d"]:
        for row in case["expected"][f"d{d}"]:
            h = torch.full((1, d), row["sigma"], dtype=torch.float64)
            close(projected_error(h, slices=None), case, row["exact"])
            assert ZERO * math.sqrt(1 + row["sigma"] ** 2) == pytest.approx(row["rms_approximation"])


def test_limits():
    case = ORACLES["per_limits"]
    for d in case["inputs"]["d"]:
        expected = case["expected"][f"d{d}"]
        far = torch.zeros(1, d, dtype=torch.float64)
        far[0, 0] = 1e7
        value, grad = value_and_gradient(far, slices=None)
        assert float(grad.norm()) == pytest.approx(expected["E_abs_u"], rel=1e-10)
        assert float(value) / 1e7 == pytest.approx(expected["E_abs_u"], rel=1e-10)
        near = torch.full((1, d), 1e-6, dtype=torch.float64)
        grad = value_and_gradient(near, slices=None)[1]
        torch.testing.assert_close(grad / near, torch.full_like(grad, expected["small_h_grad_coefficient"]))


@pytest.mark.parametrize("d", DIMENSIONS)
def test_all_directions_against_quadrature_in_float32_and_float64(d):
    norms = torch.cat([torch.zeros(1), torch.logspace(-6, 3, 28)]).double()
    norms = norms.float().double()  # same numbers in both
    value, slope = by_angle(norms, d)
    h = torch.nn.functional.normalize(normal(len(norms), d, seed=d)) * norms[:, None]
    h[:, 0] = torch.where(norms > 0, h[:, 0], 0.0)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 2e-9)):  # 2e-9: the quadrature
        x = h.to(dtype).requires_grad_()
        errors = torch.stack([projected_error(row[None], slices=None) for row in x])
        errors.sum().backward()
        length = x.detach().double().norm(dim=1)
        exact, pull = (value, slope) if dtype == torch.float64 else by_angle(length, d)
        assert ((errors.double() - exact) / exact).abs().max() < tolerance
        assert torch.equal(x.grad[0], torch.zeros(d, dtype=dtype))  # no NaN at 0
        got = x.grad.double().norm(dim=1)[1:]
        assert ((got - pull[1:]) / pull[1:]).abs().max() < tolerance
        along = (x.grad.double() * x.detach().double()).sum(1)[1:] / (got * length[1:])
        assert (along > 1 - 1e-6).all()  # the gradient is parallel to h


@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_all_directions_against_hyp1f1(d):
    norms = torch.linspace(0, 12, 25, dtype=torch.float64)
    x = torch.zeros(25, d, dtype=torch.float64)
    x[:, 0] = norms
    x.requires_grad_()
    got = torch.stack([projected_error(row[None], slices=None) for row in x])
    got.sum().backward()
    expected = ZERO * torch.as_tensor(scipy.special.hyp1f1(-0.5, d / 2, -(norms**2).numpy() / 2))
    slope = ZERO / d * torch.as_tensor(scipy.special.hyp1f1(0.5, d / 2 + 1, -(norms**2).numpy() / 2)) * norms
    torch.testing.assert_close(got.detach(), expected, rtol=1e-11, atol=0)  # 1e-13 of the Chebyshev sum
    torch.testing.assert_close(x.grad[:, 0], slope, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("slices", [8, None])
def test_a_second_derivative_is_refused(slices):
    x = normal(5, 3).requires_grad_()
    with pytest.raises(InputError, match="no second derivatives"):
        torch.autograd.grad(projected_error(x, slices=slices), x, create_graph=True)


def test_the_exact_gradient_is_that_of_autograd():
    """Against autograd through the one-dimensional quadrature, and against difference quotients."""
    d, nodes = 5, 2000
    angle = (torch.arange(nodes, dtype=torch.float64) + 0.5) * (math.pi / nodes)
    density = angle.sin() ** (d - 2)
    density /= density.sum()
    h = normal(4, d).requires_grad_()
    psi(h.norm(dim=1)[:, None] * angle.cos()).matmul(density).mean().backward()
    torch.testing.assert_close(value_and_gradient(h, slices=None)[1], h.grad, rtol=0, atol=1e-10)
    for x, view in ((normal(2, 3), "location"), (normal(2, 3, 2, 2), "location"), (normal(2, 2, 3), "flatten")):
        x.flatten()[:1] = 0
        assert torch.autograd.gradcheck(
            lambda x, view=view: projected_error(x, slices=None, view=view), x.requires_grad_()
        )


@pytest.mark.parametrize("view", ["location", "flatten"])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5), (3, 5, 2, 3), (2, 3, 2, 1, 2)])
@pytest.mark.parametrize("held", [1, 50, 2**20])
def test_the_sampled_error_and_its_gradient_are_those_of_autograd(shape, view, held, monkeypatch):
    monkeypatch.setitem(projections._HELD, "cpu", held)  # in parts or at once
    x = normal(*shape, seed=3).requires_grad_()
    rows = x.flatten(1) if view == "flatten" else x.movedim(1 if len(shape) > 3 else -1, -1).flatten(0, -2)
    theta = torch.randn(rows.shape[1], 7, generator=generator(5), dtype=torch.float64)
    errors = psi(rows @ (theta / theta.norm(dim=0))).mean(1)
    for reduce, expected in (("sum", errors.sum()), ("mean", errors.mean()), ("batch", errors.sum() / shape[0])):
        (wanted,) = torch.autograd.grad(expected, x, retain_graph=True)
        value, grad = value_and_gradient(x, slices=7, reduce=reduce, view=view, generator=generator(5))
        torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-10)


@BOTH
def test_fixed_directions_and_reductions_of_the_oracles(dtype, monkeypatch):
    for name in ("per_fixed_directions", "per_reductions"):
        case = ORACLES[name]
        theta = torch.tensor(case["inputs"]["theta"], dtype=dtype).T
        monkeypatch.setattr(projections, "draw_directions", lambda *_, theta=theta: theta)
        h = torch.tensor(case["inputs"]["h"], dtype=dtype)
        if name == "per_fixed_directions":
            value, grad = value_and_gradient(h[None], slices=3)
            close(value, case, case["expected"]["value"])
            close(grad[0], case, case["expected"]["grad"])
            continue
        for reduce in ("sum", "mean"):
            value, grad = value_and_gradient(h, slices=3, reduce=reduce)
            close(value, case, case["expected"][reduce])
            close(grad, case, case["expected"][f"grad_{reduce}"])
        each = torch.stack([projected_error(v[None], slices=3) for v in h])
        close(each, case, case["expected"]["per_sample"])


def test_directions_are_unit_vectors_of_the_generator_alone():
    x = normal(2, 6)
    theta = projections.draw_directions(x, 1, 9, generator(1))
    torch.testing.assert_close(theta.norm(dim=0), torch.ones(9, dtype=torch.float64))
    before = torch.get_rng_state()
    one, two, other = (projected_error(x, slices=4, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    same = generator(1)
    assert not torch.equal(projected_error(x, slices=4, generator=same), projected_error(x, slices=4, generator=same))


def test_sampled_errors_average_to_the_exact_one():
    x = normal(8, 16)
    exact, gradient = value_and_gradient(x, slices=None)
    value, sampled = value_and_gradient(x, slices=40_000, generator=generator())
    assert float(value) == pytest.approx(float(exact), abs=0.01)  # 3 standard errors of 0.6 / sqrt(40,000)
    assert torch.nn.functional.cosine_similarity(sampled.flatten(), gradient.flatten(), 0) > 0.999  # noise sqrt(d / s)


@pytest.mark.parametrize("slices", [None, 32])
def test_layouts_and_precisions(slices):
    x = normal(3, 8, 4, 5)
    value, grad = value_and_gradient(x, slices=slices, generator=generator())
    last = x.contiguous(memory_format=torch.channels_last)
    value_last, grad_last = value_and_gradient(last, slices=slices, generator=generator())
    torch.testing.assert_close(value_last, value)
    torch.testing.assert_close(grad_last, grad)
    assert grad_last.is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        exact, wanted = value_and_gradient(half.float(), slices=slices, generator=generator())
        with torch.autocast("cpu", torch.bfloat16):
            got, pull = value_and_gradient(half, slices=slices, generator=generator())
            inside, _ = value_and_gradient(half.float(), slices=slices, generator=generator())
        assert got.dtype == inside.dtype == torch.float32 and pull.dtype == dtype
        torch.testing.assert_close(got, exact, rtol=1e-6, atol=0)  # only the input is rounded
        torch.testing.assert_close(inside, exact, rtol=1e-6, atol=0)
        torch.testing.assert_close(pull.float(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=1e-7)
    huge = torch.full((2, 3), 6e4, dtype=torch.float16)  # its square overflows float16
    assert all(t.isfinite().all() for t in value_and_gradient(huge, slices=slices))
    assert all(t.isfinite().all() for t in value_and_gradient(torch.full((2, 3), 1e18), slices=slices))


def test_the_exact_error_compiles_without_a_break():
    x = normal(4, 6, dtype=torch.float32)
    compiled = torch.compile(lambda x: projected_error(x, slices=None), fullgraph=True, backend="aot_eager")
    for batch in (4, 3):
        h = x[:batch].clone().requires_grad_()
        compiled(h).backward()
        torch.testing.assert_close(h.grad, value_and_gradient(h, slices=None)[1])


def slow_wasserstein(samples):
    """The integral of |F_n - Phi| by the midpoint rule."""
    grid = torch.arange(-12, 12, 1e-4, dtype=torch.float64) + 5e-5
    empirical = torch.searchsorted(samples.sort().values, grid, right=True) / len(samples)
    return float((empirical - torch.special.ndtr(grid)).abs().sum() * 1e-4)


def test_sliced_distance_in_one_dimension():
    case = ORACLES["per_upper_bounds_w1_1d"]
    samples = torch.tensor(case["inputs"]["samples"], dtype=torch.float64)
    close(sliced_wasserstein(samples[:, None], slices=1), case, case["expected"]["w1"])
    close(projected_error(samples[:, None], slices=None), case, case["expected"]["per_mean"])
    for samples in (normal(1), normal(50), normal(200) * 3 + 1, torch.zeros(3).double(), normal(9).round()):
        got = float(sliced_wasserstein(samples[:, None], slices=3))
        assert got == pytest.approx(slow_wasserstein(samples), abs=2e-5)  # error of the rule
        quantiles = scipy.stats.norm.ppf((torch.arange(100_000) + 0.5) / 100_000)
        assert got == pytest.approx(scipy.stats.wasserstein_distance(samples, quantiles), abs=1e-4)  # of the tails


def test_the_error_bounds_the_sliced_distance():
    for sigma in (0.0, 0.3, 1.0, 4.0):
        x = normal(64, 5) * sigma
        distance = sliced_wasserstein(x, slices=40, generator=generator())
        assert distance <= projected_error(x, slices=40, generator=generator()) + 1e-12
    point = torch.zeros(3, 4, dtype=torch.float64)  # where the bound is sharp
    torch.testing.assert_close(sliced_wasserstein(point), projected_error(point))
    many = normal(20_000, 3, dtype=torch.float32)
    assert sliced_wasserstein(many, slices=20) < 0.02 and sliced_wasserstein(many * 2, slices=20) > 0.7
    maps = normal(4, 3, 2, 2)
    rows = maps.movedim(1, -1).reshape(-1, 3)
    assert torch.equal(
        sliced_wasserstein(maps, slices=6, generator=generator()),
        sliced_wasserstein(rows, slices=6, generator=generator()),
    )


@pytest.mark.parametrize("function", [projected_error, sliced_wasserstein])
@pytest.mark.parametrize(
    "x, arguments, message",
    [
        (torch.zeros(4, 3), dict(slices=0), "slices .* must be a whole number of at least 1; got 0"),
        (torch.zeros(4, 3), dict(slices=-3), "got -3"),
        (torch.zeros(4, 3), dict(slices=2.5), "got 2.5"),
        (torch.zeros(4, 3), dict(slices=True), "got True"),
        (torch.zeros(4, 3), dict(view="flat"), "one of location, flatten; got 'flat'"),
        (torch.zeros(0, 3), {}, r"got float32 \(0, 3\)"),
        (torch.zeros(4, 3, 0, 2), {}, r"got float32 \(4, 3, 0, 2\)"),
        (torch.zeros(3), {}, r"got float32 \(3,\)"),
        (torch.zeros(4, 3, dtype=torch.int64), {}, r"got int64 \(4, 3\)"),
    ],
)
def test_bad_input_is_refused(function, x, arguments, message):
    with pytest.raises(InputError, match=message):
        function(x, **arguments)
    with pytest.raises(InputError, match="mean, batch, sum; got 'max'"):
        projected_error(torch.zeros(4, 3), reduce="max")


def slow_errors(x, axis):
    """The error of each vector along an axis, by scipy in float64."""
    rows = x.detach().double().movedim(axis, -1).flatten(0, -2)
    found = scipy.special.hyp1f1(-0.5, rows.shape[1] / 2, -rows.square().sum(1).numpy() / 2)
    return ZERO * torch.as_tensor(found)


@pytest.mark.parametrize("shape, axes", [((2, 3, 4, 5), (1, 2, 3)), ((2, 3, 4), (1, 2)), ((2, 3), (1,))])
@pytest.mark.parametrize("slices", [None, 7])
def test_the_axis_of_the_vectors_can_be_chosen(shape, axes, slices):
    x = normal(*shape, seed=4)
    for axis in [*axes, *(axis - len(shape) for axis in axes)]:
        rows = x.movedim(axis, -1).flatten(0, -2)
        for reduce, count in (("mean", len(rows)), ("batch", shape[0]), ("sum", 1)):
            value, grad = value_and_gradient(x, slices=slices, reduce=reduce, axis=axis, generator=generator())
            same = value_and_gradient(rows, slices=slices, reduce="sum", generator=generator())
            torch.testing.assert_close(value, same[0] / count)
            torch.testing.assert_close(grad.movedim(axis, -1).flatten(0, -2), same[1] / count)
            if slices is None:
                torch.testing.assert_close(value, slow_errors(x, axis).sum() / count)
        distance = sliced_wasserstein(x, slices=5, axis=axis, generator=generator())
        torch.testing.assert_close(distance, sliced_wasserstein(rows, slices=5, generator=generator()))


@pytest.mark.parametrize("function", [projected_error, sliced_wasserstein])
@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(axis=0), r"axis must be a whole number other than 0, the batch, or None; got 0"),
        (dict(axis=1.0), "got 1.0"),
        (dict(axis=True), "got True"),
        (dict(axis="channels"), "got 'channels'"),
        (dict(axis=1, view="flatten"), "view='flatten' .* leave axis out"),
        (dict(axis=3), r"axis=3 .* \(4, 3, 2\)"),
        (dict(axis=-3), r"axis=-3 .* \(4, 3, 2\)"),
    ],
)
def test_a_bad_axis_is_refused(function, arguments, message):
    with pytest.raises(InputError, match=message):
        function(torch.ones(4, 3, 2), **arguments)
