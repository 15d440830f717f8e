"""Changes of the recipe, the data or the weight that a run starts from, since the run began."""

import hashlib
import json
from typing import Any

from hyperzoo import zoo
from hyperzoo.data.load import Samples
from hyperzoo.errors import RunError
from hyperzoo.experiments import pretrained
from hyperzoo.training import checkpoint
from hyperzoo.training.recipe import Recipe

FIXED = (  # keys that even --allow-change does not change: weights, optimizer state or validation images would not fit
    "model",
    "data.name",
    "data.source",
    "data.size_px",
    "data.on_error",
    "data.hold_out",
    "method.angular",
    "method.vcl",
    "optim.optimizer",
    "optim.args",
    "optim.decay",
    "optim.lr_scale",
    "optim.layer_decay",
    "train.ema",
)


SAMPLING = ("fraction", "per_class", "keep", "keep_seed", "long_tail", "label_noise")  # of data: which samples train


def recipe_changes(recipe: Recipe, saved: checkpoint.Checkpoint, allow_change: bool) -> list[dict[str, Any]]:
    """The changes of the recipe since the run began: after which epoch, and each key with its values before and after.

    Raises:
        RunError: a change without `allow_change`, of a fixed key, or with no epoch left to train.
    """
    earlier = saved.state.get("recipe_changes", [])
    changed = changed_settings(Recipe.stored(saved.state["recipe"]).settings(), recipe.settings())
    if not changed:
        return earlier
    shown = ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in changed.items())
    names = (*FIXED, "train.accumulate") if recipe.method.angular else FIXED  # its annealing counts forward passes
    fixed = [key for key in changed if any(f"{key}.".startswith(f"{name}.") for name in names)]
    if fixed:
        raise RunError(f"a run cannot resume with another {', '.join(fixed)}: {shown}. Use another --out")
    if not allow_change:
        raise RunError(
            f"the recipe has changed since this run began: {shown}. Use another --out, or resume this run with the new "
            "recipe by --allow-change"
        )
    if recipe.train.epochs <= saved.epoch:
        raise RunError(
            f"the run has trained {saved.epoch} epochs, so none is left for the changed recipe: {shown}. Set "
            f"train.epochs above {saved.epoch}, or use another --out"
        )
    return [*earlier, {"after_epoch": saved.epoch, "changed": changed}]


def trained_on(
    recipe: Recipe, train: Samples, held: Samples | None, saved: checkpoint.Checkpoint | None
) -> dict[str, str | None]:
    """The fingerprints of the samples and the sha256 of the names of the classes, or words.

    Raises:
        RunError: a resumed run began with others, and its recipe chose the same. Names are compared in any case.
    """
    found = {
        "train": train.fingerprint,
        "validation": held.fingerprint if held else None,
        "classes": hashlib.sha256(json.dumps(train.classes).encode()).hexdigest(),
    }
    earlier = saved.state.get("trained_on") if saved else None
    if saved and earlier:
        before, texts = Recipe.stored(saved.state["recipe"]).data, {"classes": "names of the classes"}
        if all(getattr(before, key) == getattr(recipe.data, key) for key in SAMPLING):
            texts |= {"train": "training data", "validation": "validation data"}
        if changed := [text for key, text in texts.items() if earlier.get(key) != found[key]]:
            raise RunError(
                f"the {changed[0]} of {recipe.data.name} have changed since this run began ({saved.epoch} epochs); "
                "restore the files, or use another --out"
            )
    return found


def started_from(recipe: Recipe, saved: checkpoint.Checkpoint | None) -> dict[str, Any] | None:
    """Name and sha256 of the weight that a run starts from.

    Raises:
        RunError: a resumed run started from another file.
    """
    name = pretrained.start(recipe)
    if name is None:
        return None
    found = {"name": name, "sha256": zoo.weight_sha256(name)}
    earlier = saved.state.get("started_from") if saved else None
    if earlier and earlier["sha256"] and found["sha256"] and earlier["sha256"] != found["sha256"]:
        raise RunError(
            f"{name} has the sha256 {found['sha256']}, but this run began from {earlier['sha256']}; restore that file, "
            "or use another --out"
        )
    return earlier or found


def changed_settings(before: Any, now: Any, key: str = "") -> dict[str, list[Any]]:
    """The settings that differ between two recipes, as 'block.key': [before, now]; None for a key that one lacks."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return {} if before == now else {key: [before, now]}
    found: dict[str, list[Any]] = {}
    for name in sorted(before.keys() | now.keys()):
        found |= changed_settings(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    return found
