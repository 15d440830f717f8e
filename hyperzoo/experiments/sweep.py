"""Train all runs of a sweep, and collect their results and the published numbers in one file and a table."""

import json
import math
import os
import signal
import statistics
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hyperzoo import files
from hyperzoo.analysis.comparison import Difference, paired
from hyperzoo.errors import BusyError, RunError
from hyperzoo.experiments import train
from hyperzoo.experiments.sweep_folder import Results, check_folders, finished_runs, listed
from hyperzoo.training.log import metric_of, read_log, task_loss
from hyperzoo.training.loop import Stopped
from hyperzoo.training.recipe_data import Data
from hyperzoo.training.sweep_file import Run, Sweep, load_sweep, size

COLUMNS = (
    "run",
    "accuracy (%)",
    "sd",
    "baseline",
    "to baseline (95 %)",
    "verdict",
    "NLL",
    "ECE (%)",
    "FGSM (%)",
    "training loss",
    "n",
    "epochs",
    "measured on",
    "published",
    "rare classes (%)",
    "best epoch (%)",
    "last epoch (%)",
    "perplexity",
)
SIZES = ("train_images", "train_tokens")  # keys of result.json; a run has one of them


class Line(NamedTuple):
    """One line of a sweep's table.

    Attributes:
        mean, sd: of the metric over n seeds: accuracy in %, or perplexity.
        nll, train_loss: in nats, of the last epoch, mean over seeds; the training loss is without added terms.
        ece: expected calibration error in %, mean over seeds; None for texts.
        fgsm: accuracy in % under attack, mean over seeds; None unless `tools/study_results.py --fgsm` measured it.
        baseline: label of the baseline.
        difference: to it, paired by seed. None without one or without a common seed, or if a perplexity is infinite.
        rare: accuracy in % of the classes that `data.keep` made rare, or of the smaller half of `data.long_tail`, mean
            over classes and seeds.
        best, last: accuracy in % on validation images, in the best and in the last epoch, mean over seeds; None if the
            run was judged on these images or had none.
    """

    label: str
    split: str
    n: int
    mean: float
    sd: float | None
    nll: float
    ece: float | None
    fgsm: float | None
    train_loss: float
    epochs: int
    published: float | None
    rare: float | None
    best: float | None
    last: float | None
    metric: str
    baseline: str | None
    difference: Difference | None

    def shown(self) -> tuple[str, ...]:
        """The cells of the line, in the order of `COLUMNS`."""
        optional = (self.sd, self.published, self.rare, self.best, self.last)
        sd, *optional_cells = ("-" if value is None else f"{value:.2f}" for value in optional)
        ece, fgsm = ("-" if value is None else f"{value:.2f}" for value in (self.ece, self.fgsm))
        losses = f"{self.nll:.3f}", ece, fgsm, f"{self.train_loss:.3f}"
        score = {self.metric: f"{self.mean:.2f}"}
        accuracy, perplexity = score.get("accuracy", "-"), score.get("perplexity", "-")
        compared = (str(self.difference), self.difference.verdict) if self.difference else ("-", "-")
        start = self.label, accuracy, sd, self.baseline or "-", *compared
        return (*start, *losses, str(self.n), str(self.epochs), self.split, *optional_cells, perplexity)


def table(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """The header and the lines as text, without empty columns; a baseline that all lines share is not named."""
    columns = []
    for head, *cells in zip(COLUMNS, *(line.shown() for line in lines), strict=True):
        different = set(cells) - {"-"}
        if len(different) > (head == "baseline"):
            columns.append((head, *cells))
    return list(zip(*columns, strict=True))


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
        RunError and its subclasses: run folders were trained with another recipe, and nothing was written; or a run
            failed, and the runs before it are kept.
    """
    sweep, runs = load_sweep(path_or_name)
    name = Path(path_or_name).stem
    folder = out or Path("runs", "sweeps", name)
    file = folder / "sweep.json"
    finished = finished_runs(runs, folder)
    check_folders([one for one in runs if one.subfolder not in finished], folder, len(runs))
    _say(f"sweep {name}: {size(sweep, runs)}, {len(finished)} finished -> {folder}")
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
    except (KeyboardInterrupt, Stopped) as error:
        results |= finished_runs([one for one in runs if one.subfolder not in results], folder)
        state = f"{len(results)} of {len(runs)} runs finished -> {folder}"
        raise SweepStopped(getattr(error, "exit_code", 128 + signal.SIGINT), state) from error
    finally:
        results |= finished_runs([one for one in runs if one.subfolder not in results], folder)  # by another process
        if results:
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


def lines(file: Path) -> list[Line]:
    """The lines of a `sweep.json` or a file of results/.

    Raises:
        RunError: no such file, or another kind of file.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        by_label: dict[str, list[dict[str, Any]]] = {}
        for one in values["runs"]:
            by_label.setdefault(one["label"], []).append(one)
        baselines = values.get("baselines", {})
        return [
            _line(label, runs, values["published"].get(label), baselines.get(label), by_label)
            for label, runs in by_label.items()
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"cannot read the results {file}: {error}. `hyperzoo train SWEEP` writes them") from error


def unfinished(file: Path) -> str:
    """What the table of a `sweep.json` lacks, as a sentence; '' if all runs are finished."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if not (others := values["unfinished"]):
        return ""
    count = len(values["runs"])
    state = f"{count} of {count + len(others)} runs finished"
    return f"{state}; another process is training {listed(others)}. Repeat the command when it ends"


def _line(
    label: str,
    runs: list[dict[str, Any]],
    published: float | None,
    baseline: str | None,
    by_label: dict[str, list[dict[str, Any]]],
) -> Line:
    metric = metric_of(runs[0]["metrics"])
    scores = [run["metrics"][metric] for run in runs]
    difference: Difference | None = None
    if baseline in by_label:
        by_seed = [{run["seed"]: run["metrics"][metric] for run in each} for each in (runs, by_label[baseline])]
        pairs = [[scores[seed] for scores in by_seed] for seed in by_seed[0].keys() & by_seed[1].keys()]
        if pairs and all(math.isfinite(score) for pair in pairs for score in pair):
            difference = paired(*by_seed, larger_is_better=metric == "accuracy")
    rare = [run["metrics"]["class_accuracy"][name] for run in runs for name in run.get("rare", ())]
    validated = all("best" in run for run in runs)
    return Line(
        label=label,
        split=runs[0]["split"],
        n=len(runs),
        mean=statistics.fmean(scores),
        sd=statistics.stdev(scores) if len(runs) > 1 else None,
        nll=statistics.fmean(run["metrics"]["nll"] for run in runs),
        ece=_mean(runs, "ece"),
        fgsm=_mean(runs, "fgsm"),
        train_loss=statistics.fmean(task_loss(run["log"][-1]) for run in runs),
        epochs=runs[0]["epochs"],
        published=published,
        rare=statistics.fmean(rare) if rare else None,
        best=statistics.fmean(run["best"] for run in runs) if validated else None,
        last=statistics.fmean(run["log"][-1]["accuracy"] for run in runs) if validated else None,
        metric=metric,
        baseline=baseline if difference else None,
        difference=difference,
    )


def _mean(runs: list[dict[str, Any]], metric: str) -> float | None:
    """The mean of a metric over the runs; None if one of them lacks it."""
    found = [run["metrics"][metric] for run in runs if metric in run["metrics"]]
    return statistics.fmean(found) if len(found) == len(runs) else None
