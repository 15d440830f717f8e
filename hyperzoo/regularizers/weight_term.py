"""WeightTerm: a term of the loss that reads weights only, the same for every regulariser of this kind."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number
from hyperzoo.regularizers.neurons import Layer, select

LARGEST_COPY = 2**18  # numbers: stacking smaller layers of one shape costs less than one more round of small operations


class WeightTerm:
    """hidden * sum over hidden layers of f(rows) + output * f(rows of the output layer).

    Used as every term is: `with term: loss = task_loss(model(x), y) + term()`. It sets no hook, so the `with` may be
    left out. Choose the layers when the model is final: replaced modules (`reset_classifier`) are not followed.

    Args:
        function: (rows (L, N, D), whether they are of the output layer) -> (L,), a value for each of L layers.
        hidden, output: strengths, 0 or more; 0 leaves that kind of layer out.
        layers, exclude, output_layer: see `neurons.select`.
    Attributes:
        skipped: {layer: reason} of what is left out; frozen layers are among them.
        once_per_update: the value does not depend on the batch. Where a step is accumulated from parts, evaluate it
            with one of them, at full weight, and not with the others.
    Raises:
        InputError, UnknownNameError: a negative strength, no layer selected, or what `neurons.select` refuses.
    """

    once_per_update = True

    def __init__(
        self,
        model: nn.Module,
        function: Callable[[Tensor, bool], Tensor],
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
        self._function = function
        self._groups: list[tuple[float, bool, tuple[Layer, ...]]] = []
        for strength, is_output, members in ((hidden, False, chosen.hidden), (output, True, chosen.output)):
            if strength and not members:
                kind, remedy = ("output", "name it in output_layer") if is_output else ("hidden", "change layers")
                why = f"no {kind} layer to regularise ({_why(chosen.skipped)})"
                raise InputError(f"{why}: {remedy}, or set its strength to 0")
            if strength:
                self._groups += [(float(strength), is_output, group) for group in _batches(members)]
        if not self._groups:
            raise InputError("both strengths are 0: nothing to regularise")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self) -> Tensor:
        """The term, (), float32 (float64 for float64 weights)."""
        parts = [strength * self._function(stack(layers), out).sum() for strength, out, layers in self._groups]
        return torch.stack(parts).sum()

    def parameters(self) -> Iterator[nn.Parameter]:
        """None: a term that reads weights owns nothing."""
        return iter(())

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """The value of each layer by name, all its neurons counted and without strength."""
        values: dict[str, float] = {}
        for _, out, layers in self._groups:
            found = self._function(stack(layers), out).tolist()
            values |= zip((layer.name for layer in layers), found, strict=True)
        return {name: values[name] for name in self._order if name in values}

    def __repr__(self) -> str:
        lines = [f"  {layer.name}: {s:g}" for s, _, layers in self._groups for layer in layers]
        lines += [f"  {name}: left out, {reason}" for name, reason in self.skipped.items()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def stack(layers: Sequence[Layer]) -> Tensor:
    """Layers of one shape as one tensor, (L, N, D)."""
    return layers[0].rows().unsqueeze(0) if len(layers) == 1 else torch.stack([layer.rows() for layer in layers])


def _batches(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """Small layers of equal shape share their operations; each large one is for itself and not copied."""
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        rows = layer.rows().detach()
        large = rows.numel() > LARGEST_COPY
        groups.setdefault((rows.shape, rows.dtype, rows.device, layer.name if large else ""), []).append(layer)
    return [tuple(group) for group in groups.values()]


def _why(skipped: dict[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in skipped.items()]
    return f"left out {', '.join(shown[:3])}{' ...' if len(shown) > 3 else ''}" if shown else "none was selected"
