"""Figures of mixup: networks that differ in the mixing only, seeds, and class spectra that agree with numpy."""

import math

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from hyperzoo.analysis.figures import hidden_states, perceptrons, spectrum, spiral
from hyperzoo.analysis.figures.mlp import BottleneckMLP, mlp_spiral
from hyperzoo.mixup import ManifoldMixup, Mixup


def small():
    return BottleneckMLP(2, 2, before=(8,), bottleneck=2, after=(8,))


SETTINGS = dict(epochs=2, batch_size=25, lr=1e-2, alpha=1.0)


def test_all_methods_start_from_the_same_weights_and_see_the_same_batches(monkeypatch):
    x, y = spiral.spirals(60)
    seen = []
    real = Mixup._targets
    monkeypatch.setattr(Mixup, "_targets", lambda self, x, y, **more: seen.append(y) or real(self, x, y, **more))
    state = torch.get_rng_state()
    networks = perceptrons.trained(small, x, y, **{**SETTINGS, "lr": 0.0})
    assert torch.equal(torch.get_rng_state(), state)
    assert list(networks) == ["none", "input", "hidden"] and not any(one.training for one in networks.values())
    assert len(seen) == 3 * 2 * 2  # methods, epochs, full batches
    for i in range(4):
        assert torch.equal(seen[i], seen[i + 4]) and torch.equal(seen[i], seen[i + 8])
    values = [one.state_dict() for one in networks.values()]  # a learning rate of 0 does not train
    assert all(torch.equal(values[0][key], other[key]) for other in values[1:] for key in other)
    another = perceptrons.trained(small, x, y, seed=1, **{**SETTINGS, "lr": 0.0})["none"]
    assert not torch.equal(another.fc.weight, networks["none"].fc.weight)


def test_trained_networks_differ_by_method_and_are_reproducible():
    x, y = spiral.spirals(60)
    one, two = (perceptrons.trained(small, x, y, **SETTINGS) for _ in range(2))
    other = perceptrons.trained(small, x, y, seed=1, **SETTINGS)
    weights = {method: network.fc.weight for method, network in one.items()}
    assert all(torch.equal(weights[method], two[method].fc.weight) for method in weights)
    assert not any(torch.equal(weights[method], other[method].fc.weight) for method in weights)
    assert len({tuple(weight.flatten().tolist()) for weight in weights.values()}) == 3


def test_hidden_states_are_mixed_at_the_bottleneck():
    network = small()
    mixing = perceptrons._mixing("hidden", network, 2.0)
    assert isinstance(mixing, ManifoldMixup) and mixing.layers == ("bottleneck",) and mixing.alpha == 2.0
    assert (
        perceptrons._mixing("input", network, 2.0).alpha == 2.0 and perceptrons._mixing("none", network, 2.0).alpha == 0
    )
    x = torch.randn(5, 2)
    torch.testing.assert_close(network.fc(network.after(network.act(perceptrons.bottleneck(network, x)))), network(x))


def test_the_spirals_are_interleaved():
    x, y = spiral.spirals(2000, seed=1)
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    assert x.abs().max() < 1.1 and y.bincount().tolist() == [1000, 1000]
    turned = (3 * math.pi * radius + math.pi * y - angle + math.pi) % (2 * math.pi) - math.pi
    assert turned.abs().median() < 0.2  # on its spiral: radial noise of 0.02 turns the angle by 0.19
    assert torch.equal(spiral.spirals(50)[0], spiral.spirals(50)[0])


def drawn(monkeypatch, figure, tmp_path):
    kept = []
    monkeypatch.setattr(figure.plots, "save", lambda one, picture: kept.append(one) or picture)
    assert figure.draw(tmp_path / "x.png") == tmp_path / "x.png"
    return kept[0].axes


def points(axes):
    return sum(len(part.get_offsets()) for part in axes.collections if isinstance(part, PathCollection))


def test_the_figure_of_the_spirals(monkeypatch, tmp_path):
    for name, value in (("EPOCHS", 3), ("SIDE", 20), ("POINTS", 60), ("BATCH", 20)):
        monkeypatch.setattr(spiral, name, value)
    monkeypatch.setattr(spiral, "spirals", lambda real=spiral.spirals: real(60))
    monkeypatch.setattr(spiral, "mlp_spiral", lambda: mlp_spiral(width=8))
    axes = drawn(monkeypatch, spiral, tmp_path)
    *axes, bar = axes
    assert len(axes) == 6 and all(points(one) == 60 for one in axes)
    assert bar.get_ylabel() == "probability of the second spiral"
    assert [one.get_title() for one in axes[:3]] == list(perceptrons.TITLES.values())
    network = mlp_spiral(width=8)
    grid = spiral._grid(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0]))
    assert grid[0].tolist() == [-1, 0] and grid[19].tolist() == [1, 0] and grid[-1].tolist() == [1, 3]
    states = perceptrons.bottleneck(network, grid)
    plane, inside = spiral._probability(network, grid, hidden=False), spiral._probability(network, states, hidden=True)
    torch.testing.assert_close(plane, inside)
    expected = network(grid[27:28]).softmax(1)[0, 1]
    torch.testing.assert_close(plane[1, 7], expected.detach())


def test_class_spectra_agree_with_numpy():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    states = torch.randn(90, 4, generator=generator) * torch.tensor([5.0, 1.0, 0.5, 0.1]) + labels[:, None] * 7
    got = spectrum.class_spectra(states, labels)
    h = states.double().numpy()
    spread = math.sqrt(sum(np.sum((row - h.mean(0)) ** 2) for row in h) / 90)
    for k in range(3):
        one = h[labels.numpy() == k]
        values = np.sqrt(np.linalg.eigvalsh(np.cov(one.T, bias=True))[::-1]) / spread
        np.testing.assert_allclose(got[k], values, rtol=1e-9)
    on_lines = torch.arange(30.0)[:, None] * torch.tensor([[1.0, 2.0]])
    flat = spectrum.class_spectra(on_lines, torch.arange(30) % 2)
    assert flat[:, 0].min() > 0.9 and flat[:, 1].max() < 1e-6  # a class on a line has one nonzero value
    torch.testing.assert_close(spectrum.class_spectra(3 * states - 4, labels), got)  # invariant to shift and scale


@pytest.fixture
def made_digits(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 784, generator=generator), torch.arange(60) % 10
    monkeypatch.setattr(spectrum, "digits", lambda: (x, y, x[:50], y[:50]))
    for name, value in (("EPOCHS", 1), ("BATCH", 20), ("WIDTH", 8), ("BOTTLENECK", 3)):
        monkeypatch.setattr(spectrum, name, value)
    monkeypatch.setattr(hidden_states, "EPOCHS", 1)


def test_the_figure_of_the_spectra(monkeypatch, tmp_path, made_digits):
    (axes,) = drawn(monkeypatch, spectrum, tmp_path)
    assert len(axes.lines) == 3 and all(len(line.get_xdata()) == 3 for line in axes.lines)
    for line in axes.lines:
        first, rest = line.get_ydata()[0], sum(line.get_ydata()[1:])
        assert f"first {first:.3f}, rest {rest:.3f}" in line.get_label()


def test_the_figure_of_hidden_states(monkeypatch, tmp_path, made_digits):
    axes = drawn(monkeypatch, hidden_states, tmp_path)
    assert len(axes) == 3 and all(points(one) == 50 for one in axes)
    assert all("error" in one.get_title() for one in axes)
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.texts] == [str(digit) for digit in range(10)]
    assert axes[0].get_xlabel() == "hidden unit 1"
