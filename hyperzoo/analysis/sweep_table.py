"""The table of a sweep: a line per label, with means over seeds and the difference to the baseline."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hyperzoo.analysis.comparison import Difference, paired
from hyperzoo.analysis.results import reading, runs_by_label
from hyperzoo.training.log import metric_of, task_loss

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


def lines(file: Path) -> list[Line]:
    """The lines of a `sweep.json` or a file of results/.

    Raises:
        RunError: no such file, or another kind of file.
    """
    with reading(file) as values:
        baselines, by_label = values.get("baselines", {}), runs_by_label(values)
        return [
            _line(label, runs, values["published"].get(label), baselines.get(label), by_label)
            for label, runs in by_label.items()
        ]


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
