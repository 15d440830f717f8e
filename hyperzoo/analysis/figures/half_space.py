"""Why half-space energy: two neurons end opposite each other or orthogonal (arXiv 1805.09298, section 3.2)."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperzoo.analysis import plots
from hyperzoo.regularizers import hyperspherical_energy

START_DEG = (75.0, 105.0)
STEPS, RATE = 1500, 0.02
COLORS = (plots.BLUE, plots.ORANGE)


def descend(half_space: bool) -> Tensor:
    """Angles (STEPS + 1, 2) of the two neurons in degrees, while gradient descent minimizes their energy."""
    start = torch.tensor(START_DEG, dtype=torch.float64).deg2rad()
    rows = torch.stack([start.cos(), start.sin()], 1).requires_grad_()
    path = [torch.atan2(rows[:, 1], rows[:, 0]).rad2deg()]
    for _ in range(STEPS):
        (slope,) = torch.autograd.grad(hyperspherical_energy(rows, half_space=half_space, eps=0), rows)
        rows = (rows - RATE * slope).detach().requires_grad_()
        path.append(torch.atan2(rows[:, 1], rows[:, 0]).rad2deg())
    return torch.stack(path).detach()


def draw(picture: Path) -> Path:
    """Draw start and end of the neurons in full space and half space, and both energies; returns the path."""
    figure, (left, middle, right) = plots.figure(1, 3, (12.0, 3.9))
    for axes, half_space, name in ((left, False, "full space"), (middle, True, "half space")):
        path = descend(half_space)
        _circle(axes, path)
        apart = float(path[-1, 1] - path[-1, 0])
        axes.set_title(f"{name}: {apart:.0f}° apart at the end (dotted: the start)", fontsize=10)
    degrees = torch.arange(20.0, 180.0)
    for half_space, name, style in ((False, "full space", "-"), (True, "half space", "--")):
        right.plot(
            degrees, [_energy(angle, half_space) for angle in degrees.tolist()], style, color="black", label=name
        )
    right.set_xticks(range(0, 181, 45))
    right.set_ylim(0, 3)
    right.set_xlabel("angle between the neurons (degrees)")
    right.set_ylabel("energy, s = 2")
    right.grid(alpha=0.3)
    right.legend(frameon=False)
    return plots.save(figure, picture)


def _energy(degrees: float, half_space: bool) -> float:
    angle = math.radians(degrees)
    rows = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    return float(hyperspherical_energy(rows, half_space=half_space, eps=0))


def _circle(axes: Any, path: Tensor) -> None:
    """Draw the unit circle, the path of each neuron, and thin and bold arrows to its start and end."""
    around = torch.linspace(0, 2 * math.pi, 361)
    axes.plot(around.cos(), around.sin(), color="#bbbbbb", linewidth=1)
    for angles, color in zip(path.T.deg2rad(), COLORS, strict=True):
        axes.plot(angles.cos(), angles.sin(), color=color, linewidth=3, alpha=0.35)
        for angle, width, style in ((angles[0], 1.0, ":"), (angles[-1], 2.0, "-")):
            tip = (float(angle.cos()), float(angle.sin()))
            arrow = dict(arrowstyle="-|>", color=color, linewidth=width, linestyle=style, shrinkA=0, shrinkB=0)
            axes.annotate("", tip, (0, 0), arrowprops=arrow)
    axes.set_aspect("equal")
    axes.set_xlim(-1.2, 1.2)
    axes.set_ylim(-1.2, 1.2)
    axes.axis("off")
