"""Hold a published weight to its manifest entry: bytes, tensors, golden outputs, and correct answers."""

import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperzoo import names, zoo
from hyperzoo.analysis import evaluate
from hyperzoo.data.sources import VARIABLE
from hyperzoo.errors import (
    DataError,
    MissingExtraError,
    WeightFileError,
    WeightHashError,
    WeightUnavailableError,
)
from hyperzoo.files import sha256
from hyperzoo.publishing import checkout
from hyperzoo.zoo import hub, weight_files
from hyperzoo.zoo.manifest import Sample, ThisText, WeightInfo

RTOL, ATOL = 1e-4, 1e-5  # of golden outputs on another CPU; the measured differences are below 1e-6
SAMPLE_SLACK, TEST_SLACK = 1, 2  # correct answers: ties flip between CPUs


class Check(NamedTuple):
    """One thing that was compared; `ok` is None where that was not possible, and `detail` says why."""

    name: str
    what: str
    ok: bool | None
    detail: str


def verify(name: str, *, on_hub: bool = False) -> list[Check]:
    """Compare a published weight with all that the manifest says about it; a damaged file ends the list.

    Args:
        name: a weight, or an architecture for its default weight.
        on_hub: also download the files of the pinned commit again and hash them, for bundled weights too.
    Raises:
        InvalidNameError, UnknownNameError: no such weight. A weight that differs is no error but a check that failed.
    """
    info = zoo.weight_info(name)
    return [*_checks(info), *([Check(info.name, "hub", *_hub(info))] if on_hub else [])]


def _checks(info: WeightInfo) -> Iterator[Check]:
    def check(what: str, ok: bool | None, detail: str) -> Check:
        return Check(info.name, what, ok, detail)

    try:
        files = {part: weight_files.path(info.name, part) for part in info.files}
        yield check("hash", True, f"sha256 of {' and '.join(info.files)}")
        model = zoo.load(info.name).model
    except (WeightHashError, WeightFileError, WeightUnavailableError) as error:
        yield check("tensors" if isinstance(error, WeightFileError) else "hash", False, str(error))
        return
    yield check("tensors", True, f"{len(model.state_dict())} names and shapes")
    found = (sum(p.numel() for p in model.parameters()), files["model.safetensors"].stat().st_size)
    stated = (info.parameters, info.bytes)
    yield check("size", found == stated, f"parameters, bytes: {_both(found, stated)}")
    yield check("golden", *_golden(info, model))
    yield check("sample", *_sample(info, model))
    yield check("test set", *_test_set(info, model))


def golden_input(model: nn.Module) -> Tensor:
    """A fixed batch (4, C, H, W) of the model's input size, float32: value i is 4 (7919 i mod 2003) / 2003 - 2.

    Of a language model (1, 8) int64: token i is 7919 i mod V.
    """
    if names.is_language(str(model.pretrained_cfg["architecture"])):  # type: ignore[index]
        return (7919 * torch.arange(8) % int(model.num_classes))[None]  # type: ignore[arg-type]
    size = timm.data.resolve_model_data_config(model)["input_size"]
    count = torch.arange(4 * size[0] * size[1] * size[2])
    return (4 * (7919 * count % 2003).double() / 2003 - 2).float().view(4, *size)


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a golden file holds for an input (B, C, H, W): input, features, pre_logits, output; float32, eval mode.

    For tokens (B, T): input and output.
    """
    if not x.is_floating_point():
        with torch.inference_mode():
            return {"input": x, "output": model.eval()(x)}
    with torch.inference_mode(), torch.autocast(x.device.type, enabled=False):
        features = model.eval().forward_features(x)  # type: ignore[operator]
        values = {
            "input": x,
            "features": features,
            "pre_logits": model.forward_head(features, pre_logits=True),  # type: ignore[operator]
            "output": model(x),
        }
    return {key: value.contiguous() for key, value in values.items()}


def _golden(info: WeightInfo, model: nn.Module) -> tuple[bool | None, str]:
    place = checkout.here()
    if place is None:
        return None, "golden outputs are in a checkout only"
    file = place.golden(info.name)
    if not file.is_file():
        return False, f"{file.relative_to(place.root)} is missing"
    stored = load_file(file)
    now = outputs(model, stored["input"])
    differing = [key for key in now if not torch.allclose(now[key], stored[key], rtol=RTOL, atol=ATOL)]
    largest = max(float((now[key] - stored[key]).abs().max()) for key in now)
    return not differing, f"{', '.join(differing) or 'all outputs'}: largest difference {largest:.1e}"


def _sample(info: WeightInfo, model: nn.Module) -> tuple[bool | None, str]:
    place, stated = checkout.here(), _stated_sample(info)
    if stated is None:
        return None, f"no part of {info.dataset.id} is embedded"
    if place is None:
        return None, "the embedded sample is in a checkout only"
    try:
        metrics = evaluate.test_split(model, _code(info), mirror=place.mirror)
    except (DataError, MissingExtraError) as error:
        return None, str(error)
    if metrics.fingerprint != stated.fingerprint:
        return False, f"the embedded sample has fingerprint {metrics.fingerprint}, not {stated.fingerprint}"
    near = abs(metrics.correct - stated.correct) <= SAMPLE_SLACK
    return near, f"correct of {stated.total}: {_both(metrics.correct, stated.correct)}"


def _stated_sample(info: WeightInfo) -> Sample | None:
    this = info.metrics.this_file
    return None if isinstance(this, ThisText) else this.sample


def _test_set(info: WeightInfo, model: nn.Module) -> tuple[bool | None, str]:
    if not os.environ.get(VARIABLE):
        return None, f"set {VARIABLE} to a mirror of {info.dataset.id} for the full test set"
    stated = info.metrics.this_file
    try:
        metrics = evaluate.test_split(model, _code(info))
    except (DataError, MissingExtraError) as error:
        return None, str(error)
    sample = _stated_sample(info)
    if sample and metrics.fingerprint == sample.fingerprint:
        return None, f"{VARIABLE} holds the embedded sample only"
    if metrics.fingerprint == info.dataset.test_fingerprint:
        near = abs(metrics.correct - stated.correct) <= TEST_SLACK
        return near, f"correct of {stated.total}: {_both(metrics.correct, stated.correct)}"
    mean, sd = info.score.mean, info.score.sd
    seen = f"other data than the published: {info.shown(metrics.score)}, published {info.shown(mean)}"
    return None if sd is None else abs(metrics.score - mean) <= 3 * sd, seen


def _hub(info: WeightInfo) -> tuple[bool | None, str]:
    if info.commit is None:
        return None, "never pushed: the manifest names no commit"
    repo = f"{weight_files.MANIFEST.namespace}/{info.name}"
    try:
        with tempfile.TemporaryDirectory() as cache:
            found = {part: sha256(hub.fetch(repo, info.commit, part, cache_dir=cache)) for part in info.files}
    except WeightUnavailableError as error:
        return False, str(error)
    differing = [
        f"{part} has sha256 {found[part]}, not {info.files[part]}" for part in found if found[part] != info.files[part]
    ]
    return not differing, f"{repo}@{info.commit}: {'; '.join(differing) or 'the same files'}"


def _code(info: WeightInfo) -> str:
    return names.parse(info.name).dataset


def _both(found: object, stated: object) -> str:
    return f"{found}" if found == stated else f"{found}, the manifest says {stated}"
