"""Train the recipe of a published weight with new seeds and compare the test metric with the published one."""

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from hyperzoo import files, zoo
from hyperzoo.analysis.comparison import CONFIDENCE, prediction_width
from hyperzoo.errors import InputError, RunError
from hyperzoo.experiments import train
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.zoo.weight_description import WeightInfo, as_text

WIDTH = 3  # allowed difference in standard deviations, where a single run was published
TEXT_SHARE = 0.03  # allowed share of a single run's perplexity; seeds of small LSTMs differ by less than 1 %


@dataclass(frozen=True)
class Report:
    """A rerun compared with the published result; accuracies in %.

    Attributes:
        values: test metric of each seed.
        allowed: largest difference of the means that counts as agreement; `rule` is its reason.
        agrees: None if no comparison was possible; `rule` is the reason.
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
        """The result as a sentence."""
        mean = statistics.fmean(self.values)
        now, before = (as_text(self.metric, value) for value in (mean, self.published))
        found = f"{self.name}: {self.metric} {now} (n = {len(self.values)}), published {before}"
        if self.agrees is None:
            return f"{found}; no verdict: {self.rule}"
        verdict = "agrees" if self.agrees else "DIFFERS"
        apart = abs(mean - self.published)
        return f"{found}: {verdict}, {apart:.2f} points apart, {self.allowed:.2f} allowed ({self.rule})"


def run(name: str, out: Path | None = None, *, seeds: int = 1, budget: float = 1.0) -> Report:
    """Train the recipe of a weight with new seeds and write <out>/report.json; a stopped run resumes.

    Args:
        name: a weight, or an architecture for its default weight.
        out: folder of the runs [default: runs/reproduce/<name>].
        seeds: number of runs; their seeds follow the largest published seed.
        budget: fraction of the epochs to train, in (0, 1]; below 1 there is no verdict, and runs have other
            folders.
    Raises:
        InputError: seeds or budget out of range.
        RunError: the installed recipe is not the one that made the weight.
        UnknownNameError, DataError, ...: as `zoo.weight_info` and `train.run`.
    """
    if seeds < 1 or not 0 < budget <= 1:
        raise InputError(f"seeds must be 1 or more and budget in (0, 1]; got {seeds} and {budget:g}")
    info = zoo.weight_info(name)
    recipe = load_recipe(info.name)
    if recipe.digest() != info.recipe_sha256:
        raise RunError(f"the installed recipe {info.name}.yaml is not the one that made the weight; reinstall hyperzoo")
    folder = out or Path("runs", "reproduce", info.name)
    first = max(info.score.seeds) + 1
    results = []
    for seed in range(first, first + seeds):
        run = _recipe(recipe, seed, budget)
        results.append(train.run(run, folder / (f"{seed}" if budget == 1 else f"{seed}-{run.train.epochs}epochs")))
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
        allowed = prediction_width(spread.n, len(values)) * spread.sd
        rule = f"{100 * CONFIDENCE:g} % prediction interval of Student's t from {spread.n} published runs"
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
        agrees, rule = None, "the test data differ from the published weight's"
    elif any(result["train_fingerprint"] != info.dataset.train_fingerprint for result in results):
        agrees, rule = None, "the training data differ from the published weight's"
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
