"""Select modules of a model by stage, name or type; attach hooks and set evaluation mode inside a `with`.

Works for any model: stages come from timm's `feature_info`, names from `named_modules`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.layers._torch import uncompiled
from hyperzoo.names import closest_text


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP, DataParallel and `torch.compile`."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif (inner := uncompiled(model)) is not model:
            model = inner
        else:
            return model


def classifiers(model: nn.Module) -> list[nn.Module]:
    """timm's classifier, or the several of a distilled model; empty if the model has none."""
    get = getattr(model, "get_classifier", None)
    found = get() if callable(get) else None
    several = found if isinstance(found, (tuple, list)) else (found,)
    return [head for head in several if isinstance(head, nn.Module)]


def select(model: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    """Select modules of a model by the names of `model.named_modules()`.

    Args:
        layers: one selector or several: 'stages' (the modules of timm's `feature_info`), the name of a module, a
            pattern in which `*`, `?` and `[...]` match within one dotted part of a name ('layer?', 'stages.*',
            'blocks.*.mlp'), or 'type:ReLU' for all modules whose class has exactly this name.
    Returns:
        Modules by name, in the order of the selectors and then of the model, each module once. Wrappers of DDP,
        DataParallel and `torch.compile` around the model are removed first.
    Raises:
        UnknownNameError: no module has this name, pattern or type; the message lists the closest.
        InputError: no selector, no `feature_info`, or a container that is never called itself.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU())
        >>> list(select(model, 'type:ReLU')), list(select(model, ['0', '[12]']))
        (['1', '3'], ['0', '1', '2'])
    """
    model = unwrapped(model)
    words = [layers] if isinstance(layers, str) else layers
    if not isinstance(words, Sequence) or not words or not all(isinstance(word, str) for word in words):
        raise InputError(f"layers must be 'stages', the name of a layer or a list of names; got {layers!r}")
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    chosen: dict[str, nn.Module] = {}
    for word in words:
        for name in _names(model, modules, word):
            if not any(modules[name] is module for module in chosen.values()):
                chosen[name] = modules[name]
    return chosen


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode inside the `with`; every module gets its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def attached(modules: Mapping[str, nn.Module], fn: Callable[[str, Any], Any]) -> Iterator[None]:
    """Call fn(name, output) after each forward pass of each module, inside the `with`.

    The return value of fn replaces the output; None keeps it. All hooks are removed on exit, also after an exception.
    Copies of the model that are made inside the `with`, also by pickle, never call fn.

    Differs:
        The hook of an `nn.Sequential` is registered on its last member, if that has parameters: the output is the same,
        and timm's gradient checkpointing calls the members of a stage, never the stage itself.
        Inside the `with`, each module holds `forward` as an instance attribute: compiled code is not guarded against
        new hooks, but against a replaced `forward`.
    Example:
        >>> import torch
        >>> seen, model = {}, nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with attached(select(model, '0'), lambda name, output: seen.update({name: tuple(output.shape)})):
        ...     _ = model(torch.zeros(5, 2))
        >>> seen
        {'0': (5, 3)}
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            last = _last(module)
            stack.callback(last.register_forward_hook(_Tap(name, last, fn)).remove)
            if "forward" not in vars(last):
                vars(last)["forward"] = last.forward
                stack.callback(vars(last).pop, "forward")
        yield


class _Tap:
    """Forward hook that calls fn(name, output) for one module. A copy of it, as in a copied model, does nothing."""

    def __init__(self, name: str, module: nn.Module | None, fn: Callable[[str, Any], Any] | None) -> None:
        self.name, self.module, self.fn = name, module, fn

    def __call__(self, module: nn.Module, _: Any, output: Any) -> Any:
        # a shallow copy of the module shares its hooks
        return self.fn(self.name, output) if self.fn is not None and module is self.module else None

    def __reduce__(self) -> tuple[type, tuple[str, None, None]]:
        return _Tap, (self.name, None, None)


def _last(module: nn.Module) -> nn.Module:
    while type(module).forward is nn.Sequential.forward and "forward" not in vars(module):
        *others, member = (None, *cast(nn.Sequential, module))  # children() would leave out repetitions
        if member is None or any(other is member for other in others):
            break  # empty, or its last member runs more than once
        if next(member.parameters(), None) is None:  # an activation may be shared with other places
            break
        module = member
    return module


def _names(model: nn.Module, modules: Mapping[str, nn.Module], word: str) -> Iterator[str]:
    """The names of the modules that one selector matches."""
    kind = type(model).__name__
    if word == "stages":
        found = [str(entry["module"]) for entry in getattr(model, "feature_info", None) or ()]
        # features_only=True makes stages.0 a child stages_0
        found = [name if name in modules else name.replace(".", "_") for name in found]
        if not found:
            top = ", ".join(name for name, _ in model.named_children())
            raise InputError(f"{kind} has no feature_info, which lists the stages of timm's models; name layers: {top}")
        if unknown := [name for name in found if name not in modules]:
            raise UnknownNameError(f"the feature_info of {kind} lists {unknown[0]!r}, but there is no such layer")
    elif word.startswith("type:"):
        types = {name: type(module).__name__ for name, module in modules.items()}
        found = [name for name in modules if types[name] == word[5:]]
        if not found:
            raise UnknownNameError(f"{kind} has no layer of {word!r}. {closest_text(word[5:], set(types.values()))}")
    else:
        found = [word] if word in modules else [name for name in modules if _matches(name, word)]
        if not found:
            near = [name for name in modules if name.count(".") <= word.count(".")]
            raise UnknownNameError(f"{kind} has no layer {word!r}. {closest_text(word, near)}")
    called = [name for name in found if type(modules[name]).forward is not nn.Module.forward]
    if not called:
        raise InputError(
            f"{found[0]!r} of {kind} is a {type(modules[found[0]]).__name__}, which is never called itself; "
            f"name its members: '{found[0]}.*'"
        )
    yield from called


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
