"""A saved model: the folder that the Hub, timm and transformers read, model.safetensors and config.json."""

import copy
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models import save_for_hf
from torch import nn

from hyperzoo import files, names
from hyperzoo.errors import WeightFileError, WeightUnavailableError
from hyperzoo.zoo import weight_files

SMALL = 4096  # a whole number of config.json up to here needs no tensor of that size


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    classes: tuple[str, ...],
    args: Mapping[str, Any] | None = None,
    notes: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a timm model so that `timm.create_model('local-dir:<folder>', pretrained=True)` loads it.

    Tensors are dense. The file has one metadata key: with more, its bytes differ from process to process
    (safetensors 0.8).

    Args:
        classes: name of each output, stored as `label_names`; the words of a language model go to vocab.txt.
        args: constructor arguments that differ from the architecture's own: `widths`, `norm`, ...
        notes: stored in config.json under `hyperzoo`.
        dtype: of the floating-point tensors in the file.
    Raises:
        WeightFileError: the names do not fit the outputs, a tensor is NaN or infinite, or two names share one storage.
    """
    outputs = int(model.num_classes)  # type: ignore[arg-type]
    if len(classes) != outputs or not all(isinstance(name, str) for name in classes):
        raise WeightFileError(
            f"{type(model).__name__} needs a list of {outputs} class names; got {len(classes)} values"
        )
    state = model.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise WeightFileError(f"cannot save {type(model).__name__}: NaN or infinity in {', '.join(bad)}")
    places = [value.data_ptr() for value in state.values() if value.numel()]
    if len(set(places)) < len(places):
        raise WeightFileError(f"cannot save {type(model).__name__}: two tensor names share one storage")
    plain = copy.deepcopy(model).to("cpu", dtype).to(memory_format=torch.contiguous_format)  # not channels-last
    dense = {name: value.contiguous() for name, value in plain.state_dict().items()}
    with files.whole(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(dense, metadata={"format": "pt"}))
    config: dict[str, Any] = {"hyperzoo": notes or {}}
    if names.is_language(str(model.pretrained_cfg["architecture"])):  # type: ignore[index]
        files.write_whole({folder / "vocab.txt": "".join(f"{word}\n" for word in classes).encode()})
    else:
        config = {"label_names": list(classes), **config}
    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=folder) as scratch:  # /tmp may be small or full
        save_for_hf(
            plain,
            scratch,
            model_config=config,
            model_args=dict(args) if args else None,
            safe_serialization=True,
        )
        config = json.loads((Path(scratch) / "config.json").read_text())
    config.get("model_args", {}).pop("num_classes", None)  # stated at the top; transformers would pass it twice
    files.write_json(folder / "config.json", config)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder with a saved model.

    Raises:
        WeightUnavailableError: no such folder, or it has no config.json.
        WeightFileError: config.json does not describe a model of timm or hyperzoo, or contradicts itself.
    """
    shown = names.cut(str(folder), 300)
    if not os.path.isdir(folder):
        raise WeightUnavailableError(f"{shown} does not exist or is not a folder")
    file = folder / "config.json"
    if not os.path.isfile(file):
        raise WeightUnavailableError(
            f"{shown} has no config.json, so it is not a saved model; a run has one when its training is finished"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    if fault := next(_faults(config), None):
        raise _damaged(file, fault)
    return config


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the config.json of a folder, after a check of its tensors' file; no tensor is read.

    Raises:
        WeightUnavailableError, WeightFileError: as `read_config` and `check_file` of `weight_files`; or a number of
            config.json is above 4096 and above every size in the file.
    """
    config, file = read_config(folder), folder / "model.safetensors"
    sizes = weight_files.check_file(file)
    limit = max([SMALL, len(sizes), *(size for shape in sizes.values() for size in shape)])
    for number in _numbers([config.get("num_classes"), config.get("model_args")]):
        if number > limit:
            raise _damaged(
                folder / "config.json", f"{names.cut(str(number))} is above every size in {file.name}, {limit}"
            )
    return config


def _damaged(file: Path, fault: str) -> WeightFileError:
    return WeightFileError(f"{file} is damaged ({names.cut(fault, 300)}); save the model again, or restore the file")


def _faults(config: Any) -> Iterator[str]:
    """What is wrong with the values of a config.json, the first fault first."""
    if not isinstance(config, dict):
        yield "it is not an object"
        return
    arch, cfg, args = config.get("architecture"), config.get("pretrained_cfg", config), config.get("model_args", {})
    if not isinstance(arch, str):
        yield f"its architecture is not a name: {arch!r}"
    elif ":" in arch or "." in arch or not timm.is_model(arch):
        yield f"neither timm nor hyperzoo has the architecture {arch!r}"
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        yield "pretrained_cfg and model_args must be objects"
        return
    if other := [key for key in args if key.startswith("pretrained") or key in ("checkpoint_path", "cache_dir")]:
        yield f"model_args cannot hold {', '.join(other)}"
    if not all(_number(number) for number in _numbers(args) if type(number) is not bool):
        yield "model_args holds NaN, infinity or a number beyond the range of floats"
    classes = config.get("num_classes", cfg.get("num_classes", 0))
    if not _whole(classes, 0):
        yield f"num_classes must be a whole number of at least 0; got {classes!r}"
    if args.get("num_classes", classes) != classes:
        yield f"num_classes {classes}, but model_args says {args['num_classes']}"
    size = cfg.get("input_size", [3, 224, 224])
    if not (isinstance(size, list) and len(size) == 3 and all(_whole(value, 1) and value <= SMALL for value in size)):
        yield f"input_size must be three whole numbers from 1 to {SMALL}; got {size!r}"
        return
    for key, low in (("mean", -math.inf), ("std", 0.0)):
        values = cfg.get(key, [1.0])
        if not (isinstance(values, list) and len(values) in (1, 3, size[0]) and all(_number(v, low) for v in values)):
            yield f"{key} must be a number per channel{', above 0' * (key == 'std')}; got {values!r}"


def _whole(value: Any, low: int) -> bool:
    return type(value) is int and value >= low


def _number(value: Any, above: float = -math.inf) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max and value > above


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in nested lists and objects."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value
