"""Baselines of published weights: trained on the same images for as many epochs, without the method."""

from typing import Any

from hyperzoo.publishing.checkout import Checkout
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.zoo.manifest import Manifest
from hyperzoo.zoo.weight_description import WeightInfo


def baselines(manifest: Manifest, checkout: Checkout) -> dict[str, WeightInfo | None]:
    """The baseline of each weight with a method: the one that its recipe names under `expect.baseline`.

    It is None if that weight had another budget: the block `data` of the recipe, `train.epochs` and `train.accumulate`.

    Raises:
        RecipeError: a recipe is missing or has faults.   UnknownNameError: the baseline is not published.
    """
    recipes = {name: load_recipe(checkout.recipes / info.recipe) for name, info in manifest.weights.items()}
    found: dict[str, WeightInfo | None] = {}
    for name, recipe in recipes.items():
        if recipe.expect and (other := recipe.expect.baseline):
            plain = manifest.info(other)
            found[name] = plain if _budget(recipes[other]) == _budget(recipe) else None
    return found


def _budget(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.data, recipe.train.epochs, recipe.train.accumulate
