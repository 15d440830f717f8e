"""Mixup on two spirals: decision boundary and hidden states (arXiv 1806.05236, Figure 1)."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import perceptrons
from hyperzoo.analysis.figures.mlp import BottleneckMLP, mlp_spiral

POINTS, NOISE = 600, 0.02
EPOCHS, BATCH, LR, ALPHA = 200, 100, 2e-3, 1.0
SIDE = 200  # points per axis of the plotted surfaces


def spirals(count: int = POINTS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points (N, 2) on two interleaved spirals, in about [-1, 1], and the index of their spiral (N,)."""
    generator = torch.Generator().manual_seed(seed)
    arms = torch.arange(count) % 2
    radius = 0.1 + 0.9 * torch.rand(count, generator=generator).sqrt()
    angle = 3 * math.pi * radius + math.pi * arms
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points + NOISE * torch.randn(count, 2, generator=generator), arms


def draw(picture: Path) -> Path:
    """Draw the class probability over the plane and over the two hidden units; returns the path."""
    x, y = spirals()
    networks = perceptrons.trained(mlp_spiral, x, y, epochs=EPOCHS, batch_size=BATCH, lr=LR, alpha=ALPHA)
    figure, axes = plots.figure(2, len(networks), (9.8, 6.0))
    for (upper, lower), (method, network) in zip(axes.T, networks.items(), strict=True):
        hidden = perceptrons.bottleneck(network, x)
        low, high = hidden.aminmax(dim=0)
        margin = 0.1 * (high - low)
        plane, limit = torch.tensor([-1.2, -1.2]), torch.tensor([1.2, 1.2])
        shown = _surface(upper, _probability(network, _grid(plane, limit), hidden=False), plane, limit, x, y)
        states = _grid(low - margin, high + margin)
        _surface(lower, _probability(network, states, hidden=True), low - margin, high + margin, hidden, y)
        upper.set_title(perceptrons.TITLES[method])
    axes[0, 0].set_ylabel("input plane")
    axes[1, 0].set_ylabel("hidden units")
    figure.colorbar(shown, ax=axes, label="probability of the second spiral", shrink=0.7)
    return plots.save(figure, picture)


def _grid(low: Tensor, high: Tensor) -> Tensor:
    """Grid points (SIDE * SIDE, 2), row by row from the bottom."""
    across, up = (torch.linspace(float(a), float(b), SIDE) for a, b in zip(low, high, strict=True))
    return torch.stack([across.repeat(SIDE), up.repeat_interleave(SIDE)], 1)


@torch.no_grad()
def _probability(network: BottleneckMLP, points: Tensor, *, hidden: bool) -> Tensor:
    """Probability (SIDE, SIDE) of the second class at points of the plane or at hidden states."""
    logits = network.fc(network.after(network.act(points))) if hidden else network(points)
    return logits.softmax(1)[:, 1].view(SIDE, SIDE)


def _surface(axes: Any, probability: Tensor, low: Tensor, high: Tensor, points: Tensor, labels: Tensor) -> Any:
    across, up = (torch.linspace(float(a), float(b), SIDE) for a, b in zip(low, high, strict=True))
    drawn = axes.contourf(across, up, probability, torch.linspace(0, 1, 11), cmap="PuOr", alpha=0.7)
    for label, color in ((0, "#7f3b08"), (1, "#2d004b")):
        axes.scatter(*points[labels == label].T, s=3, color=color)
    axes.set(xticks=(), yticks=())
    return drawn
