"""Image sets in memory: decoded into one uint8 tensor, cached on disk, identified by a fingerprint of the content."""

import hashlib
import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from hyperzoo import pixels
from hyperzoo.data import sources
from hyperzoo.data.cache import cache_path, check_writable, writing
from hyperzoo.data.fit import Fit
from hyperzoo.data.progress_line import counted
from hyperzoo.errors import BrokenImageError, DataError, InputError
from hyperzoo.files import sha256, whole

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labeled images, all in memory.

    Attributes:
        name: code of the data set, such as 'c10'.   split: 'train' or 'test'; a part keeps the name of its split.
        images: (N, C, H, W) uint8, contiguous.   labels: (N,) int64 in [0, len(classes)).
        classes: class names.   origin: a readable description of the source.
        fingerprint: sha256, hexadecimal, of the ASCII line "hyperzoo images <N> <C> <H> <W>\\n", the bytes of `images`
            and the labels as little-endian int64. Equal pixels and labels in equal order have equal fingerprints,
            whatever the encoding of the files.
        skipped: what could not be decoded and is not among the images.
    Raises:
        InputError: tensors of another shape or type, or labels outside the classes.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    origin: str
    skipped: tuple[str, ...] = ()
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        good = (
            (self.images.dtype, self.labels.dtype) == (torch.uint8, torch.int64)
            and self.images.dim() == 4
            and tuple(self.labels.shape) == (len(self.images),)
            and self.images.is_contiguous()
        )
        if not good:
            raise InputError(
                "an ImageSet needs contiguous uint8 images (N, C, H, W) and int64 labels (N,); "
                f"got {self.images.dtype} {tuple(self.images.shape)}, {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InputError(
                f"{self.name} {self.split} has labels from {int(self.labels.min())} to {int(self.labels.max())} "
                f"for {len(self.classes)} classes"
            )
        object.__setattr__(self, "fingerprint", _fingerprint(self.images, self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1], rounded to four decimals.

        Example:
            >>> pixels = torch.tensor([0, 255, 255, 255], dtype=torch.uint8).view(1, 1, 2, 2)
            >>> ImageSet('made', 'train', pixels, torch.tensor([0]), ('a',), 'here').statistics()
            ((0.75,), (0.433,))
        """
        values = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in self.images.unbind(1)]).double()
        shares = counts / counts.sum(1, keepdim=True)
        mean = shares @ values
        std = (shares @ values.square() - mean.square()).sqrt()
        return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())

    def take(self, indices: Tensor) -> "ImageSet":
        """The samples at the given positions, in that order, as a set with its own fingerprint."""
        origin = f"{self.origin}, {len(indices)} of {len(self)} images"
        return replace(self, images=self.images[indices], labels=self.labels[indices], origin=origin)

    def hold_out(self, count: int, seed: int = 0) -> tuple["ImageSet", "ImageSet"]:
        """Split off `count` validation images, stratified by class; returns (the rest, the validation images).

        The samples are permuted by a CPU generator seeded with `seed`, and class k gives its first floor(count n_k / N)
        of them. The remaining samples come from the classes with the largest remainders, lower class first. Both parts
        keep the original order.

        Raises:
            InputError: count is not between 1 and N - 1.
        """
        if not 0 < count < len(self):
            raise InputError(f"hold_out takes 1 to {len(self) - 1} of {len(self)} samples; got {count}")
        sizes = torch.bincount(self.labels, minlength=len(self.classes))
        quota, remainder = count * sizes // len(self), count * sizes % len(self)
        quota[remainder.argsort(descending=True, stable=True)[: count - int(quota.sum())]] += 1
        held = draw(self.labels, quota, seed)
        return self.take((~held).nonzero().flatten()), self.take(held.nonzero().flatten())

    def relabeled(self, labels: Tensor, origin: str) -> "ImageSet":
        """The images with other labels (N,), as a set with its own fingerprint; `origin` says what was changed."""
        return replace(self, labels=labels, origin=f"{self.origin}, {origin}")

    def resized(self, size_px: int) -> "ImageSet":
        """The images resized to size_px x size_px, bilinear and antialiased, as a set with its own fingerprint."""
        images = resize(self.images, [size_px, size_px], antialias=True).contiguous()
        return replace(self, images=images, origin=f"{self.origin} at {size_px} px")


def draw(labels: Tensor, quota: Tensor, seed: int) -> Tensor:
    """(N,) bool: true for `quota[k]` samples of each class k, the first ones of a permutation."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    drawn = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for label, wanted in enumerate(quota.tolist()):
        drawn[shuffled[labels[shuffled] == label][:wanted]] = True
    return drawn


def load_in_memory(source: sources.Source, fit: Fit | None = None) -> ImageSet:
    """The images of a source, from the cache if its files are unchanged; otherwise decoded and cached.

    With `fit`, a warning names 16-bit images that become nearly black (see `pixels.gray_or_rgb`).

    Args:
        fit: brings pictures to one shape [default: they must have one].
    Raises:
        BrokenImageError: images that cannot be decoded and that `fit` does not skip; all are named.
        DataError: a class without an image that can be decoded, or a cache that cannot be written.
    """
    path, identity = _cache_path(source, fit), _identity(source, fit)
    cached = _read_cache(path, source, identity)
    if cached is not None:
        return cached
    check_writable(path)
    decoded, dark = _decode_each(source, fit) if fit else (_decode(source), "")
    pixels.warn_of_dark(dark)
    _write_cache(path, identity, decoded, dark)
    return decoded


def _fingerprint(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(f"hyperzoo images {' '.join(map(str, images.shape))}\n".encode())
    digest.update(images.flatten().numpy().data)
    digest.update(labels.contiguous().numpy().astype("<i8", copy=False).data)
    return digest.hexdigest()


def _decode(source: sources.Source) -> ImageSet:
    rows, classes = source.read()
    arrays: list[np.ndarray] = []
    try:
        for image in counted(rows["image"], len(rows), f"decoding {source.code}, {source.split}"):
            arrays.append(_pixels(pixels.gray_or_rgb(image)))
    except Exception as error:  # the decoders of Pillow raise almost any kind for a damaged file
        raise DataError(f"{source.origin}: image {len(arrays)} cannot be decoded: {error}") from error
    if {len(array) for array in arrays} == {1, 3}:  # Tiny-ImageNet mixes gray and RGB images
        arrays = [array.repeat(3, 0) if len(array) == 1 else array for array in arrays]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1:
        raise DataError(
            f"{source.origin}: {len(arrays)} images have {len(shapes)} shapes (channels, height, width); one tensor "
            f"needs a single shape: {', '.join(map(str, shapes[:3]))}"
        )
    labels = torch.tensor(rows["label"][:], dtype=torch.int64)
    return ImageSet(source.code, source.split, torch.from_numpy(np.stack(arrays)), labels, classes, source.origin)


def _decode_each(source: sources.Source, fit: Fit) -> tuple[ImageSet, str]:
    """The images, and the warning of those that become nearly black."""
    rows, classes = source.read()
    arrays: list[np.ndarray] = []
    kept: list[int] = []
    skipped: list[str] = []
    dark: dict[str, int] = {}
    reason, labels = "", rows["label"][:]
    for row, label in enumerate(counted(labels, len(labels), f"decoding {source.code}, {source.split}")):
        try:
            image = pixels.read(source.files[row]) if source.a_file_each else pixels.gray_or_rgb(rows["image"][row])
            if pixels.LARGEST in image.info:
                dark[source.picture(row)] = image.info[pixels.LARGEST]
            array = _pixels(fit(image if fit.channels is None else image.convert(_MODES[fit.channels])))
            if fit.skip or not skipped:  # otherwise the others are read to name all that are broken
                arrays.append(array)
                kept.append(label)
        except Exception as error:  # as above
            reason = reason or str(error.__cause__ if isinstance(error, DataError) and error.__cause__ else error)
            skipped.append(source.picture(row))
    if skipped and not fit.skip:
        raise BrokenImageError(skipped, reason)
    if lost := [classes[label] for label in sorted(set(labels)) if label not in kept]:
        raise DataError(f"{source.origin}: no image of the class {lost[0]!r} can be decoded; add one")
    if len({len(array) for array in arrays}) > 1:
        arrays = [array.repeat(3, 0) if len(array) == 1 else array for array in arrays]
    images, targets = torch.from_numpy(np.stack(arrays)), torch.tensor(kept, dtype=torch.int64)
    decoded = ImageSet(source.code, source.split, images, targets, classes, source.origin, tuple(skipped))
    return decoded, pixels.dark_text(dark)


def _pixels(image: PIL.Image.Image) -> np.ndarray:
    """(C, H, W) uint8: gray images have one channel, RGB images three."""
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _cache_path(source: sources.Source, fit: Fit | None) -> Path:
    place = hashlib.sha256(
        "\n".join([*map(str, source.files), *([str(fit), source.origin] if fit else [])]).encode(
            errors="surrogateescape"
        )
    ).hexdigest()[:16]
    return cache_path(source.code, source.split, place, ".safetensors")


def _identity(source: sources.Source, fit: Fit | None) -> Any:
    """The key of the cache: path, size and modification time of each source file; of own images, the content."""
    if fit is None:
        return source.state()
    reading = [fit, source.origin, source.rows().features["label"]]
    digest = hashlib.sha256(str(reading).encode(errors="surrogateescape"))
    for file in counted(source.files, len(source.files), f"reading {source.code}, {source.split}"):
        digest.update(f"{file} {sha256(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _checksum(images: ImageSet) -> str:
    """The sha256 of what is cached; the fingerprint, which results state, is without the class names."""
    return hashlib.sha256(json.dumps([images.fingerprint, images.classes, *images.skipped]).encode()).hexdigest()


def _read_cache(path: Path, source: sources.Source, identity: Any) -> ImageSet | None:
    """The cached set; None if it is absent, if the source has changed, or (with a warning) if it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            header = json.loads(file.metadata()["hyperzoo"])
            if header["source"] != identity or "checksum" not in header:  # caches before 0.6 have no checksum
                return None
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
        skipped = tuple(header.get("skipped", ()))
        found = ImageSet(source.code, source.split, images, labels, tuple(header["classes"]), source.origin, skipped)
        if _checksum(found) == header["checksum"]:
            pixels.warn_of_dark(str(header.get("dark", "")))
            return found
        reason = "its pixels, labels or class names have changed"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(f"the cache {path} is damaged ({reason}); decoding {source.origin} again", stacklevel=4)
    return None


def _write_cache(path: Path, identity: Any, images: ImageSet, dark: str) -> None:
    """Cache a set with its warning, or raise a DataError and leave nothing."""
    header = {"source": identity, "classes": images.classes, "skipped": images.skipped, "dark": dark}
    header["checksum"] = _checksum(images)
    tensors = {"images": images.images, "labels": images.labels}
    with writing(path, images.images.nbytes), whole(path) as temporary:
        save_file(tensors, temporary, metadata={"hyperzoo": json.dumps(header)})
