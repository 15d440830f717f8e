"""Image sets too large for memory: worker processes decode, crop and resize during the training."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as V

from hyperzoo import pixels
from hyperzoo.data import sources
from hyperzoo.data.augment import epoch_generator
from hyperzoo.data.batches import Batch, Normalize, check_processes
from hyperzoo.data.fit import center
from hyperzoo.data.folders import class_files
from hyperzoo.errors import DataError, InputError

RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """Labeled images that are read one by one.

    Attributes:
        name, split, classes, origin: as for `ImageSet`.   labels: (N,) int64.
        read: sample number -> RGB image.
        fingerprint: sha256 of names and sizes of the files, and of the numbers and labels of rows; nothing is decoded.
        skipped: what could not be decoded and is not among the images; see `readable.py`.
    """

    name: str
    split: str
    labels: Tensor
    classes: tuple[str, ...]
    origin: str
    fingerprint: str
    read: Callable[[int], PIL.Image.Image]
    channels: int = 3
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "StreamedSet":
        """The samples at the given positions, in that order, as a set with its own fingerprint."""
        numbers = ",".join(map(str, indices.tolist()))
        return replace(
            self,
            labels=self.labels[indices],
            origin=f"{self.origin}, {len(indices)} of {len(self)} images",
            fingerprint=hashlib.sha256(f"{self.fingerprint} {numbers}".encode()).hexdigest(),
            read=_Part(self.read, indices.tolist()),
        )

    def hold_out(self, count: int, seed: int = 0) -> tuple["StreamedSet", "StreamedSet"]:
        raise InputError(f"hold_out needs images in memory, but {self.name} is streamed from {self.origin}")

    def relabeled(self, labels: Tensor, origin: str) -> "StreamedSet":
        """The images with other labels (N,), as a set with its own fingerprint; `origin` says what was changed."""
        digest = hashlib.sha256(f"{self.fingerprint} labels {','.join(map(str, labels.tolist()))}".encode())
        return replace(self, labels=labels, origin=f"{self.origin}, {origin}", fingerprint=digest.hexdigest())


def load_imagenet(split: str, mirror: Path | None = None) -> StreamedSet:
    """ImageNet from folders of images, $HYPERZOO_DATA/ILSVRC/imagenet-1k/<split>/<class>, or from the gated Hub set.

    Args:
        split: 'train', or 'test' for the 50,000 validation images, on which papers report.
    Raises:
        DataError: an unknown split, no such folder, or no access on the Hub.
    """
    if split not in ("train", "test"):
        raise DataError(f"imagenet has no split {split!r}; it has train and test (its validation images)")
    there = "validation" if split == "test" else split
    named = mirror or os.environ.get(sources.VARIABLE)
    if named:
        return image_folder(Path(named, sources.IMAGENET.hub_id, there), "imagenet", split)
    return streamed_rows(replace(sources.on_hub("imagenet", there, sources.IMAGENET), split=split))


def streamed_rows(source: sources.Source) -> StreamedSet:
    """The rows of a source as a streamed set."""
    rows, classes = source.read()
    labels = torch.tensor(rows["label"][:])
    digest = hashlib.sha256("".join(f"{file.name} {file.stat().st_size}\n" for file in source.files).encode())
    digest.update(f"rows {source.numbers} labels {labels.tolist()}\n".encode())
    read = _RowReader(rows, source.origin, source.numbers)
    return StreamedSet(source.code, source.split, labels, classes, source.origin, digest.hexdigest(), read)


def image_folder(folder: Path, name: str, split: str) -> StreamedSet:
    """A folder of images in one folder per class; the classes are in alphabetical order.

    Raises:
        DataError: no such folder, no class in it, or a class without images.
    """
    found = class_files(folder, f"the {split} split of {name}")
    files = [file for members in found.values() for file in members]
    labels = [label for label, members in enumerate(found.values()) for _ in members]
    return streamed_files(name, split, folder, files, torch.tensor(labels), tuple(found))


def streamed_files(
    name: str, split: str, folder: Path, files: Sequence[Path], labels: Tensor, classes: tuple[str, ...]
) -> StreamedSet:
    """Image files below a folder as a streamed set."""
    digest = hashlib.sha256(f"hyperzoo folder {len(files)}\n".encode())
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode(errors="surrogateescape"))
    return StreamedSet(name, split, labels, classes, f"the folder {folder}", digest.hexdigest(), _Reader(list(files)))


class _Reader:
    """Reads the n-th of some files; a class, because worker processes need a picklable reader."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __call__(self, index: int) -> PIL.Image.Image:
        return pixels.read(self._files[index]).convert("RGB")


class _RowReader:
    """Reads the image of the n-th row; `numbers` are those of the rows in their files, if they differ."""

    def __init__(self, rows: Any, origin: str, numbers: Sequence[int] | None) -> None:
        self._rows, self._origin, self._numbers = rows, origin, numbers

    def __call__(self, index: int) -> PIL.Image.Image:
        try:
            return pixels.gray_or_rgb(self._rows[index]["image"]).convert("RGB")
        except Exception as error:  # Pillow's decoders raise almost any exception for a damaged file
            number = self._numbers[index] if self._numbers else index
            raise DataError(f"{self._origin}: image {number} cannot be decoded: {error}") from error


class _Part:
    """Reads the n-th of selected samples of another reader."""

    def __init__(self, read: Callable[[int], PIL.Image.Image], indices: list[int]) -> None:
        self._read, self._indices = read, indices

    def __call__(self, index: int) -> PIL.Image.Image:
        return self._read(self._indices[index])


class StreamedBatches:
    """A streamed training set with random flips and crops of random size, like torchvision's RandomResizedCrop.

    Order, crops and flips of an epoch are drawn in the main process from seed and epoch, whatever the number of workers
    or processes. Global batch i is order[i * batch_size : (i + 1) * batch_size], and process `rank` gets its share. An
    incomplete last batch is dropped.

    Args:
        size_px: height and width of the crops.   area: smallest fraction of the image in a crop.
        workers: decoding processes; 0 decodes in the main process.
    Raises:
        InputError: a batch_size, or fewer images than that, which the processes do not divide.
        DataError (while iterating): an image that cannot be decoded.
    Differs:
        A crop that exceeds the image is cut; torchvision draws again, up to ten times.
    """

    def __init__(
        self,
        images: StreamedSet,
        *,
        batch_size: int,
        seed: int,
        size_px: int,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        rank: int = 0,
        processes: int = 1,
        area: float = 0.08,
        workers: int = 0,
    ) -> None:
        check_processes(rank, processes)
        size = min(batch_size, len(images))
        if size < 1 or batch_size % processes or size % processes:
            raise InputError(
                f"a batch of {batch_size} samples out of {len(images)} does not divide by {processes} processes: "
                "choose a batch_size that is a multiple of them and at most the number of samples"
            )
        self.batch_size = size
        self._images, self._seed, self._size, self._flip, self._area = images, seed, size_px, flip, area
        self._normalize = Normalize(images.channels, mean, std, device=device)
        self._device, self._rank, self._share, self._workers = device, rank, size // processes, workers

    def __len__(self) -> int:
        return len(self._images) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's share of every global batch of an epoch."""
        generator = epoch_generator(self._seed, epoch)
        order = torch.randperm(len(self._images), generator=generator, device="cpu")
        draws = torch.rand(len(self._images), 5, generator=generator, dtype=torch.float64, device="cpu")
        if not self._flip:
            draws[:, 4] = 0
        firsts = range(self._rank * self._share, len(self) * self.batch_size, self.batch_size)
        indices = torch.cat([order[first : first + self._share] for first in firsts])
        crops = _Crops(self._images, indices, draws[indices], self._size, self._area)
        for images, numbers in _loader(crops, self._share, self._workers):
            labels = self._images.labels[numbers]
            yield Batch(self._normalize(images.to(self._device)), labels.to(self._device), numbers.to(self._device))


def streamed_eval_batches(
    images: StreamedSet,
    *,
    batch_size: int,
    size_px: int,
    crop_pct: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield every sample once over all processes, in order, as `fit.center` crops it."""
    check_processes(rank, processes)
    begin, end = (len(images) * r // processes for r in (rank, rank + 1))
    centers = _Centers(
        images, range(begin, end), partial(center, size_px=size_px, interpolation=interpolation, crop_pct=crop_pct)
    )
    normalize = Normalize(images.channels, mean, std, device=device)
    for found, numbers in _loader(centers, batch_size, workers):
        yield Batch(normalize(found.to(device)), images.labels[numbers].to(device), numbers.to(device))


def crop_box(height: int, width: int, draws: Sequence[float], area: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop from four numbers in [0, 1): area, log of the ratio, vertical, horizontal.

    Example:
        >>> crop_box(100, 200, [1.0, 0.5, 0.0, 0.0], 0.08)          # the whole area, square: cut to the image
        (0, 0, 100, 141)
    """
    part = area + (1 - area) * draws[0]
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = math.exp(low + (high - low) * draws[1])
    across = min(width, max(1, round(math.sqrt(height * width * part * ratio))))
    down = min(height, max(1, round(math.sqrt(height * width * part / ratio))))
    top, left = int(draws[2] * (height - down + 1)), int(draws[3] * (width - across + 1))
    return top, left, down, across


class _Crops(Dataset[tuple[Tensor, int]]):
    """Random crops of one epoch in training order."""

    def __init__(self, images: StreamedSet, indices: Tensor, draws: Tensor, size: int, area: float) -> None:
        self._images, self._indices, self._draws, self._size, self._area = images, indices, draws, size, area

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        index, draws = int(self._indices[place]), self._draws[place].tolist()
        image = self._images.read(index)
        top, left, height, width = crop_box(image.height, image.width, draws, self._area)
        part = V.pil_to_tensor(image.crop((left, top, left + width, top + height)))
        crop = V.resize(part, [self._size, self._size], antialias=True)
        return V.horizontal_flip(crop) if draws[4] >= 0.5 else crop, index


class _Centers(Dataset[tuple[Tensor, int]]):
    """Center crops of some images, in order."""

    def __init__(self, images: StreamedSet, indices: range, crop: Callable[[PIL.Image.Image], PIL.Image.Image]) -> None:
        self._images, self._indices, self._crop = images, indices, crop

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        index = self._indices[place]
        return V.pil_to_tensor(self._crop(self._images.read(index))), index


def _loader(samples: Dataset[Any], batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(DataLoader(samples, batch_size, num_workers=workers, worker_init_fn=_one_thread))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
