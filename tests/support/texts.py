"""A mirror of both texts with a few hundred made words, and a recipe that trains on it within a second."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hyperzoo.data import sources

WORDS = "a b c d e f g h".split()  # all but the last occur, with <eos> and <unk> nine words
RECIPE = """\
model: {arch: lstm200, args: {width: 8, drop_rate: 0.2}}
data: {name: ptb, batch_size: 4, length: 5}
optim: {optimizer: momentum, momentum: 0, lr: 2, clip_norm: 0.25, schedule: constant}
train: {epochs: 2, precision: fp32}
"""


def lines(count: int, start: int = 0) -> list[str]:
    """Lines of three words that follow a rule, so that a network can learn it."""
    return [" ".join(WORDS[(start + i * i + k) % len(WORDS)] for k in range(3)) for i in range(count)]


SPLITS = {"train": lines(60), "validation": [*lines(19, 1), "z a"], "test": lines(25, 2)}  # z is an unknown word


def mirror(folder: Path, splits: Mapping[str, list[str]] = SPLITS) -> Path:
    """Both texts, in the layout of HYPERZOO_DATA, with the lines of each split."""
    for repository in sources.TEXT_REPOSITORIES.values():
        place = folder / repository.hub_id / repository.config
        place.mkdir(parents=True)
        for split, text in splits.items():
            table = pa.table({repository.text: pa.array(text, pa.string())})
            pq.write_table(table, place / f"{split}-00000-of-00001.parquet")
    return folder
