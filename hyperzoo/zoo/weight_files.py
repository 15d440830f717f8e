"""Find and verify the files of a published weight, and compare their tensors with a model.

Every load hashes whole files. No code of a file is ever executed.
"""

import cmath
import json
import logging
import os
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.models import clean_state_dict
from torch import Tensor, nn

from hyperzoo import names
from hyperzoo.errors import WeightFileError, WeightHashError, WeightUnavailableError
from hyperzoo.files import sha256
from hyperzoo.zoo import hub
from hyperzoo.zoo.manifest import Manifest
from hyperzoo.zoo.weight_description import WeightInfo as WeightInfo

_logger = logging.getLogger(__name__)

NESTED = ("model", "model_ema", "state_dict", "state_dict_ema")
"""Names under which timm looks for a checkpoint inside a file."""

MANIFEST = Manifest(Path(__file__).parent.parent)
"""The weights that this version of the package publishes."""


def path(
    name: str,
    filename: str = "model.safetensors",
    *,
    repo: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return the path of a file of a published weight whose sha256 equals the manifest's.

    Bundled files are in the package; other files come from the Hub's cache or, at the pinned commit, from the Hub. A
    cached file with the right hash needs no request; one with a wrong hash is downloaded once more.

    Args:
        repo, revision: another repository with the same files, which must have the same hashes.
    Raises:
        WeightHashError: the bytes differ from the manifest's. WeightUnavailableError: the file is neither
            bundled nor cached, and cannot be downloaded.
    """
    info = MANIFEST.info(name)
    ours = f"{MANIFEST.namespace}/{name}"
    repo = repo or ours
    if info.bundled and repo == ours and revision in (None, info.commit):
        return _bundled(info, filename)
    revision = revision or (info.commit if repo == ours else None) or "main"
    held = hub.cached(repo, revision, filename, cache_dir=cache_dir)
    if held and sha256(held) == info.files[filename]:
        return held
    found = _fetch(info, repo, revision, filename, cache_dir)
    digest = sha256(found)
    if digest != info.files[filename]:
        start = f"{name}: {found} has sha256 {digest}, weights.json says {info.files[filename]}."
        if hub.offline():
            raise WeightHashError(f"{start} HF_HUB_OFFLINE=1 forbids a second download.")
        _logger.warning("%s Fetching it once more.", start)
        try:
            found = _fetch(info, repo, revision, filename, cache_dir, force=True)
        except WeightUnavailableError as error:
            raise WeightHashError(f"{start} A second download failed: {error}") from error
        digest = sha256(found)
        if digest != info.files[filename]:
            raise WeightHashError(
                f"{name}: {found} has sha256 {digest}, weights.json says {info.files[filename]}. "
                f"Fetched twice from {repo}@{revision}. To load files of your own, use local-dir:, timm's "
                "pretrained_cfg_overlay=dict(hf_hub_id=...), or another repository name."
            )
    return found


def _bundled(info: WeightInfo, filename: str) -> Path:
    found = MANIFEST.folder(info.name) / filename
    if not found.is_file():
        raise WeightUnavailableError(f"{info.name}: {found} is missing from the package. Reinstall hyperzoo.")
    digest = sha256(found)
    if digest != info.files[filename]:
        raise WeightHashError(
            f"{info.name}: {found} has sha256 {digest}, weights.json says {info.files[filename]}. Reinstall hyperzoo."
        )
    return found


def _fetch(
    info: WeightInfo, repo: str, revision: str, filename: str, cache_dir: str | Path | None, force: bool = False
) -> Path:
    if force or not hub.cached(repo, revision, filename, cache_dir=cache_dir):
        _logger.info("%s (%.1f MB): fetching %s of %s@%s", info.name, info.bytes / 1e6, filename, repo, revision)
    try:
        return hub.fetch(repo, revision, filename, cache_dir=cache_dir, force=force, size=info.bytes)
    except WeightUnavailableError as error:
        raise WeightUnavailableError(
            f"{info.name} ({info.bytes / 1e6:.1f} MB): {error}. With network: hyperzoo verify {info.name}. "
            f"Bundled: {', '.join(MANIFEST.bundled()) or 'none'}"
        ) from error


def check_file(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a complete safetensors file; no tensor is read and nothing is executed.

    Raises:
        WeightUnavailableError: no such file.
        WeightFileError: a pickle or another format (by extension or first bytes), a Git LFS pointer, or a file that is
            cut short or malformed; the message states the bytes found and expected. Or two tensors of one name, or a
            name that timm would open as a nested checkpoint.
    """
    if not os.path.isfile(file):
        raise WeightUnavailableError(f"{names.cut(str(file), 300)} does not exist")
    if file.suffix != ".safetensors":
        raise WeightFileError(f"{file} is not a .safetensors file. Pickles can run code and are never opened.")
    found = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise WeightFileError(f"{file} ({found} bytes) is a Git LFS pointer, not a weight. Run git lfs pull.")
    # The length of a header of 1,152 bytes starts like a pickle; the brace after it tells the two apart.
    if head[8:9] != b"{" and head.startswith((b"\x80", b"PK", b"\x1f\x8b")):
        raise WeightFileError(f"{file} ({found} bytes) is a pickle or an archive. It was not opened.")
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise WeightFileError(
            f"{file} is cut short or malformed: {found} bytes found, {_expected_bytes(file)} expected ({error})"
        ) from error
    return _shapes(file)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a well-formed file, after a check of the names."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entries = json.loads(stream.read(length), object_pairs_hook=list)  # a dict would keep the last of two
    tensors = [(name, dict(entry)) for name, entry in entries if name != "__metadata__"]
    # timm leaves out prefixes such as `module.`
    seen = Counter(key for name, _ in tensors for key in clean_state_dict({name: None}))
    if twice := [name for name, count in seen.items() if count > 1]:
        raise WeightFileError(f"{file} names {names.cut(', '.join(twice))} twice; save the model again")
    if nested := [name for name, _ in tensors if name in NESTED]:
        raise WeightFileError(
            f"{file} has a tensor named {', '.join(nested)}, which timm reads as a nested checkpoint; rename it"
        )
    return {name: tuple(entry["shape"]) for name, entry in tensors}


def _expected_bytes(file: Path) -> str:
    """The length that the header of a safetensors file states, as far as it is readable."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            return "at least 8"
        (length,) = struct.unpack("<Q", prefix)
        header = stream.read(min(length, file.stat().st_size))
    if len(header) < length:
        return f"more than {8 + length}"
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        return str(8 + length + max(ends, default=0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "an unknown number"


def same_keys(state: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """Return `state` if it fits `model` exactly; timm calls this after reading a file and before filling the model.

    With another `num_classes`, timm loads non-strictly and would accept a missing backbone tensor. Here only what the
    caller changed may differ: the classifier with another `num_classes`, the stem's input channels with another
    `in_chans`. The counters of frozen batch norms may be missing.

    Raises:
        WeightFileError: lists all missing, unexpected and misshaped tensors, those of another kind of number, and those
            with NaN or infinity. It is no TypeError, because timm reacts to a TypeError by calling again with one
            argument.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    own = model.state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in own.items()}
    got = {key: tuple(getattr(tensor, "shape", ())) for key, tensor in state.items()}
    if getattr(model, "num_classes", None) != cfg.get("num_classes"):
        kinds = ("weight", "bias", "raw_k")
        head = [f"{module}.{kind}" for module in _modules(cfg, "classifier") for kind in kinds]
        state = {key: value for key, value in state.items() if key not in head[2::3]}  # timm drops the first two only
        expected = {key: shape for key, shape in expected.items() if key not in head}
        got = {key: shape for key, shape in got.items() if key not in head}
    shapes = dict(expected)
    if getattr(model, "in_chans", None) != cfg.get("input_size", (None,))[0]:
        for key in (f"{module}.weight" for module in _modules(cfg, "first_conv")):
            if key in got and key in expected:
                shapes[key] = (expected[key][0], *got[key][1:2], *expected[key][2:])
    faults = {
        "missing": [key for key in expected if key not in got and not key.endswith(".num_batches_tracked")],
        "unexpected": [key for key in got if key not in expected],
        "other shape": [
            f"{key} {got[key]}, not {shapes[key]}" for key in shapes if got.get(key, shapes[key]) != shapes[key]
        ],
        **value_faults({key: state[key] for key in got}, own),
    }
    if any(faults.values()):
        source = cfg.get("file") or cfg.get("hf_hub_id") or "the given tensors"
        name = ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag"))))
        listed = "; ".join(f"{kind}: {names.cut(', '.join(keys), 300)}" for kind, keys in faults.items() if keys)
        raise WeightFileError(f"{name}: {source} does not fit {type(model).__name__}. {listed}")
    return state


def value_faults(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The tensors of a file that a model would convert or take silently: of another kind of number, or not finite.

    Args:
        own: the tensors of the model; names that it lacks are left out.
    """
    shared = {key: value for key, value in state.items() if key in own and isinstance(value, Tensor)}
    other = [key for key, value in shared.items() if _kind(value.dtype) != _kind(own[key].dtype)]
    return {
        "other dtype": [f"{key} {_text(shared[key].dtype)}, not {_text(own[key].dtype)}" for key in other],
        "NaN or infinity": [key for key in shared if key not in other and not _is_finite(shared[key])],
    }


def _is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite. If their sum is, which takes one pass, they are; it may also overflow."""
    return cmath.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())


def _kind(dtype: torch.dtype) -> str:
    """Numbers that convert into each other: floats of 16 to 64 bits, integers; any other dtype is of its own kind."""
    if dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return "float"
    is_integer = not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
    return "integer" if is_integer else _text(dtype)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _modules(cfg: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = cfg.get(key) or ()
    return (value,) if isinstance(value, str) else tuple(value)
