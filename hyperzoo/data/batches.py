"""Batches of images in memory, on the device: augmented for training, in order for evaluation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperzoo.data.augment import Flip, augment, cutout, plan_epoch
from hyperzoo.data.images import ImageSet
from hyperzoo.errors import InputError


class Batch(NamedTuple):
    """A batch on one device: normalized images (B, C, H, W) float32; labels, and indices in the set, (B,) int64."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Normalize:
    """(x / 255 - mean) / std of uint8 images, computed as one multiply-add in float32.

    Shapes:
        x: (B, C, H, W) uint8.   return: the same in float32, channels-last.
    Raises:
        InputError: mean and std are not one finite number and one positive number per channel.
    """

    def __init__(
        self,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        center, spread = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        good = center.shape == spread.shape == (channels,) and bool(center.isfinite().all() and (spread > 0).all())
        if not good:
            raise InputError(f"{channels} channels need {channels} finite means and positive stds; got {mean}, {std}")
        self._scale, self._shift = (
            values.float().view(1, -1, 1, 1).to(device) for values in (1 / (255 * spread), -center / spread)
        )

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self._shift, x.to(torch.float32, memory_format=torch.channels_last), self._scale)


class ImageBatches:
    """A training set held on the device as uint8; batches are cropped, flipped and normalized there.

    Global batch i of an epoch is order[i * batch_size : (i + 1) * batch_size], and process `rank` gets its contiguous
    share. An incomplete last batch is dropped, but a set smaller than a batch makes one batch. `len()` is the number of
    global batches per epoch. Nothing here waits for the device.

    Args:
        batch_size: samples per global batch, over all processes.
        cutout_px: see `cutout`; 0 for none.
        crop_px, flip: see `plan_epoch`; mean, std: per channel, of pixels in [0, 1].
    Raises:
        InputError: an empty set, a batch_size that the processes do not divide, or an invalid rank.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        crop_px: int,
        flip: Flip,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        rank: int = 0,
        processes: int = 1,
        pad_mode: str = "zeros",
        cutout_px: int = 0,
    ) -> None:
        check_processes(rank, processes)
        size = min(batch_size, len(images))
        if size < 1 or batch_size % processes or size % processes:
            raise InputError(
                f"a batch of {batch_size} samples out of {len(images)} does not divide by {processes} processes: "
                "choose a batch_size that is a multiple of them and at most the number of samples"
            )
        self.batch_size = size
        self._pixels, self._labels = images.images.to(device), images.labels.to(device)
        self._normalize = Normalize(images.images.shape[1], mean, std, device=device)
        self._seed, self._crop_px, self._flip, self._pad_mode = seed, crop_px, flip, pad_mode
        self._cutout_px = cutout_px
        self._rank, self._share = rank, size // processes

    def __len__(self) -> int:
        return len(self._labels) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's share of every global batch of an epoch."""
        plan = plan_epoch(len(self._labels), seed=self._seed, epoch=epoch, crop_px=self._crop_px, flip=self._flip)
        order, rows, centers = (values.to(self._labels.device) for values in plan)
        for step in range(len(self)):
            first = step * self.batch_size + self._rank * self._share
            indices = order[first : first + self._share]
            pixels, labels, choices = (values.index_select(0, indices) for values in (self._pixels, self._labels, rows))
            x = self._normalize(augment(pixels, choices, self._crop_px, self._pad_mode))
            if self._cutout_px:
                x = cutout(x, centers.index_select(0, indices), self._cutout_px)
            yield Batch(x, labels, indices)


def eval_batches(
    images: ImageSet,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    rank: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yield every sample exactly once over all processes, in order, without augmentation.

    Process r of P gets samples N r // P to N (r + 1) // P, in batches of up to batch_size. The processes may have
    different numbers of batches, so they must not synchronize inside the loop.

    Raises:
        InputError: a batch_size below 1, or an invalid rank.
    """
    check_processes(rank, processes)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    normalize = Normalize(images.images.shape[1], mean, std, device=device)
    begin, end = (len(images) * r // processes for r in (rank, rank + 1))
    share = [values[begin:end].to(device) for values in (images.images, images.labels, torch.arange(len(images)))]
    return (Batch(normalize(x), y, i) for x, y, i in zip(*(part.split(batch_size) for part in share), strict=True))


def check_processes(rank: int, processes: int) -> None:
    """Raise InputError unless 0 <= rank < processes."""
    if not 0 <= rank < processes:
        raise InputError(f"rank must be in [0, {processes}) for {processes} processes; got {rank}")
