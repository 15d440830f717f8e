"""List published weights and load them by name; any other network by timm's name or from a folder."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from torch import nn

from hyperzoo import files, names
from hyperzoo.errors import InputError, InvalidNameError, UnknownTagError, WeightFileError, WeightUnavailableError
from hyperzoo.zoo import hub, weight_files
from hyperzoo.zoo.manifest import FILES, TASKS, VOCABULARY
from hyperzoo.zoo.model_folder import check_folder, read_config
from hyperzoo.zoo.weight_description import WeightInfo

LOCAL, HUB = "local-dir:", "hf-hub:"
"""timm's prefixes for a folder that holds a model, such as a run folder, and for a repository of the Hub."""


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode, the names of its classes (the words, for a language model), and its manifest entry.

    `classes` is empty if the caller asked for other outputs than those with names. `info` is None for a folder, which
    has no manifest entry.
    """

    model: nn.Module
    classes: tuple[str, ...]
    info: WeightInfo | None


def load(name: str | os.PathLike[str], *, cache_dir: str | Path | None = None, **model_args: Any) -> Loaded:
    """Load a published weight or a run folder, in eval mode, with its class names.

    Published files are checked against the sha256 in the manifest on every load.

    Args:
        name: a weight ('spherenet20.sphere_c10'), an architecture for its default weight ('spherenet20'), the path of a
            folder with model.safetensors and config.json, such as a run folder, also as 'local-dir:FOLDER', or
            'hf-hub:REPOSITORY' for such files on the Hub.
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
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    info: WeightInfo | None = None
    if folder := local_folder(name, cache_dir=cache_dir):
        model = _from_folder(folder, **model_args)
    else:
        info = weight_info(name)
        folder = weight_files.path(info.name, "config.json", cache_dir=cache_dir).parent
        try:
            model = timm.create_model(info.name, pretrained=True, cache_dir=cache_dir, **model_args)
        except TypeError as error:
            if not model_args:
                raise
            raise InputError(f"{info.name} cannot be loaded with {', '.join(model_args)}: {error}") from error
    classes = class_names(folder)
    return Loaded(model.eval(), classes if getattr(model, "num_classes", None) == len(classes) else (), info)


def local_folder(name: str, *, cache_dir: str | Path | None = None) -> Path | None:
    """The folder of a saved model, named by its path or as 'local-dir:FOLDER'; None for any other name.

    'hf-hub:REPOSITORY[@REVISION]' names the folder of the files downloaded to `cache_dir`.

    Raises:
        InvalidNameError: no name of a repository, or a path without a folder.
        WeightUnavailableError: a folder without config.json, or after `local-dir:` none. No such file on the Hub, or no
            connection.
        WeightFileError: config.json is damaged.
    """
    if not isinstance(name, str):
        return None
    if name.startswith(HUB):
        return _hub_folder(name.removeprefix(HUB), cache_dir)
    folder = Path(os.path.expanduser(name.removeprefix(LOCAL)))
    exists = os.path.isdir(folder) if name.strip(".") else os.path.isfile(folder / "config.json")
    if not name.startswith(LOCAL) and (not exists or timm.is_model(name)):
        if "/" in name and ":" not in name:
            raise InvalidNameError(f"{names.cut(ascii(name))} is neither an existing folder nor a name, which has no /")
        return None
    read_config(folder)
    return folder


def _from_folder(folder: Path, **model_args: Any) -> nn.Module:
    """The network of a folder, after a check of its files."""
    config = check_folder(folder)
    try:
        model = timm.create_model(f"{LOCAL}{folder}", pretrained=True, **model_args)
    except (WeightFileError, WeightUnavailableError):
        raise
    except Exception as error:  # whatever a constructor raises for the arguments in config.json, or the caller's
        where, kind = f"{folder / 'config.json'} describes no {config['architecture']}", WeightFileError
        if model_args:
            where, kind = f"{folder} cannot be loaded with {', '.join(model_args)}", InputError  # type: ignore[assignment]
        raise kind(f"{where} that fits its tensors: {names.cut(str(error), 300)}") from error
    if not is_registered(config["architecture"]):  # timm's own loading compares names and shapes only
        faults = weight_files.value_faults(load_file(folder / FILES[0]), model.state_dict())
        if listed := "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys):
            raise WeightFileError(f"{folder / FILES[0]} does not fit {config['architecture']}. {listed}")
    return model


def class_names(folder: Path) -> tuple[str, ...]:
    """The name of each output of the network in a folder: the lines of vocab.txt, or config.json's `label_names`.

    Raises:
        WeightFileError: the folder has neither, or their number is not that of the outputs.
    """
    config, source = read_config(folder), f"label_names of {folder / 'config.json'}"
    found = config.get("label_names", config.get("pretrained_cfg", config).get("label_names"))
    if (vocabulary := folder / VOCABULARY).is_file():
        source = str(vocabulary)
        try:
            found = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, ValueError) as error:
            raise WeightFileError(f"cannot read {vocabulary}: {error}") from error
    if found is None:
        raise WeightFileError(
            f"{folder} has neither {VOCABULARY} nor label_names in config.json, so its {_outputs(config)} classes have "
            "no names"
        )
    if not isinstance(found, list) or len(found) != _outputs(config) or not all(isinstance(x, str) for x in found):
        got = f"{len(found)} values" if isinstance(found, list) else type(found).__name__
        raise WeightFileError(f"{source} must be a list of {_outputs(config)} names; got {got}")
    return tuple(found)


def _outputs(config: dict[str, Any]) -> Any:
    return config.get("num_classes", config.get("pretrained_cfg", config).get("num_classes"))


def any_network(name: str, *, pretrained: bool = False, **model_args: Any) -> nn.Module:
    """Build a network in eval mode by any name: a weight or an architecture of hyperzoo, a folder, a model of timm.

    Args:
        name: as for `load`, or as for `timm.create_model` ('resnet18', 'hf-hub:REPOSITORY').
        pretrained: load timm's weight for a model of timm; otherwise such a model is untrained.
        model_args: passed to `timm.create_model`, as in `load`.
    Raises:
        UnknownNameError: neither hyperzoo nor timm knows the name. And what `load` raises.
    """
    if folder := local_folder(name, cache_dir=model_args.get("cache_dir")):
        return _from_folder(folder, **model_args).eval()
    if ":" in name:
        raise names.unknown("model", name, list_models())
    if is_registered(name.partition(".")[0]):
        published = "." in name or list_weights(name)
        return load(name, **model_args).model if published else timm.create_model(name, **model_args).eval()
    if not timm.is_model(name):
        raise names.unknown("model", name, timm.list_models())
    return timm.create_model(name, pretrained=pretrained, **model_args).eval()


def described(name: str) -> tuple[str, dict[str, Any]]:
    """The architecture of a network, and its description as timm's `pretrained_cfg`; no tensor is read.

    Args:
        name: a weight or an architecture of hyperzoo, a folder, or a model of timm.
    Raises:
        InvalidNameError, UnknownNameError, UnknownTagError: neither hyperzoo nor timm has such a name.
    """
    if folder := local_folder(name):
        config = read_config(folder)
        return config["architecture"], config.get("pretrained_cfg", config)
    arch = name.partition(".")[0] if isinstance(name, str) else ""
    if not timm.is_model(arch) or is_registered(arch):
        name = weight_info(name).name if isinstance(name, str) and "." in name else known_arch(name)
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise UnknownTagError(f"{error} See timm.list_pretrained({arch!r})") from error
    return arch, cfg.to_dict() if cfg else {}


def weight_sha256(name: str) -> str | None:
    """The sha256 of the file of a weight of hyperzoo, of a folder, or of a weight of timm in the cache of the Hub."""
    if folder := local_folder(name):
        return files.sha256(folder / FILES[0])
    if is_registered(name.partition(".")[0]):
        return weight_info(name).files[FILES[0]]
    repo, _, revision = str(described(name)[1].get("hf_hub_id") or "").partition("@")
    cached = hub.cached(repo, revision or "main", FILES[0]) if repo else None
    return files.sha256(cached) if cached else None


def _hub_folder(name: str, cache_dir: str | Path | None) -> Path:
    """The folder of the downloaded files of 'REPOSITORY[@REVISION]'; those of a published weight are hashed.

    Raises: as `local_folder`.
    """
    repo, _, revision = name.partition("@")
    if not hub.is_repository(name):
        raise InvalidNameError(f"{names.cut(ascii(name))} is not a repository of the Hub: write {HUB}<owner>/<name>")
    if (weight := repo.rpartition("/")[2]) in weight_files.MANIFEST.weights:
        for part in weight_files.MANIFEST.info(weight).files:
            file = weight_files.path(weight, part, repo=repo, revision=revision or None, cache_dir=cache_dir)
    else:
        for part in reversed(FILES):  # the small one first, which does without the time of a large one
            size = hub.UNKNOWN_BYTES if part == FILES[0] else 0
            file = hub.fetch(repo, revision or "main", part, cache_dir=cache_dir, size=size)
        if names.is_language(read_config(file.parent)["architecture"]):
            hub.fetch(repo, revision or "main", VOCABULARY, cache_dir=cache_dir, size=0)
    return file.parent


def list_models(task: str | None = None) -> list[str]:
    """Names of hyperzoo's architectures: all, or those for 'image-classification' or 'text-generation'."""
    if task is not None and task not in TASKS:
        raise InputError(f"no task {task!r}. {names.closest_text(str(task), TASKS)}")
    ours = [name for name in timm.list_models() if is_registered(name)]
    return [name for name in ours if task is None or (VOCABULARY in TASKS[task]) == names.is_language(name)]


def list_weights(arch: str | None = None) -> list[str]:
    """Names of the published weights: all, or those of one architecture."""
    return weight_files.MANIFEST.names(None if arch is None else known_arch(arch))


def weight_info(name: str) -> WeightInfo:
    """The manifest entry of a weight; an architecture stands for its default weight."""
    _refuse_folder(name)
    is_arch = isinstance(name, str) and "." not in name
    return weight_files.MANIFEST.info(weight_files.MANIFEST.default(known_arch(name)) if is_arch else name)


def is_registered(arch: str) -> bool:
    """Whether hyperzoo has registered this architecture with timm."""
    return timm.is_model(arch) and timm.model_entrypoint(arch).__module__.startswith("hyperzoo.models.")


def known_arch(arch: str) -> str:
    """Return the name of one of hyperzoo's architectures, or raise InvalidNameError or UnknownNameError."""
    _refuse_folder(arch)
    if not is_registered(names.check_arch(arch)):
        raise names.unknown("architecture", arch, list_models())
    return arch


def _refuse_folder(name: str) -> None:
    """Raise InvalidNameError for the folder of a run where the name of a weight or architecture is expected."""
    if not isinstance(name, str) or timm.is_model(name):
        return
    if name.startswith(LOCAL) or os.path.isdir(name):
        shown = names.cut(ascii(name.removeprefix(LOCAL))[1:-1])
        raise InvalidNameError(
            f"{shown} is a folder, which has no manifest entry; for a run, read {shown}/result.json, or evaluate it: "
            f"hyperzoo eval {shown}"
        )
