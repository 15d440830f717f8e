"""Constructor arguments of a recipe's network."""

from typing import Any

from hyperzoo import zoo
from hyperzoo.training.recipe import Recipe
from hyperzoo.zoo.model_folder import read_config


def model_args(recipe: Recipe) -> dict[str, Any]:
    """Constructor arguments of a recipe's network, so that config.json alone rebuilds it: also those of the folder that
    it starts from, the operator of its convolutions, and with an angular loss that of its classifier."""
    return {**own_args(recipe), **angles(recipe)}


def own_args(recipe: Recipe) -> dict[str, Any]:
    """The part of `model_args` that the constructor of `model.arch` takes."""
    name = recipe.model.pretrained
    folder = zoo.local_folder(name) if isinstance(name, str) else None
    earlier = read_config(folder).get("model_args", {}) if folder else {}
    args = {key: value for key, value in earlier.items() if key not in ("in_chans", "num_classes")} | recipe.model.args
    return args if angles(recipe) else args | _operators(recipe)


def angles(recipe: Recipe) -> dict[str, Any]:
    """The arguments of `models.sphereized`; empty if the architecture takes operators itself."""
    arch, operators = recipe.model.arch, _operators(recipe)
    takes = arch == "sphereized" or (arch in zoo.list_models() and not recipe.model.sphereize)
    return {} if takes or not operators else {"base": arch, **operators}


def _operators(recipe: Recipe) -> dict[str, Any]:
    """The operators of the convolutions and of the classifier that a recipe sets, as `models.sphereized` takes them."""
    convolutions, angular = recipe.model.sphereize, recipe.method.angular
    return ({"sphereize": convolutions} if convolutions else {}) | (
        {"head_operator": angular.operator, "head_k": angular.k} if angular else {}
    )
