"""The energy of arXiv 1805.09298 by plain loops, and helpers of the weight-term tests."""

import itertools
import math

import pytest
import torch
from torch import nn

VARIANTS = list(itertools.product((0, 1, 2), (False, True), (False, True)))
EACH_VARIANT = pytest.mark.parametrize("power, half_space, angular", VARIANTS)
EACH_BLOCK = pytest.mark.parametrize("block", [512, 3])


def repulsion(z: float, power: int) -> float:
    return -math.log(z) if power == 0 else z**-power


def unit(row: list[float], eps: float) -> list[float]:
    norm = math.sqrt(sum(a * a for a in row) + eps)
    return [a / norm for a in row]


def distance(u: list[float], v: list[float], angular: bool) -> float:
    c = sum(a * b for a, b in zip(u, v, strict=True))
    return math.acos(max(-1.0, min(1.0, c))) if angular else math.sqrt(2 - 2 * c)


def slow_energy(rows, power=2, half_space=False, angular=False, eps=1e-4) -> float:
    """Loops over pairs; half space explicitly with 2N vectors, a vector and its negative at f(2) or f(pi)."""
    units = [unit(row, eps) for row in rows.tolist()]
    count = len(units)
    if half_space:
        units += [[-a for a in u] for u in units]
    values = [
        repulsion(math.pi if angular else 2, power)
        if half_space and j == i + count
        else repulsion(distance(units[i], units[j], angular), power)
        for i, j in itertools.combinations(range(len(units)), 2)
    ]
    return sum(values) / len(values) if values else 0.0


def slow_label_energy(rows, labels, power, angular, eps):
    units = [unit(row, eps) for row in rows.tolist()]
    pairs = [(y, j) for y in labels for j in range(len(units)) if j != y]
    return sum(repulsion(distance(units[y], units[j], angular), power) for y, j in pairs) / len(pairs)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(6, 5))


def gradients(net, value):
    net.zero_grad()
    value.backward()
    return [p.grad for p in net.parameters() if p.grad is not None]
