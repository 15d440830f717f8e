"""The manifest `weights.json`, read strictly: one entry per published weight, and the only list of them."""

import json
import math
import re
import statistics
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperzoo import names
from hyperzoo.errors import UnknownNameError, WeightFileError
from hyperzoo.zoo.strict_json import read
from hyperzoo.zoo.weight_description import ThisFile, ThisText, WeightInfo

FILES = ("model.safetensors", "config.json")
VOCABULARY = "vocab.txt"
TASKS = {"image-classification": FILES, "text-generation": (*FILES, VOCABULARY)}
"""The files of a weight, by its task."""
NAMESPACE = re.compile(r"[A-Za-z0-9_]([-.]?[A-Za-z0-9_]){0,95}")
_RECIPE = re.compile(r"\w+(/[\w-]+)*/[\w.]+\.yaml", re.ASCII)


class Manifest:
    """`weights.json` in the folder `root`, read strictly; bundled files lie in `root/checkpoints/<name>/`.

    Raises:
        WeightFileError: no JSON; an unknown or missing field, a wrong type, a value out of its range, numbers that
            contradict each other, a malformed hash, an architecture without exactly one default, or a weight that is
            neither bundled nor on the Hub. The message names the weight.
        InvalidNameError: an entry whose key is not a weight name.
    """

    def __init__(self, root: Path) -> None:
        self.root, file = root, root / "weights.json"
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            if raw["format"] != 1:
                raise WeightFileError(f"{file} has format {raw['format']}; this hyperzoo reads format 1")
            if not NAMESPACE.fullmatch(raw["namespace"]):
                raise WeightFileError(f"{file}: {names.cut(repr(raw['namespace']))} is not a namespace of the Hub")
            entries = raw["weights"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            fault = names.cut(repr(error), 300)
            raise WeightFileError(f"{file} is not a manifest: {fault}. Reinstall hyperzoo.") from error
        self.namespace: str = raw["namespace"]
        self.weights = {name: _entry(name, entry) for name, entry in entries}
        for arch in {info.arch for info in self.weights.values()}:
            self.default(arch)

    def names(self, arch: str | None = None) -> list[str]:
        """Sorted names of the published weights, of all architectures or of one."""
        return sorted(name for name in self.weights if arch is None or name.startswith(f"{arch}."))

    def info(self, name: str) -> WeightInfo:
        """The entry of a full name, or InvalidNameError, or UnknownNameError."""
        if str(names.parse(name)) not in self.weights:
            raise names.unknown("weight", name, self.weights)
        return self.weights[name]

    def default(self, arch: str) -> str:
        """The name of an architecture's default weight."""
        found = [name for name in self.names(arch) if self.weights[name].default]
        if not self.names(arch):
            raise UnknownNameError(
                f"{arch} has no published weight. With weights: {', '.join(self.names()) or 'none yet'}"
            )
        if len(found) != 1:
            raise WeightFileError(f"weights.json: {arch} has {len(found)} default weights, must have exactly one")
        return found[0]

    def bundled(self) -> list[str]:
        """Names of the weights that ship with the package."""
        return [name for name in self.names() if self.weights[name].bundled]

    def folder(self, name: str) -> Path:
        """The folder of a bundled weight."""
        return self.root / "checkpoints" / str(names.parse(name))


def _entry(name: str, raw: Any) -> WeightInfo:
    names.parse(name)
    where = f"weights.json: {name}"
    info = typing.cast(WeightInfo, read(WeightInfo, {"name": name, **raw} if isinstance(raw, dict) else raw, where))
    score, files = info.score, TASKS.get(info.task, FILES)
    faults = {
        f"task must be one of {', '.join(TASKS)}; got {info.task!r}": info.task in TASKS,
        f"metrics of {info.task} cannot be {info.metric}": (info.metric == "perplexity") == (VOCABULARY in files),
        f"files must hold {' and '.join(files)}; got {', '.join(info.files)}": set(files) == set(info.files),
        "a sha256 must be 64 hexadecimal digits": all(
            _is_hex(h, 64) for h in [*info.files.values(), info.recipe_sha256]
        ),
        "commit must be 40 hexadecimal digits or null": info.commit is None or _is_hex(info.commit, 40),
        "neither bundled nor on the Hub (commit is null)": info.bundled or info.commit is not None,
        "n, seeds and values must agree": score.n == len(score.seeds) == len(score.values) > 0,
        "sd must be a number for n > 1 and null for n = 1": (score.sd is None) == (score.n == 1),
    }
    for fault, fine in faults.items():
        if not fine:
            raise WeightFileError(f"{where}: {fault}")
    for fault in _out_of_range(info):
        raise WeightFileError(f"{where}: {fault}")
    return info


def _out_of_range(info: WeightInfo) -> Iterator[str]:
    """What is wrong with the numbers and texts of an entry whose types are right."""
    this, score, seen = info.metrics.this_file, info.score, info.input
    low, high = (0.0, 100.0) if isinstance(this, ThisFile) else (1.0, math.inf)
    if not all(_between(value, low, high) for value in (score.mean, *score.values)):
        yield f"{info.metric} must be finite and from {low} to {high}; got {score.mean} of {score.values}"
    elif abs(statistics.fmean(score.values) - score.mean) > 0.01 * max(1.0, score.mean / 100):
        yield f"the mean of {score.values} is not {score.mean}"
    if not all(_between(value, 0.0, math.inf) for value in (score.sd or 0.0, info.training.minutes, *score.seeds)):
        yield f"sd, minutes and seeds must be 0 or more; got {score.sd}, {info.training.minutes} and {score.seeds}"
    counts = [(this.correct, this.total)]
    if isinstance(this, ThisFile) and this.sample:
        counts.append((this.sample.correct, this.sample.total))
    if wrong := [(right, total) for right, total in counts if not 0 <= right <= total or total < 1]:
        yield f"{wrong[0][0]} of {wrong[0][1]} is not a count of correct answers"
    elif not _between(this.nll, 0.0, math.inf):
        yield f"nll must be finite and 0 or more; got {this.nll}"
    elif isinstance(this, ThisText):
        if not math.isclose(this.perplexity, math.exp(min(this.nll, 700)), rel_tol=1e-3):
            yield f"perplexity {this.perplexity} is not exp(nll) of nll {this.nll}"
    elif not _between(this.ece, 0.0, 100.0) or abs(this.accuracy - 100 * this.correct / this.total) > 0.01:
        yield f"accuracy {this.accuracy} and ece {this.ece} do not fit {this.correct} of {this.total}"
    elif not _between(this.multicrop or 0.0, 0.0, 100.0):
        yield f"multicrop must be from 0 to 100; got {this.multicrop}"
    if len(seen.size) != 3 or not all(1 <= size <= 4096 for size in seen.size):
        yield f"input size must be three numbers from 1 to 4096; got {seen.size}"
    elif not len(seen.mean) == len(seen.std) == seen.size[0] or not all(map(math.isfinite, seen.mean)):
        yield f"mean and std must be finite, one number per channel; got {seen.mean} and {seen.std}"
    if not all(_between(value, 1e-9, 1e9) for value in (*seen.std, seen.crop_pct)):
        yield f"std and crop_pct must be above 0; got {seen.std} and {seen.crop_pct}"
    if min(info.bytes, info.parameters, info.num_classes, info.training.epochs) < 1:
        yield "bytes, parameters, num_classes and epochs must be 1 or more"
    if not _RECIPE.fullmatch(info.recipe):
        yield f"recipe must be <family>/<name>.yaml; got {names.cut(repr(info.recipe))}"
    if not all(_is_hex(text, 64) for text in (info.dataset.train_fingerprint, info.dataset.test_fingerprint)):
        yield "a fingerprint must be 64 hexadecimal digits"
    if not re.fullmatch("[0-9a-f]{7,40}", info.code_commit):
        yield f"code_commit must be 7 to 40 hexadecimal digits; got {names.cut(repr(info.code_commit))}"


def _between(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def _is_hex(text: str, length: int) -> bool:
    return re.fullmatch(f"[0-9a-f]{{{length}}}", text) is not None
