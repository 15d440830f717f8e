"""Features under angular losses: two-dimensional features of MNIST under the losses of arXiv 1711.03189."""

from pathlib import Path

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import planar
from hyperzoo.losses import AngularSoftmax

ANNEALING = (1000.0, 5.0, 1.0)  # reaches its floor after 200 updates
SIZES = (10_000, 1000)  # images for training and for the figure


LOSSES = {  # operator and margin
    "W-Softmax (cosine)": ("cosine", 1),
    "A-Softmax (cosine, m = 4)": ("cosine", 4),
    "GA-Softmax (linear, m = 4)": ("linear", 4),
}


def draw(picture: Path) -> Path:
    """Train with four losses (about a minute) and draw the features of MNIST; returns the path.

    Raises:
        DataError: MNIST is not available, see `data.load_images`.
    """
    train, held = planar.mnist(*SIZES)
    losses: dict[str, planar.Loss] = {"softmax": planar.softmax}
    losses |= {title: AngularSoftmax(*margin, annealing=ANNEALING) for title, margin in LOSSES.items()}
    figure, axes = plots.figure(1, 4, (12.0, 3.3))
    for panel, (title, loss) in zip(axes, losses.items(), strict=True):
        planar.scatter(panel, planar.learn(train, held, loss, epochs=8), title=title)
    return plots.save(figure, picture)
