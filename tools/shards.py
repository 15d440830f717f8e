"""A mirror of a data set written again in small files, to be carried in pieces to a machine without network."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from hyperzoo import names
from hyperzoo.data import sources
from hyperzoo.errors import DataError


def reshard(code: str, folder: Path, *, shard_bytes: int = 2_000_000, rows: int | None = None) -> Iterator[Path]:
    """Write all splits of a data set below `folder` in small shards, in the layout of a mirror for HYPERZOO_DATA.

    Rows, order and encoded images stay as they are, so the fingerprint of what is decoded stays too; columns that no
    recipe reads are left out.

    Args:
        shard_bytes: about the size of a shard.
        rows: of each split the first ones only, to try things out.
    Raises:
        UnknownNameError, DataError: as for `sources.find`; HYPERZOO_DATA is not set.
    """
    import pyarrow
    import pyarrow.parquet

    if not os.environ.get(sources.VARIABLE):
        raise DataError(f"only a mirror can be cut into shards: set {sources.VARIABLE} to one")
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
