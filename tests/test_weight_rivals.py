"""Orthogonality and minimum angle, the alternatives to MHE, equal their formulas."""

import itertools
import math

import pytest
import torch
from support import oracles
from support.oracles import close, normal
from support.slow_energy import EACH_BLOCK, distance, small, unit

from hyperzoo.errors import InputError
from hyperzoo.regularizers import (
    MinimumAngle,
    Orthogonality,
    minimum_angle,
    nearest_angle,
    orthogonality_penalty,
)

ORACLES = oracles.load("mhe")


def slow_orthogonality(rows) -> float:
    rows = rows.tolist()
    return 0.5 * sum(
        (sum(a * b for a, b in zip(u, v, strict=True)) - (i == j)) ** 2
        for (i, u), (j, v) in itertools.product(enumerate(rows), repeat=2)
    )


def test_orthogonality_equals_the_loops():
    case = ORACLES["sc_orth_penalty"]
    w = torch.tensor(case["inputs"]["W"], dtype=torch.float64)
    close(case["inputs"]["coefficient"] * orthogonality_penalty(w), case["expected"], case["tolerance"])
    for count, size in ((3, 7), (7, 3), (4, 4), (1, 2), (3, 1)):
        w = normal(count, size)
        close(orthogonality_penalty(w), slow_orthogonality(w), 1e-10)
        units = torch.tensor([unit(row, 1e-4) for row in w.tolist()], dtype=torch.float64)
        close(orthogonality_penalty(w, unit_rows=True), slow_orthogonality(units), 1e-10)
        for unit_rows in (False, True):
            assert torch.autograd.gradcheck(
                lambda w: orthogonality_penalty(w, unit_rows=unit_rows),  # noqa: B023
                w.clone().requires_grad_(),
            )
    stacked = normal(2, 5, 3)
    close(orthogonality_penalty(stacked), [slow_orthogonality(rows) for rows in stacked], 1e-10)


def test_orthogonality_has_its_floor():
    case = ORACLES["sc_orth_floor"]
    for shape, floor in zip(case["inputs"]["cases"], case["expected"], strict=True):
        basis, _ = torch.linalg.qr(normal(shape["n"], shape["fan_in"]))  # orthonormal columns: a tight frame of rows
        close(2e-4 * orthogonality_penalty(basis), floor, case["tolerance"])
        assert orthogonality_penalty(basis + 0.01 * normal(*basis.shape, seed=1)) > orthogonality_penalty(basis)


def test_orthogonality_of_a_model():
    net = small().double()
    value = Orthogonality(net, strength=2e-4)()
    close(value, 2e-4 * sum(slow_orthogonality(net[i].weight.detach().flatten(1)) for i in (0, 1, 2)), 1e-10)
    both = Orthogonality(net, strength=2e-4, output=1.0)()
    close(both - value, slow_orthogonality(net[4].weight.detach()), 1e-10)
    chosen = Orthogonality(net, strength=2e-4, layers="1", unit_rows=True).report()
    units = torch.tensor([unit(row, 1e-4) for row in net[1].weight.flatten(1).tolist()], dtype=torch.float64)
    assert chosen == {"1": pytest.approx(slow_orthogonality(units), rel=1e-10)}


@EACH_BLOCK
def test_nearest_angle_equals_the_loops(block, monkeypatch):
    monkeypatch.setattr(minimum_angle, "BLOCK", block)
    for count, size in ((8, 3), (2, 5), (10, 2)):
        w = normal(count, size)
        units = [unit(row, 1e-4) for row in w.tolist()]
        nearest = [min(distance(u, v, True) for j, v in enumerate(units) if j != i) for i, u in enumerate(units)]
        close(nearest_angle(w), sum(nearest) / count, 1e-10)
        assert torch.autograd.gradcheck(nearest_angle, w.requires_grad_())
    close(nearest_angle(normal(2, 6, 3)), [nearest_angle(rows).item() for rows in normal(2, 6, 3)], 1e-10)
    w = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    nearest_angle(w).backward()
    assert w.grad.isfinite().all()
    assert nearest_angle(torch.ones(1, 3)).item() == pytest.approx(math.pi)


def test_minimum_angle_of_a_model_grows_in_training():
    net = small().double()
    term = MinimumAngle(net, hidden=0.07, output=0.03)
    angles = {str(i): nearest_angle(net[i].weight.detach().flatten(1)).item() for i in (0, 1, 2, 4)}
    assert term.report() == {name: pytest.approx(-angle) for name, angle in angles.items()}
    close(term(), -0.07 * (angles["0"] + angles["1"] + angles["2"]) - 0.03 * angles["4"], 1e-10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        term().backward()
        optimizer.step()
    assert nearest_angle(net[1].weight.detach().flatten(1)) > angles["1"]


@pytest.mark.parametrize("function", [orthogonality_penalty, nearest_angle])
@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, 3, dtype=torch.int64)], ids=["vector", "integers"])
def test_what_is_no_matrix_of_numbers_is_refused(function, wrong):
    with pytest.raises(InputError, match="expected"):
        function(wrong)
