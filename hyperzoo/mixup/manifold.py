"""Manifold Mixup: mix the output of one random layer by a hook."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from hyperzoo.errors import InputError
from hyperzoo.layers import hooks
from hyperzoo.layers._torch import is_in_functorch
from hyperzoo.mixup.images import INPUT, Mixup
from hyperzoo.mixup.mix import Draw, mix


class ManifoldMixup(Mixup):
    """Mix the images or the output of one random layer of a model, and the labels.

    k uniform in S,   h'_i = lambda h_i + (1 - lambda) h_p(i)  at the output of layer k,   t' as for `Mixup`

    with one (k, lambda, p) per batch (arXiv 1806.05236, section 2); k = 'input' is `Mixup`. Gradients flow through all
    layers. Use it in a `with`, with one call before each training forward pass:

        with mixup:
            x, targets = mixup(x, y)
            loss = soft_target(model(x), targets)

    A forward pass is one call of the model or of its `forward_features`. Hooks exist inside the `with` only, mix once
    per forward pass, and do nothing in evaluation mode, where a call returns x itself and plain targets. When gradient
    checkpointing runs a layer again, it is mixed in the same way. A compiled model has one graph per layer of S,
    however many batches it sees (for more than half a dozen layers, raise `torch._dynamo.config.recompile_limit`).

    Args:
        model: any model, also wrapped by DDP or `torch.compile`.
        layers: the set S, as for `hooks.select`, and 'input' [default: the paper's choice for CIFAR, the input and the
            first two stages of timm's `feature_info`, not counting a stem].
        alpha: 2 for CIFAR, 0.2 for Tiny-ImageNet in the paper.
        num_classes, smoothing, generator: as for `Mixup`.
    Raises:
        InputError, UnknownNameError: no such layer. On the first batch: a layer that is not called, whose output is not
            one tensor (B, ...), or that a path from the images to an output bypasses, as in a residual branch. Later: a
            call outside the `with`; a training forward pass without a call, with another batch size, or repeated after
            one call; no forward pass at all. A repeated `forward_features` is detected only if S has a hidden layer
            that runs once per pass.
    Differs:
        The authors edit the forward pass of each network. They report equal results for per-sample lambdas.
        The first call runs two rows of x through the model in evaluation mode, to check that no path bypasses a layer.
            Inside transforms of `torch.func` this is impossible, so the layers are not checked there.
        Checkpointing with `use_reentrant=True` is refused around a layer of S.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> mixup = ManifoldMixup(model, 3, alpha=2.0, layers=('input', '1'))
        >>> with mixup:
        ...     x, targets = mixup(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))
        ...     loss = nn.functional.cross_entropy(model(x), targets)
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        alpha: float = 2.0,
        layers: str | Sequence[str] | None = None,
        smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_classes, alpha=alpha, smoothing=smoothing, generator=generator)
        self._model = hooks.unwrapped(model)
        words = _first_stages(self._model) if layers is None else [layers] if isinstance(layers, str) else [*layers]
        if layers is None and words == [INPUT]:
            raise InputError(
                f"{type(self._model).__name__} has no feature_info with stages; pass layers=(...) to mix at"
            )
        hidden = [word for word in words if word != INPUT]
        self._hidden = hooks.select(self._model, hidden) if hidden or not words else {}
        self.layers = (INPUT,) * (INPUT in words) + tuple(self._hidden)
        self._attached: AbstractContextManager[None] | None = None
        self._checked = not hidden
        self._once = {""}  # runs once per forward pass: the model, and the layers of which the check finds it
        self._ran: set[str] = set()  # those that ran since the draw
        self._now: Draw | None = None
        self._mixed = self._with_grad = False

    def __enter__(self) -> Self:
        if self._attached:
            raise InputError("this ManifoldMixup is already active: leave its `with` before entering it again")
        self._attached = hooks.attached({**self._hidden, "": self._model}, self._after)
        self._attached.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        attached, draw, missed = self._attached, self._now, not self._mixed
        self._attached = self._now = None
        if attached:
            attached.__exit__(None, None, None)
        if kind is None and draw and missed and self._model.training:
            raise InputError(
                f"no training forward pass reached the drawn layer {draw.layer!r}: inside the `with`, call the model "
                "that ManifoldMixup was created with"
            )

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        training = self._model.training
        targets = self._targets(x, y, smooth=training)
        if not training:
            self._now = None
            return x, targets
        if not self._attached:
            raise InputError("call ManifoldMixup inside its `with`: with mixup: x, targets = mixup(x, y); ...")
        if not self._checked and not is_in_functorch():
            self._check_layers(x)
            self._checked = True
        draw = self._draw(x, self.layers)
        self._now, self._ran, self._with_grad = draw, set(), torch.is_grad_enabled()
        self._mixed = draw.layer == INPUT
        return mix(x, draw) if self._mixed else x, mix(targets, draw)

    def _after(self, name: str, output: Any) -> Any:
        """The hook after each layer of S, and after the model under the name ''."""
        if not self._model.training or _repeated():
            return None
        draw = self._now
        if draw is None:
            raise InputError("training forward pass without a draw: call x, targets = mixup(x, y) before it")
        if name in self._once:
            if name in self._ran:
                raise InputError("second forward pass after one draw: call x, targets = mixup(x, y) before each pass")
            self._ran.add(name)
        if name == draw.layer and not self._mixed:
            if self._with_grad and not torch.is_grad_enabled():
                raise InputError(
                    f"layer {name!r} is inside reentrant gradient checkpointing, which would repeat it without mixing: "
                    "use checkpoint(..., use_reentrant=False)"
                )
            self._mixed = True
            again = None if torch.compiler.is_compiling() else partial(_again, self._hidden[name], draw)
            return mix(output, draw, again)
        return None

    def _check_layers(self, x: Tensor) -> None:
        """Raise InputError unless every path from the images to the outputs passes through each layer."""
        seen: dict[str, Any] = {}
        calls: Counter[str] = Counter()

        def keep(name: str, output: Any) -> None:
            node = output.grad_fn if isinstance(output, Tensor) else None
            calls[name] += 1
            seen.setdefault(name, (output.shape[0] if isinstance(output, Tensor) and output.dim() else output, node))

        with hooks.evaluating(self._model), torch.enable_grad(), hooks.attached(self._hidden, keep):
            dtype = next((weight.dtype for weight in self._model.parameters()), x.dtype)  # autocast may be off here
            start = x[:2].detach().to(dtype).requires_grad_().clone()
            result = self._model.forward(start)  # the eager forward, even if the model is compiled
        ends = [output.grad_fn for output in _tensors(result)]
        for name in self._hidden:
            rows, node = seen.get(name, (None, None))
            if rows is None:
                raise InputError(f"layer {name!r} is not called in a forward pass of the model; choose another")
            if rows != len(start):
                shown = f"{rows} rows" if isinstance(rows, int) else f"a {type(rows).__name__}"
                raise InputError(
                    f"layer {name!r} returns {shown} for a batch of {len(start)}; choose one that returns (B, ...)"
                )
            if node and (around := [end for end in ends if _leads(end, start.grad_fn, node)]):
                stages = ", ".join(_first_stages(self._model)[1:]) or "a layer on all paths"
                reason = (
                    "is inside a residual branch, so the skip connection would bypass the mixing"
                    if all(_leads(end, node) for end in around)
                    else "does not lead to every output of the model, so an output would not be mixed"
                )
                raise InputError(f"layer {name!r} {reason}. Mix at the output of a stage instead: {stages}")
        self._once |= {name for name, count in calls.items() if count == 1}


def _again(module: nn.Module, draw: Draw) -> AbstractContextManager[None]:
    """A context in which the first call of a module is mixed again, with the same draw."""
    fired = False

    def repeat(name: str, output: Tensor) -> Tensor | None:
        nonlocal fired
        first, fired = not fired, True
        return mix(output, draw) if first else None

    return hooks.attached({draw.layer: module}, repeat)


def _repeated() -> bool:
    """Whether the backward pass is running, where gradient checkpointing repeats layers; `_again` mixes them."""
    return not torch.compiler.is_compiling() and bool(ModuleTracker().is_bw)


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in an output of nested mappings, tuples and lists."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for member in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(member)


def _leads(node: Any, start: Any, cut: Any = None) -> bool:
    """Whether the autograd graph has a path from a node back to the start that avoids the cut."""
    seen, todo = {None, cut}, [node]
    while todo:
        node = todo.pop()
        if node not in seen:
            if node is start:
                return True
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return False


def _first_stages(model: nn.Module) -> list[str]:
    """The input and the first two stages; a stage with fewer than two weights counts as a stem."""
    stages = hooks.select(model, "stages") if getattr(model, "feature_info", None) else {}
    deep = [name for name, stage in stages.items() if sum(weight.dim() > 1 for weight in stage.parameters()) > 1]
    return [INPUT, *deep[:2]]
