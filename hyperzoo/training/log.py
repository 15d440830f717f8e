"""The log of a run, metrics.jsonl: one line an epoch, written by `loop`, read by tables and figures."""

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
        found = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the log {metrics}: {error}. A run folder holds metrics.jsonl") from error
    if not found:
        raise RunError(f"{metrics} has no finished epoch yet")
    return found


def task_loss(row: dict[str, Any]) -> float:
    """The training loss of an epoch, in nats, without what terms add to it."""
    return float(row.get("loss_task", row["loss"]))
