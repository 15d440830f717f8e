"""Streamed images without those that cannot be decoded: found once, by reading all of them, and remembered."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from hyperzoo.data.cache import cache_path, check_writable, writing
from hyperzoo.data.progress_line import counted
from hyperzoo.data.sources import Source
from hyperzoo.data.streamed import StreamedSet
from hyperzoo.errors import DataError
from hyperzoo.files import write_json

READ_AT_ONCE = 64  # images of a thread, after which the progress is shown


def without_broken(images: StreamedSet, source: Source) -> StreamedSet:
    """The images of a source that can be decoded; `skipped` names the others.

    The first call decodes every image, in as many threads as torch uses. Later calls read the numbers of the broken
    ones from the cache, as long as path, size and modification time of all files are the same.

    Raises:
        DataError: a class without an image that can be decoded, or a cache that cannot be written.
    """
    path = cache_path(source.code, source.split, _place(source), "-broken.json")
    broken = _remembered(path, len(images))
    if broken is None:
        check_writable(path)
        broken = _find(images)
        with writing(path):
            write_json(path, broken)
    if not broken:
        return images
    good = torch.ones(len(images), dtype=torch.bool, device="cpu")
    good[broken] = False
    kept = images.take(good.nonzero().flatten())
    counts = torch.bincount(kept.labels, minlength=len(images.classes))
    before = torch.bincount(images.labels, minlength=len(images.classes))
    if lost := [images.classes[label] for label in (before.bool() & ~counts.bool()).nonzero().flatten().tolist()]:
        raise DataError(f"{source.origin}: no image of the class {lost[0]!r} can be decoded; add one")
    return replace(kept, skipped=tuple(source.picture(number) for number in broken))


def _place(source: Source) -> str:
    """An identifier of the files of a source, which changes with them."""
    return hashlib.sha256(str([source.origin, source.state()]).encode(errors="surrogateescape")).hexdigest()[:16]


def _remembered(path: Path, count: int) -> list[int] | None:
    """The numbers in the cache; None if there are none, or damaged ones."""
    try:
        numbers = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    fits = isinstance(numbers, list) and all(type(number) is int and 0 <= number < count for number in numbers)
    return numbers if fits else None


def _find(images: StreamedSet) -> list[int]:
    count = len(images)

    def broken(first: int) -> list[int]:
        numbers = range(first, min(first + READ_AT_ONCE, count))
        return [number for number in numbers if not _is_readable(images, number)]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = pool.map(broken, range(0, count, READ_AT_ONCE))
        named = f"decoding {images.name}, {images.split}"
        return [number for part in counted(parts, count, named, each=READ_AT_ONCE) for number in part]


def _is_readable(images: StreamedSet, number: int) -> bool:
    try:
        images.read(number)
    except DataError:
        return False
    return True
