"""Save a model as the folder that the Hub, timm and transformers read: model.safetensors and config.json."""

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from hyperzoo import files, names
from hyperzoo.errors import WeightFileError


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    classes: tuple[str, ...],
    args: Mapping[str, Any] | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a timm model so that `timm.create_model('local-dir:<folder>', pretrained=True)` loads it.

    Tensors are dense float32. The file has one metadata key: with more, its bytes differ from process to process
    (safetensors 0.8).

    Args:
        classes: name of each output, stored as `label_names`; the words of a language model go to vocab.txt.
        args: constructor arguments that differ from the architecture's own: `widths`, `norm`, ...
        notes: stored in config.json under `hyperzoo`.
    Raises:
        WeightFileError: a tensor is NaN or infinite, or two names share one storage.
    """
    state = model.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise WeightFileError(f"cannot save {type(model).__name__}: NaN or infinity in {', '.join(bad)}")
    places = [value.data_ptr() for value in state.values() if value.numel()]
    if len(set(places)) < len(places):
        raise WeightFileError(f"cannot save {type(model).__name__}: two tensor names share one storage")
    plain = copy.deepcopy(model).float().cpu().to(memory_format=torch.contiguous_format)  # not channels-last
    dense = {name: value.contiguous() for name, value in plain.state_dict().items()}
    with files.whole(folder / "model.safetensors") as temporary:
        save_file(dense, temporary, metadata={"format": "pt"})
    config: dict[str, Any] = {"hyperzoo": notes or {}}
    if names.is_language(str(model.pretrained_cfg["architecture"])):  # type: ignore[index]
        files.write_whole({folder / "vocab.txt": "".join(f"{word}\n" for word in classes).encode()})
    else:
        config = {"label_names": list(classes), **config}
    with tempfile.TemporaryDirectory() as scratch:
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
