"""MHE and a rare class: two-dimensional features of MNIST without 98 % of its zeros (arXiv 1805.09298, Figure 4)."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import planar
from hyperzoo.data import ImageSet, subset
from hyperzoo.regularizers import hyperspherical_energy

KEPT = {"0": 0.02}
STRENGTH = 1.0
SIZES = (40_000, 1000)  # images for training and for the figure


def with_mhe(features: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss plus the energy of the class directions, which are crowded in two dimensions."""
    return planar.softmax(features, rows, labels) + STRENGTH * hyperspherical_energy(rows, eps=0)


def draw(picture: Path) -> Path:
    """Train without and with MHE, and draw features and class directions; returns the path.

    Raises:
        DataError: MNIST is not available, see `data.load_images`.
    """
    train, held = planar.mnist(*SIZES)
    rare = subset.thin(train, KEPT)
    assert isinstance(rare, ImageSet)
    figure, axes = plots.figure(1, 2, (8.6, 4.4))
    for panel, name, loss in zip(axes, ("without MHE", "with MHE"), (planar.softmax, with_mhe), strict=True):
        learned = planar.learn(rare, held, loss, epochs=4)
        zeros = learned.labels == 0
        nearest = (learned.features @ F.normalize(learned.directions).T).argmax(1) == learned.labels
        shares = [100 * nearest[part].float().mean() for part in (zeros, ~zeros)]
        title = (
            f"{name}: nearest to their class direction are\n"
            f"{shares[0]:.0f} % of the zeros, {shares[1]:.0f} % of the others"
        )
        planar.scatter(panel, learned, title=title, rare=0)
    return plots.save(figure, picture)
