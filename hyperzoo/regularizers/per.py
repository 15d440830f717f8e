"""PER: a loss term that pulls activations towards a Gaussian, without batch statistics.

Regularizing activations in neural networks via distribution matching with the Wasserstein metric, Joo et al., ICLR 2020
(arXiv 2002.05366; equation numbers are those of the submission). See `projections.py` for the formulas.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
import torch.distributed
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number, check_seed
from hyperzoo.layers._torch import is_in_functorch
from hyperzoo.regularizers.activation_term import ActivationTerm, Call, known_axis, refuse_channels_last
from hyperzoo.regularizers.exact_error import ExactError, SquaredNorm, entries, exact_errors
from hyperzoo.regularizers.projections import (
    SampledError,
    as_vectors,
    axes_of,
    check_choices,
    draw_directions,
    draw_rows,
    reduced,
)


class PER(ActivationTerm):
    """PER on the layers of a model: strength times the sum over layers of `projected_error`.

    A module that is called several times in a forward pass counts as a layer per call: an `nn.LSTMCell` called for T
    steps adds T means with reduce='mean', where `nn.LSTM` adds one.

    Nothing is added in evaluation, and nothing enters the state dict. The value of the term is the exact one over all
    directions (eq. 5 without sampling noise, at almost no cost), and so is its gradient. With `slices` the gradient is
    that of directions from the term's own generator, drawn anew for every layer and step.

    Shapes:
        return of a call: (), float32 (float64 for a float64 model).
    Args:
        strength: lambda, 0 or more. The paper's grid with reduce='sum' is 3e-4 ... 1e-5, for LSTMs
            3e-4, 1e-4 and 3e-5.
        layers: see `hooks.select`: 'stages', names, patterns, or 'type:ReLU', 'type:LSTM' for all of a class. Choose
            layers after a nonlinearity. For an LSTM, the hidden state h_t of every step is a vector, also with view
            'flatten' if the sequences are packed; B is then their number.
        slices: None for all directions, cheaper and without noise, or a number; the paper, and a recipe that does not
            set it, uses 256.
        reduce, view: as for `projected_error`.
        axis: the axis whose entries form one vector, for all chosen layers [default: the last of `nn.Linear` and
            `nn.LayerNorm`, axis 1 of convolutions and batch norm; for every other layer by the number of axes, which
            assumes (B, d), (B, T, d) or (B, d, H, W)]. Pass -1 for activations inside ConvNeXt and Swin, (B, H, W, d),
            and for the heads of attention, (B, heads, T, d); pass 1 for activations after `nn.Conv1d`, (B, d, T).
        every: act in the first of every n training forward passes only, with n times the value and gradient, 1 or more.
            In the others no layer is watched and the term is 0, so that it costs 1 / n. The mean over the passes is
            the same; `seed` restarts the count.
        rows: with `slices`, the share of vectors that have a gradient, above 0 to 1. They are drawn anew for every
            layer and step, and the gradient is unbiased. The time of the projections is multiplied by it.
        seed: of the generator; `seed(n)` sets it later, for instance every epoch.
    Raises:
        InputError, UnknownNameError: a bad strength or choice, no such layer, or a network of timm with maps
            (B, H, W, d) and no `axis`. When called: see `ActivationTerm` and `projected_error`.
    Differs:
        Algorithm 1 adds its gradient outside the loss; a term scales correctly with mixed precision and accumulation.
        With reduce='sum' and several processes, the value is multiplied by their number, because gradients are averaged
        over them. A loss that is divided by n accumulated batches needs n times the strength.
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
        slices: int | None = None,
        reduce: str = "mean",
        view: str = "location",
        axis: int | None = None,
        every: int = 1,
        rows: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_choices(slices, reduce, view, axis)
        check_number("every, the passes between two uses of PER,", every, low=1, whole=True)
        check_number("rows, the share of vectors,", rows, above=0, high=1)
        if rows < 1 and slices is None:
            raise InputError(f"rows={rows:g} needs slices; all directions cost less than drawing, so leave rows out")
        if view != "flatten" and axis is None:
            refuse_channels_last(model)
        super().__init__(model, strength=strength, layers=layers, tap=self._attach if slices is None else None)
        self.slices = slices
        self.reduce = reduce
        self.view = view
        self._axes = {name: axis or known_axis(module) for name, module in self._modules.items()}
        self.every = every
        self.rows = float(rows)
        self._passes = 0  # since the last seed
        self._rests = False
        self._measured: dict[str, list[tuple[Tensor, Tensor, Tensor, int]]] = {}
        self._generator = torch.Generator()
        self.seed(seed)

    def seed(self, n: int) -> None:
        """Restart the sequence of directions and vectors from seed n, and the count of passes for `every`."""
        check_seed(n)
        self._generator.manual_seed(n)
        self._passes = 0

    def __enter__(self) -> Self:
        self._rests = self._model.training and self._passes % self.every > 0
        self._passes += self._model.training
        return self if self._rests else super().__enter__()

    def __call__(self) -> Tensor:
        """The term for the forward pass inside this `with`, see `ActivationTerm`; 0 between two uses by `every`."""
        return self._zero() if self._rests else super().__call__()

    def report(self) -> dict[str, float]:
        """Per layer, for the last call that acted: error (mean over vectors, without strength), mean and variance of
        entries. Of a module with several calls, the sum of their errors, and mean and variance over all entries."""
        table: dict[str, float] = {}
        for name, calls in self._measured.items():
            errors, totals, squares, counts = zip(*calls, strict=True)
            sums = torch.stack([torch.stack(parts).sum() for parts in (errors, totals, squares)])
            error, mean, square = (sums / sums.new_tensor([1, sum(counts), sum(counts)])).tolist()
            table |= {f"{name}/error": error, f"{name}/mean": mean, f"{name}/variance": square - mean**2}
        return table

    def _take(self) -> dict[str, list[Call]]:
        """As in the base class; with all directions, the errors of all layers in place of their squared norms."""
        self._measured = {}
        taken = super()._take()
        if self.slices is not None:
            return taken
        errors = iter(exact_errors([call.kept[:2] for calls in taken.values() for call in calls]))
        return {
            name: [call._replace(kept=(next(errors), *call.kept)) for call in calls] for name, calls in taken.items()
        }

    def _penalties(self, name: str, calls: list[Call]) -> Iterator[Tensor]:
        self._measured[name] = []
        for kept, samples in calls:
            errors, squares, d, total = kept if self.slices is None else self._sampled(name, kept, self.slices)
            sums = errors.detach().mean(), total.sum(), squares.detach().sum()
            self._measured[name].append((*sums, squares.numel() * d))
            yield reduced(errors, samples, self.reduce)

    def _total(self) -> Tensor:
        total = super()._total()
        if self.every > 1:
            total = total * self.every
        if self.reduce == "sum" and torch.distributed.is_available() and torch.distributed.is_initialized():
            total = total * torch.distributed.get_world_size()
        return total

    def _attach(self, name: str, output: Tensor) -> tuple[Tensor, Any]:
        """An alias of the output whose backward also adds the gradient of the errors, and what they are made of."""
        axes = axes_of(output, self.view, self._axes[name])
        with _not_checkpointed():
            alias, squares, total = SquaredNorm.apply(output, axes)
        return alias, (squares, entries(output, axes), total)

    def _sampled(self, name: str, output: Tensor, slices: int) -> tuple[Tensor, Tensor, int, Tensor]:
        x, axis = as_vectors(output, self.view, self._axes[name])
        d = x.shape[axis]
        _, squares, total = SquaredNorm.apply(x.detach(), (axis,))
        errors = ExactError.apply(squares, d)
        directions = draw_directions(x, axis, slices, self._generator)
        rows = None
        if self.rows < 1:
            rows = draw_rows(errors.numel(), self.rows, self._generator).to(x.device, non_blocking=x.is_cuda)
        return SampledError.apply(x, axis, directions, errors, rows), squares, d, total


def _not_checkpointed() -> AbstractContextManager[Any]:
    """Hide saved tensors from gradient checkpointing, which counts them: its second pass is not recorded."""
    if torch.compiler.is_compiling() or is_in_functorch():  # neither supports these hooks
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
