"""What a run leaves in its folder: metrics.jsonl, one line per epoch, and result.json after the last."""

import json
from pathlib import Path
from typing import Any

from hyperzoo.errors import RunError


def read_log(metrics: Path) -> list[dict[str, Any]]:
    """The epochs of a run.

    Raises:
        RunError: no such file, or no finished epoch in it.
    """
    try:
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
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
        if not isinstance(metrics, dict) or not isinstance(
            metrics.get("accuracy", metrics.get("perplexity")), int | float
        ):
            raise ValueError("it has no metrics with an accuracy or a perplexity")
    except OSError as error:
        raise RunError(f"cannot read {file}: {error}. A run writes it after the last epoch") from error
    except ValueError as error:
        raise RunError(
            f"{file} is damaged: {error}. Delete it and train with --out {folder} again: the run evaluates its last "
            "checkpoint and writes the file anew"
        ) from error
    return values


def task_loss(row: dict[str, Any]) -> float:
    """The training loss of an epoch in nats, without the terms added to it."""
    return float(row.get("loss_task", row["loss"]))
