"""hyperspherical_energy and label_energy: values and gradients of their formulas."""

import itertools
import math

import pytest
import torch
from support import oracles
from support.oracles import close, normal
from support.slow_energy import EACH_BLOCK, EACH_VARIANT, VARIANTS, distance, slow_energy, slow_label_energy, unit
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.regularizers import hyperspherical_energy, label_energy, pair_energy
from hyperzoo.regularizers.neurons import select

ORACLES = oracles.load("mhe")


def named(key: str) -> dict:
    """'half_ang_s1' or 'euc_s0' as arguments."""
    return dict(power=int(key[-1]), angular="ang" in key, half_space="half" in key)


# The energy against loops


@EACH_BLOCK
@EACH_VARIANT
def test_energy_equals_the_loops(power, half_space, angular, block, monkeypatch):
    monkeypatch.setattr(pair_energy, "BLOCK", block)
    settings = dict(power=power, half_space=half_space, angular=angular)
    for seed, (count, size, eps) in enumerate([(7, 4, 1e-4), (2, 9, 0.0), (8, 1, 0.3), (1, 3, 1e-4), (9, 2, 0.05)]):
        w = normal(count, size, seed=seed)
        expected = slow_energy(w, **settings, eps=eps)
        close(hyperspherical_energy(w, **settings, eps=eps), expected, 1e-10)  # rounding only
        got = hyperspherical_energy(w.float(), **settings, eps=eps)
        assert got.dtype == torch.float32
        close(got, slow_energy(w.float(), **settings, eps=eps), 1e-3)  # the nearest pairs amplify roundings of c


@EACH_BLOCK
@EACH_VARIANT
def test_gradient_equals_difference_quotients(power, half_space, angular, block, monkeypatch):
    monkeypatch.setattr(pair_energy, "BLOCK", block)
    w = normal(7, 4, seed=3).requires_grad_()
    labels = torch.tensor([2, 0, 2, 6, 5])
    settings = dict(power=power, angular=angular, eps=0.01)
    assert torch.autograd.gradcheck(lambda w: hyperspherical_energy(w, half_space=half_space, **settings), w)
    assert torch.autograd.gradcheck(lambda w: label_energy(w, labels, **settings), w)


@pytest.mark.parametrize("angular, half_space", list(itertools.product((False, True), repeat=2)))
def test_authors_code_has_gradients(angular, half_space):
    w = normal(4, 3).requires_grad_()
    for power in (0, 1, 2):
        settings = dict(power=power, angular=angular, half_space=half_space, eps=0, authors_code=True)
        assert torch.autograd.gradcheck(lambda w: hyperspherical_energy(w, **settings), w)  # noqa: B023


def test_strengths_convert_from_the_authors_convention():
    def gradient(w, **settings):
        leaf = w.clone().requires_grad_()
        hyperspherical_energy(leaf, **settings).backward()
        return leaf.grad

    for power, factor in ((0, 2), (1, 1), (2, 1)):
        w = normal(6, 4)
        theirs, ours = gradient(w, power=power, authors_code=True), gradient(w, power=power)
        torch.testing.assert_close(theirs, factor * ours, rtol=1e-10, atol=1e-12)
    # t / pi + 1e-4 for the angle t of a pair: the derivatives have the ratio (t / (t + 1e-4 pi))^(s + 1)
    for power, factor in ((0, 1), (1, math.pi), (2, math.pi**2)):
        for seed in range(5):
            w = normal(2, 4, seed=seed)
            t = distance(*(unit(row, 1e-4) for row in w.tolist()), True)
            ratio = (t / (t + 1e-4 * math.pi)) ** (power + 1)
            assert 0.99 < ratio < 1
            theirs = gradient(w, power=power, angular=True, authors_code=True)
            ours = gradient(w, power=power, angular=True)
            torch.testing.assert_close(theirs, factor * ratio * ours, rtol=1e-10, atol=1e-12)


# The energy against the oracles


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_energies(dtype):
    tolerance_of = "tolerance" if dtype == torch.float64 else "tolerance_float32"
    seen = 0
    for name, case in ORACLES.items():
        if case["method"] != "mhe.energy" or case[tolerance_of] is None:
            continue
        given, expected, tolerance = case["inputs"], case["expected"], case[tolerance_of]
        eps = given["eps"]
        if isinstance(expected, float):
            expected = {f"{'half' if given['half_space'] else 'full'}_{given['distance'][:3]}_s{given['s']}": expected}
        if name == "mhe_regular_ngon":
            for n, *values in zip(given["n"], expected["s0"], expected["s2"], strict=True):
                angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
                points = torch.stack([angle.cos(), angle.sin()], 1).to(dtype)
                for power, value in zip((0, 2), values, strict=True):
                    close(hyperspherical_energy(points, power=power, eps=eps), value, tolerance)
                    seen += 1
            continue
        if name.startswith("mhe_simplex"):
            n = given["n"]
            w = (torch.eye(n, dtype=torch.float64) - 1 / n).to(dtype)
        else:
            w = torch.tensor(given["W"], dtype=dtype)
        if given.get("layout") == "IOHW":
            layer = nn.ConvTranspose2d(2, 3, 2)
            layer.weight = nn.Parameter(w)
            w = select(layer).hidden[0].rows()
        if name == "mhe_two_opposite_rows_half":
            expected = {f"half_{key}": value for key, value in expected["self_pair_constant"].items()}
        flat = {}
        for key, value in expected.items():
            flat |= {f"{key}_{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
        for key, value in flat.items():
            close(hyperspherical_energy(w.flatten(1), eps=eps, **named(key)), value, tolerance)
            seen += 1
    assert seen >= 90


def test_published_values_of_the_authors_code():
    case = ORACLES["mhe_authors_code_values"]
    w = torch.tensor(case["inputs"]["W"], dtype=torch.float64)
    for space, values in case["expected"].items():
        for key, value in values.items():
            settings = dict(power=int(key[-1]), angular=key[0] == "a", half_space=space == "half")
            close(hyperspherical_energy(w, authors_code=True, **settings), value, case["tolerance"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_gradients(dtype):
    cases = [(ORACLES["mhe_gradient"], key, value) for key, value in ORACLES["mhe_gradient"]["expected"].items()]
    case = ORACLES["mhe_gradient_two_orthogonal"]
    cases += [(case, f"{key}_euc_s2", value) for key, value in case["expected"].items()]
    for case, key, value in cases:
        w = torch.tensor(case["inputs"]["W"], dtype=dtype, requires_grad=True)
        hyperspherical_energy(w, eps=0, **named(key)).backward()
        close(w.grad, value, case["tolerance" if dtype == torch.float64 else "tolerance_float32"])


def test_published_minibatch():
    case = ORACLES["mhe_minibatch_output"]
    w = torch.tensor(case["inputs"]["W"], dtype=torch.float64)  # 0.2 in float32 is off by 3e-9
    labels = torch.tensor(case["inputs"]["labels"])
    for key, value in case["expected"].items():
        close(label_energy(w, labels, power=int(key[-1]), eps=0), value, case["tolerance"])


# Special points


@EACH_VARIANT
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_special_rows_have_finite_values_and_gradients(power, half_space, angular, dtype):
    rows = [[3.0, 4.0], [3.0, 4.0], [-6.0, -8.0], [0.0, 0.0], [1e15, 0.0], [1e15, 1.0], [0.0, 1e-12], [-1e6, 0.0]]
    for eps in (1e-4, 0.0):
        w = torch.tensor(rows, dtype=dtype, requires_grad=True)
        energy = hyperspherical_energy(w, power=power, half_space=half_space, angular=angular, eps=eps)
        energy.backward()
        assert energy.isfinite() and w.grad.isfinite().all()
        by_label = label_energy(w, torch.tensor([0, 4, 4]), power=power, angular=angular, eps=eps)
        by_label.backward()
        assert by_label.isfinite() and w.grad.isfinite().all()


def test_equal_rows_push_each_other_apart_and_clamped_ones_do_not():
    for scale, pushes in ((1.0, True), (1e3, False)):  # eps / |w|^2: 1e-4, and 1e-10, inside the margin
        w = torch.tensor([[1.0, 0.0], [1.0, 1e-3]], dtype=torch.float64).mul(scale).requires_grad_()
        hyperspherical_energy(w).backward()
        if pushes:
            assert w.grad[0, 1] > 0 > w.grad[1, 1]
        else:
            assert w.grad.count_nonzero() == 0
    case = ORACLES["mhe_two_equal_rows_clamped"]
    w = torch.tensor(case["inputs"]["W"])
    assert hyperspherical_energy(w).item() == pytest.approx(case["expected"]["euc_s2"], rel=0.1)  # float32 near 1


def test_a_single_row_has_no_gradient():
    for power, half_space, angular in VARIANTS:
        w = torch.tensor([[0.3, -2.0, 1.0]], requires_grad=True)
        hyperspherical_energy(w, power=power, half_space=half_space, angular=angular).backward()
        assert w.grad.count_nonzero() == 0
    w = torch.tensor([[0.3, -2.0]], requires_grad=True)
    assert label_energy(w, torch.tensor([0])).item() == 0


def test_a_zero_row_is_orthogonal_to_all():
    for eps in (0.0, 1e-4):
        close(hyperspherical_energy(torch.tensor([[0.0, 0.0], [5.0, 1.0]]), eps=eps), 0.5, 1e-6)  # float32


@EACH_VARIANT
def test_the_gradient_is_orthogonal_to_every_row_and_the_norm_does_not_matter(power, half_space, angular):
    settings = dict(power=power, half_space=half_space, angular=angular, eps=0)
    w = normal(6, 5).requires_grad_()
    energy = hyperspherical_energy(w, **settings)
    energy.backward()
    assert (w.grad * w).sum(1).abs().max() < 1e-12  # rounding
    scaled = w.detach() * torch.tensor([1.0, 2.0, 0.1, 30.0, 1.0, 7.0], dtype=torch.float64)[:, None]
    close(hyperspherical_energy(scaled, **settings), energy.detach(), 1e-12)


def test_a_second_derivative_is_refused_not_wrong():
    w = normal(3, 2).requires_grad_()
    for energy in (lambda: hyperspherical_energy(w), lambda: label_energy(w, torch.tensor([0, 2]))):
        for value in (energy(), energy().square()):  # with a constant incoming gradient, and with one that is not
            with pytest.raises(InputError, match="no second derivatives"):
                torch.autograd.grad(value, w, create_graph=True)
    compiled = torch.compile(lambda: hyperspherical_energy(w), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="double backward"):
        (first,) = torch.autograd.grad(compiled(), w, create_graph=True)
        first.sum().backward()


@EACH_BLOCK
@pytest.mark.parametrize("power, angular", list(itertools.product((0, 1, 2), (False, True))))
def test_label_energy_equals_the_loops(power, angular, block, monkeypatch):
    monkeypatch.setattr(pair_energy, "BLOCK", block)
    w, labels = normal(8, 3, seed=5), [7, 0, 7, 3, 7]
    got = label_energy(w, torch.tensor(labels), power=power, angular=angular)
    close(got, slow_label_energy(w, labels, power, angular, 1e-4), 1e-10)
    each = label_energy(w, torch.arange(8), power=power, angular=angular)
    close(each, slow_energy(w, power, False, angular), 1e-10)


def test_two_neurons_on_the_circle_end_opposite_and_in_half_space_orthogonal():
    for half_space, angle in ((False, math.pi), (True, math.pi / 2)):
        w = torch.tensor([[1.0, 0.0], [0.9, 0.3]], dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            (grad,) = torch.autograd.grad(hyperspherical_energy(w, half_space=half_space), w)
            w.data -= 0.1 * grad.clamp(-1, 1)
        assert distance(*(unit(row, 0) for row in w.tolist()), True) == pytest.approx(angle, abs=0.05)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (torch.tensor([[1.0, 0.0], [0.0, math.nan]]), "rows 1 contain NaN"),
        (torch.tensor([[math.inf, 0.0], [0.0, 1.0]]), "rows 0 contain NaN or infinity"),
        (torch.ones(3), r"got \(3,\)"),
        (torch.ones(2, 3, 3), r"got \(2, 3, 3\)"),
        (torch.ones(0, 3), r"got \(0, 3\)"),
        (torch.ones(2, 3, dtype=torch.int64), r"got \(2, 3\) torch.int64"),
        (torch.full((2, 3), 1e30), "overflow"),
    ],
    ids=str,
)
def test_unsound_rows_are_refused(wrong, message):
    for energy in (hyperspherical_energy, lambda w: label_energy(w, torch.tensor([0]))):
        with pytest.raises(InputError, match=message):
            energy(wrong)


@pytest.mark.parametrize("labels", [[0, 3], [-1], [], [0.0], [[0]]], ids=str)
def test_unsound_labels_are_refused(labels):
    with pytest.raises(InputError, match="labels"):
        label_energy(torch.eye(3), torch.tensor(labels))
