"""A small network with two-dimensional features, trained on MNIST, for figures of features."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperzoo import data

MNIST: dict[str, Any] = dict(mean=(0.1307,), std=(0.3081,))
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b3002d", "#666666", "#9a6324", "#8000c0")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Learned(NamedTuple):
    """Features of validation images, and the classifier.

    Shapes:
        features: (N, 2).   labels: (N,).   directions: (K, 2), the rows of the classifier.
    """

    features: Tensor
    labels: Tensor
    directions: Tensor


def softmax(features: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """The plain softmax loss on inner products."""
    return nn.functional.cross_entropy(features @ rows.T, labels)


def learn(train: data.ImageSet, held: data.ImageSet, loss: Loss, *, epochs: int, seed: int = 0) -> Learned:
    """Train three convolutions, two features and a classifier without bias; restores torch's global generator.

    Args:
        train, held: 28 x 28 gray images for training and for the figure.
        loss: (features (B, 2), class rows (K, 2), labels (B,)) -> ().
    """
    settings: dict[str, Any] = dict(batch_size=128, seed=seed, crop_px=0, flip=False, **MNIST)
    batches = data.ImageBatches(train, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(*_unit(1, 16), *_unit(16, 32), *_unit(32, 32), nn.Flatten(), nn.Linear(32 * 4 * 4, 2))
        classifier = nn.Linear(2, len(train.classes), bias=False)
    parameters = [*body.parameters(), *classifier.parameters()]
    optimizer = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(batches))
    for epoch in range(epochs):
        for images, labels, _ in batches.epoch(epoch):
            optimizer.zero_grad()
            loss(body(images), classifier.weight, labels).backward()
            optimizer.step()
            schedule.step()
    body.eval()
    with torch.no_grad():
        features = [body(images) for images, _, _ in data.eval_batches(held, batch_size=500, **MNIST)]
    return Learned(torch.cat(features), held.labels, classifier.weight.detach())


def _unit(in_chs: int, out_chs: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_chs, out_chs, 3, stride=2, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)


def scatter(axes: Any, learned: Learned, *, title: str, rare: int | None = None) -> None:
    """Draw features as points and class directions as labeled arrows, one color per class.

    Args:
        rare: a class to bring out: large points with an edge, and a thick arrow.
    """
    radius = float(learned.features.norm(dim=1).quantile(0.98))
    arrows = nn.functional.normalize(learned.directions) * radius
    for label, color in enumerate(COLORS[: len(arrows)]):
        points = learned.features[learned.labels == label]
        style: dict[str, Any] = dict(s=4, alpha=0.5, linewidths=0)
        if label == rare:
            style = dict(s=20, alpha=0.9, linewidths=0.5, edgecolors="black", zorder=3)
        axes.scatter(points[:, 0], points[:, 1], color=color, **style)
        x, y = arrows[label].tolist()
        arrow = dict(arrowstyle="-|>", color=color, shrinkA=0, shrinkB=0, linewidth=3 if label == rare else 1)
        axes.annotate("", (x, y), (0, 0), arrowprops=arrow)
        name, beyond = (f"{label} (rare)", 1.24) if label == rare else (str(label), 1.11)
        axes.text(beyond * x, beyond * y, name, color=color, ha="center", va="center", weight="bold", zorder=4)
    axes.set_title(title, fontsize=10)
    axes.set_aspect("equal")
    axes.set_xlim(-1.4 * radius, 1.4 * radius)
    axes.set_ylim(-1.4 * radius, 1.4 * radius)
    axes.set(xticks=(), yticks=(), xlabel="feature 1", ylabel="feature 2")


def mnist(train: int, held: int) -> tuple[data.ImageSet, data.ImageSet]:
    """Disjoint, class-balanced parts of the MNIST training set: for training, and for the figure."""
    images = data.load_images("mnist", "train")
    assert isinstance(images, data.ImageSet)
    first = images.images[:, :1].contiguous()  # some files store gray as three equal channels
    gray = data.ImageSet("mnist", "train", first, images.labels, images.classes, images.origin)
    rest, shown = gray.hold_out(held)
    return rest.hold_out(train)[1], shown
