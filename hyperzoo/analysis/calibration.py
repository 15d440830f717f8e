"""Calibration: whether a model is right as often as its probabilities say."""

from dataclasses import dataclass

import torch
from torch import Tensor

ECE_BINS = 15


@dataclass(frozen=True)
class Bin:
    """Images by the probability of the predicted class: how many, their mean probability, the part that is right."""

    count: int
    confidence: float
    accuracy: float


def reliability(probability: Tensor, right: Tensor, *, bins: int = ECE_BINS) -> tuple[Bin, ...]:
    """Bins (i / bins, (i + 1) / bins] of the probability of the predicted class (arXiv 1706.04599, section 2).

    Shapes:
        probability: (N,) in [0, 1].   right: (N,) bool.
    """
    place = ((probability * bins).ceil().long() - 1).clamp(min=0)
    count = torch.bincount(place, minlength=bins)
    confidence, accuracy = (
        torch.bincount(place, values.double(), minlength=bins) / count.clamp(min=1) for values in (probability, right)
    )
    return tuple(Bin(*row) for row in zip(count.tolist(), confidence.tolist(), accuracy.tolist(), strict=True))


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """ECE = sum_b n_b / N |accuracy_b - confidence_b| (arXiv 1706.04599, eq. 5)."""
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / sum(one.count for one in bins)
