"""The data set that a model was trained on, and whether another one fits it."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from torch import nn

from hyperzoo import data, zoo
from hyperzoo.data.load import Images, Samples
from hyperzoo.data.sources import REPOSITORIES
from hyperzoo.errors import HyperzooError, InputError, RecipeError
from hyperzoo.names import DATASETS, TEXTS, is_language
from hyperzoo.training.log import read_result
from hyperzoo.training.recipe import Recipe

_logger = logging.getLogger(__name__)


def data_of(name: str) -> str | data.OwnImages:
    """The data set of a weight or a run folder: its code, or your own images as the network reads them.

    Raises:
        InputError: any other model.
        UnknownNameError, WeightFileError: see `zoo.weight_info` and `zoo.described`.
        RunError, RecipeError, DataError: result.json is damaged or not of this version, or the images have moved.
    """
    arch = name.partition(".")[0]
    if folder := zoo.local_folder(name):
        if (folder / "result.json").is_file():
            return _of_run(folder)
    elif ":" not in name and (arch in zoo.list_models() or not timm.is_model(arch)):
        hub_id = zoo.weight_info(name).dataset.id
        return next(code for code, known in DATASETS.items() if known == hub_id)
    codes = ", ".join(REPOSITORIES)
    raise InputError(
        f"{name} is not a hyperzoo weight or a run folder; pass the data set with --data, one of {codes}, or a folder "
        "with a folder of images per class"
    )


def data_named(name: str, dataset: str, split: str) -> str | data.OwnImages:
    """The data set that a model is to be evaluated on: a code, or a folder with a folder of images per class.

    A warning says if a run was trained on images of this folder.

    Args:
        dataset: a code of the table, or else the path of a folder.
        split: 'test', 'train' or 'validation'; see `data.find_labeled`.
    Raises:
        InputError: a folder for a language model, or for a model that does not name its classes.
        DataError: see `data.find_labeled`.
    """
    folder = Path(dataset).expanduser()
    if dataset in REPOSITORIES or not (folder.is_dir() or os.sep in dataset):
        return dataset
    arch, cfg = zoo.described(name)
    if is_language(arch):
        raise InputError(f"{name} reads texts, but --data {dataset} is a folder of images; pass {' or '.join(TEXTS)}")
    channels, _, size = (about := timm.data.resolve_data_config(pretrained_cfg=cfg))["input_size"]
    found = data.find_labeled(folder, split, _class_names(name), data.Fit(size, about["interpolation"], channels))
    with suppress(HyperzooError):  # no run, or its images have moved
        trained = data_of(name)
        known = {*map(os.path.abspath, trained.splits["train"].files)} if isinstance(trained, data.OwnImages) else {}
        files = found.splits[split].files
        if count := sum(os.path.abspath(file) in known for file in files):
            text = "%d of the %d images in %s are training images of %s; without --data, its test images are evaluated"
            _logger.warning(text, count, len(files), folder, name)
    return found


def _class_names(name: str) -> tuple[str, ...]:
    if folder := zoo.local_folder(name):
        return zoo.class_names(folder)
    if name.partition(".")[0] not in zoo.list_models():
        raise InputError(
            f"{name} does not name its classes, so no folder of images fits them; pass a weight of hyperzoo or a run"
        )
    return zoo.load(name).classes


def as_trained_on(name: str, samples: Samples) -> Samples:
    """The samples at the size of the images that a run was trained on, if its recipe sets `data.size_px`.

    Raises:
        RunError: a damaged result.json in the run folder.
    """
    folder = zoo.local_folder(name)
    if not folder or not (folder / "result.json").is_file() or not isinstance(samples, data.ImageSet):
        return samples
    words = read_result(folder).get("recipe", {}).get("data", {})
    size_px = None if words.get("source") else words.get("size_px")  # your own images are read at that size
    return samples.resized(size_px) if size_px else samples


def _of_run(folder: Path) -> str | data.OwnImages:
    values = read_result(folder)
    try:
        recipe = Recipe.stored(values["recipe"])
    except RecipeError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'result.json'} states no recipe ({error}); pass the data set with --data"
        ) from error
    if recipe.data.source is None:
        return recipe.data.name
    about = timm.data.resolve_data_config(pretrained_cfg=zoo.described(str(folder))[1])
    channels, _, size = about["input_size"]
    fit = data.Fit(size, about["interpolation"], channels, skip=recipe.data.on_error == "skip")
    return data.find_own(recipe.data.source.model_dump(), recipe.data.name, fit)


def warn_of_other_samples(name: str, split: str, samples: Samples) -> None:
    """Log a warning if the samples are not those of the published number, or of the result.json of a run folder."""
    folder = zoo.local_folder(name)
    if folder is None:
        known = zoo.weight_info(name).dataset
        stated = {"test": known.test_fingerprint, "train": known.train_fingerprint}.get(split)
        place = "of the published number"
    else:
        result = read_result(folder) if (folder / "result.json").is_file() else {}
        stated = result["metrics"].get("fingerprint") if str(result.get("split")).startswith(split) else None
        place = f"of {folder / 'result.json'}"
    if stated and stated != samples.fingerprint:
        drawn = "; if the test images are drawn from one folder, some of them may have been trained on" * bool(folder)
        _logger.warning("the %s data are not those %s: files were added, removed or changed%s", split, place, drawn)


def check_fits(name: str, model: nn.Module, samples: Samples, dataset: str) -> None:
    """Raise an InputError if classes, their order or channels of a model are not those of the images or the text."""
    channels = timm.data.resolve_model_data_config(model)["input_size"][0]
    if (model.num_classes, channels) != (len(samples.classes), samples.channels):
        raise InputError(
            f"{name} has {channels} input channels and {model.num_classes} classes, but {dataset} has "
            f"{samples.channels} channels and {len(samples.classes)} classes"
        )
    described: Any = model.pretrained_cfg
    for place, word in enumerate(described.get("label_names") or () if isinstance(samples, Images) else ()):
        if word in samples.classes and samples.classes[place] != word:
            raise InputError(
                f"{name} has the class {word!r} at position {place}, but {dataset} has it at "
                f"{samples.classes.index(word)}. Give the classes the names and the order that it was trained with"
            )
