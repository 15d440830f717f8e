"""The operators of SphereConv and their slopes (arXiv 1711.03189)."""

from pathlib import Path

import torch

from hyperzoo.analysis import plots
from hyperzoo.layers.operators import OPERATORS, angular

SHOWN = (("cosine", 0.3), ("linear", 0.3), ("sigmoid", 0.1), ("sigmoid", 0.3), ("sigmoid", 0.7))


def draw(picture: Path) -> Path:
    """Draw g(theta) of every operator, and its slope; returns the path."""
    degrees = torch.linspace(0.5, 179.5, 359, dtype=torch.float64)
    figure, (left, right) = plots.figure(1, 2, (9.0, 3.6))
    for (operator, k), (color, style) in zip(SHOWN, plots.STYLES, strict=False):
        theta = degrees.deg2rad().requires_grad_()
        value = angular(theta.cos(), operator, k)
        (slope,) = torch.autograd.grad(value.sum(), theta)
        left.plot(degrees, value.detach(), style, color=color, label=OPERATORS[operator].label.format(k=k))
        right.plot(degrees, slope, style, color=color)
    for axes, text in ((left, "g(θ)"), (right, "dg/dθ (per radian)")):
        axes.set_xlabel("angle θ between filter and patch (degrees)")
        axes.set_ylabel(text)
        axes.set_xticks(range(0, 181, 45))
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    return plots.save(figure, picture)
