"""What a user calls: load a published weight, list what exists, prepare images."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from hyperzoo import names
from hyperzoo.errors import InputError, WeightFileError, WeightUnavailableError
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import TASKS, VOCABULARY
from hyperzoo.zoo.manifest import WeightInfo as WeightInfo


@dataclass(frozen=True)
class Loaded:
    """A published network in eval mode, the word for each of its outputs, and its manifest entry."""

    model: nn.Module
    vocabulary: tuple[str, ...]
    record: WeightInfo


def load(name: str, *, cache_dir: str | Path | None = None, **model_args: Any) -> Loaded:
    """Load a published weight by its name, or by its architecture for the default one; sha256 checked, in eval mode.

    Args:
        cache_dir: the Hub client's cache folder, if not its own.
        model_args: go on to `timm.create_model`: num_classes, in_chans, features_only, device, dtype, ...
    Raises:
        InvalidNameError, UnknownNameError: before any file is touched.
        WeightHashError, WeightFileError, WeightUnavailableError: nothing is left half-loaded.
    Example:
        >>> loaded = load('spherenet20')
        >>> loaded.model.training, loaded.vocabulary[:2]
        (False, ('airplane', 'automobile'))
    """
    if other := sorted(
        {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"} & model_args.keys()
    ):
        raise InputError(f"load gives published weights only: {', '.join(other)} is for timm.create_model")
    record = weight_info(name)
    folder = weight_files.path(record.name, "config.json", cache_dir=cache_dir).parent
    model = timm.create_model(record.name, pretrained=True, cache_dir=cache_dir, **model_args)
    return Loaded(model.eval(), vocabulary(folder), record)


def vocabulary(folder: Path) -> tuple[str, ...]:
    """The word for each output of the network in a folder: of vocab.txt, or of config.json's `label_names`.

    Raises:
        WeightFileError: the folder has neither.
    """
    try:
        if (folder / VOCABULARY).is_file():
            return tuple((folder / VOCABULARY).read_text(encoding="utf-8").splitlines())
        return tuple(json.loads((folder / "config.json").read_text(encoding="utf-8"))["label_names"])
    except (OSError, ValueError, KeyError) as error:
        raise WeightFileError(f"{folder} does not say what its outputs are called: {error!r}") from error


def any_network(name: str, *, pretrained: bool = False) -> nn.Module:
    """A network in eval mode by any name: a weight of ours, an architecture of ours with one, or what timm knows.

    Args:
        name: as for `load`, or for `timm.create_model`: an architecture, 'local-dir:<folder>', 'hf-hub:<repository>'.
        pretrained: fetch timm's weight for an architecture of timm; without it that one is untrained.
    Raises:
        UnknownNameError: neither we nor timm know the name. WeightUnavailableError: no such folder; and what `load`
            raises.
    """
    scheme, colon, place = name.partition(":")
    if colon:
        if scheme not in ("local-dir", "hf-hub"):
            raise names.unknown("model", name, list_models())
        if scheme == "local-dir" and not Path(place, "config.json").is_file():
            raise WeightUnavailableError(f"{place} is no folder of a model: it holds no config.json")
        return timm.create_model(name, pretrained=True).eval()
    if _is_ours(name.partition(".")[0]):
        return load(name).model if "." in name or list_weights(name) else timm.create_model(name).eval()
    if not timm.is_model(name):
        raise names.unknown("model", name, timm.list_models())
    return timm.create_model(name, pretrained=pretrained).eval()


def list_models(task: str | None = None) -> list[str]:
    """Names of our architectures, all or those for 'image-classification' or 'text-generation'."""
    if task is not None and task not in TASKS:
        raise InputError(f"no task {task!r}. {names.closest_text(task, TASKS)}")
    ours = [name for name in timm.list_models() if _is_ours(name)]
    return [name for name in ours if task is None or (VOCABULARY in TASKS[task]) == names.is_language(name)]


def list_weights(arch: str | None = None) -> list[str]:
    """Names of the published weights, all or those of one architecture."""
    return weight_files.MANIFEST.names(None if arch is None else _known_arch(arch))


def weight_info(name: str) -> WeightInfo:
    """The manifest entry of a weight, given by its name or by its architecture for the default one."""
    known = isinstance(name, str) and "." not in name
    return weight_files.MANIFEST.info(weight_files.MANIFEST.default(_known_arch(name)) if known else name)


def _is_ours(arch: str) -> bool:
    return timm.is_model(arch) and timm.model_entrypoint(arch).__module__.startswith("hyperzoo.models.")


def _known_arch(arch: str) -> str:
    if not _is_ours(names.check_arch(arch)):
        raise names.unknown("architecture", arch, list_models())
    return arch


def preprocess(name: str) -> Callable[[Image.Image | Tensor], Tensor]:
    """Return the function that turns images into the network's input; the same as timm's evaluation transform.

    Shapes:
        a PIL image, or uint8 (B, C, H, W).   return: (B, C, h, w) float32, B = 1 for a PIL image.
    Args:
        name: a weight, or an architecture for its default weight (without one, for its own description).
    Raises:
        InputError: a language model. From the returned function: anything else; the message has type, dtype and shape.
    """
    known = weight_info(name).name if isinstance(name, str) and "." in name else _known_arch(name)
    if names.is_language(known):
        raise InputError(f"{known} reads token ids, not images: the position of each word in load(name).vocabulary")
    cfg = timm.get_pretrained_cfg(known) or PretrainedCfg()  # every architecture of ours has one
    return _Preprocess(resolve_data_config(pretrained_cfg=cfg.to_dict()))


class _Preprocess:
    """timm's evaluation transform, which takes one PIL image, for PIL images and for batches of bytes."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.channels, *self.size = config["input_size"]
        self.keeps_size = config["crop_pct"] == 1.0
        self.mean, self.std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.transform = create_transform(**config)

    def __call__(self, images: Image.Image | Tensor) -> Tensor:
        if isinstance(images, Image.Image):
            return self.transform(images.convert("RGB" if self.channels == 3 else "L"))[None]
        if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.dim() == 4):
            raise InputError(
                f"expected a PIL image or uint8 (batch, {self.channels}, height, width); got {_shown(images)}"
            )
        if images.shape[1] != self.channels or 0 in images.shape[2:]:
            raise InputError(f"expected {self.channels} channels and at least one pixel; got {_shown(images)}")
        if not len(images):
            return torch.empty(0, self.channels, *self.size, device=images.device)
        if self.keeps_size and list(images.shape[2:]) == self.size:
            scaled = images.float().div_(255)  # the operations of ToTensor and Normalize, on the whole batch
            return scaled.sub_(self.mean.to(images.device)).div_(self.std.to(images.device))
        return torch.stack([self.transform(to_pil_image(image)) for image in images.cpu()]).to(images.device)


def _shown(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
