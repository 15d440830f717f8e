"""PER: activations are pulled towards a Gaussian by a term of the loss, without statistics of the batch.

Regularizing activations in neural networks via distribution matching with the Wasserstein metric, Joo et al., ICLR 2020
(arXiv 2002.05366; numbers of equations are those of the submission). The formulas stand in `projections.py`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from hyperzoo.regularizers.activation_term import Recording, check_strength
from hyperzoo.regularizers.exact_error import ExactError
from hyperzoo.regularizers.projections import SampledError, as_vectors, axes_of, check_choices, draw_directions, reduced


class PER:
    """PER on layers of a model, as a term of the loss: strength times the sum over layers of `projected_error`.

    Nothing is added in evaluation, nothing enters the state dict, and the directions come from a generator of its own,
    drawn anew for every layer and step. The term's value is that of all directions (eq. 5 without the noise of
    sampling, which costs next to nothing); its gradient is that of the directions drawn.

    Shapes:
        return of a call: (), float32 (float64 for a float64 model).
    Args:
        strength: lambda, 0 or more. The paper's grid is 3e-4 ... 1e-5 with reduce='sum' (CNN, ResNet), to 3e-4 (LSTM).
        layers: words of `hooks.select`: 'stages', names, patterns, or 'type:ReLU', 'type:LSTM' for all of a class;
            choose what follows a nonlinearity. Of an LSTM, the hidden state h_t of every step is a vector.
        slices, reduce, view: as for `projected_error`.
        seed: of the generator; `seed(n)` sets it later, for instance every epoch.
    Raises:
        InputError, UnknownNameError: a bad strength or word, or no such layer. When called: see `Recording.take`.
    Differs:
        Algorithm 1 adds a gradient behind the loss's back; a term scales right with mixed precision and accumulation.
        With reduce='sum' and several processes, the value is multiplied by their number, because gradients are averaged
        over them; a loss that is divided by n accumulated batches needs n times the strength.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> term = PER(model, strength=1e-2, layers='type:ReLU')
        >>> with term:
        ...     loss = model(torch.zeros(4, 2)).square().mean() + term()
        >>> list(term.report())
        ['1/error', '1/mean', '1/variance']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float,
        layers: str | Sequence[str] = "stages",
        slices: int | None = 256,
        reduce: str = "mean",
        view: str = "location",
        seed: int = 0,
    ) -> None:
        check_choices(slices, reduce, view)
        self.strength = check_strength(strength)
        self.slices = slices
        self.reduce = reduce
        self.view = view
        self._recording = Recording(model, layers, self._attach if slices is None else None)
        self._generator = torch.Generator()
        self._measured: dict[str, Tensor] = {}
        self.seed(seed)

    def seed(self, n: int) -> None:
        """Start the sequence of directions that belongs to n."""
        self._generator.manual_seed(n)

    def parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def __enter__(self) -> None:
        self._recording.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recording.__exit__(kind, error, at)

    def __call__(self) -> Tensor:
        """strength times the sum over layers, of the forward pass in this `with`."""
        self._measured = {}
        total = self._recording.zero()
        for name, calls in self._recording.take().items():
            measured = []
            for kept in calls:
                errors, numbers = kept if self.slices is None else self._sampled(kept, self.slices)
                error = reduced(errors, len(errors), self.reduce)
                total = total + error
                measured.append(torch.stack([errors.detach().mean(), *numbers]))
            self._measured[name] = torch.stack(measured).mean(0)
        if self.reduce == "sum" and torch.distributed.is_available() and torch.distributed.is_initialized():
            total = total * torch.distributed.get_world_size()
        return self.strength * total

    def report(self) -> dict[str, float]:
        """Of the last call, by layer: error (mean over vectors, without strength), mean and variance of all entries."""
        table: dict[str, float] = {}
        for name, numbers in self._measured.items():
            error, mean, square = numbers.tolist()
            table |= {f"{name}/error": error, f"{name}/mean": mean, f"{name}/variance": square - mean**2}
        return table

    def _attach(self, output: Tensor) -> tuple[Tensor, Any]:
        """The output, and its errors over all directions: their gradient joins that of the output."""
        with _not_checkpointed():
            alias, errors, energy = ExactError.apply(output, axes_of(output, self.view))
        return alias, (errors, _moments(output, energy))

    def _sampled(self, output: Tensor, slices: int) -> tuple[Tensor, Any]:
        x, axis = as_vectors(output, self.view)
        _, errors, energy = ExactError.apply(x.detach(), (axis,))
        directions = draw_directions(x, axis, slices, self._generator)
        return SampledError.apply(x, axis, directions, errors), _moments(output, energy)


def _moments(output: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of all entries, and of their squares."""
    x = output.detach()
    return x.mean(dtype=energy.dtype), energy.sum() / x.numel()


def _not_checkpointed() -> AbstractContextManager[Any]:
    """Keep what is saved for backward from gradient checkpointing, which counts it: its second pass is not recorded."""
    if torch.compiler.is_compiling():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
