"""Run the recipes of a sweep, resume it, and put the results into one file beside the published numbers."""

import json
import statistics
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hyperzoo import files
from hyperzoo.errors import BusyError, RunError
from hyperzoo.experiments import train
from hyperzoo.training.log import read_log, task_loss
from hyperzoo.training.sweep_file import Run, Sweep, load_sweep

COLUMNS = (
    "run",
    "accuracy (%)",
    "sd",
    "NLL",
    "training loss",
    "n",
    "epochs",
    "measured on",
    "published",
    "rare classes (%)",
    "perplexity",
)
SIZES = ("train_images", "train_tokens")  # a run has one of them


class Line(NamedTuple):
    """One line of a sweep's table.

    Accuracy in %, of texts the perplexity, mean and sd over n seeds; nll and the training loss of the last epoch,
    without what terms add to it, in nats, mean over the seeds.
    rare: accuracy in % of the classes that were made rare, if any, mean over them and the seeds.
    """

    label: str
    split: str
    n: int
    mean: float
    sd: float | None
    nll: float
    train_loss: float
    epochs: int
    published: float | None
    rare: float | None
    metric: str

    def shown(self) -> tuple[str, ...]:
        """The line as text, in the order of `COLUMNS`."""
        optional = (self.sd, self.published, self.rare)
        sd, published, rare = ("-" if value is None else f"{value:.2f}" for value in optional)
        losses = f"{self.nll:.3f}", f"{self.train_loss:.3f}"
        counts = str(self.n), str(self.epochs)
        score = {self.metric: f"{self.mean:.2f}"}
        accuracy, perplexity = score.get("accuracy", "-"), score.get("perplexity", "-")
        return self.label, accuracy, sd, *losses, *counts, self.split, published, rare, perplexity


def table(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """A heading and the lines as text, without the columns that no line fills."""
    columns = zip(COLUMNS, *(line.shown() for line in lines), strict=True)
    return list(zip(*(column for column in columns if set(column[1:]) != {"-"}), strict=True))


def run(path_or_name: str | Path, out: Path | None = None) -> tuple[Path, list[Line]]:
    """Train every run of a sweep that is not finished, and write `sweep.json`; returns that file and its lines.

    Several processes may work on one sweep, each in its turn taking a run that nobody is at; the last one to leave
    finds them all. A run that was stopped goes on from its last epoch.

    Args:
        out: folder of the runs, <out>/<label>/<seed>; runs/sweeps/<name of the file> without one.
    Raises:
        RecipeError: see `load_sweep`.
        RunError and its kinds: a run failed; those before it are kept.
    """
    sweep, runs = load_sweep(path_or_name)
    name = Path(path_or_name).stem
    folder = out or Path("runs", "sweeps", name)
    results: dict[int, train.RunResult] = {}
    for _ in range(2):  # once to train, once to collect what others have trained meanwhile
        for number, one in enumerate(runs):
            if number not in results:
                with suppress(BusyError):
                    results[number] = train.run(one.recipe, folder / one.label / str(one.recipe.train.seed))
    if not results:
        raise RunError(f"other processes are at all runs of {name} in {folder}; call again when they end")
    file = folder / "sweep.json"
    done = [(runs[number], results[number]) for number in sorted(results)]
    files.write_json(file, _contents(name, sweep, done), indent=1)
    return file, lines(file)


def _contents(name: str, sweep: Sweep, done: list[tuple[Run, train.RunResult]]) -> dict[str, Any]:
    """What `sweep.json` holds: enough to draw every figure and table of it without the run folders."""
    keep = ("seed", "split", "metrics", "recipe_sha256", "precision", "epochs", "minutes", "finished")
    environments = {json.dumps(result.values["environment"], sort_keys=True) for _, result in done}
    return {
        "sweep": name,
        "base": sweep.base,
        "set": sweep.set,
        "source": sweep.source,
        "published": sweep.stated(),
        "environments": [json.loads(text) for text in sorted(environments)],
        "runs": [
            {
                "label": one.label,
                "rare": sorted(one.recipe.data.keep),
                **{key: result.values[key] for key in (*keep, *SIZES) if key in result.values},
                "log": read_log(result.folder / "metrics.jsonl"),
            }
            for one, result in done
        ],
    }


def lines(file: Path) -> list[Line]:
    """The table of a sweep, from its `sweep.json`.

    Raises:
        RunError: no such file, or not one of a sweep.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        by_label: dict[str, list[dict[str, Any]]] = {}
        for one in values["runs"]:
            by_label.setdefault(one["label"], []).append(one)
        return [_line(label, runs, values["published"].get(label)) for label, runs in by_label.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"cannot read the results {file}: {error}. `hyperzoo train SWEEP` writes them") from error


def _line(label: str, runs: list[dict[str, Any]], published: float | None) -> Line:
    metric = "perplexity" if "perplexity" in runs[0]["metrics"] else "accuracy"
    scores = [run["metrics"][metric] for run in runs]
    rare = [run["metrics"]["class_accuracy"][name] for run in runs for name in run.get("rare", ())]
    return Line(
        label=label,
        split=runs[0]["split"],
        n=len(runs),
        mean=statistics.fmean(scores),
        sd=statistics.stdev(scores) if len(runs) > 1 else None,
        nll=statistics.fmean(run["metrics"]["nll"] for run in runs),
        train_loss=statistics.fmean(task_loss(run["log"][-1]) for run in runs),
        epochs=runs[0]["epochs"],
        published=published,
        rare=statistics.fmean(rare) if rare else None,
        metric=metric,
    )
