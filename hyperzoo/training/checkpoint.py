"""Training checkpoints: folders of safetensors and JSON, written as a whole; resuming takes the newest valid one.

A folder holds *.safetensors, state.json, and manifest.json with the sha256 of each. It is read back before older
checkpoints are removed, so kill -9 at any moment leaves the last complete one.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperzoo import files
from hyperzoo.errors import CheckpointError

FORMAT = 1
KEEP = 2
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The training state at the end of an epoch: named groups of tensors, and a JSON state."""

    epoch: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder`, then remove all but the newest two.

    Raises:
        CheckpointError: the disk is full or not writable, or the file reads back wrong. Older checkpoints are intact.
    """
    final = folder / f"epoch-{checkpoint.epoch:05d}"
    try:
        with files.whole(final) as temporary:
            temporary.mkdir()
            for name, tensors in checkpoint.tensors.items():
                dense = {key: value.detach().contiguous() for key, value in tensors.items()}
                save_file(dense, temporary / f"{name}.safetensors", metadata={"format": "pt"})
            (temporary / "state.json").write_text(json.dumps(checkpoint.state))
            digests = {file.name: files.sha256(file) for file in sorted(temporary.iterdir())}
            manifest = {"format": FORMAT, "epoch": checkpoint.epoch, "files": digests}
            (temporary / "manifest.json").write_text(json.dumps(manifest))
        _check(final)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint {final}: {error}. Free some space and run again") from error
    _prune(folder)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint whose hashes all agree; a damaged one is skipped with a warning."""
    for path in sorted(folder.glob("epoch-*"), key=_epoch, reverse=True):
        try:
            manifest = _check(path)
            tensors = {
                file[: -len(".safetensors")]: load_file(path / file)
                for file in manifest["files"]
                if file != "state.json"
            }
            return Checkpoint(manifest["epoch"], tensors, json.loads((path / "state.json").read_text()))
        except (OSError, ValueError, KeyError, SafetensorError, CheckpointError) as error:
            _logger.warning("checkpoint %s cannot be used (%s); trying the previous one", path, error)
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, named '<parameter index>.<key>', and JSON values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Restore a packed state into an optimizer of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **rest["numbers"]}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()} for g in rest["groups"]
    ]
    for group, fresh in zip(groups, optimizer.param_groups, strict=True):  # settings unknown to older versions
        group |= {key: value for key, value in fresh.items() if key not in group}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _check(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"it has format {manifest['format']}, this version reads {FORMAT}")
    for name, expected in manifest["files"].items():
        found = files.sha256(path / name)
        if found != expected:
            raise CheckpointError(f"{name} has sha256 {found[:12]}..., its manifest says {expected[:12]}...")
    return manifest


def _prune(folder: Path) -> None:
    for path in sorted(folder.glob("epoch-*"), key=_epoch)[:-KEEP]:
        files.remove_folder(path)
    for path in folder.glob(f"{files.TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _epoch(path: Path) -> int:
    digits = path.name.removeprefix("epoch-")
    return int(digits) if digits.isdigit() else -1
