"""Baselines of published weights: trained on the same images for as many epochs, without the method."""

import json
from dataclasses import dataclass
from typing import Any

from hyperzoo.analysis import summary
from hyperzoo.errors import RunError
from hyperzoo.experiments import sweep
from hyperzoo.publishing.checkout import Checkout
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.zoo.manifest import Manifest
from hyperzoo.zoo.weight_description import WeightInfo


@dataclass(frozen=True)
class Baseline:
    """What a weight is compared with at the same budget; its metrics are means over its runs.

    Attributes:
        title: as Markdown.
        file: that describes it, relative to the checkout.
        mean, sd, n: accuracy in percent, or perplexity; its standard deviation, None for a single run; number of runs.
        nll: in nats.   ece: in percent; None for texts. None where they are not known.
        weight: its name, if it is published.
    """

    title: str
    file: str
    mean: float
    sd: float | None
    n: int
    epochs: int
    nll: float | None = None
    ece: float | None = None
    weight: str | None = None


def baselines(manifest: Manifest, checkout: Checkout) -> dict[str, Baseline | None]:
    """The baseline of each weight with a method; None where none of the same budget was trained.

    The budget is the block `data` of the recipe, `train.epochs` and `train.accumulate`. The baseline is the weight that
    the recipe names under `expect.baseline`; if that was trained longer, the row of a study with its network.

    Raises:
        RecipeError: a recipe is missing or has faults.   UnknownNameError: its baseline is not published.
        RunError: a results file cannot be read.
    """
    recipes = {name: load_recipe(checkout.recipes / info.recipe) for name, info in manifest.weights.items()}
    found: dict[str, Baseline | None] = {}
    for name, recipe in recipes.items():
        if recipe.expect and (other := recipe.expect.baseline):
            plain = manifest.info(other)
            equal = _budget(recipes[other]) == _budget(recipe)
            found[name] = _of_weight(plain) if equal else _of_study(recipe, recipes[other], checkout)
    return found


def _budget(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.data, recipe.train.epochs, recipe.train.accumulate


def _of_weight(info: WeightInfo) -> Baseline:
    score, this = info.score, info.metrics.this_file
    return Baseline(
        f"`{info.name}`",
        f"model_cards/{info.name}.md",
        score.mean,
        score.sd,
        score.n,
        info.training.epochs,
        this.nll,
        getattr(this, "ece", None),
        info.name,
    )


def _of_study(recipe: Recipe, plain: Recipe, checkout: Checkout) -> Baseline | None:
    """The tested row of a study with the network and method of `plain`, and otherwise the settings of `recipe`."""
    wanted = recipe.model_copy(update={"model": plain.model, "method": plain.method}).non_default()
    results = checkout.results(summary.NAME)
    for file in sorted({*results.parent.glob("*.json")} - {results}):
        try:
            recipes = json.loads(file.read_text(encoding="utf-8")).get("recipes", {})
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"cannot read the results {file}: {error}. tools/study_results.py writes them") from error
        if wanted in recipes.values():
            for line in sweep.lines(file):
                if line.split == "test" and recipes.get(line.label) == wanted:
                    title = f"`{plain.model.arch}` in the study {file.stem}"
                    place = file.relative_to(checkout.root).as_posix()
                    return Baseline(title, place, line.mean, line.sd, line.n, line.epochs, line.nll, line.ece)
    return None
