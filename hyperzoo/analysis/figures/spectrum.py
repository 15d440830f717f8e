"""Flattening of classes by Manifold Mixup: class spectra at a bottleneck (arXiv 1806.05236, section 3, Table 8)."""

from pathlib import Path

import torch
from torch import Tensor

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import perceptrons, planar
from hyperzoo.analysis.figures.mlp import BottleneckMLP

WIDTH, BOTTLENECK = 256, 12  # the paper uses layers of 1024
EPOCHS, BATCH, LR, ALPHA = 5, 100, 1e-3, 2.0
TRAINED, HELD = 45_000, 10_000  # images for training and for the figure, both of the training set


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (N, 784) in [0, 1], their labels (N,), and the same for validation."""
    train, held = planar.mnist(TRAINED, HELD)
    return train.images.flatten(1) / 255, train.labels, held.images.flatten(1) / 255, held.labels


def network(bottleneck: int) -> BottleneckMLP:
    """Three layers, a bottleneck, and four layers."""
    return BottleneckMLP(784, 10, before=(WIDTH,) * 3, bottleneck=bottleneck, after=(WIDTH,) * 4)


def class_spectra(states: Tensor, labels: Tensor) -> Tensor:
    """Singular values of the centered hidden states of each class, in units of the spread of all states.

    s_k = singular values of (h_i - mean_k) over the images i of class k, divided by sqrt(n_k); the unit is the root
    mean squared distance of all states from their mean. A class on a line has one nonzero value.

    Shapes:
        states: (N, D).   labels: (N,).   return: (K, D), largest first.
    Differs:
        The paper does not state whether the states are centered, and has no unit: its values grow with the states.
    """
    states = states.double()
    spread = (states - states.mean(0)).square().sum(1).mean().sqrt()
    rows = [states[labels == label] for label in labels.unique()]
    return torch.stack([torch.linalg.svdvals(one - one.mean(0)) / len(one) ** 0.5 for one in rows]) / spread


def draw(picture: Path) -> Path:
    """Draw the class spectra without mixup, with input mixup and with manifold mixup; returns the path."""
    x, y, held, labels = digits()
    networks = perceptrons.trained(
        lambda: network(BOTTLENECK), x, y, epochs=EPOCHS, batch_size=BATCH, lr=LR, alpha=ALPHA
    )
    figure, axes = plots.figure(1, 1, (6.5, 4.2))
    for (method, one), (color, style) in zip(networks.items(), plots.STYLES, strict=False):
        values = class_spectra(perceptrons.bottleneck(one, held), labels)
        wrong = 100 * float((one(held).argmax(1) != labels).double().mean())
        first, rest = float(values[:, 0].mean()), float(values[:, 1:].sum(1).mean())
        label = f"{perceptrons.TITLES[method]}: first {first:.3f}, rest {rest:.3f}; error {wrong:.2f} %"
        places = range(1, values.shape[1] + 1)
        axes.plot(places, values.mean(0), style, color=color, marker="o", label=label)
        axes.fill_between(places, values.amin(0), values.amax(0), color=color, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("singular value of a class, by size: mean and range of the classes")
    axes.set_ylabel("singular value / spread of all states")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return plots.save(figure, picture)
