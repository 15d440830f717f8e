"""Layer energies agree with closed forms: simplices, orthogonal rows, random directions."""

import itertools
import math
from pathlib import Path

import pytest
import timm
import torch
from support.slow_energy import slow_energy
from torch import nn

from hyperzoo import zoo
from hyperzoo.analysis import neuron_energy
from hyperzoo.analysis.neuron_energy import BINS, comparison_table, draw, layer_energies
from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.publishing import marked_tables


def layer(rows) -> nn.Linear:
    rows = torch.as_tensor(rows, dtype=torch.float64)
    linear = nn.Linear(rows.size(1), rows.size(0))
    linear.weight = nn.Parameter(rows)
    return linear


def simplex(count: int) -> torch.Tensor:
    return torch.eye(count, dtype=torch.float64) - 1 / count


@pytest.mark.parametrize("power, angular", list(itertools.product((0, 1, 2), (False, True))))
def test_the_simplex_and_orthogonal_rows_reach_the_least_energy(power, angular):
    for count in (2, 3, 5):
        # opposite rows: a cosine four roundings (4 * 2^-53) from -1 is 3e-8 off in angle, 2e-8 in 1 / angle^2
        rel = 2e-8 if angular and count == 2 else 1e-9
        (row,) = layer_energies(layer(simplex(count)), power=power, angular=angular)
        if angular and power == 0 and count > 3:
            assert row.least is None
        else:
            assert row.energy == pytest.approx(row.least, rel=rel)
        (row,) = layer_energies(layer(torch.eye(count)), power=power, angular=angular, half_space=True)
        assert row.energy == pytest.approx(row.least, rel=1e-9)
    (row,) = layer_energies(layer(torch.randn(3, 6)), power=power, angular=angular)
    assert row.least < row.energy
    for half_space, count in ((False, 4), (True, 3)):
        (row,) = layer_energies(layer(torch.randn(count, 2)), half_space=half_space)
        assert row.least is None


def test_the_simplex_is_no_minimum_for_logarithms_of_angles():
    opposite_pairs = [[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]
    for power in (0, 1, 2):
        for angular in (False, True):
            settings = dict(power=power, angular=angular)
            (pairs,), (tetrahedron,) = (layer_energies(layer(x), **settings) for x in (opposite_pairs, simplex(4)))
            assert (pairs.energy < tetrahedron.energy) == (power == 0 and angular)
            assert pairs.least is None if power == 0 and angular else pairs.least < pairs.energy


def test_random_directions_have_their_known_energy():
    # full space, chordal distance, from the density of the cosine: (d - 2) / (2 (d - 3)) for s = 2; 1 for s = 1, d = 3
    for size in (4, 5, 27, 576):
        assert neuron_energy._random(9, size, 2, False, False) == pytest.approx((size - 2) / (2 * (size - 3)), rel=1e-3)
    assert neuron_energy._random(9, 3, 1, False, False) == pytest.approx(1, rel=1e-6)
    assert neuron_energy._random(9, 2, 0, False, False) == pytest.approx(0, abs=1e-3)  # the mean of log |1 - e^it| is 0
    assert neuron_energy._random(9, 3, 2, False, False) == math.inf
    assert neuron_energy._random(2, 1, 0, False, False) == math.inf
    assert neuron_energy._random(1, 8, 2, False, False) == 0
    assert neuron_energy._random(1, 8, 2, True, False) == 0.25
    # half space, 9 rows: (2 * 8 * mean + f(2)) / 17
    assert neuron_energy._random(9, 5, 2, True, False) == pytest.approx((16 * 0.75 + 0.25) / 17, rel=1e-3)
    generator = torch.Generator().manual_seed(0)
    for power, half_space, angular in itertools.product((0, 1, 2), (False, True), (False, True)):
        rows = torch.randn(600, 12, generator=generator)
        (row,) = layer_energies(layer(rows), power=power, half_space=half_space, angular=angular)
        assert row.energy == pytest.approx(row.random, rel=0.02, abs=0.005), (
            power,
            half_space,
            angular,
        )  # 180,000 pairs


def test_angles_and_closest_pair(monkeypatch):
    degrees = torch.tensor([0.0, 7.0, 100.0, 178.0], dtype=torch.float64)
    rows = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1) * torch.tensor(
        [[1.0], [5.0], [0.1], [2.0]]
    )
    expected = [0] * BINS
    for a, b in itertools.combinations(degrees.tolist(), 2):
        expected[int(abs(a - b) // 5)] += 1
    for block in (1024, 3, 1):
        monkeypatch.setattr(neuron_energy, "_BLOCK", block)
        (row,) = layer_energies(layer(rows))
        assert row.histogram == tuple(expected)
        assert (row.closest, row.closest_deg) == ((0, 1), pytest.approx(7))
        (row,) = layer_energies(layer(rows), half_space=True)
        assert (row.closest, row.closest_deg) == ((0, 3), pytest.approx(2))


def test_single_and_zero_rows():
    (row,) = layer_energies(layer([[3.0, 4.0]]))
    assert (row.energy, row.closest, row.closest_deg, sum(row.histogram)) == (0.0, None, None, 0)
    (row,) = layer_energies(layer([[3.0, 4.0], [0.0, 0.0], [-3.0, 0.0]]))
    assert row.zeros == 1 and math.isfinite(row.energy)
    (row,) = layer_energies(layer([[1.0, 0.0], [1.0, 0.0]]))
    assert (row.closest, row.closest_deg) == ((0, 1), 0.0) and math.isfinite(row.energy)


def test_all_layers_are_measured_and_the_model_is_not_changed(tmp_path: Path):
    model = timm.create_model("resnet20_cifar").eval().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = layer_energies(model)
    assert rows[0].name == "conv1" and rows[-1].name == "fc"
    assert [row.is_output for row in rows] == [False] * 21 + [True]
    assert (rows[0].neurons, rows[0].size) == (16, 27) and (rows[-1].neurons, rows[-1].size) == (10, 64)
    for row in rows:
        assert sum(row.histogram) == row.neurons * (row.neurons - 1) // 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [row.name for row in layer_energies(model, layers="layer3.0.conv1")] == ["layer3.0.conv1", "fc"]
    for settings in (dict(), dict(power=0, half_space=True)):
        picture = draw(layer_energies(model, **settings), tmp_path / "energy.png", title="resnet20_cifar, untrained")
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_the_comparison_table_of_several_models():
    models = {"a": layer(torch.eye(3)), "b": layer([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
    head, line = comparison_table({name: layer_energies(model, power=1) for name, model in models.items()})
    # a triangle: 1 / sqrt 3; b, one opposite and two orthogonal pairs: (1/2 + 2 / sqrt 2) / 3; random: 1
    assert head == ("layer", "neurons", "random", "least", "a", "b")
    assert line == ("weight (output)", "3 x 3", "1", "0.5774", "0.7071", "0.6381")
    for models in ({}, {"a": layer(torch.eye(3)), "b": layer(torch.eye(2))}):
        with pytest.raises(InputError, match="only models with the same layers"):
            comparison_table({name: layer_energies(model) for name, model in models.items()})


def test_a_guide_shows_the_half_space_energies_of_weights():
    names = ["resnet20_cifar.plain_c10", "spherenet20.sphere_c10"]
    block = f"<!-- energy: {' '.join(names)} -->"
    text = marked_tables._with_energies(f"before\n{block}\nold\n<!-- end of energy -->\nafter\n", {})
    first, begin, head, _, *lines, end, last = text.splitlines()
    assert (first, begin, end, last) == ("before", block, "<!-- end of energy -->", "after")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    assert cells[0] == ["layer", "neurons", "random", "least", *names] and len(lines) == 22
    filters = [zoo.load(name).model.conv1.weight.detach().flatten(1) for name in names]
    expected = [slow_energy(rows, half_space=True, eps=0) for rows in filters]
    assert cells[1][:2] == ["conv1", "16 x 27"]
    assert [float(cell) for cell in cells[1][4:]] == pytest.approx(expected, rel=1e-3)  # four digits are printed


def test_unmeasurable_models_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no layer to measure"):
        layer_energies(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    with pytest.raises(UnknownNameError, match="'9'"):
        layer_energies(nn.Sequential(nn.Linear(2, 3)), layers="9")
    with pytest.raises(InputError, match="NaN"):
        layer_energies(layer([[1.0, math.nan], [1.0, 0.0]]))
    with pytest.raises(InputError, match="0, 1, 2; got 4"):
        layer_energies(nn.Linear(2, 3), power=4)
    with pytest.raises(InputError, match="no layers to draw"):
        draw([], tmp_path / "energy.png", title="none")


@pytest.mark.parametrize(
    "rule, label",
    [
        ({}, "full-space energy, s = 2"),
        (dict(power=1, half_space=True, angular=True), "half-space energy, s = 1, distances as angles"),
    ],
)
def test_the_picture_names_the_energy(rule, label, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(neuron_energy.plots, "save", lambda figure, picture: drawn.append(figure) or picture)
    draw(layer_energies(nn.Linear(3, 3), **rule), tmp_path / "x.png", title="x", **rule)
    assert drawn[0].axes[0].get_xlabel() == label
