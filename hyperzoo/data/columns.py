"""Rows of parquet files or of the Hub as splits of labeled images: which columns, and which classes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperzoo import names
from hyperzoo.data import sources
from hyperzoo.data.hub_sets import VARIABLE, import_datasets, load_from_hub
from hyperzoo.data.part import Part
from hyperzoo.errors import DataError

SPLITS = {
    "train": ("train_set", "training", "train"),
    "test": ("test_set", "testing", "test"),
    "validation": ("val", "valid", "validation"),
}
"""The usual names of a split; the last one that is there counts."""

LABELS = ("label", "labels", "class", "fine_label")


def parquet_rows(settings: Mapping[str, Any]) -> dict[str, Part]:
    """The rows of parquet files, by split, with the columns `image` and `label` as they are."""
    files = settings["parquet"]
    splits = files if isinstance(files, dict) else {"train": files}
    return {
        split: _of_files(tuple(Path(os.path.expanduser(place)) for place in places), settings)
        for split, places in splits.items()
    }


def hub_rows(settings: Mapping[str, Any]) -> dict[str, Part]:
    """The rows of a repository of the Hub, or of its files in HYPERZOO_DATA, by split; as `parquet_rows`."""
    hub, config = settings["hub"], settings["config"]
    if mirror := os.environ.get(VARIABLE):
        repository = sources.ImageRepository(hub, config or "default", "", "")
        found = (re.fullmatch(r"(.+)-[0-9]+-of-[0-9]+", file.stem) for file in _parquet_files(mirror, repository))
        splits = _chosen(settings["splits"], {match[1] for match in found if match})
        places = {split: sources.in_mirror(hub, there, repository, Path(mirror)) for split, there in splits.items()}
        return {split: _of_files(place.files, settings, place.origin) for split, place in places.items()}
    origin = f"{hub} on the Hub"
    rows = load_from_hub(hub, config, None, None, origin)
    splits = _chosen(settings["splits"], rows)
    if lost := [there for there in splits.values() if there not in rows]:
        raise DataError(f"{origin} has no split {lost[0]!r}. {names.closest_text(lost[0], rows)}")
    return {
        split: _with_columns(
            rows[there],
            tuple(Path(entry["filename"]) for entry in rows[there].cache_files),
            f"{origin}, split {there}",
            settings,
        )
        for split, there in splits.items()
    }


def _parquet_files(mirror: str, repository: sources.ImageRepository) -> list[Path]:
    return sorted(Path(mirror, repository.hub_id, repository.config).glob("*.parquet"))


def _chosen(stated: Mapping[str, str], there: Any) -> Mapping[str, str]:
    """Which split of a repository is which: as stated, or by the usual names."""
    usual = {split: word for split, words in SPLITS.items() for word in words if word in there}
    return stated or {"train": "train", **usual}


def _of_files(files: tuple[Path, ...], settings: Mapping[str, Any], origin: str = "") -> Part:
    datasets = import_datasets()
    import pyarrow
    import pyarrow.parquet

    origin = origin or ", ".join(map(str, files))
    try:
        features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(files[0]))
    except (OSError, pyarrow.ArrowException, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{files[0]} cannot be read as parquet: {error}. Name an existing, complete file") from error
    columns = _columns(features, settings, origin)
    rows = sources.read_parquet(files, (), sources.ImageRepository("", "", *columns))
    return _with_columns(rows, files, origin, settings)


def _columns(features: Any, settings: Mapping[str, Any], origin: str) -> tuple[str, str]:
    """The columns of the images and of the labels: those stated, else the only one of its type, else a usual name."""
    found: list[str] = []
    for key, kind, usual in (("image", "Image", ("image", "img")), ("label", "ClassLabel", LABELS)):
        given, typed = settings[key], [name for name in features if type(features[name]).__name__ == kind]
        if given and given not in features:
            close = names.closest_text(given, features)
            raise DataError(f"{origin} has no column {given!r} (data.source.{key}). {close}")
        fitting = [given] if given else typed if len(typed) == 1 else [name for name in usual if name in features][:1]
        if not fitting:
            listed = ", ".join(features)
            raise DataError(f"{origin}: which column has the {key}s? Set data.source.{key} to one of {listed}")
        found += fitting
    if found[0] == found[1]:
        raise DataError(f"{origin}: data.source.image and data.source.label are both {found[0]!r}; name two columns")
    return found[0], found[1]


def _with_columns(rows: Any, files: tuple[Path, ...], origin: str, settings: Mapping[str, Any]) -> Part:
    image, label = _columns(rows.features, settings, origin)
    origin = f"{origin}, columns {image} and {label}"
    rows = rows.select_columns([image, label]).rename_columns({image: "image", label: "label"})
    if type(rows.features["image"]).__name__ != "Image":
        try:
            rows = rows.cast_column("image", import_datasets().Image())
        except Exception as error:  # whatever arrow raises for a type that holds no image
            raise DataError(f"{origin}: {image} holds no images, but {rows.features['image']}") from error
    if not len(rows):
        raise DataError(f"{origin}, has no rows; a split needs images of every class")
    return Part(rows, files, origin)


def with_classes(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The same splits, with ClassLabels: class names, words, or whole numbers of at least 0.

    Raises:
        DataError: labels of another type, null, out of range, of other classes than the training split; or one class.
    """
    datasets, train = import_datasets(), parts["train"]
    for part in parts.values():
        feature = part.rows.features["label"]
        if not re.fullmatch(r"u?int[0-9]+|(large_)?string", str(getattr(feature, "dtype", ""))):
            raise DataError(
                f"{part.origin}: the labels are {getattr(feature, 'dtype', feature)}; use words or whole numbers"
            )
    labels = {split: part.rows["label"][:] for split, part in parts.items()}
    classes = sources.class_names(train.rows.features, "label")
    kinds: list[Any] = list(range(len(classes))) or sorted(filter(_is_class, set(labels["train"])))
    classes, codes = classes or tuple(map(str, kinds)), {kind: code for code, kind in enumerate(kinds)}
    found: dict[str, Part] = {}
    for split, part in parts.items():
        if split != "train" and sources.class_names(part.rows.features, "label") not in ((), classes):
            raise DataError(f"{part.origin} and {train.origin} have other class names, or in another order")
        if wrong := [row for row, label in enumerate(labels[split]) if label not in codes]:
            raise DataError(
                f"{part.origin}: row {wrong[0]} has the label {labels[split][wrong[0]]!r}, which is none of the "
                f"{len(classes)} classes ({names.cut(', '.join(classes))}); correct the label or remove the row"
            )
        present = set(labels[split])
        if missing := [name for name, kind in zip(classes, kinds, strict=True) if kind not in present]:
            raise DataError(f"{part.origin} has no image of the class {missing[0]!r}; every split needs each class")
        numbers = [codes[label] for label in labels[split]]
        rows = part.rows.remove_columns("label").add_column(
            "label", numbers, feature=datasets.ClassLabel(names=list(classes))
        )
        found[split] = part._replace(rows=rows)
    if len(classes) < 2:
        raise DataError(f"{train.origin} has one class, {classes[0]!r}; a classifier needs two or more")
    return found


def _is_class(label: str | int | None) -> bool:
    return label >= 0 if isinstance(label, int) else bool(label and label.strip())
