"""Reliability bins and the expected calibration error (Guo et al., arXiv 1706.04599); every value is in percent."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Images whose confidence falls into one interval: their number, mean confidence (%) and accuracy (%)."""

    count: int
    confidence: float
    accuracy: float


def reliability(confidence: Tensor, correct: Tensor, *, bins: int = BINS) -> tuple[Bin, ...]:
    """Sort images into bins (i / bins, (i + 1) / bins] by the probability of their predicted class (section 2).

    A probability of 0 counts in the first bin, and so does NaN, which makes the calibration error NaN. An empty bin has
    confidence and accuracy 0.

    Shapes:
        confidence: (N,) in [0, 1].   correct: (N,) bool.
    Example:
        >>> reliability(torch.tensor([0.25, 0.75, 1.0]), torch.tensor([True, True, False]), bins=2)
        (Bin(count=1, confidence=25.0, accuracy=100.0), Bin(count=2, confidence=87.5, accuracy=50.0))
    """
    index = ((confidence * bins).ceil().nan_to_num().long() - 1).clamp(min=0)
    count = torch.bincount(index, minlength=bins)
    mean_confidence, accuracy = (
        100 * torch.bincount(index, values.double(), minlength=bins) / count.clamp(min=1)
        for values in (confidence, correct)
    )
    return tuple(Bin(*row) for row in zip(count.tolist(), mean_confidence.tolist(), accuracy.tolist(), strict=True))


def calibration_error(bins: Iterable[Bin]) -> float:
    """Expected calibration error in percent: sum_b n_b / N |accuracy_b - confidence_b| (eq. 5).

    Example:
        >>> calibration_error([Bin(1, 25.0, 100.0), Bin(3, 90.0, 90.0)])
        18.75
    """
    bins = tuple(bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / sum(b.count for b in bins)
