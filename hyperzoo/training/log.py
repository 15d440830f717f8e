"""Files of a run: metrics.jsonl, one line per epoch, and result.json after the last."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hyperzoo import files
from hyperzoo.errors import RunError

DESCRIBED = ("model.safetensors", "config.json", "vocab.txt", "metrics.jsonl")
"""Files of a run whose sha256 is recorded in its result.json."""

_logger = logging.getLogger(__name__)


def metric_of(metrics: Mapping[str, Any]) -> str:
    """The name of the metric that runs are compared by: 'accuracy', or 'perplexity' of texts."""
    return "perplexity" if "perplexity" in metrics else "accuracy"


def median_run(scored: Iterable[tuple[float, int]]) -> tuple[float, int]:
    """The run that is published, among the (metric, seed) of each: the median, or the lower of two in the middle."""
    ordered = sorted(scored)
    return ordered[(len(ordered) - 1) // 2]


def read_log(metrics: Path) -> list[dict[str, Any]]:
    """The epochs of a run.

    Raises:
        RunError: no such file, a damaged one, or no finished epoch in it.
    """
    try:
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read the log {metrics}: {error}. A run folder holds metrics.jsonl") from error
    if not rows:
        raise RunError(f"{metrics} has no finished epoch yet")
    return rows


def read_result(folder: Path) -> dict[str, Any]:
    """The result.json of a finished run.

    Raises:
        RunError: no such file, or a damaged one.
    """
    file = folder / "result.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        metrics = values.get("metrics") if isinstance(values, dict) else None
        if not isinstance(metrics, dict) or not isinstance(metrics.get(metric_of(metrics)), int | float):
            raise ValueError("it has no metrics with an accuracy or a perplexity")
        if not isinstance(values.get("files", {}), dict):
            raise ValueError("its key 'files' is not a mapping")
    except OSError as error:
        raise RunError(f"cannot read {file}: {error}. A run writes it after the last epoch") from error
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{file} is damaged: {error}. Train with --out {folder} again: the run evaluates its last checkpoint and "
            "writes the file anew"
        ) from error
    return values


def finished_result(folder: Path, recipe_sha256: str) -> dict[str, Any] | None:
    """The result.json of a finished run of a recipe.

    Returns None if there is none, if it belongs to another recipe, or, with a warning, if it is damaged or a file that
    it describes is missing or has changed since. Results of versions before 0.6 describe no files.
    """
    if not (folder / "result.json").exists():
        return None
    try:
        values = read_result(folder)
        if values.get("recipe_sha256") != recipe_sha256:
            return None
        for name, expected in values.get("files", {}).items():
            if files.sha256(folder / name) != expected:
                raise RunError(f"{folder / name} has changed since the run ended")
    except (OSError, RunError) as error:
        _logger.warning("the result in %s cannot be used (%s)", folder, error)
        return None
    return values


def perplexity(nll: float) -> float:
    """exp of a loss in nats per token; infinity if that is too large for a float."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def task_loss(row: dict[str, Any]) -> float:
    """The training loss of an epoch in nats, without the terms added to it."""
    return float(row.get("loss_task", row["loss"]))
