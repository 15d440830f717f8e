"""Train all runs of a sweep, and collect their results and the published numbers in one file and a table."""

import json
import math
import statistics
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hyperzoo import files
from hyperzoo.analysis.comparison import Difference, paired
from hyperzoo.errors import BusyError, RunError
from hyperzoo.experiments import train
from hyperzoo.training.log import finished_result, metric_of, read_log, task_loss
from hyperzoo.training.recipe_data import Data
from hyperzoo.training.sweep_file import Run, Sweep, load_sweep

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
        counts = str(self.n), str(self.epochs)
        score = {self.metric: f"{self.mean:.2f}"}
        compared = (str(self.difference), self.difference.verdict) if self.difference else ("-", "-")
        accuracy, perplexity = score.get("accuracy", "-"), score.get("perplexity", "-")
        return (
            self.label,
            accuracy,
            sd,
            self.baseline or "-",
            *compared,
            *losses,
            *counts,
            self.split,
            *optional_cells,
            perplexity,
        )


def table(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """The header and the lines as text, without empty columns; a baseline that all lines share is not named."""
    columns = []
    for head, *cells in zip(COLUMNS, *(line.shown() for line in lines), strict=True):
        different = set(cells) - {"-"}
        if len(different) > (head == "baseline"):
            columns.append((head, *cells))
    return list(zip(*columns, strict=True))


def run(path_or_name: str | Path, out: Path | None = None) -> tuple[Path, list[Line]]:
    """Train all unfinished runs of a sweep and write `sweep.json`; returns that file and its lines.

    Several processes may share a sweep: each takes runs that no other process is training, and the last one collects
    all results. A seed is trained for all rows before the next one. A stopped sweep writes what it has, and resumes.

    Args:
        out: folder of the runs, which are <out>/<label>/<seed> [default: runs/sweeps/<file name>].
    Raises:
        RecipeError: see `load_sweep`.
        RunError and its subclasses: a run failed; the runs before it are kept.
    """
    sweep, runs = load_sweep(path_or_name)
    name = Path(path_or_name).stem
    folder = out or Path("runs", "sweeps", name)
    file = folder / "sweep.json"
    results: dict[int, train.RunResult] = {}
    order = sorted(range(len(runs)), key=lambda number: sweep.seeds.index(runs[number].recipe.train.seed))
    try:
        for number in order * 2:  # a second time for runs that another process had and has left
            one = runs[number]
            if number not in results:
                with suppress(BusyError):
                    results[number] = train.run(one.recipe, folder / one.label / str(one.recipe.train.seed))
    finally:
        for number in set(range(len(runs))) - results.keys():  # finished earlier, or by another process
            one = runs[number]
            place = folder / one.label / str(one.recipe.train.seed)
            if values := finished_result(place, one.recipe.digest()):
                results[number] = train.RunResult(place, values, trained=False)
        if results:
            done = [(runs[number], results[number]) for number in sorted(results)]
            files.write_json(file, _contents(name, sweep, done), indent=1)
    if not results:
        raise RunError(f"other processes are training all runs of {name} in {folder}; call again when they end")
    return file, lines(file)


def _contents(name: str, sweep: Sweep, done: list[tuple[Run, train.RunResult]]) -> dict[str, Any]:
    """The contents of `sweep.json`; figures and tables need nothing else."""
    keep = ("seed", "split", "metrics", "recipe_sha256", "precision", "epochs", "minutes", "finished")
    environments = {json.dumps(result.values["environment"], sort_keys=True) for _, result in done}
    return {
        "sweep": name,
        "base": sweep.base,
        "set": sweep.set,
        "source": sweep.source,
        "baselines": sweep.baselines(),
        "published": sweep.stated(),
        "recipes": {one.label: one.recipe.non_default() for one, _ in done},
        "environments": [json.loads(text) for text in sorted(environments)],
        "runs": [
            {
                "label": one.label,
                "rare": _rare(one.recipe.data, result.values["metrics"]),
                **{key: result.values[key] for key in (*keep, *SIZES) if key in result.values},
                **_best(one.recipe.data, log := read_log(result.folder / "metrics.jsonl")),
                "rate": max(value for row in log for key, value in row.items() if key.endswith("_per_s")),
                "log": log,
            }
            for one, result in done
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
