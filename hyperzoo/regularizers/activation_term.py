"""Record what chosen layers put out in training: the part that PER, VCL and ActivationNorm have in common."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hyperzoo.errors import InputError
from hyperzoo.layers._torch import writes_to
from hyperzoo.layers.hooks import attached, select

Tap = Callable[[Tensor], tuple[Tensor, Any]]


class Recording:
    """Between `with` and `take()`, keeps the outputs of layers that are in training mode.

    Layers in evaluation mode are left out. Modules that would overwrite what was recorded (`inplace=True`) work out of
    place for the length of the `with`; afterwards the model is as before.

    Args:
        tap: what to do with an output: it gives the tensor that the model goes on with, an alias of the output, and
            what `take()` returns in the place of the output.
        layers: words of `hooks.select`. Of an output that is a tuple (`nn.LSTM`), the first member counts; the
            outputs of a recurrent layer come as (B, T, H) whether or not it is `batch_first`.
    """

    def __init__(self, model: nn.Module, layers: str | Sequence[str], tap: Tap | None = None) -> None:
        self.model = model
        self.modules = select(model, layers)
        self._tap = tap
        self._outputs: dict[str, list[tuple[Any, Tensor, int, bool]]] = {}
        self._open = False
        self._end: Callable[[], None] | None = None

    def __enter__(self) -> None:
        if self._end is not None:
            raise InputError("this term is recording already: leave its `with` before entering it again")
        with ExitStack() as stack:
            stack.enter_context(_out_of_place(self.model))
            stack.enter_context(attached(self.modules, self._record))
            self._end = stack.pop_all().close
        self._outputs = {}
        self._open = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end, self._end, self._open = self._end, None, False
        if end is not None:
            end()
        if kind is not None:
            self._outputs = {}

    def take(self) -> dict[str, list[Any]]:
        """Outputs by layer, one per call of the layer. What follows is not recorded, until the `with` is entered anew:
        the forward pass that gradient checkpointing repeats is not a second one.

        Raises:
            InputError: the model is training and a layer was not called, ran without gradients (reentrant gradient
                checkpointing), or had its output overwritten by in-place code behind it.
        """
        self._open = False
        outputs, self._outputs = self._outputs, {}
        if self.model.training:
            silent = [name for name, module in self.modules.items() if module.training and name not in outputs]
            if silent:
                raise InputError(
                    f"nothing was recorded of {', '.join(map(repr, silent))}: run one forward pass of the model inside "
                    "`with term:`, then call term(), and enter the `with` again for the next pass"
                )
        return {name: [_checked(name, *output) for output in calls] for name, calls in outputs.items()}

    def zero(self) -> Tensor:
        """The term of a model that is not training."""
        first = next(self.model.parameters(), torch.zeros(()))
        return torch.zeros((), device=first.device)

    def _record(self, name: str, output: Any) -> Any:
        if not (self._open and self.modules[name].training):
            return None
        if isinstance(output, (tuple, list)):
            first = self._record(name, output[0])
            return None if first is None else _with_first(output, first)
        module = self.modules[name]
        steps_first = isinstance(module, nn.RNNBase) and not module.batch_first and output.dim() == 3
        x = output.transpose(0, 1) if steps_first else output
        untracked = torch.compiler.is_compiling() or output.is_inference()
        version = -1 if untracked else writes_to(output)
        alias, kept = self._tap(x) if self._tap else (None, x)
        self._outputs.setdefault(name, []).append((kept, output, version, torch.is_grad_enabled()))
        return alias if alias is None or not steps_first else alias.transpose(0, 1)


def check_strength(strength: float) -> float:
    """Return the strength of a term, a finite number of at least 0, or raise InputError."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < math.inf:
        raise InputError(f"strength must be a number of at least 0; got {strength!r}")
    return float(strength)


def _with_first(output: Any, first: Any) -> Any:
    """A tuple, list or named tuple with another first member."""
    rest = (first, *output[1:])
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def _checked(name: str, kept: Any, output: Tensor, version: int, had_gradients: bool) -> Any:
    if torch.is_grad_enabled() and not had_gradients:
        raise InputError(
            f"{name!r} ran without gradients, so the term could not act on it: use gradient checkpointing with "
            "use_reentrant=False, and no torch.no_grad() around the forward pass"
        )
    if version not in (-1, writes_to(output)):
        raise InputError(
            f"the output of {name!r} was overwritten by code of the model behind it (x += y, F.relu(x, inplace=True)); "
            "choose a layer after that, or write the operation out of place"
        )
    return kept


@contextmanager
def _out_of_place(model: nn.Module) -> Iterator[None]:
    """Every module with `inplace=True` works out of place for the length of a `with`."""
    modules: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in modules:
        module.inplace = False
    try:
        yield
    finally:
        for module in modules:
            module.inplace = True
