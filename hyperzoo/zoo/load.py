"""List published weights and load them by name; any other network by timm's name or from a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from hyperzoo import names
from hyperzoo.errors import InputError, WeightFileError, WeightUnavailableError
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import TASKS, VOCABULARY, WeightInfo

LOCAL = "local-dir:"
"""timm's prefix for a folder that holds a model; a run folder is one."""


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode, the names of its classes (the words, for a language model), and its manifest entry.

    `info` is None for a folder, which has no manifest entry.
    """

    model: nn.Module
    classes: tuple[str, ...]
    info: WeightInfo | None


def load(name: str, *, cache_dir: str | Path | None = None, **model_args: Any) -> Loaded:
    """Load a published weight or a run folder, in eval mode, with its class names.

    Published files are checked against the sha256 in the manifest on every load.

    Args:
        name: a weight ('spherenet20.sphere_c10'), an architecture for its default weight ('spherenet20'), or
            'local-dir:FOLDER' for a folder with model.safetensors and config.json, such as a run folder.
        cache_dir: cache folder of the Hub client [default: the client's own].
        model_args: passed to `timm.create_model`: num_classes, in_chans, features_only, device, dtype, ...
    Raises:
        InvalidNameError, UnknownNameError: before any file is touched.
        WeightHashError, WeightFileError, WeightUnavailableError: nothing is left half-loaded.
    Example:
        >>> loaded = load('spherenet20')
        >>> loaded.model.training, loaded.classes[:2], loaded.info.name
        (False, ('airplane', 'automobile'), 'spherenet20.sphere_c10')
    """
    if other := sorted(
        {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"} & model_args.keys()
    ):
        raise InputError(f"load always takes the weights of {name}; pass {', '.join(other)} to timm.create_model")
    if folder := local_folder(name):
        model = timm.create_model(name, pretrained=True, **model_args)
        return Loaded(model.eval(), class_names(folder), None)
    info = weight_info(name)
    folder = weight_files.path(info.name, "config.json", cache_dir=cache_dir).parent
    model = timm.create_model(info.name, pretrained=True, cache_dir=cache_dir, **model_args)
    return Loaded(model.eval(), class_names(folder), info)


def local_folder(name: str) -> Path | None:
    """The folder of the name 'local-dir:FOLDER'; None for any other name.

    Raises:
        WeightUnavailableError: no such folder, or it has no config.json.
        WeightFileError: config.json is damaged.
    """
    if not (isinstance(name, str) and name.startswith(LOCAL)):
        return None
    folder = Path(name.removeprefix(LOCAL))
    if not folder.is_dir():
        raise WeightUnavailableError(f"{folder} does not exist or is not a folder")
    config = folder / "config.json"
    if not config.is_file():
        raise WeightUnavailableError(f"{folder} has no config.json, so it is not a saved model")
    try:
        if not isinstance(json.loads(config.read_text(encoding="utf-8"))["architecture"], str):
            raise ValueError("its architecture is not a name")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightFileError(f"{config} is damaged ({error!r}); save the model again, or restore the file") from error
    return folder


def class_names(folder: Path) -> tuple[str, ...]:
    """The name of each output of the network in a folder: the lines of vocab.txt, or config.json's `label_names`.

    Raises:
        WeightFileError: the folder has neither.
    """
    try:
        if (folder / VOCABULARY).is_file():
            return tuple((folder / VOCABULARY).read_text(encoding="utf-8").splitlines())
        return tuple(json.loads((folder / "config.json").read_text(encoding="utf-8"))["label_names"])
    except (OSError, ValueError, KeyError) as error:
        raise WeightFileError(
            f"{folder} has neither {VOCABULARY} nor label_names in config.json, so its classes have no names: {error!r}"
        ) from error


def any_network(name: str, *, pretrained: bool = False) -> nn.Module:
    """Build a network in eval mode by any name: a weight or an architecture of hyperzoo, a folder, a model of timm.

    Args:
        name: as for `load`, or as for `timm.create_model` ('resnet18', 'hf-hub:REPOSITORY').
        pretrained: load timm's weight for a model of timm; otherwise such a model is untrained.
    Raises:
        UnknownNameError: neither hyperzoo nor timm knows the name. And what `load` raises.
    """
    if local_folder(name) or name.startswith("hf-hub:"):
        return timm.create_model(name, pretrained=True).eval()
    if ":" in name:
        raise names.unknown("model", name, list_models())
    if is_registered(name.partition(".")[0]):
        return load(name).model if "." in name or list_weights(name) else timm.create_model(name).eval()
    if not timm.is_model(name):
        raise names.unknown("model", name, timm.list_models())
    return timm.create_model(name, pretrained=pretrained).eval()


def list_models(task: str | None = None) -> list[str]:
    """Names of hyperzoo's architectures: all, or those for 'image-classification' or 'text-generation'."""
    if task is not None and task not in TASKS:
        raise InputError(f"no task {task!r}. {names.closest_text(task, TASKS)}")
    ours = [name for name in timm.list_models() if is_registered(name)]
    return [name for name in ours if task is None or (VOCABULARY in TASKS[task]) == names.is_language(name)]


def list_weights(arch: str | None = None) -> list[str]:
    """Names of the published weights: all, or those of one architecture."""
    return weight_files.MANIFEST.names(None if arch is None else known_arch(arch))


def weight_info(name: str) -> WeightInfo:
    """The manifest entry of a weight; an architecture stands for its default weight."""
    is_arch = isinstance(name, str) and "." not in name
    return weight_files.MANIFEST.info(weight_files.MANIFEST.default(known_arch(name)) if is_arch else name)


def is_registered(arch: str) -> bool:
    """Whether hyperzoo has registered this architecture with timm."""
    return timm.is_model(arch) and timm.model_entrypoint(arch).__module__.startswith("hyperzoo.models.")


def known_arch(arch: str) -> str:
    """Return the name of one of hyperzoo's architectures, or raise InvalidNameError or UnknownNameError."""
    if not is_registered(names.check_arch(arch)):
        raise names.unknown("architecture", arch, list_models())
    return arch
