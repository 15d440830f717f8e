"""Results of a sweep: its `sweep.json`, or a study in results/."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperzoo.errors import RunError


@contextmanager
def reading(file: Path) -> Iterator[dict[str, Any]]:
    """The contents of a results file, for a block that reads them.

    Raises:
        RunError: no such file, not JSON, or, in the block, not what the results of a sweep hold.
    """
    try:
        yield json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"cannot read the results {file}: {error}. `hyperzoo train SWEEP` writes them") from error


def runs_by_label(values: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of a results file, by the label of their line in the table."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for run in values["runs"]:
        by_label.setdefault(run["label"], []).append(run)
    return by_label
