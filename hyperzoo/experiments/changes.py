"""Changes of a recipe since its run began."""

from typing import Any

from hyperzoo.errors import RunError
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


def recipe_changes(recipe: Recipe, saved: checkpoint.Checkpoint, allow_change: bool) -> list[dict[str, Any]]:
    """The changes of the recipe since the run began: after which epoch, and each key with its values before and after.

    Raises:
        RunError: a change without `allow_change`, of a fixed key, or with no epoch left to train.
    """
    earlier = saved.state.get("recipe_changes", [])
    before, now = _flat(Recipe.stored(saved.state["recipe"]).settings()), _flat(recipe.settings())
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if not keys:
        return earlier
    changed = {key: [before.get(key), now.get(key)] for key in keys}
    shown = ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in changed.items())
    if not allow_change:
        raise RunError(f"the recipe has changed since this run began: {shown}. Use another --out, or --allow-change")
    names = (*FIXED, "train.accumulate") if recipe.method.angular else FIXED  # its annealing counts forward passes
    fixed = [key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in names)]
    if fixed:
        raise RunError(f"a run cannot resume with another {', '.join(fixed)}: {shown}. Use another --out")
    if recipe.train.epochs <= saved.epoch:
        raise RunError(
            f"the run has trained {saved.epoch} epochs, so none is left for the changed recipe: {shown}. Set "
            f"train.epochs above {saved.epoch}, or use another --out"
        )
    return [*earlier, {"after_epoch": saved.epoch, "changed": changed}]


def _flat(blocks: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their keys 'block.key'."""
    flat: dict[str, Any] = {}
    for key, value in blocks.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + str(key): value}
    return flat
