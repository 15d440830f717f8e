"""TrainStep: model and loss in one module; the thing that DDP wraps and that the optimizer sees."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class StepResult(NamedTuple):
    """loss () to differentiate; terms {name: ()} that it is the sum of; correct () int64, right answers."""

    loss: Tensor
    terms: dict[str, Tensor]
    correct: Tensor


class TrainStep(nn.Module):
    """One forward pass of training.

    Shapes:
        images: (B, C, H, W).   labels: (B,) int64.   return: a `StepResult`.
    Args:
        criterion: (logits (B, K) float32, labels (B,)) -> ().
        size_px (of the call): images are first resized to this height and width, bilinear and antialiased.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, images: Tensor, labels: Tensor, size_px: int | None = None) -> StepResult:
        if size_px is not None and size_px != images.shape[-1]:
            images = F.interpolate(images, size=size_px, mode="bilinear", antialias=True)
        logits = self.model(images).float()
        task = self.criterion(logits, labels)
        return StepResult(task, {"task": task.detach()}, (logits.detach().argmax(1) == labels).sum())
