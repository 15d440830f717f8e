"""Reach inside a model from outside: choose modules by stage, name or type; hooks and evaluation mode in a `with`.

Nothing here knows a model: stages come from timm's `feature_info`, names from `named_modules`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.names import closest_text


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of DDP and `torch.compile`."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def select(model: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    """Choose modules of a model by name; the names are those of `model.named_modules()`.

    Args:
        layers: one word or several. A word is 'stages' (the modules of timm's `feature_info`), the name of a module, a
            pattern in which `*`, `?` and `[...]` stand for parts of a name between two dots ('layer?', 'stages.*',
            'blocks.*.mlp'), or 'type:ReLU': all modules whose class has exactly this name.
    Returns:
        Modules by name, in the order of the words and then of the model, each module once. DDP, DataParallel and
        `torch.compile` wrappers around the model are looked through.
    Raises:
        UnknownNameError: nothing has this name, pattern or type; the closest are listed.
        InputError: no word at all, no `feature_info`, or a list of modules that is never called itself.
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
    """Evaluation mode; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def attached(modules: Mapping[str, nn.Module], fn: Callable[[str, Any], Any]) -> Iterator[None]:
    """Call fn(name, output) after each forward pass of each module, for the length of a `with`.

    What fn returns replaces the output; with None the output stays. No hook is left afterwards, also after an
    exception. A copy of the model that is made inside the `with` is not tapped.

    Differs:
        The hook of an `nn.Sequential` sits on its last member, if that has parameters: the output is the same, and
        gradient checkpointing of timm calls the members of a stage and never the stage itself.
        For the same length the modules hold `forward` as an attribute of their own: `torch.compile` does not look
        whether hooks arrived after it had compiled, and does look whether `forward` was replaced.
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
            stack.callback(last.register_forward_hook(_hook(name, last, fn)).remove)
            if "forward" not in vars(last):
                vars(last)["forward"] = last.forward
                stack.callback(vars(last).pop, "forward")
        yield


def _hook(name: str, tapped: nn.Module, fn: Callable[[str, Any], Any]) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        return fn(name, output) if module is tapped else None  # a copy of the model carries the hook with it

    return hook


def _last(module: nn.Module) -> nn.Module:
    while type(module).forward is nn.Sequential.forward and "forward" not in vars(module):
        *_, member = (None, *module.children())
        if member is None or next(member.parameters(), None) is None:  # a bare activation may serve in other places too
            break
        module = member
    return module


def _names(model: nn.Module, modules: Mapping[str, nn.Module], word: str) -> Iterator[str]:
    """The modules that one word stands for."""
    kind = type(model).__name__
    if word == "stages":
        found = [str(entry["module"]) for entry in getattr(model, "feature_info", None) or ()]
        if not found:
            top = ", ".join(name for name, _ in model.named_children())
            raise InputError(f"{kind} has no feature_info, which names the stages of timm's models; name layers: {top}")
        if unknown := [name for name in found if name not in modules]:
            raise UnknownNameError(f"the feature_info of {kind} names {unknown[0]!r}, and there is no such layer")
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
    for name in found:
        if type(modules[name]).forward is not nn.Module.forward:
            yield name
        elif found == [word]:
            raise InputError(
                f"{word!r} of {kind} is a {type(modules[name]).__name__}, which is never called itself; "
                f"name its members: '{word}.*'"
            )


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
