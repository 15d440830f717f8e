"""The block `data` of a recipe: a data set of the table or your own images, its batches and the augmentation."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hyperzoo import names
from hyperzoo.training.strict_yaml import AtLeastOne, Block, Count

Split = Literal["train", "test", "validation"]
Part = Annotated[float, Field(gt=0, le=1)]


class OwnSource(Block):
    """Your own labeled images: exactly one of `folder`, `hub` and `parquet`.

    Without a test split, `test_part` of each class is the test split, drawn by `seed`.
    """

    folder: str | None = None  # holds train/, test/ and optionally val/ with a folder per class; or a folder per class
    hub: str | None = None  # OWNER/NAME of a data set on the Hub; if HYPERZOO_DATA is set, in that folder
    config: str | None = None  # hub: its configuration [default: the only one; in HYPERZOO_DATA: default]
    splits: dict[Split, str] = {}  # hub: names of its splits [default: train, test and validation, where they exist]
    parquet: list[str] | dict[Split, list[str]] | None = None  # files of all images, or of each split
    image: str | None = None  # hub, parquet: column of the images [default: the only one]
    label: str | None = None  # hub, parquet: column of the classes [default: the only ClassLabel, or label]
    test_part: Annotated[float, Field(gt=0, lt=1)] = 0.2  # fraction of each class that becomes the test split, where
    # there is none
    seed: Count = 0  # draws the test split

    @field_validator("parquet", mode="before")
    @classmethod
    def _lists(cls, files: Any) -> Any:
        """A single file stands for a list of it."""
        if isinstance(files, dict):
            return {split: [listed] if isinstance(listed, str) else listed for split, listed in files.items()}
        return [files] if isinstance(files, str) else files

    @model_validator(mode="after")
    def _one_kind(self) -> "OwnSource":
        given = [kind for kind in ("folder", "hub", "parquet") if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(
                f"data.source needs exactly one of folder, hub and parquet; got {', '.join(given) or 'none'}"
            )
        allowed = {"folder": (), "hub": ("config", "splits", "image", "label"), "parquet": ("image", "label")}[given[0]]
        if other := [
            key for key in ("config", "splits", "image", "label") if getattr(self, key) and key not in allowed
        ]:
            raise ValueError(f"data.source.{other[0]} is not for a {given[0]}; remove it")
        for needed, splits in (("hub", self.splits), ("parquet", self.parquet)):
            if isinstance(splits, dict) and splits and "train" not in splits:
                raise ValueError(f"the splits of data.source.{needed} need train; got {', '.join(splits)}")
        files = self.parquet if isinstance(self.parquet, dict) else {"train": self.parquet} if self.parquet else {}
        if empty := [split for split, listed in files.items() if not listed]:
            raise ValueError(f"data.source.parquet names no file of {empty[0]}; name one, or leave {empty[0]} out")
        places = [os.path.normpath(file) for listed in files.values() for file in listed] + [*self.splits.values()]
        if twice := [place for place in places if places.count(place) > 1]:
            raise ValueError(f"data.source names {twice[0]} twice, so images would count twice; name it once")
        return self

    @property
    def name(self) -> str:
        """The name of the folder, of the repository, or of the folder of the parquet files."""
        files = next(iter(self.parquet.values())) if isinstance(self.parquet, dict) else self.parquet
        place = Path(self.folder or self.hub or (Path(files[0]).parent if files else ""))
        return place.name.strip(".") or "images"


class Data(Block):
    """The data set, its batches and the augmentation."""

    source: OwnSource | None = None  # your own images instead of a data set of the table
    name: Annotated[str, Field(validate_default=True)] = ""  # code of a data set in `hyperzoo/data/sources.py`: c10,
    # c100, ptb, ...; with source, the name of that
    on_error: Literal["stop", "skip"] = "stop"  # own images that cannot be decoded: stop the run, or skip them (a
    # streamed set is then decoded once before the training)
    batch_size: AtLeastOne = 128  # effective batch size: samples per optimizer step, over all processes
    hold_out: Count = 0  # validation images, split off the training set; above 0, the test split is not read
    judge_on: Literal["test"] | None = None  # test: report the test split in spite of hold_out, at size_px if that is
    # set; read once, after the last epoch
    fraction: Part = 1.0  # part of the training images, the same of each class; the validation images stay as they are
    per_class: AtLeastOne | None = None  # training images of each class, instead of fraction
    keep: dict[str, Part] = {}  # class name: fraction of its training images to keep
    long_tail: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0  # first class over last class, in images; the
    # sizes between fall geometrically
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0  # part of the training labels replaced by random classes
    keep_seed: Count = 0  # draws the images and labels of the five keys above; not `train.seed`, so that all seeds
    # share them
    crop_px: Count = 4  # border on each side before the random crop; 0: no crop. Images in memory only
    border: Literal["zeros", "reflect", "symmetric"] = "zeros"  # content of that border
    cutout_px: Count = 0  # side of a square set to the mean, anywhere in the image; 0: none. Images in memory only
    flip: bool | Literal["alternating"] = True  # horizontal, at random; alternating: every second epoch per image
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.08  # streamed images: smallest fraction of the area in a crop
    workers: Count = 0  # streamed images: decoding processes; 0: the main process decodes
    length: AtLeastOne = 35  # texts: tokens per piece of truncated backpropagation through time
    choice: bool = False  # texts: report the validation split; the test split is not read
    size_px: AtLeastOne | None = None  # size of own images [default: the input size of the architecture]; of other
    # images in memory: resize all to this size, which needs hold_out
    resize_px: dict[AtLeastOne, AtLeastOne] = {}  # epoch: training size from then on; the last must be the full size

    @field_validator("name")
    @classmethod
    def _of_the_source(cls, name: str, info: ValidationInfo) -> str:
        source = info.data.get("source")
        if not source and not name and "source" in info.data:
            raise ValueError("data.name is missing")
        return source.name if source else name

    @model_validator(mode="after")
    def _consistent(self) -> "Data":
        if not self.source and self.on_error != "stop":
            raise ValueError("data.on_error is for data.source; remove it")
        if self.per_class and self.fraction < 1:
            raise ValueError(f"data.per_class {self.per_class} and data.fraction {self.fraction:g} exclude each other")
        if self.keep and self.long_tail > 1:
            raise ValueError("data.keep and data.long_tail both make classes rare; remove one")
        return self

    def resized_to(self, epoch: int) -> int | None:
        """The size of the training images in an epoch, in pixels; None for their own."""
        begun = [start for start in self.resize_px if start <= epoch]
        return self.resize_px[max(begun)] if begun else None

    @property
    def training_part(self) -> str:
        """The keys that take away training images or replace their labels, with their values; empty without any."""
        keys = ("fraction", "per_class", "keep", "long_tail", "label_noise")
        said = self.model_dump(include={*keys, "keep_seed"}, exclude_defaults=True)
        return ", ".join(f"{key} {value}" for key, value in said.items()) if {*keys} & {*said} else ""

    @property
    def is_text(self) -> bool:
        return self.source is None and self.name in names.TEXTS
