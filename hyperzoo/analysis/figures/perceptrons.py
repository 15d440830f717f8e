"""Perceptrons that are trained alike but for what is mixed: nothing, the inputs, or the states of the bottleneck."""

from collections.abc import Callable

import torch
from torch import Tensor

from hyperzoo.analysis.figures.mlp import BottleneckMLP
from hyperzoo.losses import SoftTarget
from hyperzoo.mixup import ManifoldMixup, Mixup

METHODS = ("none", "input", "hidden")
TITLES = {"none": "no mixing", "input": "input mixup", "hidden": "mixup of the hidden states"}


def trained(
    make: Callable[[], BottleneckMLP],
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    alpha: float,
    seed: int = 0,
) -> dict[str, BottleneckMLP]:
    """Train a network by each of `METHODS`, from the same weights and with the same batches; in evaluation mode.

    Adam; the rate falls to 0 along a half cosine. An incomplete last batch is left out.

    Shapes:
        x: (N, ...).   y: (N,) int64.
    """
    networks = {}
    steps = epochs * (len(x) // batch_size)
    for method in METHODS:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = make().train()
        mixing = _mixing(method, network, alpha)
        mixing.seed(seed)
        optimizer = torch.optim.Adam(network.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=order).split(batch_size):
                if len(rows) < batch_size:
                    continue
                with mixing:
                    inputs, targets = mixing(x[rows], y[rows])
                    loss = SoftTarget()(network(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        networks[method] = network.eval()
    return networks


def _mixing(method: str, network: BottleneckMLP, alpha: float) -> Mixup:
    if method == "hidden":
        return ManifoldMixup(network, network.num_classes, alpha=alpha, layers="bottleneck")
    return Mixup(network.num_classes, alpha=alpha if method == "input" else 0)


@torch.no_grad()
def bottleneck(network: BottleneckMLP, x: Tensor) -> Tensor:
    """The hidden states that are mixed, (N, D)."""
    return network.bottleneck(network.before(x.flatten(1)))
