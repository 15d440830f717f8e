"""Figures of two-dimensional features and directions show what their networks and neurons learned."""

import math

import pytest
import torch
from support.slow_energy import slow_energy
from torch import nn

from hyperzoo.analysis.figures import half_space, planar, rare_class, softmax_features
from hyperzoo.data import ImageSet


def bars(count=240, classes=3, channels=1, seed=0) -> ImageSet:
    """Gray images with a bright bar whose position gives the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 100, (count, channels, 28, 28), generator=generator, dtype=torch.uint8)
    for label in range(classes):
        start = 28 * label // classes
        images[labels == label, :, start : start + 2] = 255
    return ImageSet("mnist", "train", images, labels, tuple(map(str, range(classes))), "made")


def test_training_is_seeded_and_restores_the_global_generator():
    train, held = bars(), bars(60, seed=1)
    state = torch.get_rng_state()
    first, again, other = (planar.learn(train, held, planar.softmax, epochs=6, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert first.features.shape == (60, 2) and first.directions.shape == (3, 2)
    assert torch.equal(first.features, again.features) and torch.equal(first.directions, again.directions)
    assert not torch.equal(first.features, other.features)
    assert torch.equal(first.labels, held.labels)
    right = (first.features @ first.directions.T).argmax(1) == first.labels
    assert right.float().mean() > 0.9


def test_the_plain_loss_uses_inner_products():
    x, rows, labels = torch.randn(4, 2), torch.randn(3, 2), torch.tensor([0, 2, 1, 1])
    expected = [
        math.log(sum(math.exp(float(x[i] @ row)) for row in rows)) - float(x[i] @ rows[label])
        for i, label in enumerate(labels.tolist())
    ]
    assert planar.softmax(x, rows, labels).item() == pytest.approx(sum(expected) / 4, rel=1e-5)
    energy = rare_class.with_mhe(x, rows, labels) - planar.softmax(x, rows, labels)
    assert energy.item() == pytest.approx(rare_class.STRENGTH * slow_energy(rows, eps=0), rel=1e-3)


def learned() -> planar.Learned:
    features = torch.tensor([[2.0, 0.0], [2.0, 0.1], [0.0, 2.0], [-2.0, 0.0], [2.0, 0.0]])
    directions = torch.tensor([[0.5, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    return planar.Learned(features, torch.tensor([0, 0, 1, 2, 2]), directions)


@pytest.fixture
def drawn(monkeypatch):
    """Collect figures instead of writing them, and the arguments of trainings instead of training."""
    figures, asked = [], []

    def learn(train, held, loss, *, epochs):
        asked.append((train, held, loss))
        return learned()

    monkeypatch.setattr(planar, "learn", learn)
    monkeypatch.setattr(planar.data, "load_images", lambda name, split: bars(3000, classes=10, channels=3))
    for module in (rare_class, softmax_features, half_space):
        monkeypatch.setattr(module.plots, "save", lambda figure, picture: figures.append(figure) or picture)
    for module, sizes in ((rare_class, (2000, 500)), (softmax_features, (500, 100))):
        monkeypatch.setattr(module, "SIZES", sizes)
    return figures, asked


def test_a_rare_class_is_thinned_and_the_title_reports_its_accuracy(drawn, tmp_path):
    figures, asked = drawn
    rare_class.draw(tmp_path / "x.png")
    (without, train), (other, same) = ((loss, images) for images, _, loss in asked)
    assert (without, other) == (planar.softmax, rare_class.with_mhe) and train is same
    assert train.images.shape[1:] == (1, 28, 28) and train.labels.bincount().tolist() == [4] + 9 * [200]
    assert asked[0][1].labels.bincount().tolist() == 10 * [50]
    titles = [axes.get_title() for axes in figures[0].axes]
    # both zeros are right; one of the three others, a 2 in the direction of class 0, is wrong
    shares = "nearest to their class direction are\n100 % of the zeros, 67 % of the others"
    assert titles == [f"{name} MHE: {shares}" for name in ("without", "with")]
    for axes in figures[0].axes:  # the rare class is brought out, and the axes are named
        rare, *others = axes.collections
        assert all(rare.get_sizes()[0] >= 4 * other.get_sizes()[0] for other in others)
        assert rare.get_zorder() > max(other.get_zorder() for other in others)
        assert "0 (rare)" in [text.get_text() for text in axes.texts]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("feature 1", "feature 2")


def test_every_loss_has_a_panel_of_points_and_arrows(drawn, tmp_path):
    figures, asked = drawn
    softmax_features.draw(tmp_path / "x.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["softmax", *softmax_features.LOSSES]
    plain, *angular = (loss for _, _, loss in asked)
    assert plain is planar.softmax
    assert [(loss.operator, loss.margin, int(loss.iteration)) for loss in angular[1:]] == [
        ("cosine", 4, 0),
        ("linear", 4, 0),
    ]
    assert (angular[0].operator, angular[0].margin) == ("cosine", 1)
    axes = figures[0].axes[0]
    for label, points in enumerate(axes.collections):
        expected = learned().features[learned().labels == label]
        torch.testing.assert_close(torch.tensor(points.get_offsets().data).float(), expected)
    tips = torch.tensor([text.xy for text in axes.texts if hasattr(text, "xy")])
    torch.testing.assert_close(nn.functional.normalize(tips), torch.tensor([[1.0, 0], [0, 1], [-1, 0]]))
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["0", "1", "2"]


@pytest.mark.parametrize(("half", "end"), [(False, 180), (True, 90)])
def test_two_neurons_end_opposite_or_orthogonal_in_half_space(half, end):
    path = half_space.descend(half)
    apart = path[:, 1] - path[:, 0]
    assert apart[0] == pytest.approx(30) and apart[-1] == pytest.approx(end, abs=1)
    assert (path.sum(1) - 180).abs().max() < 1e-9  # they move by equal angles in opposite directions
    values = [half_space._energy(angle, half) for angle in apart[::50].tolist()]
    assert values == sorted(values, reverse=True)


def test_the_energies_have_their_minima_there(drawn, tmp_path):
    half_space.draw(tmp_path / "x.png")
    curves = {line.get_label(): line.get_xydata() for line in drawn[0][0].axes[2].lines}
    for name, lowest, value in (("full space", 179, None), ("half space", 90, 5 / 12)):
        degrees, energy = min(curves[name].tolist(), key=lambda point: point[1])
        assert degrees == lowest and (value is None or energy == pytest.approx(value))
