"""Your own labeled images: from a folder, the Hub or parquet files to a data set with a training and a test split."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hyperzoo import names, pixels
from hyperzoo.data.columns import SPLITS, hub_rows, parquet_rows, with_classes
from hyperzoo.data.fit import Fit
from hyperzoo.data.folders import class_files, count_loose, folders, image_files
from hyperzoo.data.hub_sets import import_datasets
from hyperzoo.data.images import ImageSet, draw, load_in_memory
from hyperzoo.data.part import Part
from hyperzoo.data.readable import without_broken
from hyperzoo.data.sources import Source
from hyperzoo.data.streamed import StreamedSet, streamed_files, streamed_rows
from hyperzoo.errors import BrokenImageError, DataError, listed

MEMORY_BYTES = 2_000_000_000  # decoded training images up to this size are held in memory
DARK_SAMPLE = 16  # of streamed images, so many are looked at for 16-bit ones that become nearly black
SHOWN_KINDS = 5  # the most frequent kinds of files that are not read; the summary adds up the rest


@dataclass(frozen=True)
class OwnImages:
    """A data set of your own, which was located and checked; no image was decoded.

    Attributes:
        name: of the folder, the repository, or the folder of the parquet files.
        splits: 'train' and 'test', and 'validation' if there is one, each with the same classes in the same order; or
            only the one of `find_labeled`.
        fit: how the images are brought to one size.
        folder: the folder of the images; None if they are not files.
        others: the number of files in that folder that are not read, by kind; see `folders.image_files`.
    """

    name: str
    splits: Mapping[str, Part]
    fit: Fit
    folder: Path | None = None
    others: Mapping[str, int] = field(default_factory=dict)

    def load(self, split: str) -> ImageSet | StreamedSet:
        """The images of a split: in memory if those of the training split fit, otherwise streamed.

        Raises:
            DataError: no such split.
            BrokenImageError: images that cannot be decoded and are not to be skipped, with those of the other splits.
                Streamed training images are not read yet, so that a broken one stops the first epoch.
        """
        if split not in self.splits:
            raise DataError(f"{self.name} has no {split} split; it has {', '.join(self.splits)}")
        try:
            return self._load(split)
        except BrokenImageError as error:
            others = (name for other in self.splits if other != split for name in self._broken(other))
            remedy = ", or set data.on_error to skip" if "train" in self.splits else ""
            raise BrokenImageError([*error.pictures, *others], error.reason, remedy) from error

    def _broken(self, split: str) -> tuple[str, ...]:
        try:
            self._load(split)
        except DataError as error:  # also of a class that has no other images
            return error.pictures if isinstance(error, BrokenImageError) else ()
        return ()

    def _load(self, split: str) -> ImageSet | StreamedSet:
        part = self.splits[split]
        if self.fits_in_memory:
            return load_in_memory(part.source(self.name, split), self.fit)
        images, source = self._streamed(part, split), part.source(self.name, split)
        if split == "train" or "train" not in self.splits:
            _warn_of_dark(images, source)
        if split == "train" and not self.fit.skip:
            return images
        readable = without_broken(images, source)
        if readable.skipped and not self.fit.skip:
            raise BrokenImageError(readable.skipped)
        return readable

    def _streamed(self, part: Part, split: str) -> StreamedSet:
        if self.folder is None:
            return streamed_rows(part.source(self.name, split))
        labels = torch.tensor(part.rows["label"][:])
        return streamed_files(self.name, split, self.folder, part.files, labels, part.classes)

    def summary(self, skipped: tuple[str, ...] = ()) -> str:
        """One line about the classes and sizes, where the images are held, and what was left out of the training."""
        decoded = f"{self._decoded_bytes / 1e6:,.1f} MB"
        fits = f"{decoded}, {'within' if self.fits_in_memory else 'above'} the limit of {MEMORY_BYTES / 1e6:,.0f} MB"
        held = f"held in memory at {self.fit.size_px} px" if self.fits_in_memory else "streamed"
        counts = ", ".join(f"{len(part.rows)} {split}" for split, part in self.splits.items())
        classes = self.splits["train"].classes
        shown = f"{len(classes)} classes ({names.cut(', '.join(classes))})"
        text = f"{self.name}: {shown}; images: {counts}; {held} ({fits}){_not_read(self.others)}"
        if not skipped:
            return text
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        return f"{text}; {len(skipped)} that cannot be decoded are left out of train: {', '.join(skipped[:3])}{more}"

    @property
    def fits_in_memory(self) -> bool:
        return self._decoded_bytes <= MEMORY_BYTES

    @property
    def _decoded_bytes(self) -> int:
        """Of the training images, or of the only split."""
        part = self.splits.get("train") or next(iter(self.splits.values()))
        return len(part.rows) * 3 * self.fit.size_px**2

    def like(self, channels: int) -> "OwnImages":
        """The same data set, with so many channels in every split."""
        return replace(self, fit=replace(self.fit, channels=channels))


def find_own(settings: Mapping[str, Any], name: str, fit: Fit) -> OwnImages:
    """Locate and check your own images.

    Args:
        settings: the block `data.source` of a recipe, see `training.recipe.OwnSource`.
    Raises:
        DataError: files, columns, labels or classes that are missing or do not fit; an image is decoded only later.
        MissingExtraError: `datasets` is missing: pip install hyperzoo[train].
    """
    folder = Path(os.path.expanduser(settings["folder"])) if settings["folder"] else None
    others: Counter[str] = Counter()
    if folder:
        parts = _folder(folder, others)
    else:
        parts = with_classes(parquet_rows(settings) if settings["parquet"] else hub_rows(settings))
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        parts = _divided(parts["train"], settings["test_part"], settings["seed"])
    return OwnImages(name, parts, fit, folder, others)


def find_labeled(folder: Path, split: str, classes: tuple[str, ...], fit: Fit) -> OwnImages:
    """Locate the images that a trained network is evaluated on; its class names match those of the folders.

    Args:
        folder: holds a folder of images per class, or splits of such folders.
        split: the one to take, where there are splits; images without splits are those of 'test'.
        classes: names of the outputs of the network, in their order; a class without a folder has no images.
    Raises:
        DataError: no such folder or split, no images in a class, or a folder that is named like none of the classes.
    """
    places = _split_folders(folder) if folder.is_dir() else {}
    if split not in (places or ("test",)):
        there = f"{', '.join(places)}" if places else "class folders, which are evaluated as test"
        raise DataError(f"{folder} has no {split} split; it has {there}")
    place = places.get(split, folder)
    members = class_files(place, "your images")
    if strange := [name for name in members if name not in classes]:
        raise DataError(
            f"{place}: {len(strange)} of {len(members)} class folders are named like none of the {len(classes)} "
            f"classes of the network: {listed(strange)}. {names.closest_text(strange[0], classes)} Rename or move them"
        )
    return OwnImages(folder.name, {split: _rows_of_files(members, classes, place)}, fit, folder)


def _warn_of_dark(images: StreamedSet, source: Source) -> None:
    """Warn of 16-bit images that become nearly black; of many images, `DARK_SAMPLE` are read."""
    found: dict[str, int] = {}
    for number in range(0, len(images), max(1, len(images) // DARK_SAMPLE)):
        with suppress(DataError):  # broken images are reported where they stop the run
            info = images.read(number).info
            found |= {source.picture(number): info[pixels.LARGEST]} if pixels.LARGEST in info else {}
    pixels.warn_of_dark(pixels.dark_text(found))


def _not_read(others: Mapping[str, int]) -> str:
    """The part of a summary about the files that are not read."""
    if not others:
        return ""
    total = sum(others.values())
    shown = Counter({kind: count for kind, count in others.items() if kind}).most_common(SHOWN_KINDS)
    rest = total - sum(count for _, count in shown)
    listed = [f"{count} {kind}" for kind, count in shown] + [f"{rest} other"] * (rest > 0)
    return f"; {total} {'file was' if total == 1 else 'files were'} not read: {', '.join(listed)}"


def _folder(folder: Path, others: Counter[str]) -> dict[str, Part]:
    """The splits of a folder: those of its sub-folders that hold class folders, or all its class folders as one.

    Args:
        others: counts the files that are not read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; data.source.folder needs one with a folder of images per class")
    places = _split_folders(folder)
    for path in folders(folder) if places else ():
        if path not in places.values() and image_files(path, others):
            split = next(iter(places.values())).name
            raise DataError(
                f"{folder}: {path.name!r} has images and lies beside the split {split}, so it would be ignored. If "
                f"{split} is a split, move {path.name!r} out of {folder}; if it is a class, rename {split!r}"
            )
    if places and "train" not in places:
        raise DataError(
            f"{folder} has {', '.join(path.name for path in places.values())}, but no train; add that folder"
        )
    found = {split: class_files(path, "your images", others) for split, path in (places or {"train": folder}).items()}
    for path in (folder, *places.values()):
        count_loose(path, others)
    classes = tuple(found["train"])
    if len(classes) < 2:
        raise DataError(f"{places.get('train', folder)} has one class, {classes[0]!r}; a classifier needs two or more")
    for split, members in found.items():
        if other := sorted(set(members) ^ set(classes)):
            where = places["train" if other[0] in classes else split]
            raise DataError(
                f"the class {other[0]!r} is in {where} only; {places['train']} and {places[split]} need equal classes"
            )
    return {split: _rows_of_files(members, classes, places.get(split, folder)) for split, members in found.items()}


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits: sub-folders with a usual name that hold folders themselves; none without splits."""
    inside = {path.name.lower(): path for path in folders(folder) if folders(path)}
    return {split: inside[word] for split, words in SPLITS.items() for word in words if word in inside}


def _rows_of_files(members: Mapping[str, list[Path]], classes: tuple[str, ...], root: Path) -> Part:
    datasets = import_datasets()
    files = tuple(file for name in classes for file in members.get(name, ()))
    labels = [label for label, name in enumerate(classes) for _ in members.get(name, ())]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    paths = [str(file).encode(errors="replace").decode() for file in files]  # arrow takes UTF-8 only; `files` are read
    rows = datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)
    return Part(rows, files, f"the folder {root}", root)


def _divided(whole: Part, test_part: float, seed: int) -> dict[str, Part]:
    """A training and a test split: of each class a share, rounded, but at least one image, is for the test."""
    labels = torch.tensor(whole.rows["label"][:])
    sizes = torch.bincount(labels, minlength=len(whole.classes))
    quota = torch.tensor([min(max(1, round(test_part * size)), size - 1) for size in sizes.tolist()])
    if few := [name for name, wanted in zip(whole.classes, quota.tolist(), strict=True) if wanted < 1]:
        raise DataError(
            f"the class {few[0]!r} in {whole.origin} has one image, which cannot be in both the training and the test "
            "split; add images of it"
        )
    if whole.root is None:
        test = draw(labels, quota, seed)
    else:
        test = torch.tensor(_lowest_hashes(whole.root, whole.files, labels.tolist(), quota.tolist(), seed))
    share = f"{test_part:g} for the test, seed {seed}"
    return {"train": whole.take(~test, f"without {share}"), "test": whole.take(test, share)}


def _lowest_hashes(root: Path, files: tuple[Path, ...], labels: list[int], quota: list[int], seed: int) -> list[bool]:
    """For each file, whether it is one of the `quota[label]` files of its class with the lowest hashes.

    The hash is the sha256 of "<seed> <name>", where the name is relative to the class folder. A permutation of
    positions would give another test set for each added image, with images that an earlier run has trained on.
    """
    names_inside = (Path(*file.relative_to(root).parts[1:]).as_posix() for file in files)
    hashes = [hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in names_inside]
    left, chosen = list(quota), [False] * len(files)
    for row in sorted(range(len(files)), key=hashes.__getitem__):
        chosen[row] = left[labels[row]] > 0
        left[labels[row]] -= 1
    return chosen
