"""Batches of images: all random choices of an epoch are planned on the CPU, then applied on the training device.

The plan depends on (seed, epoch) and the number of samples only, so the pixels that a sample is trained on do not
depend on the device, the batch size or the number of processes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError

if TYPE_CHECKING:
    from hyperzoo.data.images import ImageSet

PAD_MODES = ("zeros", "reflect", "symmetric")


class Plan(NamedTuple):
    """The random choices of one epoch, on the CPU.

    order: (N,) int64, a permutation: the sample indices in the order in which they are seen.
    rows: (N, 3) int64, row n belongs to sample n: dy and dx in [0, 2 crop_px], the upper left corner of the crop in the
        padded image, and flip, 0 or 1 (left and right exchanged after the crop).
    """

    order: Tensor
    rows: Tensor


class Batch(NamedTuple):
    """On one device: images (B, C, H, W) float32, normalized; labels (B,) int64; indices (B,) int64 in the set."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def plan_epoch(count: int, *, seed: int, epoch: int, crop_px: int = 4, flip: bool = True, shuffle: bool = True) -> Plan:
    """Draw the order, the crops and the flips of one epoch.

    One CPU generator is seeded with the first 8 bytes of sha256("hyperzoo plan <seed> <epoch>"), big-endian, so that
    neighboring seeds and epochs have nothing in common. Permutation, flips and crops are drawn in this order whether
    they are used or not: switching one off leaves the others as they were.

    Args:
        count: number of samples N.
        crop_px: width of the border that is added on each side before the crop; 0 means no crop.
    Raises:
        InputError: a negative count, epoch or crop_px.
    Example:
        >>> plan_epoch(3, seed=0, epoch=0, crop_px=0, flip=False, shuffle=False).rows.sum().item()
        0
    """
    for name, value in (("count", count), ("epoch", epoch), ("crop_px", crop_px)):
        if value < 0:
            raise InputError(f"{name} must be at least 0; got {value}")
    generator = epoch_generator(seed, epoch)
    order = torch.randperm(count, generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    crops = torch.randint(0, 2 * crop_px + 1, (count, 2), generator=generator)
    return Plan(order if shuffle else torch.arange(count), torch.cat([crops, flips * int(flip)], 1))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The CPU generator of an epoch, seeded as `plan_epoch` says."""
    digest = hashlib.sha256(f"hyperzoo plan {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def augment(images: Tensor, rows: Tensor, crop_px: int, pad_mode: str = "zeros") -> Tensor:
    """Crop each image out of its padded self, then flip it where its row says so.

    out[b, c, y, x] = padded[b, c, dy_b + y, dx_b + (x, or W - 1 - x where flipped)]

    Shapes:
        images: (B, C, H, W) uint8.   rows: (B, 3) integers (dy, dx, flip), as in `Plan`.   return: as images.
    Args:
        crop_px: width of the border on each side that the rows were drawn for.
        pad_mode: 'zeros'; 'reflect' (mirrored without repeating the edge), or 'symmetric' (the edge repeated); for
            these two crop_px is below height and width.
    Raises:
        InputError: another shape or pad_mode. Offsets outside [0, 2 crop_px] are not checked:
            that would stop the device.
    """
    if images.dim() != 4 or tuple(rows.shape) != (len(images), 3):
        raise InputError(
            f"expected images (B, C, H, W) and rows (B, 3); got {tuple(images.shape)}, {tuple(rows.shape)}"
        )
    count, channels, height, width = images.shape
    padded = _pad(images, crop_px, pad_mode)
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    dy, dx, flip = rows.unbind(1)
    columns = torch.where(flip[:, None] > 0, width - 1 - x, x) + dx[:, None]
    pixels = (dy[:, None] + y)[:, :, None] * padded.shape[-1] + columns[:, None, :]
    index = pixels.view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(images.shape)


def _pad(images: Tensor, border: int, mode: str) -> Tensor:
    if mode == "zeros":
        return F.pad(images, [border] * 4)
    if mode not in PAD_MODES or border >= min(images.shape[-2:]):
        raise InputError(
            f"pad_mode must be one of {', '.join(PAD_MODES)}, and a mirrored border smaller than the image; "
            f"got {mode!r} with {border} px for {images.shape[-2]} x {images.shape[-1]}"
        )
    again = int(mode == "symmetric")
    rows, columns = (_mirrored(size, border, again, images.device) for size in images.shape[-2:])
    return images.index_select(2, rows).index_select(3, columns)


def _mirrored(size: int, border: int, again: int, device: torch.device) -> Tensor:
    """Where each padded position comes from, for size 4 and border 2: 2 1 0 1 2 3 2 1, or 1 0 0 1 2 3 3 2 `again`."""
    position = torch.arange(-border, size + border, device=device)
    position = torch.where(position < 0, -position - again, position)
    return torch.where(position >= size, 2 * size - 2 + again - position, position)


class Normalize:
    """(x / 255 - mean) / std of uint8 images, as one multiply-add in float32.

    Shapes:
        x: (B, C, H, W) uint8.   return: the same in float32, dense in channels-last or in the ordinary order.
    Raises:
        InputError: no finite mean and positive std for each of the channels.
    """

    def __init__(
        self,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> None:
        center, spread = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        good = center.shape == spread.shape == (channels,) and bool(center.isfinite().all() and (spread > 0).all())
        if not good:
            raise InputError(f"{channels} channels need as many means and positive stds; got {mean}, {std}")
        self._scale, self._shift = (
            values.float().view(1, -1, 1, 1).to(device) for values in (1 / (255 * spread), -center / spread)
        )
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self._shift, x.to(torch.float32, memory_format=self._format), self._scale)


class ImageBatches:
    """A training set that stays on its device as uint8, and is cropped, flipped and normalized batch by batch.

    Global batch i of an epoch is order[i * batch_size : (i + 1) * batch_size]; process `rank` gets its contiguous
    share. The last, incomplete global batch is dropped; a set smaller than one batch is one batch of all samples.
    `len()` is the number of global batches of an epoch. No step waits for the device.

    Args:
        batch_size: samples per global batch, over all processes.
        crop_px, flip: see `plan_epoch`; mean, std: per channel, of pixels in [0, 1].
    Raises:
        InputError: an empty set, a batch that does not divide by the processes, or an impossible rank.
    """

    def __init__(
        self,
        images: "ImageSet",
        *,
        batch_size: int,
        seed: int,
        crop_px: int,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        channels_last: bool = True,
        rank: int = 0,
        processes: int = 1,
        pad_mode: str = "zeros",
    ) -> None:
        check_processes(rank, processes)
        size = min(batch_size, len(images))
        if size < 1 or batch_size % processes or size % processes:
            raise InputError(
                f"a batch of {batch_size} samples out of {len(images)} does not divide by {processes} processes: "
                "choose a batch_size that does, and at most the number of samples"
            )
        self.batch_size = size
        self._pixels, self._labels = images.images.to(device), images.labels.to(device)
        self._normalize = Normalize(images.images.shape[1], mean, std, device=device, channels_last=channels_last)
        self._seed, self._crop_px, self._flip, self._pad_mode = seed, crop_px, flip, pad_mode
        self._rank, self._share = rank, size // processes

    def __len__(self) -> int:
        return len(self._labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the global batches start, start + 1, ... of an epoch (both counted from 0)."""
        plan = plan_epoch(len(self._labels), seed=self._seed, epoch=epoch, crop_px=self._crop_px, flip=self._flip)
        order, rows = (values.to(self._labels.device) for values in plan)
        for step in range(start, len(self)):
            first = step * self.batch_size + self._rank * self._share
            indices = order[first : first + self._share]
            pixels, labels, choices = (values.index_select(0, indices) for values in (self._pixels, self._labels, rows))
            yield Batch(self._normalize(augment(pixels, choices, self._crop_px, self._pad_mode)), labels, indices)


def eval_batches(
    images: "ImageSet",
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    channels_last: bool = True,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yield every sample exactly once over all processes, in order, without padding or augmentation.

    Process r of P gets the samples from N r // P up to N (r + 1) // P in batches of up to batch_size. Processes may
    therefore differ by one batch: exchange nothing between them before the end of the loop.

    Raises:
        InputError: a batch_size below 1, or an impossible rank.
    """
    check_processes(rank, processes)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    normalize = Normalize(images.images.shape[1], mean, std, device=device, channels_last=channels_last)
    begin, end = (len(images) * r // processes for r in (rank, rank + 1))
    share = [values[begin:end].to(device) for values in (images.images, images.labels, torch.arange(len(images)))]
    return (Batch(normalize(x), y, i) for x, y, i in zip(*(part.split(batch_size) for part in share), strict=True))


def check_processes(rank: int, processes: int) -> None:
    """Raise InputError for a rank that is not one of the processes."""
    if not 0 <= rank < processes:
        raise InputError(f"rank must be in [0, {processes}), the number of processes; got {rank}")
