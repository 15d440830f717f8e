"""Start of a run: a weight or a run folder, with a new classifier and frozen layers."""

import fnmatch
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from hyperzoo import names, zoo
from hyperzoo.errors import RecipeError, WeightFileError
from hyperzoo.layers.hooks import classifiers
from hyperzoo.training.recipe import Recipe, make_recipe
from hyperzoo.training.strict_yaml import overridden
from hyperzoo.zoo import weight_files


def finetuning_recipe(name: str, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A short recipe with small learning rates, above all in the early layers, for images in a folder.

    The warm-up takes the first epoch, or a tenth of it if `train.epochs` is 1.

    Args:
        name: a weight of hyperzoo or timm, or a run folder.
        overrides: as for `load_recipe`.
    Raises:
        UnknownNameError, UnknownTagError, WeightUnavailableError: no such weight or folder. RecipeError: an override.
    """
    arch, cfg = zoo.described(name)
    size = timm.data.resolve_data_config(pretrained_cfg=cfg)["input_size"][-1]
    values: dict[str, Any] = {
        "name": folder.name.replace(".", "_") or "images",
        "model": {"arch": arch, "pretrained": name if "." in name or zoo.local_folder(name) else True},
        "data": {"source": {"folder": str(folder)}, "batch_size": 32, "crop_px": size // 8},
        "method": {"label_smoothing": 0.1},
        "optim": {
            "optimizer": "adamw",
            "lr": 1e-3,
            "layer_decay": 0.75,
            "weight_decay": 0.05,
            "warmup_epochs": 1.0,
            "clip_norm": 1.0,
        },
        "train": {"epochs": 10},
    }
    if overridden(values, overrides, "train.epochs", Recipe) == 1:
        values["optim"]["warmup_epochs"] = 0.1
    return make_recipe(values, list(overrides))


def start(recipe: Recipe) -> str | None:
    """The name of the weight that the run starts from; None for an untrained network.

    Raises:
        RecipeError: `model.pretrained` is of another architecture, or true without a default weight.
        UnknownNameError, UnknownTagError, WeightUnavailableError: no such weight or folder.
    """
    arch, name = recipe.model.arch, recipe.model.pretrained
    if name is None:
        return None
    if name is True:
        if arch in zoo.list_models():
            if zoo.list_weights(arch):
                return zoo.weight_info(arch).name
        elif tag := getattr(timm.get_pretrained_cfg(arch), "tag", ""):
            return f"{arch}.{tag}"
        raise RecipeError(f"model.pretrained: {arch} has no default weight; name a weight or a run folder")
    other, _ = zoo.described(name)
    if other != arch:
        raise RecipeError(f"model.pretrained {name} is a {other}, but model.arch is {arch}; set one to the other's")
    return (
        name if "." in name or zoo.local_folder(name) or arch not in zoo.list_models() else zoo.weight_info(name).name
    )


def description(recipe: Recipe) -> dict[str, Any]:
    """timm's description of the inputs of a recipe's network: `input_size`, `interpolation`, `mean`, `std`, ..."""
    _, cfg = zoo.described(start(recipe) or recipe.model.arch)
    return timm.data.resolve_data_config(pretrained_cfg=cfg)


def class_names(name: str) -> tuple[str, ...] | None:
    """The class names of a weight of hyperzoo or of a folder; None if it does not name them."""
    folder = zoo.local_folder(name)
    if folder is None:
        if name.partition(".")[0] not in zoo.list_models():
            return None
        folder = weight_files.path(name, "config.json").parent
    try:
        return zoo.class_names(folder)
    except WeightFileError:
        return None


def renew_classifier(network: nn.Module, name: str, seed: int) -> None:
    """Draw the classifier anew, in place.

    The numbers depend on the weight and the seed, not on the seed alone: a run that starts from a run of the same seed
    would otherwise draw the values from which that one was trained.
    """
    words = f"{seed} {zoo.weight_sha256(name) or name}"
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(hashlib.sha256(words.encode()).hexdigest()[:15], 16))
        for module in _classifier(network):
            getattr(module, "reset_parameters", lambda: None)()


def _classifier(network: nn.Module) -> list[nn.Module]:
    """The modules of the classifier; some networks of timm have two."""
    return [module for head in classifiers(network) for module in head.modules()]


def freeze(network: nn.Module, patterns: str | list[str]) -> None:
    """Exclude parameters from the training, in place; `TrainStep` keeps their layers in evaluation mode."""
    named = dict(network.named_parameters())
    if patterns == "backbone":
        trained = {id(p) for module in _classifier(network) for p in module.parameters()}
        frozen = [name for name, parameter in named.items() if id(parameter) not in trained]
    else:
        if lost := [pattern for pattern in patterns if not fnmatch.filter(named, pattern)]:
            raise RecipeError(f"model.freeze: {lost[0]!r} matches no parameter. {names.closest_text(lost[0], named)}")
        frozen = [name for name in named if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if len(frozen) == len(named):
        raise RecipeError("model.freeze leaves no parameter to train; leave one out")
    for name in frozen:
        named[name].requires_grad_(False)
