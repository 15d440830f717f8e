"""What an angular loss does to features: MNIST in the plane, as in section 5.1 of arXiv 1711.03189."""

from pathlib import Path

from hyperzoo import plots
from hyperzoo.figures import planar
from hyperzoo.losses import AngularSoftmax

ANNEALING = (1000.0, 5.0, 1.0)  # to its floor in 200 updates
SIZES = (15_000, 2000)  # images to train with, and to show


LOSSES: dict[str, planar.Loss] = {
    "softmax": planar.softmax,
    "W-Softmax (cosine)": AngularSoftmax("cosine"),
    "A-Softmax (cosine, m = 4)": AngularSoftmax("cosine", 4, annealing=ANNEALING),
    "GA-Softmax (linear, m = 4)": AngularSoftmax("linear", 4, annealing=ANNEALING),
}


def draw(picture: Path) -> Path:
    """Draw the two features of MNIST under four losses, each network trained here (two minutes); returns the picture.

    Raises:
        DataError: MNIST is not there, see `data.load_images`.
    """
    train, held = planar.mnist(*SIZES)
    figure, axes = plots.figure(1, 4, (14.0, 3.8))
    for place, (title, loss) in zip(axes, LOSSES.items(), strict=True):
        planar.scatter(place, planar.learn(train, held, loss), title=title)
    return plots.save(figure, picture)
