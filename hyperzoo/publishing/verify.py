"""Compare a published weight with its manifest entry: bytes, tensors, golden outputs and correct answers."""

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
from hyperzoo.publishing.checkout import find_checkout
from hyperzoo.zoo import hub, weight_files
from hyperzoo.zoo.weight_description import Sample, ThisText, WeightInfo

ROUNDING = 1e-5  # of golden outputs on other CPUs, relative to the largest of a tensor; measured: 3.1e-6, AMX to AVX2
SAMPLE_SLACK, TEST_SLACK = 1, 2  # correct answers; ties flip between CPUs


class Check(NamedTuple):
    """One comparison. `ok` is None if it was not possible; `detail` then gives the reason."""

    name: str
    what: str
    ok: bool | None
    detail: str


def verify(name: str, *, on_hub: bool = False) -> list[Check]:
    """Compare a published weight with its manifest entry; a damaged file ends the list of checks.

    Args:
        name: a weight, or an architecture for its default weight.
        on_hub: also download the files of the pinned commit and compare their hashes, for bundled weights too.
    Raises:
        InvalidNameError, UnknownNameError: no such weight. A difference raises nothing; its check has `ok` False.
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
    yield check("size", found == stated, f"parameters, bytes: {_compared(found, stated)}")
    yield check("golden", *_golden(info, model))
    yield check("sample", *_sample(info, model))
    yield check("test set", *_test_set(info, model))


def golden_input(model: nn.Module) -> Tensor:
    """A fixed input: a float32 batch (4, C, H, W) with value i = 4 (7919 i mod 2003) / 2003 - 2.

    For a language model, int64 tokens (1, 8) with token i = 7919 i mod V.
    """
    if names.is_language(str(model.pretrained_cfg["architecture"])):  # type: ignore[index]
        return (7919 * torch.arange(8) % int(model.num_classes))[None]  # type: ignore[arg-type]
    size = timm.data.resolve_model_data_config(model)["input_size"]
    count = torch.arange(4 * size[0] * size[1] * size[2])
    return (4 * (7919 * count % 2003).double() / 2003 - 2).float().view(4, *size)


def golden_outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The tensors of a golden file, in float32 and evaluation mode: input, features, pre_logits and output.

    Shapes:
        x: (B, C, H, W), or tokens (B, T) of a language model, which has input and output only.
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


def agree(found: Tensor, stored: Tensor, slack: float = 0.0) -> bool:
    """Whether outputs of other kernels differ by rounding only.

    The rounding of a sum follows its largest terms, so a value near 0 may be off by as much as the largest value.

    Args:
        slack: absolute difference that is allowed too.
    """
    return torch.allclose(found, stored, rtol=0, atol=slack + ROUNDING * float(stored.abs().max()))


def _golden(info: WeightInfo, model: nn.Module) -> tuple[bool | None, str]:
    checkout = find_checkout()
    if checkout is None:
        return None, "golden outputs are only in a checkout"
    file = checkout.golden(info.name)
    if not file.is_file():
        return False, f"{file.relative_to(checkout.root)} is missing"
    try:
        weight_files.check_file(file)
        stored, x = load_file(file), golden_input(model)
        found = golden_outputs(model, x)
        if not torch.equal(stored["input"], x):
            return False, f"{file.relative_to(checkout.root)} is damaged: its input is not the golden input"
        differing = [key for key in found if not agree(found[key], stored[key])]
    except (KeyError, RuntimeError) as error:  # a malformed file, a missing tensor, one of another shape or dtype
        return False, f"{file.relative_to(checkout.root)} is damaged: {error!r}"
    largest = max(float((found[key] - stored[key]).abs().max()) for key in found)
    return not differing, f"{', '.join(differing) or 'all outputs'}: largest difference {largest:.1e}"


def _sample(info: WeightInfo, model: nn.Module) -> tuple[bool | None, str]:
    checkout, stated = find_checkout(), _stated_sample(info)
    if stated is None:
        return None, f"no sample of {info.dataset.id} is embedded"
    if checkout is None:
        return None, "the embedded sample is only in a checkout"
    try:
        metrics = evaluate.test_metrics(model, _code(info), mirror=checkout.mirror)
    except (DataError, MissingExtraError) as error:
        return None, str(error)
    if metrics.fingerprint != stated.fingerprint:
        return False, f"the embedded sample has fingerprint {metrics.fingerprint}, expected {stated.fingerprint}"
    near = abs(metrics.correct - stated.correct) <= SAMPLE_SLACK
    return near, f"correct of {stated.total}: {_compared(metrics.correct, stated.correct)}"


def _stated_sample(info: WeightInfo) -> Sample | None:
    this = info.metrics.this_file
    return None if isinstance(this, ThisText) else this.sample


def _test_set(info: WeightInfo, model: nn.Module) -> tuple[bool | None, str]:
    if not os.environ.get(VARIABLE):
        return None, f"set {VARIABLE} to a mirror of {info.dataset.id} to check the full test set"
    stated = info.metrics.this_file
    try:
        metrics = evaluate.test_metrics(model, _code(info))
    except (DataError, MissingExtraError) as error:
        return None, str(error)
    sample = _stated_sample(info)
    if sample and metrics.fingerprint == sample.fingerprint:
        return None, f"{VARIABLE} contains the embedded sample only"
    if metrics.fingerprint == info.dataset.test_fingerprint:
        near = abs(metrics.correct - stated.correct) <= TEST_SLACK
        return near, f"correct of {stated.total}: {_compared(metrics.correct, stated.correct)}"
    mean, sd = info.score.mean, info.score.sd
    detail = f"{info.shown(metrics.score)} on other data; published: {info.shown(mean)}"
    return None if sd is None else abs(metrics.score - mean) <= 3 * sd, detail


def _hub(info: WeightInfo) -> tuple[bool | None, str]:
    if info.commit is None:
        return None, "the weight was never pushed, so the manifest has no commit"
    repo = f"{weight_files.MANIFEST.namespace}/{info.name}"
    try:
        with tempfile.TemporaryDirectory() as cache:
            fetched = {p: hub.fetch(repo, info.commit, p, cache_dir=cache, size=info.bytes) for p in info.files}
            found = {part: sha256(file) for part, file in fetched.items()}
    except WeightUnavailableError as error:
        return False, str(error)
    differing = [
        f"{part} has sha256 {found[part]}, expected {info.files[part]}"
        for part in found
        if found[part] != info.files[part]
    ]
    return not differing, f"{repo}@{info.commit}: {'; '.join(differing) or 'identical files'}"


def _code(info: WeightInfo) -> str:
    return names.parse(info.name).dataset


def _compared(found: object, stated: object) -> str:
    return f"{found}" if found == stated else f"{found}, but {stated} in the manifest"
