"""MNIST in a hidden layer of two units, with and without mixup (arXiv 1806.05236, Figure 3)."""

from pathlib import Path

import torch

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import perceptrons, planar, spectrum

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
    figure, places = plots.figure(1, len(networks), (11.2, 3.8))
    for axes, (method, network) in zip(places, networks.items(), strict=True):
        states = perceptrons.bottleneck(network, held)
        with torch.no_grad():
            wrong = 100 * float((network(held).argmax(1) != labels).double().mean())
        for label, color in enumerate(planar.COLORS):
            axes.scatter(*states[:SHOWN][labels[:SHOWN] == label].T, color=color, s=2, label=str(label))
        axes.set_title(f"{perceptrons.TITLES[method]}: error {wrong:.2f} %", fontsize=10)
        axes.set(xticks=(), yticks=(), xlabel="hidden unit 1", ylabel="hidden unit 2")
    handles = places[0].get_legend_handles_labels()
    figure.legend(*handles, title="digit", frameon=False, markerscale=5, loc="outside right center")
    return plots.save(figure, picture)
