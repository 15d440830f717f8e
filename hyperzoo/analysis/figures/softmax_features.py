"""What an angular loss does to features: MNIST in the plane, by the losses of arXiv 1711.03189."""

from pathlib import Path

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import planar
from hyperzoo.losses import AngularSoftmax

ANNEALING = (1000.0, 5.0, 1.0)  # to its floor in 200 updates
SIZES = (10_000, 1000)  # images to train with, and to show


LOSSES = {  # operator and margin
    "W-Softmax (cosine)": ("cosine", 1),
    "A-Softmax (cosine, m = 4)": ("cosine", 4),
    "GA-Softmax (linear, m = 4)": ("linear", 4),
}


def draw(picture: Path) -> Path:
    """Draw the two features of MNIST under four losses, each network trained here (a minute); returns the picture.

    Raises:
        DataError: MNIST is not there, see `data.load_images`.
    """
    train, held = planar.mnist(*SIZES)
    losses: dict[str, planar.Loss] = {"softmax": planar.softmax}
    losses |= {title: AngularSoftmax(*margin, annealing=ANNEALING) for title, margin in LOSSES.items()}
    figure, axes = plots.figure(1, 4, (12.0, 3.3))
    for place, (title, loss) in zip(axes, losses.items(), strict=True):
        planar.scatter(place, planar.learn(train, held, loss, epochs=8), title=title)
    return plots.save(figure, picture)
