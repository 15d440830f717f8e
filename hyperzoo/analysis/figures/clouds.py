"""Four point clouds that batch normalization cannot tell apart: the motivation of PER (arXiv 2002.05366)."""

import math
from pathlib import Path

import torch
from torch import Tensor

from hyperzoo.analysis import plots
from hyperzoo.regularizers import projected_error, sliced_wasserstein

POINTS, SHOWN, ANGLES = 4000, 500, 60


def draw(picture: Path) -> Path:
    """Draw the clouds and their W1 distance to N(0, 1) along each direction; returns the path."""
    figure, axes = plots.figure(2, 4, (12.0, 6.2))
    for column, (name, cloud) in enumerate(clouds().items()):
        upper, lower = axes[0, column], axes[1, column]
        upper.plot(*cloud[:SHOWN].T, ".", color=plots.BLUE, markersize=2.5)
        upper.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xticks=(-2, 0, 2), yticks=(-2, 0, 2), xlabel="unit 1")
        correlation = float((cloud[:, 0] * cloud[:, 1]).mean())
        upper.set_title(f"{name}\nmeans 0, variances 1\ncorrelation {abs(correlation):.2f}", fontsize=10)
        distances = along_directions(cloud)
        lower.plot(torch.arange(ANGLES) * 180 / ANGLES, distances, color=plots.ORANGE)
        lower.axhline(distances.mean(), color="#888888", linestyle=":")
        lower.set(ylim=(0, 0.65), xticks=(0, 45, 90, 135, 180), xlabel="direction (degrees)")
        error = float(projected_error(cloud, slices=None))
        lower.set_title(f"sliced W1 {distances.mean():.3f}, PER {error:.3f}", fontsize=10)
        lower.grid(alpha=0.3)
    axes[0, 0].set_ylabel("unit 2")
    axes[1, 0].set_ylabel("W1 to N(0, 1) along a direction")
    figure.suptitle(
        "Batch normalization accepts all four clouds, whitening rejects the second, sliced W1 all but the first"
    )
    return plots.save(figure, picture)


def clouds() -> dict[str, Tensor]:
    """Float64 points (POINTS, 2) by name; every coordinate has mean 0 and variance 1 exactly."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(POINTS, 2, generator=generator, dtype=torch.float64)
    skewed = torch.empty(POINTS, 2, dtype=torch.float64).exponential_(generator=generator)
    side = torch.where(torch.arange(POINTS) % 2 == 0, 1.0, -1.0)
    return {
        "Gaussian": _standardized(normal),
        "correlated": _standardized(normal @ torch.tensor([[1.0, 0.9], [0.0, math.sqrt(0.19)]], dtype=torch.float64)),
        "skewed": _standardized(skewed),
        "two modes": _standardized(torch.stack([side + 0.3 * normal[:, 0], normal[:, 1]], 1)),
    }


def along_directions(cloud: Tensor) -> Tensor:
    """W1 distance (ANGLES,) to N(0, 1) of the projections onto directions from 0 to 180 degrees."""
    angles = torch.arange(ANGLES, dtype=torch.float64) * math.pi / ANGLES
    projections = cloud @ torch.stack([angles.cos(), angles.sin()])
    return torch.stack([sliced_wasserstein(projection[:, None], slices=1) for projection in projections.T])


def _standardized(cloud: Tensor) -> Tensor:
    return (cloud - cloud.mean(0)) / cloud.std(0, correction=0)
