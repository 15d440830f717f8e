"""TextStep: a training step on pieces of a text, in which a language model goes on where it stopped."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hyperzoo.training.step import Precision, Term, TrainStep


class TextStep(TrainStep):
    """One forward pass of training on the next piece of every column of a text (truncated backpropagation).

    The state behind a piece is carried to the next one without its history; every epoch begins with zeros, so nothing
    of it belongs into a checkpoint.

    Shapes:
        tokens, targets: (B, T) int64.   return: a `StepResult`, with loss and right answers by tokens.
    Args:
        model: has `run(tokens, state) -> (logits (B, T, V), state)`, a state being L pairs of tensors; None is zeros.
        parts: in which every batch is worked through; each part of the rows carries a state of its own.
    """

    unit = "tokens"

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        terms: Mapping[str, Term] | None = None,
        *,
        parts: int = 1,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(model, criterion, terms, precision=precision)
        self._parts = parts
        self._states: deque[Any] = deque()

    def begin_epoch(self, number: int) -> None:
        super().begin_epoch(number)
        self._states = deque([None] * self._parts)

    def _logits(self, tokens: Tensor) -> Tensor:
        logits, state = self.model.run(tokens, self._states.popleft())  # type: ignore[operator]
        self._states.append([(hidden.detach(), cell.detach()) for hidden, cell in state])
        return logits.flatten(0, 1)
