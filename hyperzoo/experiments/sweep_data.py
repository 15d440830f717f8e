"""The data of a sweep: runs that are compared have the same, and their networks take images of its size."""

from pathlib import Path
from typing import Any

from hyperzoo.errors import HyperzooError, RecipeError, RunError, listed
from hyperzoo.experiments import build, image_sizes
from hyperzoo.experiments.sweep_folder import SHOWN_FOLDERS, Results
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.sweep_file import Run

Key = tuple[Any, ...]
"""Settings that determine a set of samples. `train.seed` is none of them: it draws neither a split nor a part."""


def check_data(runs: list[Run], results: Results, folder: Path) -> None:
    """Check that finished runs of equal data settings were trained on the same samples, and judged on the same.

    Results of versions that recorded no fingerprint are not compared.

    Args:
        folder: of the sweep, for the message.
    Raises:
        RunError: names the run folders of each set of samples.
    """
    found = sorted(_by_samples(runs, results).items(), key=lambda item: item[0][0])  # judged first: more runs share it
    for key, groups in found:
        if len(groups) > 1:
            texts = (f"{listed(names, SHOWN_FOLDERS)} (sha256 {sha256[:8]})" for sha256, names in groups.items())
            shown = "; ".join(texts)
            raise RunError(
                f"runs in {folder} with the same data settings were {key[0]} on different data of {key[1]}: {shown}. "
                "The data have changed between these runs. Move the folders of one group away, or train all runs under "
                "another --out"
            )


def check_unfinished(runs: list[Run], results: Results, folder: Path) -> None:
    """Check, before the first unfinished run, the data and the networks of all: each data set is loaded once.

    Args:
        results: of the finished runs.
    Raises:
        RunError: finished runs of the same data settings were trained on other samples than there are now.
        RecipeError: a row whose network takes no images of the size of its data; names the row.
        DataError and others: see `build.dataset`, `build.samples` and `build.model`.
    """
    earlier = _by_samples(runs, results)
    shapes: dict[Key, tuple[tuple[str, ...], int, int] | None] = {}  # classes, channels and size of the images
    checked: set[str] = set()
    for run in runs:
        if run.subfolder in results:
            continue
        key = _trained_on(run.recipe)
        if key not in shapes:
            shapes[key], fingerprint = _loaded(run.recipe)
            others = [name for other, names in earlier.get(key, {}).items() if other != fingerprint for name in names]
            if others:
                raise RunError(
                    f"the training data of {run.recipe.data.name} have changed (sha256 {fingerprint[:8]}) since "
                    f"{listed(others, SHOWN_FOLDERS)} in {folder} were trained, with which {run.label} would be "
                    "compared. Restore the data, move these folders away, or train all runs under another --out"
                )
        if shape := shapes[key]:
            network = f"{run.recipe.model!r} {run.recipe.method.angular!r} {run.recipe.data.resize_px} {shape}"
            if network not in checked:
                checked.add(network)
                _check_network(run, *shape)


def _by_samples(runs: list[Run], results: Results) -> dict[Key, dict[str, list[str]]]:
    """The folders of the finished runs, by their data settings and then by the fingerprint of the samples."""
    found: dict[Key, dict[str, list[str]]] = {}
    for run in runs:
        if values := results.get(run.subfolder):
            judged, trained = values["metrics"].get("fingerprint"), values.get("train_fingerprint")
            for key, fingerprint in ((_judged_on(run.recipe, values), judged), (_trained_on(run.recipe), trained)):
                if fingerprint:
                    found.setdefault(key, {}).setdefault(fingerprint, []).append(run.subfolder)
    return found


def _loaded(recipe: Recipe) -> tuple[tuple[tuple[str, ...], int, int] | None, str]:
    """Classes, channels and size of the training images, None for texts and streamed data sets; the fingerprint."""
    dataset = build.dataset(recipe)
    train, _ = build.samples(recipe, dataset)
    size = image_sizes.size_of(train, dataset)
    return (None if size is None else (train.classes, train.channels, size)), train.fingerprint  # type: ignore[union-attr]


def _check_network(run: Run, classes: tuple[str, ...], channels: int, size_px: int) -> None:
    try:
        image_sizes.check_sizes(run.recipe, build.model(run.recipe, classes, channels), channels, size_px)
    except RecipeError as error:
        raise RecipeError(f"row {run.label}: {error}") from error


def _judged_on(recipe: Recipe, values: dict[str, Any]) -> Key:
    split = str(values.get("split"))
    return "judged", *_source(recipe), split, recipe.data.hold_out if split.startswith("held-out") else 0


def _trained_on(recipe: Recipe) -> Key:
    return "trained", *_source(recipe), recipe.data.hold_out, recipe.data.training_part


def _source(recipe: Recipe) -> Key:
    """The name of the data, and what decides on their pixels; the network decides on the size of own images."""
    settings, pixels = recipe.data, repr(recipe.data.size_px)
    if settings.source:
        try:
            pixels = repr(build.fit(recipe))
        except HyperzooError:  # the weight that a finished run started from is gone
            pixels = repr(recipe.model)
    return settings.name, repr(settings.source), pixels
