"""The run folders of a sweep: which runs are finished, and which were trained with other settings."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hyperzoo import names
from hyperzoo.errors import RunError, listed
from hyperzoo.experiments.changes import changed_settings
from hyperzoo.training import checkpoint
from hyperzoo.training.log import finished_result, read_result
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.sweep_file import Run

SHOWN_FOLDERS = 5  # in a message; it adds up the others
Results = dict[str, dict[str, Any]]
"""Contents of the result.json of runs, by `Run.subfolder`."""


def finished_runs(runs: list[Run], folder: Path) -> Results:
    """The results of the finished runs in the folder of a sweep."""
    found = {run.subfolder: finished_result(folder / run.subfolder, run.recipe.digest()) for run in runs}
    return {subfolder: values for subfolder, values in found.items() if values}


def check_folders(unfinished: list[Run], folder: Path, total: int) -> None:
    """Check that no folder of an unfinished run was trained with another recipe.

    Args:
        folder: of the sweep.
        total: number of its runs, for the message.
    Raises:
        RunError: names the folders and the settings that differ.
    """
    others: dict[str, list[str]] = {}  # the settings that differ: the folders
    for run in unfinished:
        before = _stored_recipe(folder / run.subfolder)
        if before and (changed := changed_settings(before.settings(), run.recipe.settings())):
            texts = (names.cut(f"{key} {old!r} -> {new!r}") for key, (old, new) in changed.items())
            others.setdefault(", ".join(texts), []).append(run.subfolder)
    if others:
        shown = "; ".join(f"{listed(subfolders, SHOWN_FOLDERS)} ({changes})" for changes, subfolders in others.items())
        raise RunError(
            f"{sum(map(len, others.values()))} of {total} runs in {folder} were trained with another recipe: {shown}. "
            "Train into another folder (--out), rename the row, or delete these folders"
        )


def _stored_recipe(folder: Path) -> Recipe | None:
    """The recipe of the result in a run folder, or else of the newest checkpoint; None if it has neither."""
    with suppress(RunError, KeyError):
        return Recipe.stored(read_result(folder)["recipe"])
    saved = checkpoint.newest(folder / "checkpoints")
    return Recipe.stored(saved.state["recipe"]) if saved else None
