"""The table of data sets, and their files: in the mirror that HYPERZOO_DATA names, or on the Hub if it is not set."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperzoo import names
from hyperzoo.data.hub_sets import VARIABLE, import_datasets, load_from_hub
from hyperzoo.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

NOT_EXAMINED = "not examined; see the page of the data set on the Hub"


@dataclass(frozen=True)
class ImageRepository:
    """A labeled image data set on the Hub.

    Attributes:
        image, label: the columns that are read.
        splits: the splits of the repository that can be asked for.
        revision: the commit to read [default: the newest]. The fingerprint of the decoded content ties a result to its
            data.
        test: the repository's name of the test split.
        terms: its license, as the cards of weights state it.
    """

    hub_id: str
    config: str
    image: str
    label: str
    splits: tuple[str, ...] = ("train", "test")
    revision: str | None = None
    test: str = "test"
    terms: str = NOT_EXAMINED

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.image, self.label)


CIFAR_TERMS = "research use; its authors state no license"
IMAGENET = ImageRepository("ILSVRC/imagenet-1k", "default", "image", "label", ("train", "validation"))
IMAGE_REPOSITORIES = {
    "c10": ImageRepository("uoft-cs/cifar10", "plain_text", "img", "label", terms=CIFAR_TERMS),
    "c100": ImageRepository("uoft-cs/cifar100", "cifar100", "img", "fine_label", terms=CIFAR_TERMS),
    "mnist": ImageRepository("ylecun/mnist", "mnist", "image", "label"),
    "svhn": ImageRepository("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
    "tiny": ImageRepository("zh-plus/tiny-imagenet", "default", "image", "label", test="valid"),
}


@dataclass(frozen=True)
class TextRepository:
    """A text on the Hub, one line per row; `text` is the column, all else as for images."""

    hub_id: str
    config: str
    text: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    revision: str | None = None
    test: str = "test"
    terms: str = NOT_EXAMINED

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)


Repository = ImageRepository | TextRepository
TEXT_REPOSITORIES = {
    "ptb": TextRepository(
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        "sentence",
        revision="refs/convert/parquet",  # the main branch is a loading script, which `datasets` no longer runs
        terms=(
            "Penn Treebank of the Linguistic Data Consortium, as Mikolov prepared it; its terms were not verified. The "
            "weight comes with the list of its 10,000 words, and with no sentence of it"
        ),
    ),
    "wt2": TextRepository("Salesforce/wikitext", "wikitext-2-v1", "text", terms="CC-BY-SA-3.0 and GFDL (Wikipedia)"),
}
REPOSITORIES: dict[str, Repository] = {**IMAGE_REPOSITORIES, "imagenet": IMAGENET, **TEXT_REPOSITORIES}


@dataclass(frozen=True)
class Source:
    """A split of a data set that was located, not read.

    Attributes:
        files: the files with its rows, in order.   origin: a readable description of the place.
        rows: reads the split; raises DataError or MissingExtraError.   a_file_each: each row names one of `files`.
        numbers: of the rows in the files, if these are a part of them.
    """

    code: str
    split: str
    repository: Repository
    files: tuple[Path, ...]
    origin: str
    rows: Callable[[], "Dataset"]
    a_file_each: bool = False
    numbers: tuple[int, ...] | None = None

    def picture(self, row: int) -> str:
        """The name of the image of a row: its file, or its number in the files."""
        number = row if self.numbers is None else self.numbers[row]
        return str(self.files[row]) if self.a_file_each else f"{self.origin}, image {number}"

    def state(self) -> list[list[str | int]]:
        """Path, size and modification time of each file, which change with its content."""
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in self.files]

    def read(self) -> tuple["Dataset", tuple[str, ...]]:
        """Read a split of images: rows with the columns `image` (decoded on access) and `label`, and the class names.

        Raises:
            DataError: a damaged file, columns of other types than Image and ClassLabel, or a row without a value.
        """
        rows, (image, label) = self.rows(), self.repository.columns
        classes = class_names(rows.features, label)
        if type(rows.features.get(image)).__name__ != "Image" or not classes:
            found = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in rows.features.items())
            raise DataError(f"{self.origin} needs the columns {image} (Image) and {label} (ClassLabel); it has {found}")
        import pyarrow.compute as pc

        images = rows.data.column(image)
        for missing, values in (
            ("image bytes; a path or URL in its place is not read", pc.struct_field(images, "bytes")),
            ("label", rows.data.column(label)),
        ):
            if values.null_count and not (self.a_file_each and missing != "label"):
                row = pc.index(pc.is_null(values), True).as_py()
                remedy = (
                    "Copy the files of the Hub again" if self.repository.hub_id else "Add the bytes, or remove the row"
                )
                raise DataError(f"{self.origin}: row {row} has no {missing}. {remedy}")
        return rows.select_columns([image, label]).rename_columns({image: "image", label: "label"}), classes

    def lines(self) -> list[str]:
        """Read the lines of a split of a text.

        Raises:
            DataError: a damaged file, a column that is missing or not text, or a line that is null or not UTF-8.
        """
        rows, (column,) = self.rows(), self.repository.columns
        if getattr(rows.features.get(column), "dtype", None) not in ("string", "large_string"):
            raise DataError(f"{self.origin} needs the column {column} of text; it has {', '.join(rows.features)}")
        try:
            lines = rows[column][:]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.origin}: the column {column} is not UTF-8 ({error}). Copy the files again"
            ) from error
        if None in lines:
            raise DataError(f"{self.origin}: line {lines.index(None)} is null. Copy the files of the Hub again")
        return lines


def class_names(features: Any, label: str) -> tuple[str, ...]:
    """The names of a ClassLabel column; () if it is another column."""
    names_of = getattr(features.get(label), "names", None) or ()
    return tuple(names_of) if all(isinstance(name, str) for name in names_of) else ()


def find(code: str, split: str, mirror: Path | None = None) -> Source:
    """Locate a split of an image data set without reading its rows.

    If HYPERZOO_DATA is set and not empty, the files are
    `$HYPERZOO_DATA/<hub id>/<config>/<split>-NNNNN-of-NNNNN.parquet`, and the Hub is not asked. Otherwise `datasets`
    downloads the split unless it is cached.

    Args:
        mirror: folder of the mirror [default: HYPERZOO_DATA].
    Raises:
        UnknownNameError: no such data set.
        DataError: an unknown split, an absent data set or shard, or the Hub cannot be reached.
        MissingExtraError: the Hub needs the package `datasets`.
    """
    if code not in IMAGE_REPOSITORIES:
        raise names.unknown("image data set", code, [*IMAGE_REPOSITORIES, "imagenet"])
    return _find(code, split, IMAGE_REPOSITORIES[code], mirror)


def find_text(code: str, split: str, mirror: Path | None = None) -> Source:
    """Locate a split of a text; as `find`."""
    if code not in TEXT_REPOSITORIES:
        raise names.unknown("text", code, TEXT_REPOSITORIES)
    return _find(code, split, TEXT_REPOSITORIES[code], mirror)


def _find(code: str, split: str, repository: Repository, mirror: Path | None) -> Source:
    if split not in repository.splits:
        raise DataError(f"{code} has no split {split!r}; it has {', '.join(repository.splits)}")
    named, there = mirror or os.environ.get(VARIABLE), repository.test if split == "test" else split
    found = in_mirror(code, there, repository, Path(named)) if named else on_hub(code, there, repository)
    return replace(found, split=split)


def in_mirror(code: str, split: str, repository: Repository, mirror: Path) -> Source:
    folder = mirror / repository.hub_id / repository.config
    shards = _shards(folder, split)
    place = f"{repository.hub_id}/{repository.config} in {VARIABLE}"
    if not shards:
        there = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else []
        found = f"that folder holds {', '.join(there) or 'nothing'}" if folder.is_dir() else "there is no such folder"
        raise DataError(
            f"{place} has no {split} split: nothing matches {folder / f'{split}-*-of-*.parquet'} ({found}). "
            f"Copy the parquet files of the Hub there, or unset {VARIABLE} to read from the Hub"
        )
    totals = {total for _, total in shards}
    if len(totals) > 1:
        raise DataError(
            f"{place} mixes shards of {len(totals)} versions of {split}; keep one version: "
            f"{', '.join(map(str, shards.values()))}"
        )
    total = totals.pop()
    if lacking := total - sum(index < total for index, _ in shards):
        absent = (index for index in range(total) if (index, total) not in shards)  # lazy: the name may say any total
        shown = [f"{split}-{index:05d}-of-{total:05d}.parquet" for index in islice(absent, 5)]
        word = "shard" if lacking == 1 else "shards"
        more = ", ..." if lacking > len(shown) else ""
        raise DataError(f"{place} lacks {word} {', '.join(shown)}{more} (found {total - lacking} of {total}).")
    files = tuple(shards[index, total].resolve() for index in range(total))
    others = tuple(path for path in sorted(folder.glob("*-of-*.parquet")) if path.resolve() not in files)
    rows = partial(read_parquet, files, others, repository)
    return Source(code, split, repository, files, f"{place}, split {split}", rows)


def _shards(folder: Path, split: str) -> dict[tuple[int, int], Path]:
    """The existing shards of a split by (index, total)."""
    name = re.compile(rf"{split}-([0-9]+)-of-([0-9]+)\.parquet")
    if not folder.is_dir():
        return {}
    matches = ((name.fullmatch(path.name), path) for path in sorted(folder.iterdir()))
    return {(int(match[1]), int(match[2])): path for match, path in matches if match}


def read_parquet(files: tuple[Path, ...], others: tuple[Path, ...], repository: Repository) -> "Dataset":
    """Read shards into memory; `datasets.load_dataset` would first write a copy of them as Arrow files.

    Labels are positions in a list of class names, so all shards, also the `others` of other splits, must have the same.
    """
    datasets = import_datasets()
    import pyarrow
    import pyarrow.parquet

    tables: list[Any] = []
    classes: dict[Path, tuple[str, ...]] = {}
    for file in files:
        if not file.is_file():
            raise DataError(f"the parquet file {file} does not exist; name an existing one, or copy it there")
        try:
            table = pyarrow.parquet.read_table(file)
            table = table.select([name for name in repository.columns if name in table.column_names])
            for i, field in enumerate(table.schema):  # `datasets` forgets the names of classes that are not int64
                if pyarrow.types.is_integer(field.type):
                    table = table.set_column(i, field.with_type(pyarrow.int64()), table.column(i).cast(pyarrow.int64()))
            features = datasets.Dataset(table).features
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{file} ({file.stat().st_size} bytes) is not a complete parquet file: {error}. Copy it again"
            ) from error
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise DataError(f"{file} has damaged metadata of its columns ({error}). Copy it again") from error
        tables.append(table)
        classes[file] = class_names(features, repository.columns[-1])
    for other in others:
        with suppress(Exception):  # a damaged file is reported when its own split is read
            features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(other))
            classes[other] = class_names(features, repository.columns[-1]) or classes[files[0]]
    if odd := [file for file, found in classes.items() if found != classes[files[0]]]:
        raise DataError(
            f"{files[0]} and {odd[0]} have other class names, or in another order; keep the files of one version"
        )
    try:
        return datasets.Dataset(pyarrow.concat_tables(tables))
    except pyarrow.ArrowException as error:
        raise DataError(f"the shards {', '.join(map(str, files))} have different columns: {error}") from error


def on_hub(code: str, split: str, repository: Repository) -> Source:
    """A split that `datasets` downloads from the Hub unless it is cached; raises as `find`."""
    origin = f"{repository.hub_id}/{repository.config} on the Hub, split {split}"
    folders = f"{IMAGENET.hub_id}/{split}/<class>/<image>" if repository == IMAGENET else None  # as load_imagenet reads
    rows = load_from_hub(repository.hub_id, repository.config, split, repository.revision, origin, folders)
    files = tuple(Path(entry["filename"]) for entry in rows.cache_files)
    return Source(code, split, repository, files, origin, lambda: rows)
