"""WeightTerm: base class of loss terms that read weights (MHE, orthogonality, minimum angle)."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers._torch import is_in_functorch
from hyperzoo.layers.precision import on_cpu
from hyperzoo.regularizers.bundles import bundles
from hyperzoo.regularizers.neurons import Layer, select

LARGEST_COPY = 2**18  # elements: up to this size, stacking layers of one shape is cheaper than separate operations
LARGEST_STACK_ON_GPU = 2**23  # elements of a stack, 32 MB in float32


class WeightTerm:
    """hidden * sum over hidden layers of f(rows) + output * f(rows of the output layer), f = `_values` of a subclass.

    Use it like every term: `with term: loss = task_loss(model(x), y) + term()`. It registers no hooks, so the `with` is
    optional. Create it after the last change to the model: replaced modules (`reset_classifier`) are not tracked, and
    on a GPU larger groups of layers are computed together than on a CPU.

    Call it after the forward pass, as above, if a hook computes weights there (`torch.nn.utils.weight_norm` and
    `spectral_norm`, not their parametrizations): before, the weight is that of the previous step. Inside `torch.func`,
    call it in the module that `functional_call` runs, because it reads the weights that its model holds.

    Args:
        hidden, output: strengths, 0 or more; 0 skips that kind of layer.
        layers, exclude, output_layer: see `neurons.select`.
    Attributes:
        skipped: {layer: reason} for layers that are not penalized, frozen ones included.
        once_per_update: the value does not depend on the batch. With gradient accumulation, evaluate it for one part
            only, at full weight.
    Raises:
        InputError, UnknownNameError: a negative strength, no layer selected; see also `neurons.select`. At a call: a
            transform of `torch.func` would lose the gradient.
    """

    once_per_update = True

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden: float,
        output: float,
        layers: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] = (),
        output_layer: str | None = None,
    ) -> None:
        for name, strength in (("hidden", hidden), ("output", output)):
            check_number(f"{name}, the strength of {name} layers,", strength, low=0)
        chosen = select(model, layers=layers, exclude=exclude, output_layer=output_layer)
        self.skipped = chosen.skipped
        self._order = [layer.name for layer in chosen.hidden + chosen.output]
        self._groups: list[tuple[float, bool, tuple[Layer, ...]]] = []
        for strength, is_output, members in ((hidden, False, chosen.hidden), (output, True, chosen.output)):
            if strength and not members:
                kind, remedy = ("output", "name it in output_layer") if is_output else ("hidden", "change layers")
                why = f"no {kind} layer to regularize ({_why(chosen.skipped)})"
                raise InputError(f"{why}: {remedy}, or set its strength to 0")
            if strength:
                self._groups += [(float(strength), is_output, group) for group in _batches(members)]
        if not self._groups:
            raise InputError("both strengths are 0, so there is nothing to regularize")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self) -> Tensor:
        """The term: (), float32 (float64 for float64 weights)."""
        return self._total([strength * self._of(layers, out).sum() for strength, out, layers in self._groups])

    def _total(self, parts: list[Tensor]) -> Tensor:
        """The sum of the weighted parts, which must have a gradient if a weight has."""
        value = torch.stack(parts).sum()
        if is_in_functorch() and torch.is_grad_enabled() and not value.requires_grad:
            if any(layer.weight.requires_grad for _, _, layers in self._groups for layer in layers):
                raise InputError(
                    f"{type(self).__name__} has no gradient inside this transform of torch.func, because it reads the "
                    "weights that the model holds, not the ones that are transformed. Compute model and term in the "
                    "forward of one module, and pass that module to functional_call"
                )
        return value

    def _of(self, layers: Sequence[Layer], is_output: bool) -> Tensor:
        """f of layers of one shape, over all their neurons: (L,)."""
        return self._values(stack([layer.rows() for layer in layers]), is_output)

    def _values(self, rows: Tensor, is_output: bool) -> Tensor:
        """f of L layers with these rows, all hidden or all output layers: (L, N, D) -> (L,)."""
        raise NotImplementedError

    def parameters(self) -> list[nn.Parameter]:
        """Trainable tensors that the term owns: none."""
        return []

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """The value of each layer by name, over all its neurons and without strength."""
        values: dict[str, float] = {}
        for _, out, layers in self._groups:
            found = self._of(layers, out).tolist()
            values |= zip((layer.name for layer in layers), found, strict=True)
        return {name: values[name] for name in self._order if name in values}

    def __repr__(self) -> str:
        lines = [
            f"  {layer.name}{' (output)' if out else ''}: {s:g}" for s, out, layers in self._groups for layer in layers
        ]
        lines += [f"  {name}: skipped, {reason}" for name, reason in self.skipped.items()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def stack(rows: Sequence[Tensor]) -> Tensor:
    """The rows of layers of one shape as one tensor, (L, N, D)."""
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack([*rows])


def _batches(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """Groups of layers of equal shape: on a CPU of all small ones, on a GPU of as many as a stack may hold."""
    items = []
    for layer in layers:
        rows = layer.rows().detach()
        cost, limit = rows.numel(), LARGEST_STACK_ON_GPU
        if on_cpu(rows):
            cost, limit = cost if cost > LARGEST_COPY else 0, LARGEST_COPY
        items.append(((rows.shape, rows.dtype, rows.device), cost, limit))
    return [tuple(layers[i] for i in group) for group in bundles(items)]


def _why(skipped: dict[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in skipped.items()]
    return f"skipped {', '.join(shown[:3])}{' ...' if len(shown) > 3 else ''}" if shown else "none selected"
