"""ActivationTerm: base class of loss terms that read activations (PER, VCL, ActivationNorm)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers._torch import writes_to
from hyperzoo.layers.hooks import attached, select
from hyperzoo.layers.precision import full_dtype

Tap = Callable[[str, Tensor], tuple[Tensor, Any]]


class ActivationTerm:
    """strength times the sum over layers of a penalty of their activations.

    Use it like every term: `with term: loss = task_loss(model(x), y) + term()`. Between entering the `with` and
    `term()` it records the outputs of the chosen layers that are in training mode; layers in evaluation mode add
    nothing. Modules with `inplace=True` work out of place inside the `with`, because they would overwrite what was
    recorded. Subclasses define `_penalties`.

    Args:
        strength: 0 or more.
        layers: see `hooks.select`. Of a tuple output (`nn.LSTM`) the first member counts; torch's recurrent,
            attention and transformer layers are recorded as (B, T, H) whether or not they are `batch_first`.
        tap: name of the layer, output -> (an alias of the output that the model continues with, what to record in
            place of the output).
    Raises:
        InputError, UnknownNameError: a bad strength, or no such layer.
    """

    def __init__(
        self, model: nn.Module, *, strength: float, layers: str | Sequence[str], tap: Tap | None = None
    ) -> None:
        check_number("strength", strength, low=0)
        self.strength = float(strength)
        self._model = model
        self._modules = select(model, layers)
        self._tap = tap
        self._outputs: dict[str, list[tuple[Any, Tensor, int, bool]]] = {}
        self._open = False
        self._end: Callable[[], None] | None = None
        self._reported: dict[str, Tensor] = {}

    def parameters(self) -> list[nn.Parameter]:
        """Trainable tensors that the term owns: none by default."""
        return []

    def __enter__(self) -> Self:
        if self._end is not None:
            raise InputError("this term is recording already: leave its `with` before entering it again")
        with ExitStack() as stack:
            stack.enter_context(_out_of_place(self._model))
            stack.enter_context(attached(self._modules, self._record))
            self._end = stack.pop_all().close
        self._outputs = {}
        self._open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end, self._end, self._open = self._end, None, False
        if end is not None:
            end()
        if kind is not None:
            self._outputs = {}

    def __call__(self) -> Tensor:
        """The term for the forward pass inside this `with`: (), float32 (float64 for a float64 model).

        Raises:
            InputError: the model is training and a layer was not called, ran without gradients (reentrant gradient
                checkpointing), or in-place code after it overwrote its output.
        """
        return self.strength * self._total()

    def report(self) -> dict[str, float]:
        """The penalty of each layer in the last call, without strength."""
        return {name: float(value) for name, value in self._reported.items()}

    def _total(self) -> Tensor:
        """The sum over layers, without strength."""
        self._reported = {}
        total = self._zero()
        for name, calls in self._take().items():
            for penalty in self._penalties(name, calls):
                total = total + penalty
        return total

    def _zero(self) -> Tensor:
        first = next(self._model.parameters(), torch.zeros(()))
        return torch.zeros((), device=first.device, dtype=full_dtype(first))

    def _penalties(self, name: str, calls: list[Any]) -> Iterable[Tensor]:
        """The summands of one layer, given its recorded outputs, one per call; keeps what `report` shows."""
        raise NotImplementedError

    def _sum_and_report(self, name: str, penalties: Iterable[Tensor]) -> Tensor:
        """The sum of the penalties of one layer, which is also what `report` shows."""
        total = torch.stack([*penalties]).sum()
        self._reported[name] = total.detach()
        return total

    def _take(self) -> dict[str, list[Any]]:
        """Recorded outputs by layer, one per call of the layer.

        Recording stops here until the `with` is entered again: when gradient checkpointing repeats the forward pass,
        the outputs do not count twice.
        """
        self._open = False
        outputs, self._outputs = self._outputs, {}
        if self._model.training:
            silent = [name for name, module in self._modules.items() if module.training and name not in outputs]
            if silent:
                raise InputError(
                    f"nothing was recorded of {', '.join(map(repr, silent))}: run one forward pass of the model inside "
                    "`with term:`, then call term(); enter the `with` again for the next pass"
                )
        return {name: [_checked(name, *output) for output in calls] for name, calls in outputs.items()}

    def _record(self, name: str, output: Any) -> Any:
        if not (self._open and self._modules[name].training):
            return None
        if isinstance(output, (tuple, list)):
            first = self._record(name, output[0])
            return None if first is None else _with_first(output, first)
        if not isinstance(output, Tensor):
            raise InputError(f"{name} returns {type(output).__name__}, not a tensor; choose a layer inside it")
        steps_first = output.dim() == 3 and _steps_first(self._modules[name])
        x = output.transpose(0, 1) if steps_first else output
        untracked = torch.compiler.is_compiling() or output.is_inference()
        version = -1 if untracked else writes_to(output)
        alias, kept = self._tap(name, x) if self._tap else (None, x)
        self._outputs.setdefault(name, []).append((kept, output, version, torch.is_grad_enabled()))
        return alias if alias is None or not steps_first else alias.transpose(0, 1)


def known_axis(module: nn.Module) -> int | None:
    """The axis of the channels in the output of a layer, if its class determines it."""
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, nn.LayerNorm) and type(module).__name__ == "LayerNorm":  # timm's LayerNorm2d has axis 1
        return -1 if len(module.normalized_shape) == 1 else None  # type: ignore[arg-type]
    channels_first = nn.Conv1d | nn.ConvTranspose1d | nn.BatchNorm1d | nn.GroupNorm  # of maps, axis 1 is the default
    return 1 if isinstance(module, channels_first) else None


def refuse_channels_last(model: nn.Module) -> None:
    """Raise InputError for a network of timm whose maps are (B, H, W, C), where axis 1 is not the channels."""
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        raise InputError(
            f"the maps of {type(model).__name__} are (batch, height, width, channels); expected (batch, channels, "
            "...). Pass axis=-1 to PER or layer_activations (--axis -1); for VCL choose another network"
        )


def _steps_first(module: nn.Module) -> bool:
    """Whether a layer of torch returns sequences as (T, B, H)."""
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first


def _with_first(output: Any, first: Any) -> Any:
    """A tuple, list or named tuple with its first member replaced."""
    rest = (first, *output[1:])
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def _checked(name: str, kept: Any, output: Tensor, version: int, had_gradients: bool) -> Any:
    if torch.is_grad_enabled() and not had_gradients:
        raise InputError(
            f"{name!r} ran without gradients, so the term cannot act on it: use gradient checkpointing with "
            "use_reentrant=False, and no torch.no_grad() around the forward pass"
        )
    if version != -1 and version != writes_to(output):
        raise InputError(
            f"the output of {name!r} was overwritten in place by code after it (x += y, F.relu(x, inplace=True)); "
            "choose a later layer, or write the operation out of place"
        )
    return kept


@contextmanager
def _out_of_place(model: nn.Module) -> Iterator[None]:
    """Set `inplace` to False on all modules inside the `with`."""
    modules: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in modules:
        module.inplace = False
    try:
        yield
    finally:
        for module in modules:
            module.inplace = True
