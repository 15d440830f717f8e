"""A finished run, whose result, weights, description and log must agree before it is published."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hyperzoo.errors import PublishError, RunError
from hyperzoo.files import sha256
from hyperzoo.training.log import metric_of, read_log, read_result
from hyperzoo.zoo.manifest import FILES

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "seed": int,
    "split": str,
    "epochs": int,
    "minutes": (int, float),
    "precision": str,
    "train_fingerprint": str,
    "recipe": dict,
    "metrics": dict,
    "metrics.nll": (int, float),
    "metrics.correct": int,
    "metrics.total": int,
    "metrics.fingerprint": str,
    "environment": dict,
}
"""What publication reads in a result.json, by its path."""


class FinishedRun(NamedTuple):
    """A run folder and the values of its result.json."""

    folder: Path
    result: dict[str, Any]

    @property
    def score(self) -> float:
        """The test metric: accuracy in percent, or perplexity."""
        metrics = self.result["metrics"]
        return metrics[metric_of(metrics)]


def finished_run(folder: Path, *, weights: bool = True) -> FinishedRun:
    """Read the result of a run folder, and compare it with the other files.

    Args:
        weights: False if only result and log are needed; the weights may then be absent.
    Raises:
        PublishError: a file is missing, damaged or changed since the run ended; values that do not fit each other; a
            log of another length.
    """
    parts = ("result.json", "metrics.jsonl", *(FILES if weights else ()))
    if missing := [part for part in parts if not (folder / part).is_file()]:
        raise PublishError(f"{folder} is not a finished run: {', '.join(missing)} is missing")
    try:
        run = FinishedRun(folder, read_result(folder))
        last = read_log(folder / "metrics.jsonl")[-1].get("epoch")
    except RunError as error:
        raise PublishError(str(error)) from error
    if fault := next(_result_faults(run), None):
        raise PublishError(f"{folder / 'result.json'} is damaged: {fault}")
    stated = run.result.get("files", {})  # results of versions before 0.6 have none
    present = {part: digest for part, digest in stated.items() if weights or (folder / part).is_file()}
    if changed := [p for p, digest in present.items() if not (folder / p).is_file() or sha256(folder / p) != digest]:
        raise PublishError(f"{folder}: {', '.join(changed)} has changed since the run ended; train again with --out")
    if last != run.result["epochs"]:
        raise PublishError(
            f"{folder}: metrics.jsonl ends with epoch {last}, but the result is of {run.result['epochs']}"
        )
    return run


def _result_faults(run: FinishedRun) -> Iterator[str]:
    """What is wrong with the values of a result.json, the first fault first."""
    for path, kind in _FIELDS.items():
        value: Any = run.result
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            yield f"{path} is {value!r}"
            return
    metrics = run.result["metrics"]
    right, total, nll = metrics["correct"], metrics["total"], metrics["nll"]
    if not (0 <= right <= total and total > 0 and 0 <= nll < math.inf):
        yield f"{right} correct answers of {total} with an NLL of {nll}"
    elif "perplexity" in metrics:
        if not math.isclose(run.score, math.exp(min(nll, 700)), rel_tol=1e-3):
            yield f"perplexity {run.score} is not exp(nll) of nll {nll}"
    elif not abs(run.score - 100 * right / total) < 0.01:  # NaN too
        yield f"accuracy {run.score} does not fit {right} correct answers of {total}"
