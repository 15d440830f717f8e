"""TrainStep: model, loss, terms and mixing in one module, which DDP wraps and the optimizer updates."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Term(AbstractContextManager[Any], Protocol):
    """An added loss. Run the model inside `with term`; `term()` then gives the loss, () float32.

    `parameters()` gives its own trainable tensors: trained and checkpointed, never published. A term that does not
    depend on the batch sets the attribute `once_per_update`.
    """

    def __call__(self) -> Tensor: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...


class Mixing(AbstractContextManager[Any], Protocol):
    """Mixes a batch: (B, C, H, W), (B,) -> images and soft targets (B, K). Its hooks live inside `with`."""

    def __call__(self, images: Tensor, labels: Tensor, /) -> tuple[Tensor, Tensor]: ...


Precision = Literal["fp32", "bf16"]
CHANNELS_LAST_FILTERS = 16  # smallest number of filters of a convolution for which channels-last is used


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels-last for speed, or contiguous for a model with a convolution of few filters.

    In channels-last, training with fewer than 16 filters, two threads and an odd batch ends the process: oneDNN writes
    outside its memory (torch 2.13, AVX2).
    """
    few = any(p.ndim == 4 and len(p) < CHANNELS_LAST_FILTERS for p in model.parameters())
    return torch.contiguous_format if few else torch.channels_last


class StepResult(NamedTuple):
    """loss (), the sum of all terms; terms {name: ()}; correct (), the number of correct answers.

    With mixed targets, an answer counts by the share of its class in the target.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    correct: Tensor


class TrainStep(nn.Module):
    """One forward pass of training.

    Attributes:
        unit: the samples that labels belong to, in the plural.

    Shapes:
        images: (B, C, H, W).   labels: (B,) int64.   return: a `StepResult`.
    Args:
        criterion: (logits (B, K) float32, labels (B,) or soft targets (B, K)) -> ().
        terms: added losses, by the name in the log.
        mixing: mixes images and labels.
        angular: the criterion is an `AngularSoftmax`, called with the input (B, D) and the rows (K, D) of the model's
            classifier, the labels, and the classifier's steepness if that is learnable.
        precision: 'bf16' runs the forward pass in autocast to bfloat16; 'fp32' in float32, also inside an autocast.
        size_px (of the call): resize images to this height and width first, bilinear and antialiased.
        weight (of the call): of the terms with `once_per_update`; 0 does not evaluate them. With gradient accumulation,
            1 / the share of the first part in the batch for that part, and 0 for the others.
    """

    unit = "images"

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        terms: Mapping[str, Term] | None = None,
        mixing: Mixing | None = None,
        angular: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.precision = precision
        self.model = model
        self.memory_format = memory_format(model)
        self.criterion = criterion
        self.angular = angular
        self._features: Tensor | None = None
        self.terms = dict(terms or {})
        self.mixing = mixing
        self.owned = nn.ModuleDict({name: nn.ParameterList(term.parameters()) for name, term in self.terms.items()})

    def train(self, mode: bool = True) -> "TrainStep":
        """Set the mode; a layer that owns parameters stays in evaluation mode if all inside it are frozen."""
        super().train(mode)
        for module in self.model.modules():
            owner = next(module.parameters(recurse=False), None) is not None  # not a container, such as a stage
            if owner and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def begin_epoch(self, number: int) -> None:
        """Seed the generators of the terms and the mixing that have one, by their `seed(n)`."""
        for i, part in enumerate((self.mixing, *self.terms.values())):
            seed: Callable[[int], None] | None = getattr(part, "seed", None)
            if seed is not None:
                seed((number + 7919 * (i + 1)) % 2**63)

    def forward(self, images: Tensor, labels: Tensor, size_px: int | None = None, weight: float = 1.0) -> StepResult:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"))
            if size_px is not None and size_px != images.shape[-1]:
                images = F.interpolate(images, size=size_px, mode="bilinear", antialias=True)
            for part in (self.mixing, *self.terms.values()):
                if part is not None:
                    stack.enter_context(part)
            if images.ndim == 4:
                images = images.contiguous(memory_format=self.memory_format)
            targets = labels.flatten()
            if self.mixing is not None:
                images, targets = self.mixing(images, labels)
            if self.angular:
                stack.enter_context(self._classifier().register_forward_pre_hook(self._keep_features))
            logits = self._logits(images).float()
            task = self._task(logits, targets)
            values = {"task": task} | {name: self._term(term, weight, task) for name, term in self.terms.items()}
            loss = torch.stack(list(values.values())).sum()
        answers = logits.detach().argmax(1)
        right = answers == targets if targets.ndim == 1 else targets.gather(1, answers[:, None])
        return StepResult(loss, {name: value.detach() for name, value in values.items()}, right.sum())

    @staticmethod
    def _term(term: Term, weight: float, task: Tensor) -> Tensor:
        if not getattr(term, "once_per_update", False):
            return term()
        return weight * term() if weight else task.new_zeros(())

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (N, K), one row per label."""
        return self.model(images)

    def _task(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.angular:
            return self.criterion(logits, targets)
        features, self._features = self._features, None
        classifier = self._classifier()
        return self.criterion(features, classifier.weight, targets, getattr(classifier, "raw_k", None))

    def _classifier(self) -> nn.Module:
        return self.model.get_classifier()  # type: ignore[operator, no-any-return]

    def _keep_features(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._features = inputs[0]
