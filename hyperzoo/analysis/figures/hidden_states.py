"""MNIST in a hidden layer of two units, with and without mixup (arXiv 1806.05236, Figure 3)."""

from pathlib import Path

import torch

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import perceptrons, spectrum

EPOCHS, SHOWN = 4, 3000


def draw(picture: Path) -> Path:
    """Draw the two hidden units for validation digits, one color per class; returns the path."""
    x, y, held, labels = spectrum.digits()
    networks = perceptrons.trained(
        lambda: spectrum.network(2),
        x,
        y,
        epochs=EPOCHS,
        batch_size=spectrum.BATCH,
        lr=spectrum.LR,
        alpha=spectrum.ALPHA,
    )
    figure, places = plots.figure(1, len(networks), (10.5, 3.8))
    for axes, (method, network) in zip(places, networks.items(), strict=True):
        states = perceptrons.bottleneck(network, held)
        with torch.no_grad():
            wrong = 100 * float((network(held).argmax(1) != labels).double().mean())
        axes.scatter(*states[:SHOWN].T, c=labels[:SHOWN], cmap="tab10", s=2)
        axes.set_title(f"{perceptrons.TITLES[method]}: error {wrong:.2f} %", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    return plots.save(figure, picture)
