"""The four methods in one row: angles, repelling filters, mixed hidden states, activations close to a Gaussian."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures.spiral import spirals
from hyperzoo.layers.operators import angular
from hyperzoo.mixup import ManifoldMixup
from hyperzoo.regularizers import PER, hyperspherical_energy

FONT = 15  # points at 1,200 pixels, so that the labels are legible in half the width
SHOWN = ("cosine", "linear", "sigmoid")
FILTERS, STEPS, RATE = 8, 400, 0.05
CENTERS = ((-1.0, -0.6), (1.0, -0.6), (0.0, 1.1))
WIDTH, STRENGTH, UPDATES, LR = 64, 0.1, 200, 1e-2


def draw(picture: Path) -> Path:
    """Draw the row, each panel computed by the library within seconds; returns the path."""
    figure, panels = plots.figure(1, 4, (12.0, 3.6))
    for axes, (panel, title) in zip(panels, PANELS, strict=True):
        panel(axes)
        axes.set_title(title, fontsize=FONT)
        axes.tick_params(labelsize=FONT - 3)
        axes.xaxis.label.set_size(FONT - 2)
        axes.yaxis.label.set_size(FONT - 2)
    return plots.save(figure, picture)


def _angles(axes: Any) -> None:
    """The output of SphereConv over the angle."""
    degrees = torch.linspace(0.5, 179.5, 359, dtype=torch.float64)
    for operator, color, style in zip(SHOWN, COLORS, ("-", "--", ":"), strict=True):
        axes.plot(degrees, angular(degrees.deg2rad().cos(), operator, 0.3), style, color=color, label=operator, lw=2)
    axes.set(xticks=(0, 90, 180), yticks=(-1, 0, 1), xlabel="angle θ (degrees)", ylabel="output")
    _legend(axes, "upper right")


def filters() -> tuple[Tensor, Tensor]:
    """Directions (FILTERS, 2) of neighboring filters, and where gradient descent on their energy leads them."""
    start = torch.linspace(30, 100, FILTERS, dtype=torch.float64).deg2rad()
    rows = first = torch.stack([start.cos(), start.sin()], 1)
    for _ in range(STEPS):
        rows = rows.detach().requires_grad_()
        (slope,) = torch.autograd.grad(hyperspherical_energy(rows, eps=0), rows)
        rows = F.normalize(rows - RATE * slope)
    return first, rows.detach()


def _filters(axes: Any) -> None:
    """Filters on the circle before and after MHE."""
    around = torch.linspace(0, 2 * math.pi, 361)
    axes.plot(around.cos(), around.sin(), color="#bbbbbb", linewidth=1)
    for rows, color, style, name in zip(filters(), COLORS[1::-1], (":", "-"), ("before", "after"), strict=True):
        for tip in rows.tolist():
            arrow = dict(arrowstyle="-|>", color=color, linestyle=style, linewidth=1.8, shrinkA=0, shrinkB=0)
            axes.annotate("", tip, (0, 0), arrowprops=arrow)
        energy = float(hyperspherical_energy(rows, eps=0))
        axes.plot([], [], color=color, linestyle=style, linewidth=2, label=f"{name}: energy {energy:.1f}")
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=(), yticks=())
    axes.set_frame_on(False)
    _legend(axes, "upper center", bbox_to_anchor=(0.5, 0.0))


def mixed_states() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (N, 2) of three classes, the states (M, 2) that manifold mixup makes of them, and their shares.

    Shapes:
        return: (N, 2), (M, 2), (M, 3).
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(10)
    states = torch.tensor(CENTERS)[labels] + 0.12 * torch.randn(30, 2, generator=generator)
    network = nn.Sequential(nn.Identity(), nn.Linear(2, 3)).train()
    mixup = ManifoldMixup(network, 3, alpha=2.0, layers=["0"], generator=generator)
    seen: list[Tensor] = []  # by the layer after the mixed one
    mixed, shares = [], []
    with network[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach())), mixup:
        for _ in range(12):
            x, targets = mixup(states, labels)
            network(x)
            mixed.append(seen[-1])
            shares.append(targets)
    return states, torch.cat(mixed), torch.cat(shares)


def _mixed(axes: Any) -> None:
    """Hidden states of three classes and their mixtures, in mixed colors."""
    from matplotlib.colors import to_rgb

    states, mixed, shares = mixed_states()
    palette = torch.tensor([to_rgb(color) for color in COLORS])
    axes.scatter(*mixed.T, s=12, c=(shares @ palette).clamp(0, 1).numpy(), linewidths=0)
    for label, color in enumerate(COLORS):
        axes.scatter(*states[label::3].T, s=40, color=color, edgecolors="black", linewidths=0.6)
    axes.set(xticks=(), yticks=(), aspect="equal", xlabel="hidden unit 1", ylabel="hidden unit 2")


def activations(strength: float) -> Tensor:
    """Projections of the last hidden layer on random directions, after training on two spirals."""
    x, labels = spirals()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(2, WIDTH), nn.ELU(), nn.Linear(WIDTH, WIDTH), nn.ELU(), nn.Linear(WIDTH, 2)
        ).train()
        directions = F.normalize(torch.randn(WIDTH, WIDTH), dim=0)
    per = PER(network, strength=strength, layers="type:ELU", slices=None)
    optimizer = torch.optim.Adam(network.parameters(), LR)
    for _ in range(UPDATES):
        with per:
            loss = F.cross_entropy(network(x), labels) + per()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return (network[:4](x) @ directions).flatten()


def _activations(axes: Any) -> None:
    """Densities of projected activations without and with PER, and that of N(0, 1)."""
    edges = torch.linspace(-6, 6, 61)
    middles = (edges[1:] + edges[:-1]) / 2
    for strength, color, style, name in ((0.0, COLORS[1], ":", "without PER"), (STRENGTH, COLORS[0], "-", "with PER")):
        values = activations(strength)
        density = torch.histogram(values, edges).hist / len(values) / 0.2
        axes.plot(middles, density, style, color=color, linewidth=2, label=name)
    normal = torch.exp(-(middles**2) / 2) / math.sqrt(2 * math.pi)
    axes.plot(middles, normal, "--", color="#666666", linewidth=1.5, label="N(0, 1)")
    axes.set(xticks=(-6, 0, 6), yticks=(0, 0.4), ylim=(0, 0.75), xlabel="activation, projected", ylabel="density")
    _legend(axes, "upper right")


def _legend(axes: Any, loc: str, **where: Any) -> None:
    axes.legend(frameon=False, fontsize=FONT - 4, loc=loc, borderaxespad=0.1, **where)


COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN)
PANELS = (
    (_angles, "SphereNet:\nonly angles count"),
    (_filters, "MHE:\nfilters repel"),
    (_mixed, "Manifold mixup:\nhidden states mix"),
    (_activations, "PER: activations\nnear a Gaussian"),
)
