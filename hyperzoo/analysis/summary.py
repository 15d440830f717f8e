"""When does a method help: every row of a study against its baseline, by method and setting."""

import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hyperzoo.analysis.comparison import Difference, paired
from hyperzoo.analysis.results import reading, runs_by_label
from hyperzoo.layers.operators import OPERATORS
from hyperzoo.training.log import metric_of
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.recipe_methods import Method

TITLES = {"c10": "CIFAR-10", "c100": "CIFAR-100", "ptb": "Penn Treebank", "wt2": "WikiText-2"}
NAME = "summary"  # of the file among the results that holds all comparisons
RARE = "accuracy of rare classes"
DETAILS = (
    "method",
    "setting",
    "measured on",
    "n",
    "difference (95 %)",
    "verdict",
    "NLL",
    "time per step",
    "study and row",
)
VERDICTS = ("gain", "loss", "inconclusive", "too few seeds")
OVERVIEW = ("method", *VERDICTS, "largest gain")
EVIDENCE = ("method", "gains", "losses", "inconclusive", "largest gain", "largest loss", "time per step")
TIMED = 3  # pairs from which on a ratio of times is stated; single times depend on what else the machine did


@dataclass(frozen=True)
class Comparison:
    """A row of a study against its baseline of the same optimizer and learning rate.

    Attributes:
        study, label, baseline: names of the study and of its two rows.
        method: what the row has and the baseline lacks.
        setting: data, network and length of the baseline.
        metric: 'accuracy' in percent, 'perplexity', or 'accuracy of rare classes': of those that `data.keep` or
            `data.long_tail` made rare, their mean.   split: where it was measured.
        score: of the metric.   nll: of the negative log-likelihood in nats. Differences, paired by seed.
        values, baseline_values: the metric of each pair, in the order of the seeds.
        cost: time per step over that of the baseline, each in the fastest epoch of the runs with the same seeds, since
            other work on a machine can only slow an epoch; None below `TIMED` pairs or without rates.
    """

    study: str
    label: str
    baseline: str
    method: str
    setting: str
    metric: str
    split: str
    score: Difference
    nll: Difference
    values: tuple[float, ...]
    baseline_values: tuple[float, ...]
    cost: float | None

    @property
    def difference(self) -> str:
        """The difference of the metric with its interval, as text."""
        unit = {"accuracy": "points", RARE: "points, rare classes"}.get(self.metric, self.metric)
        return f"{str(self.score).removesuffix(f' (n = {self.score.n})')} {unit}"

    @property
    def measured_on(self) -> str:
        """'test', also at another size, or 'validation'."""
        return "test" if self.split.startswith("test") else "validation"

    @property
    def change(self) -> str:
        """Baseline and method as mean and standard deviation, the number of pairs and the setting, as text."""
        before, after = (
            f"{statistics.fmean(each):.1f}" + (f" ± {statistics.stdev(each):.1f}" if len(each) > 1 else "")
            for each in (self.baseline_values, self.values)
        )
        unit = {"accuracy": "%", RARE: "% of rare classes"}.get(self.metric, self.metric)
        return f"{before} → {after} {unit} (n = {self.score.n}): {self.setting}"

    def shown(self) -> tuple[str, ...]:
        """The cells of the table, in the order of `DETAILS`."""
        cost = "-" if self.cost is None else f"{self.cost:.2f} x"
        counts, nll = str(self.score.n), f"{self.nll.mean:+.3f}"
        place = f"`{self.study}`, `{self.label}`"
        return (
            self.method,
            self.setting,
            self.measured_on,
            counts,
            self.difference,
            self.score.verdict,
            nll,
            cost,
            place,
        )


def comparisons(results: Path) -> list[Comparison]:
    """All rows with a baseline and a method, sorted by method and setting.

    Rows that differ from their baseline in other settings only, such as the learning rate, are left out; so are results
    without recipes, of versions before 0.6. The same runs in two studies count once.

    Args:
        results: folder of the results files, <study>.json.
    Raises:
        RunError: a results file cannot be read.   RecipeError: it has a recipe that is not of this version.
    """
    found = [one for file in sorted(results.glob("*.json")) if file.stem != NAME for one in _of_study(file)]
    once = {replace(one, study="", label="", baseline="", cost=None): one for one in reversed(found)}
    return sorted(reversed(once.values()), key=lambda one: (one.method, one.setting))


def details(found: list[Comparison]) -> list[tuple[str, ...]]:
    """The header and all comparisons as text."""
    return [DETAILS, *(one.shown() for one in found)]


def overview(found: list[Comparison]) -> list[tuple[str, ...]]:
    """The header and one line per method: its comparisons by verdict, and the largest gain with the verdict 'gain'."""
    lines = []
    for method in dict.fromkeys(one.method for one in found):
        own = [one for one in found if one.method == method]
        counts = [sum(one.score.verdict == verdict for one in own) for verdict in VERDICTS]
        gains = [one for one in own if one.score.verdict == "gain"]
        best = max(gains, key=lambda one: abs(one.score.mean), default=None)
        lines.append((method, *map(str, counts), f"{best.difference}: {best.setting}" if best else "-"))
    return [OVERVIEW, *lines]


def evidence(found: list[Comparison]) -> list[tuple[str, ...]]:
    """The header and one line per method with a comparison that has a verdict; `Difference` says which have none.

    A line has the number of comparisons by verdict, the largest gain and loss among these verdicts, and the median time
    of a step. Methods with more gains than losses come first.
    """
    counted = [one for one in found if one.score.verdict in VERDICTS[:3]]
    lines = []
    for method in dict.fromkeys(one.method for one in counted):
        own = [one for one in counted if one.method == method]
        by_verdict = {verdict: [one for one in own if one.score.verdict == verdict] for verdict in VERDICTS[:3]}
        counts = [len(each) for each in by_verdict.values()]
        extremes = (
            max(by_verdict[verdict], key=lambda one: abs(one.score.mean), default=None) for verdict in VERDICTS[:2]
        )
        costs = [one.cost for one in own if one.cost is not None]
        time = f"{statistics.median(costs):.2f} x" if costs else "-"
        cells = (method, *map(str, counts), *("-" if one is None else one.change for one in extremes), time)
        lines.append((counts[1] - counts[0], cells))
    return [EVIDENCE, *(cells for _, cells in sorted(lines, key=lambda line: line[0]))]


def as_json(found: list[Comparison]) -> str:
    """The text of results/summary.json: one comparison per line."""
    lines = ",\n ".join(json.dumps(asdict(one)) for one in found)
    return f'{{"comparisons": [\n {lines}\n]}}\n'


def _of_study(file: Path) -> list[Comparison]:
    with reading(file) as values:
        by_label = {label: {run["seed"]: run for run in runs} for label, runs in runs_by_label(values).items()}
        stated = {label: said for label, said in values.get("recipes", {}).items() if label in by_label}
        pairs = {label: base for label, base in values.get("baselines", {}).items() if {label, base} <= stated.keys()}
    recipes = {label: Recipe.stored(said) for label, said in stated.items()}
    found = []
    for label, base in pairs.items():
        method, ours, theirs = method_of(recipes[label], recipes[base]), recipes[label].optim, recipes[base].optim
        equal = (ours.optimizer, ours.lr) == (theirs.optimizer, theirs.lr)
        if method and equal and by_label[label].keys() & by_label[base].keys():
            first = next(iter(by_label[label].values()))
            metrics = [metric_of(first["metrics"]), *([RARE] if first.get("rare") else [])]
            about = dict(study=file.stem, label=label, baseline=base, method=method, setting=setting(recipes[base]))
            found += [_comparison(by_label[label], by_label[base], metric, **about) for metric in metrics]
    return found


def _comparison(
    runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]], metric: str, **about: str
) -> Comparison:
    """The comparison of two rows, given by their runs by seed."""
    seeds = runs.keys() & others.keys()
    ours, theirs = (max(each[seed].get("rate", 0) for seed in seeds) for each in (runs, others))
    timed = len(seeds) >= TIMED and ours and theirs
    scores, losses = (
        [{seed: _score(each[seed], key) for seed in sorted(seeds)} for each in (runs, others)]
        for key in (metric, "nll")
    )
    return Comparison(
        **about,
        metric=metric,
        split=next(iter(runs.values()))["split"],
        score=paired(*scores, larger_is_better=metric != "perplexity"),
        nll=paired(*losses, larger_is_better=False),
        values=tuple(scores[0].values()),
        baseline_values=tuple(scores[1].values()),
        cost=round(theirs / ours, 2) if timed else None,
    )


def _score(run: dict[str, Any], metric: str) -> float:
    if metric == RARE:
        return statistics.fmean(run["metrics"]["class_accuracy"][name] for name in run["rare"])
    return float(run["metrics"][metric])


def method_of(recipe: Recipe, baseline: Recipe) -> str:
    """What a recipe has and its baseline lacks; empty if that is no method."""
    found = []
    ours, theirs = recipe.model.arch, baseline.model.arch
    if "sphere" in ours and "sphere" not in theirs:
        operator = next((name for name in OPERATORS if ours.endswith(f"_{name}")), "cosine")
        found.append(f"sphere layers, {operator}")
    if recipe.model.sphereize and not baseline.model.sphereize:
        found.append(f"sphere layers, {recipe.model.sphereize}")
    if ours.endswith("_bn") and not theirs.endswith("_bn"):
        found.append("batch norm")
    if (norm := recipe.model.args.get("norm")) and norm != baseline.model.args.get("norm"):
        found.append(f"norm: {norm}")
    return " + ".join(found + _terms(recipe.method, baseline.method))


def _terms(method: Method, baseline: Method) -> list[str]:
    new = {key: value for key, value in method if value and not getattr(baseline, key)}
    names = {
        "label_smoothing": lambda _: "label smoothing",
        "angular": lambda block: (
            "W-Softmax" if block.margin == 1 else "A-Softmax" if block.operator == "cosine" else "GA-Softmax"
        ),
        "mhe": lambda block: (
            "MHE, output layer" if not block.hidden else "MHE, half space" if block.half_space else "MHE"
        ),
        "orthogonality": lambda _: "orthogonality",
        "minimum_angle": lambda _: "minimum angle (MMA)",
        "per": lambda _: "PER",
        "vcl": lambda _: "VCL",
        "activation_norm": lambda block: f"L{block.p} of activations",
        "mixup": lambda block: "CutMix" if block.cutmix else "input mixup",
        "manifold_mixup": lambda _: "manifold mixup",
    }
    return [name(new[key]) for key, name in names.items() if key in new]


def setting(recipe: Recipe) -> str:
    """Data, network and length of a recipe, in words."""
    data, widths = recipe.data, recipe.model.args.get("widths")
    parts = [TITLES.get(data.name, data.name)]
    parts += [f"{data.per_class} images a class"] if data.per_class else []
    parts += [f"{100 * data.fraction:g} % of the images"] if data.fraction < 1 else []
    parts += [f"{name} at {100 * part:g} %" for name, part in data.keep.items()]
    parts += [f"long tail of {data.long_tail:g}"] if data.long_tail > 1 else []
    parts += [f"{100 * data.label_noise:g} % of the labels random"] if data.label_noise else []
    parts += [f"{data.size_px} px"] if data.size_px else []
    channels = " " + "/".join(map(str, widths)) if isinstance(widths, list) else ""
    parts += [f"{recipe.model.arch}{channels}", f"{recipe.train.epochs} epochs"]
    return ", ".join(parts)
