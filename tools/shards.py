"""Rewrite a mirror of a data set in small shards, to carry it in parts to a machine without network."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from hyperzoo import names
from hyperzoo.data import sources
from hyperzoo.errors import DataError


def reshard(code: str, folder: Path, *, shard_bytes: int = 2_000_000, rows: int | None = None) -> Iterator[Path]:
    """Write all splits of a data set below `folder` in small shards, in the layout of HYPERZOO_DATA; yields the shards.

    Rows, their order and the encoded images are unchanged, and so is the fingerprint. Columns that nothing reads are
    dropped.

    Args:
        shard_bytes: approximate size of a shard.
        rows: keep only this many first rows of each split, for a trial.
    Raises:
        UnknownNameError: as `sources.find`. DataError: as `sources.find`, or HYPERZOO_DATA is not set.
    """
    import pyarrow
    import pyarrow.parquet

    if not os.environ.get(sources.VARIABLE):
        raise DataError(f"shards are made from a mirror; set {sources.VARIABLE} to its folder")
    find, known = sources.find_text if code in names.TEXTS else sources.find, sources.REPOSITORIES
    splits = known[code].splits if code in known else ("train",)  # an unknown code is an error of `find`
    for split in splits:
        source = find(code, split)
        columns = list(source.repository.columns)
        whole = pyarrow.concat_tables([pyarrow.parquet.read_table(file, columns=columns) for file in source.files])
        whole = whole.slice(0, rows)
        count = max(1, min(-(-whole.nbytes // shard_bytes), whole.num_rows))
        place = folder / source.repository.hub_id / source.repository.config
        place.mkdir(parents=True, exist_ok=True)
        stem = source.files[0].name.partition("-")[0]
        edges = [whole.num_rows * i // count for i in range(count + 1)]
        for i, (begin, end) in enumerate(pairwise(edges)):
            shard = place / f"{stem}-{i:05d}-of-{count:05d}.parquet"
            pyarrow.parquet.write_table(whole.slice(begin, end - begin), shard, compression="zstd")
            yield shard
