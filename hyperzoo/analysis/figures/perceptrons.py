"""Train a perceptron without mixup, with input mixup, and with mixup at the bottleneck."""

from collections.abc import Callable

import torch
from torch import Tensor

from hyperzoo.analysis.figures.mlp import BottleneckMLP
from hyperzoo.losses import SoftTarget
from hyperzoo.mixup import ManifoldMixup, Mixup

METHODS = ("none", "input", "hidden")
TITLES = {"none": "no mixup", "input": "input mixup", "hidden": "manifold mixup"}


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
    """Train one network per method of `METHODS`, from the same weights on the same batches; returns them in eval mode.

    Adam with cosine decay to 0. An incomplete last batch is dropped.

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
    """The hidden states (N, D) that are mixed."""
    return network.bottleneck(network.before(x.flatten(1)))
