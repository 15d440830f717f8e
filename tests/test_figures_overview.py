"""The overview shows what the library computes: evenly spread filters, convex mixtures, activations near N(0, 1)."""

import pytest
import torch

from hyperzoo.analysis.figures import overview
from hyperzoo.regularizers import hyperspherical_energy, sliced_wasserstein


def test_filters_end_evenly_spread_on_the_circle():
    start, end = overview.filters()
    n = overview.FILTERS
    angles = torch.atan2(end[:, 1], end[:, 0]).rad2deg().remainder(360).sort().values
    gaps = torch.diff(angles, append=angles[:1] + 360)
    assert gaps.tolist() == pytest.approx([360 / n] * n, abs=0.1)
    # the mean of 1 / (2 sin(pi k / n))^2 over k = 1 ... n - 1 is (n + 1) / 12
    assert float(hyperspherical_energy(end, eps=0)) == pytest.approx((n + 1) / 12, rel=1e-4)
    assert float(hyperspherical_energy(start, eps=0)) > 10


def test_mixed_states_lie_between_the_classes_by_their_shares():
    states, mixed, shares = overview.mixed_states()
    assert len(states) == 30 and len(mixed) == len(shares) == 360
    assert torch.allclose(shares.sum(1), torch.ones(360)) and (shares > 0).sum(1).max() == 2
    between = shares @ torch.tensor(overview.CENTERS)
    assert (mixed - between).norm(dim=1).max() < 0.5  # the spread of a class is 0.12 per coordinate
    assert ((shares.max(1).values < 0.9).float().mean()) > 0.3


def test_per_brings_activations_close_to_a_gaussian():
    without, with_per = (overview.activations(strength) for strength in (0.0, overview.STRENGTH))
    distances = [float(sliced_wasserstein(values[:, None], slices=1)) for values in (without, with_per)]
    assert distances[1] < 0.4 * distances[0] and 0.5 < float(with_per.var()) < 2 < float(without.var())


def test_the_row_has_four_panels_with_names(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(overview, "UPDATES", 2)
    monkeypatch.setattr(overview.plots, "save", lambda figure, picture: drawn.append(figure) or picture)
    assert overview.draw(tmp_path / "x.png") == tmp_path / "x.png"
    titles = [axes.get_title().partition(":")[0] for axes in drawn[0].axes]
    assert titles == ["SphereNet", "MHE", "Manifold mixup", "PER"]
    degrees, values = drawn[0].axes[0].lines[1].get_data()  # linear
    assert values.tolist() == pytest.approx([1 - 2 * angle / 180 for angle in degrees.tolist()], abs=1e-6)
    assert [text.get_text() for text in drawn[0].axes[1].get_legend().texts] == [
        "before: energy 11.2",
        "after: energy 0.8",
    ]
