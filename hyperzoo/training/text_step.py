"""TextStep: truncated backpropagation through time on pieces of a text."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hyperzoo.training.step import Precision, Term, TrainStep


class TextStep(TrainStep):
    """One forward pass of training on the next piece of each column of a text.

    The state after a piece starts the next piece, without its gradient history. Every epoch begins with zeros, so a
    checkpoint holds no state.

    Shapes:
        tokens, targets: (B, T) int64.   return: a `StepResult`, with loss and correct answers per token.
    Args:
        model: has `run(tokens, state) -> (logits (B, T, V), state)`, where a state is L pairs of tensors or None.
        parts: of gradient accumulation; each part of the rows has its own state.
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
