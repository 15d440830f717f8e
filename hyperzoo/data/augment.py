"""Random crops, flips and cutouts: drawn for a whole epoch on the CPU, then applied in batches on the training device.

The plan depends only on seed, epoch and number of samples; device, batch size and number of processes do not change
the pixels of a sample.
"""

import hashlib
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError

PAD_MODES = ("zeros", "reflect", "symmetric")


class Plan(NamedTuple):
    """The random choices of one epoch, on the CPU.

    Attributes:
        order: (N,) int64, the sample indices in training order.
        rows: (N, 3) int64. Row n has the crop of sample n: dy and dx in [0, 2 crop_px], its upper left corner in the
            padded image, and flip, 0 or 1, which mirrors left and right after the crop.
        centers: (N, 2) float32 in [0, 1), of the cutout in the image after that: y and x as parts of height and width.
    """

    order: Tensor
    rows: Tensor
    centers: Tensor


Flip = bool | Literal["alternating"]


def plan_epoch(count: int, *, seed: int, epoch: int, crop_px: int = 4, flip: Flip = True, shuffle: bool = True) -> Plan:
    """Draw the order, the crops, the flips and the centers of the cutouts of one epoch.

    The CPU generator is seeded with the first 8 bytes of sha256("hyperzoo plan <seed> <epoch>"), big-endian, so
    neighboring seeds and epochs are unrelated. Permutation, flips, crops and centers are always drawn, in this order:
    switching one off does not change the others.

    Args:
        count: number of samples N.
        crop_px: width of the border added on each side before the crop; 0 means no crop.
        flip: True flips a sample in an epoch with probability 1/2; 'alternating' draws once per sample and seed, then
            flips in every second epoch, so that two successive epochs show both sides of every image (arXiv 2404.00498,
            section 3.6); False never.
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
    order = torch.randperm(count, generator=generator, device="cpu")
    flips = torch.randint(0, 2, (count, 1), generator=generator, device="cpu")
    crops = torch.randint(0, 2 * crop_px + 1, (count, 2), generator=generator, device="cpu")
    centers = torch.rand(count, 2, generator=generator, device="cpu")
    if flip == "alternating":
        first = torch.randint(0, 2, (count, 1), generator=epoch_generator(seed, 0), device="cpu")
        flips = (first + epoch) % 2
    return Plan(
        order if shuffle else torch.arange(count, device="cpu"), torch.cat([crops, flips * bool(flip)], 1), centers
    )


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The CPU generator of an epoch, seeded as described in `plan_epoch`."""
    digest = hashlib.sha256(f"hyperzoo plan {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def augment(images: Tensor, rows: Tensor, crop_px: int, pad_mode: str = "zeros") -> Tensor:
    """Pad, crop and flip each image as its row says.

    out[b, c, y, x] = padded[b, c, dy_b + y, dx_b + (x, or W - 1 - x where flipped)]

    Shapes:
        images: (B, C, H, W) uint8.   rows: (B, 3) integers (dy, dx, flip), as in `Plan`.   return: as images.
    Args:
        crop_px: border on each side for which the rows were drawn.
        pad_mode: 'zeros', 'reflect' (mirrored without repeating the edge) or 'symmetric' (edge repeated). The last two
            need crop_px below height and width.
    Raises:
        InputError: another shape or pad_mode. Offsets are not checked, because a check would wait for the device.
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


def cutout(images: Tensor, centers: Tensor, size_px: int) -> Tensor:
    """Set a square of each image to 0, the mean of normalized pixels.

    Improved Regularization of Convolutional Neural Networks with Cutout, DeVries and Taylor, 2017 (arXiv 1708.04552).
    The center is uniform over the image, so the square may lie partly outside.

    Shapes:
        images: (B, C, H, W), normalized.   centers: (B, 2) in [0, 1), as in `Plan`.   return: as images.
    Args:
        size_px: side of the square; row floor(H y) - size_px // 2 is the first.
    """
    first = (centers * centers.new_tensor(images.shape[-2:])).long() - size_px // 2
    rows, columns = (
        (torch.arange(length, device=images.device) - first[:, i, None]) for i, length in enumerate(images.shape[-2:])
    )
    inside = ((rows >= 0) & (rows < size_px))[:, :, None] & ((columns >= 0) & (columns < size_px))[:, None, :]
    return images.masked_fill(inside[:, None], 0)


def _pad(images: Tensor, border: int, mode: str) -> Tensor:
    if mode == "zeros":
        return F.pad(images, [border] * 4)
    if mode not in PAD_MODES or border >= min(images.shape[-2:]):
        raise InputError(
            f"pad_mode must be one of {', '.join(PAD_MODES)}, with a mirrored border smaller than the image; "
            f"got {mode!r} with {border} px for {images.shape[-2]} x {images.shape[-1]}"
        )
    again = int(mode == "symmetric")
    rows, columns = (_mirrored(size, border, again, images.device) for size in images.shape[-2:])
    return images.index_select(2, rows).index_select(3, columns)


def _mirrored(size: int, border: int, again: int, device: torch.device) -> Tensor:
    """The source of each padded position; size 4, border 2: 2 1 0 1 2 3 2 1, or with `again` 1 0 0 1 2 3 3 2."""
    position = torch.arange(-border, size + border, device=device)
    position = torch.where(position < 0, -position - again, position)
    return torch.where(position >= size, 2 * size - 2 + again - position, position)
