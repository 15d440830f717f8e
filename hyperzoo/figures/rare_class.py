"""MHE keeps room for a rare class: MNIST in the plane with 98 % of its zeros removed (arXiv 1805.09298, Figure 4)."""

from pathlib import Path

from torch import Tensor

from hyperzoo import plots
from hyperzoo.figures import planar
from hyperzoo.regularizers import hyperspherical_energy

KEPT = {"0": 0.02}
STRENGTH = 10.0
SIZES = (20_000, 2000)  # images to train with, and to show


def with_mhe(features: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """The same with the energy of the class rows."""
    return planar.softmax(features, rows, labels) + STRENGTH * hyperspherical_energy(rows)


def draw(picture: Path) -> Path:
    """Draw the two features and the class directions without and with MHE, both trained here; returns the picture.

    Raises:
        DataError: MNIST is not there, see `data.load_images`.
    """
    train, held = planar.mnist(*SIZES)
    rare = train.thin(KEPT)
    figure, axes = plots.figure(1, 2, (8.6, 4.4))
    for place, name, loss in zip(axes, ("without MHE", "with MHE"), (planar.softmax, with_mhe), strict=True):
        learned = planar.learn(rare, held, loss)
        zeros = learned.labels == 0
        right = (learned.features @ learned.directions.T).argmax(1) == learned.labels
        share, others = 100 * right[zeros].float().mean(), 100 * right[~zeros].float().mean()
        planar.scatter(place, learned, title=f"{name}: {share:.0f} % of the zeros right, {others:.0f} % of the others")
    return plots.save(figure, picture)
