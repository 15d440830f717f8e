"""Which classes a model confuses: confusion matrix, recall and precision per class, and a picture of both."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperzoo.analysis import evaluate, plots
from hyperzoo.data import TextSet
from hyperzoo.data.load import Samples
from hyperzoo.errors import InputError

COLUMNS = ("class", "images", "recall (%)", "precision (%)", "most often taken for")
NUMBERED = 20  # up to so many classes, the picture has class names and percentages


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        images: number of images of the class.
        recall: percent of them that were recognized; None without images.
        precision: percent of the predictions of this class that were right; None if it was never predicted.
        confused_with, confused: the class that its images were most often taken for, and how often; None, 0: never.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None
    confused_with: str | None
    confused: int

    def shown(self) -> tuple[str, ...]:
        """A row of `COLUMNS`."""
        percents = ("-" if value is None else f"{value:.1f}" for value in (self.recall, self.precision))
        return (
            self.name,
            str(self.images),
            *percents,
            f"{self.confused_with} ({self.confused})" if self.confused else "-",
        )


class Confusion(NamedTuple):
    """The metrics of a model on images, its confusion matrix (K, K) int64, and a row per class."""

    metrics: evaluate.ImageMetrics
    counts: Tensor
    rows: list[ClassRow]


def measure(model: nn.Module, samples: Samples, *, tta: str = "none") -> Confusion:
    """Evaluate a model on images and count its confusions, in one pass over the images.

    Args:
        tta: as for `evaluate.measure`.
    Raises:
        InputError: a text, or an unknown `tta`.
    """
    if isinstance(samples, TextSet):
        raise InputError(f"a confusion matrix is for images, but {samples.name} is a text; leave out --confusion")
    outputs = evaluate.logits(model, samples, tta=tta)
    counts = matrix(outputs.argmax(1), samples.labels, len(samples.classes))
    return Confusion(evaluate.image_metrics(outputs, samples), counts, class_rows(counts, samples.classes))


def matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count images by class (row) and prediction (column).

    Shapes:
        predicted, labels: (N,) int64 in [0, classes).   return: (classes, classes) int64.
    Raises:
        InputError: other shapes.
    """
    if predicted.shape != labels.shape or labels.dim() != 1:
        raise InputError(f"expected two vectors of one length; got {tuple(predicted.shape)} and {tuple(labels.shape)}")
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def class_rows(counts: Tensor, classes: tuple[str, ...]) -> list[ClassRow]:
    """A row per class from a confusion matrix (K, K)."""
    right = counts.diagonal()
    rows: list[ClassRow] = []
    for i, name in enumerate(classes):
        images, predictions = int(counts[i].sum()), int(counts[:, i].sum())
        wrong = counts[i].clone()
        wrong[i] = 0
        most = int(wrong.max())
        rows.append(
            ClassRow(
                name=name,
                images=images,
                recall=100 * int(right[i]) / images if images else None,
                precision=100 * int(right[i]) / predictions if predictions else None,
                confused_with=classes[int(wrong.argmax())] if most else None,
                confused=most,
            )
        )
    return rows


def draw(counts: Tensor, classes: tuple[str, ...], picture: Path, *, title: str) -> Path:
    """Draw a confusion matrix (K, K), in percent of each row; returns the path.

    Up to 20 classes are named and their cells numbered; of more, the axes count the classes.
    """
    share = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    count, named = len(classes), len(classes) <= NUMBERED
    side = 2.5 + 0.45 * count if named else 7.0
    drawn, axes = plots.figure(1, 1, (side + 1, side))
    shown = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    drawn.colorbar(shown, ax=axes, label="share of the images of a class (%)", shrink=0.8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    if named:
        axes.set_xticks(range(count), classes, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(count), classes, parse_math=False)
        for i, j in counts.nonzero().tolist():
            color = "white" if share[i, j] > 50 else "black"
            axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_title(title)
    return plots.save(drawn, picture)
