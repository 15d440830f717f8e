"""A line of progress of a long load, in a terminal only."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

AFTER_S, EVERY_S = 3.0, 0.5  # a short load shows nothing

Item = TypeVar("Item")


def counted(items: Iterable[Item], total: int, what: str, *, each: int = 1) -> Iterator[Item]:
    """Yield the items; after some seconds, a line on stderr counts them, and disappears at the end.

    It is shown if stderr is a terminal, by the first of several processes.

    Args:
        total: number of samples in all items.
        what: is done to them, such as 'decoding photos, train'.
        each: samples in an item; the last one may have fewer.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    active = sys.stderr.isatty() and not (distributed and torch.distributed.get_rank())
    started, shown = time.monotonic(), False
    due = started + AFTER_S
    printable = "".join(letter if letter.isprintable() else "?" for letter in what)
    try:
        for number, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if active and now >= due:
                done = min(total, number * each)
                left = round((now - started) * (total - done) / done)
                text = f"{printable}: {done:,} of {total:,}, {left // 60}:{left % 60:02d} left"
                print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
                due, shown = now + EVERY_S, True
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
