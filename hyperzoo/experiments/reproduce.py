"""Train a published weight again and compare its accuracy or perplexity with what its card says."""

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from hyperzoo import files, zoo
from hyperzoo.errors import InputError, RunError
from hyperzoo.experiments import train
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.zoo.manifest import WeightInfo, as_text

WIDTH = 3  # standard deviations that a rerun may be away
TEXT_SHARE = 0.03  # of the perplexity of a single published run: seeds of small LSTMs differ by less than 1 %


@dataclass(frozen=True)
class Report:
    """A rerun beside what is published: the metric of the weight on the test split, accuracies in %.

    `allowed` is the largest difference of the means that counts as agreement, `rule` says where it comes from, and
    `agrees` is None where no comparison was possible.
    """

    name: str
    metric: str
    published: float
    published_n: int
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    epochs: int
    published_epochs: int
    allowed: float
    rule: str
    agrees: bool | None

    @property
    def verdict(self) -> str:
        """One sentence."""
        mean = statistics.fmean(self.values)
        now, before = (as_text(self.metric, value) for value in (mean, self.published))
        found = f"{self.name}: {self.metric} {now} (n = {len(self.values)}), published {before}"
        if self.agrees is None:
            return f"{found}; no verdict: {self.rule}"
        word = "agrees" if self.agrees else "DIFFERS"
        return (
            f"{found}: {word}, {abs(mean - self.published):.2f} points apart, {self.allowed:.2f} allowed ({self.rule})"
        )


def run(name: str, out: Path | None = None, *, seeds: int = 1, budget: float = 1.0) -> Report:
    """Train the recipe of a weight again with new seeds; writes <out>/report.json. Stopped runs go on by themselves.

    Args:
        name: a weight, or an architecture for its default weight.
        out: folder of the runs; runs/reproduce/<name> without one.
        seeds: how many; those that follow the largest published one, so that no run is only repeated.
        budget: part of the epochs to train, above 0 and at most 1. Below 1 there is no verdict.
    Raises:
        InputError: seeds or budget out of range.
        RunError: the recipe in this installation is not the one that made the weight.
        UnknownNameError, DataError, ...: as `zoo.weight_info` and `train.run`.
    """
    if seeds < 1 or not 0 < budget <= 1:
        raise InputError(f"seeds must be 1 or more and budget above 0 and at most 1; got {seeds} and {budget:g}")
    info = zoo.weight_info(name)
    recipe = load_recipe(info.name)
    if recipe.digest() != info.recipe_sha256:
        raise RunError(f"the recipe {info.name}.yaml at hand is not the one that made the weight: reinstall hyperzoo")
    folder = out or Path("runs", "reproduce", info.name)
    first = max(info.score.seeds) + 1
    results = [train.run(_recipe(recipe, seed, budget), folder / str(seed)) for seed in range(first, first + seeds)]
    report = _report(info, [result.values for result in results])
    files.write_json(folder / "report.json", asdict(report))
    return report


def _recipe(recipe: Recipe, seed: int, budget: float) -> Recipe:
    shorter = recipe.shortened(max(1, round(recipe.train.epochs * budget)))
    return shorter.model_copy(update={"train": shorter.train.model_copy(update={"seed": seed})})


def _report(info: WeightInfo, results: list[dict]) -> Report:
    spread, this = info.score, info.metrics.this_file
    values = tuple(result["metrics"][info.metric] for result in results)
    epochs = results[0]["epochs"]
    if spread.sd is not None:
        allowed, rule = WIDTH * spread.sd, f"{WIDTH} sd of the {spread.n} published runs"
    elif info.metric == "perplexity":
        allowed, rule = TEXT_SHARE * spread.mean, f"{100 * TEXT_SHARE:g} %: n = 1, so no spread is published"
    else:
        share = spread.mean / 100
        sd = 100 * math.sqrt(share * (1 - share) / this.total)
        rule = f"{WIDTH} sd of the difference of two counts of {this.total:,} images: n = 1, so no spread is published"
        allowed = WIDTH * sd * math.sqrt(1 + 1 / len(values))
    agrees: bool | None = abs(statistics.fmean(values) - spread.mean) <= allowed
    if epochs != info.training.epochs:
        agrees, rule = None, f"{epochs} of {info.training.epochs} epochs were trained"
    elif any(result["metrics"]["fingerprint"] != info.dataset.test_fingerprint for result in results):
        agrees, rule = None, "these are not the test data that the published number stands for"
    elif any(result["train_fingerprint"] != info.dataset.train_fingerprint for result in results):
        agrees, rule = None, "these are not the training data that the weight was made with"
    return Report(
        name=info.name,
        metric=info.metric,
        published=spread.mean,
        published_n=spread.n,
        values=values,
        seeds=tuple(result["seed"] for result in results),
        epochs=epochs,
        published_epochs=info.training.epochs,
        allowed=round(allowed, 4),
        rule=rule,
        agrees=agrees,
    )
