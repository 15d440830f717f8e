"""MHE keeps room for a rare class: MNIST in the plane with 98 % of its zeros removed (arXiv 1805.09298, Figure 4)."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import planar
from hyperzoo.regularizers import hyperspherical_energy

KEPT = {"0": 0.02}
STRENGTH = 1.0
SIZES = (40_000, 1000)  # images to train with, and to show


def with_mhe(features: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """The same with the energy of the class rows, whose lengths are left alone: in two dimensions they are crowded."""
    return planar.softmax(features, rows, labels) + STRENGTH * hyperspherical_energy(rows, eps=0)


def draw(picture: Path) -> Path:
    """Draw the two features and the class directions without and with MHE, both trained here; returns the picture.

    Raises:
        DataError: MNIST is not there, see `data.load_images`.
    """
    train, held = planar.mnist(*SIZES)
    rare = train.thin(KEPT)
    figure, axes = plots.figure(1, 2, (8.6, 4.4))
    for place, name, loss in zip(axes, ("without MHE", "with MHE"), (planar.softmax, with_mhe), strict=True):
        learned = planar.learn(rare, held, loss, epochs=4)
        zeros = learned.labels == 0
        nearest = (learned.features @ F.normalize(learned.directions).T).argmax(1) == learned.labels
        shares = [100 * nearest[part].float().mean() for part in (zeros, ~zeros)]
        title = (
            f"{name}: nearest to their own arrow are\n{shares[0]:.0f} % of the zeros, {shares[1]:.0f} % of the others"
        )
        planar.scatter(place, learned, title=title)
    return plots.save(figure, picture)
