"""Training checkpoints: folders of safetensors and JSON, written as a whole; resuming takes the newest valid one.

A folder holds *.safetensors, state.json, and manifest.json with the sha256 of each. It is read back before older
checkpoints are removed, so kill -9 at any moment leaves the last complete one. Other files and folders next to the
checkpoints are left alone.
"""

import json
import logging
import re
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
UNUSABLE = "unusable-"  # prefix of damaged checkpoints of later epochs than those trained since
_NAME = re.compile(r"epoch-([0-9]{5}|[1-9][0-9]{5,})")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The training state at the end of an epoch: named groups of tensors, and a JSON state."""

    epoch: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder`, then remove all but the newest two.

    Checkpoints of later epochs were skipped as unusable when the run resumed. They are renamed to `unusable-epoch-N`.

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
    _prune(folder, checkpoint.epoch)
    return final


def folders(folder: Path) -> list[Path]:
    """The folders of all checkpoints, the newest epoch first."""
    named = [path for path in folder.glob("epoch-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(named, key=_epoch, reverse=True)


def not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Which tensors hold NaN or infinity: '<group>.<name> and N more'; '' if none does."""
    values = ((f"{group}.{name}", value) for group, named in tensors.items() for name, value in named.items())
    bad = [name for name, value in values if not torch.isfinite(value).all()]
    return bad[0] + (f" and {len(bad) - 1} more" if bad[1:] else "") if bad else ""


def newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint whose hashes agree and whose tensors are finite; others are skipped with a warning."""
    for path in folders(folder):
        try:
            names = [name for name in _check(path) if name != "state.json"]
            tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in names}
            if bad := not_finite(tensors):
                raise CheckpointError(f"NaN or infinity in {bad}")
            return Checkpoint(_epoch(path), tensors, json.loads((path / "state.json").read_text()))
        except (OSError, ValueError, RecursionError, SafetensorError, CheckpointError) as error:
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


def _check(path: Path) -> list[str]:
    """Compare a checkpoint with its manifest; returns the names of its files.

    Raises:
        CheckpointError: another format or epoch than expected, another list of files, or another sha256.
    """
    manifest = json.loads((path / "manifest.json").read_text())
    found = manifest if isinstance(manifest, dict) else {}
    if found.get("format") != FORMAT:
        raise CheckpointError(f"it has format {found.get('format')}, this version reads {FORMAT}")
    if found.get("epoch") != _epoch(path):
        raise CheckpointError(f"its manifest says epoch {found.get('epoch')!r}")
    digests = found.get("files")
    if not isinstance(digests, dict) or "state.json" not in digests:
        raise CheckpointError("its manifest lists no state.json")
    if other := {file.name for file in path.iterdir()} ^ {*digests, "manifest.json"}:
        raise CheckpointError(f"{min(other)} is missing, or its manifest does not list it")
    for name, expected in digests.items():
        if files.sha256(path / name) != expected:
            raise CheckpointError(f"{name} has another sha256 than its manifest says")
    return list(digests)


def _prune(folder: Path, epoch: int) -> None:
    """Keep the newest checkpoints up to `epoch`, the last that was trained."""
    saved = folders(folder)
    for path in (path for path in saved if _epoch(path) > epoch):
        aside = path.with_name(UNUSABLE + path.name)
        if aside.exists():
            files.remove_folder(aside)
        path.rename(aside)
    for path in [path for path in saved if _epoch(path) <= epoch][KEEP:]:
        files.remove_folder(path)
    for path in folder.glob(f"{files.TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _epoch(path: Path) -> int:
    return int(path.name.removeprefix("epoch-"))
