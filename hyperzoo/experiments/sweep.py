"""Train all runs of a sweep, and collect their results and the published numbers in one file."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperzoo import files
from hyperzoo.analysis.results import reading
from hyperzoo.analysis.sweep_table import Line, lines
from hyperzoo.errors import BusyError, RunError, listed
from hyperzoo.experiments import train
from hyperzoo.experiments.sweep_data import check_data, check_unfinished
from hyperzoo.experiments.sweep_folder import SHOWN_FOLDERS, Results, check_folders, finished_runs
from hyperzoo.training.log import read_log
from hyperzoo.training.loop import Stopped
from hyperzoo.training.recipe_data import Data
from hyperzoo.training.sweep_file import Run, Sweep, load_sweep, size

SIZES = ("train_images", "train_tokens")  # keys of result.json; a run has one of them


class SweepStopped(RunError):
    """A signal ended a sweep; sweep.json has its finished runs."""

    def __init__(self, exit_code: int, state: str) -> None:
        super().__init__(f"stopped by {signal.Signals(exit_code - 128).name}; {state}; repeat the command to go on")
        self.exit_code = exit_code


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a sweep as SIGINT does."""

    exit_code = 128 + signal.SIGTERM


def run(path_or_name: str | Path, out: Path | None = None) -> tuple[Path, list[Line]]:
    """Train all unfinished runs of a sweep and write `sweep.json`; returns that file and its lines.

    Several processes may share a sweep: each takes runs that no other process is training, and the last one collects
    all results. A seed is trained for all rows before the next one. A stopped sweep writes what it has, and resumes.

    Args:
        out: folder of the runs, which are <out>/<label>/<seed> [default: runs/sweeps/<file name>].
    Raises:
        RecipeError: see `load_sweep`.
        SweepStopped: SIGINT or SIGTERM; carries the exit code.
        RunError and its subclasses: run folders were trained with another recipe or on other data, and nothing was
            written; or a run failed, and the runs before it are kept.
    """
    sweep, runs = load_sweep(path_or_name)
    name = Path(path_or_name).stem
    folder = out or Path("runs", "sweeps", name)
    file = folder / "sweep.json"
    finished = finished_runs(runs, folder)
    check_folders([one for one in runs if one.subfolder not in finished], folder, len(runs))
    check_data(runs, finished, folder)
    _say(f"sweep {name}: {size(sweep, runs)}, {len(finished)} finished -> {folder}")
    check_unfinished(runs, finished, folder)
    results = dict(finished)
    ordered = sorted(runs, key=lambda one: sweep.seeds.index(one.recipe.train.seed))
    try:
        with _sigterm_interrupts():
            for number, one in [*enumerate(ordered, 1)] * 2:  # again for runs that another process had and has left
                if one.subfolder in results:
                    continue
                _say(f"run {number} of {len(runs)}: {one.label}, seed {one.recipe.train.seed}")
                try:
                    results[one.subfolder] = train.run(one.recipe, folder / one.subfolder).values
                except BusyError:
                    _say(f"another process is training {one.subfolder}")
                    continue
                check_data(runs, results, folder)  # now, rather than after the other runs
    except (KeyboardInterrupt, Stopped) as error:
        results |= finished_runs([one for one in runs if one.subfolder not in results], folder)
        state = f"{len(results)} of {len(runs)} runs finished -> {folder}"
        raise SweepStopped(getattr(error, "exit_code", 128 + signal.SIGINT), state) from error
    finally:
        results |= finished_runs([one for one in runs if one.subfolder not in results], folder)  # by another process
        if results:
            check_data(runs, results, folder)
            files.write_json(file, _contents(name, sweep, runs, folder, results), indent=1)
    if not results:
        raise RunError(f"other processes are training all runs of {name} in {folder}; call again when they end")
    return file, lines(file)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises a KeyboardInterrupt; signal handlers exist in the main thread only."""

    def interrupt(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    """Print a line of progress, in the first of several processes; accelerate does not know them before a run."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def _contents(name: str, sweep: Sweep, runs: list[Run], folder: Path, results: Results) -> dict[str, Any]:
    """The contents of `sweep.json`; figures and tables need nothing else."""
    done = [(one, results[one.subfolder]) for one in runs if one.subfolder in results]
    keep = ("seed", "split", "metrics", "recipe_sha256", "precision", "epochs", "minutes", "finished")
    environments = {json.dumps(values["environment"], sort_keys=True) for _, values in done}
    return {
        "sweep": name,
        "base": sweep.base,
        "set": sweep.set,
        "source": sweep.source,
        "baselines": sweep.baselines(),
        "published": sweep.stated(),
        "recipes": {one.label: one.recipe.non_default() for one, _ in done},
        "environments": [json.loads(text) for text in sorted(environments)],
        "unfinished": [one.subfolder for one in runs if one.subfolder not in results],
        "runs": [
            {
                "label": one.label,
                "rare": _rare(one.recipe.data, values["metrics"]),
                **{key: values[key] for key in (*keep, *SIZES) if key in values},
                **_best(one.recipe.data, log := read_log(folder / one.subfolder / "metrics.jsonl")),
                "rate": max(value for row in log for key, value in row.items() if key.endswith("_per_s")),
                "log": log,
            }
            for one, values in done
        ],
    }


def _rare(settings: Data, metrics: dict[str, Any]) -> list[str]:
    """Names of the classes that a recipe made rare; of a long tail, the smaller half of the classes."""
    classes = list(metrics.get("class_accuracy", ()))
    return classes[-(len(classes) // 2) :] if settings.long_tail > 1 else sorted(settings.keep)


def _best(settings: Data, log: list[dict[str, Any]]) -> dict[str, float]:
    """The accuracy on validation images in the best epoch, of a run that is judged on the test split instead."""
    if settings.judge_on == "test" and settings.hold_out:
        return {"best": max(row["accuracy"] for row in log if "accuracy" in row)}
    return {}


def unfinished(file: Path) -> str:
    """What the table of a `sweep.json` lacks, as a sentence; '' if all runs are finished."""
    with reading(file) as values:
        others, count = values["unfinished"], len(values["runs"])
    if not others:
        return ""
    state = f"{count} of {count + len(others)} runs finished"
    return f"{state}; another process is training {listed(others, SHOWN_FOLDERS)}. Repeat the command when it ends"
