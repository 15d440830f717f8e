"""A split of your own images, which was located and checked."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from hyperzoo.data import sources

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = sources.ImageRepository("", "", "image", "label")


class Part(NamedTuple):
    """A split: rows with the columns `image` and `label` (a ClassLabel), and the files that they come from.

    Attributes:
        root: the folder of the class folders if each row is a file; None for rows of other files.
        numbers: see `sources.Source`.
    """

    rows: "Dataset"
    files: tuple[Path, ...]
    origin: str
    root: Path | None = None
    numbers: tuple[int, ...] | None = None

    @property
    def a_file_each(self) -> bool:
        return self.root is not None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.rows.features["label"].names)

    def source(self, name: str, split: str) -> sources.Source:
        rows = self.rows
        return sources.Source(name, split, ROWS, self.files, self.origin, lambda: rows, self.a_file_each, self.numbers)

    def take(self, chosen: torch.Tensor, origin: str) -> "Part":
        """The rows where `chosen` (N,) is true."""
        places = chosen.nonzero().flatten().tolist()
        files = tuple(self.files[place] for place in places) if self.a_file_each else self.files
        numbers = tuple(places if self.numbers is None else (self.numbers[place] for place in places))
        return Part(self.rows.select(places), files, f"{self.origin}, {origin}", self.root, numbers)
