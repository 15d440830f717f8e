"""Pack data for a machine without network, and pack its results, in files of limited size.

    python tools/transfer.py send OUT --data c10 --mb 50 [--also FILE ...]

writes OUT/1, OUT/2, ..., folders of at most that many MB with shards of the data sets below `data/`. Copied to the same
place on the other machine, their `data` is a mirror for HYPERZOO_DATA.

    python tools/transfer.py bring OUT --queue recipes/queue.yaml --state runs/queue

packs logs, weights and checkpoints of the runs of a queue into OUT, in files of 15 MB.
"""

import argparse
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from shards import reshard

from hyperzoo.errors import HyperzooError, InputError
from hyperzoo.experiments import queue
from hyperzoo.training import checkpoint
from hyperzoo.training.log import median_run, metric_of

PART_BYTES, TOTAL_BYTES = 15_000_000, 60_000_000


def send(
    out: Path, codes: Iterable[str], *, limit_bytes: int, also: Sequence[Path] = (), rows: int | None = None
) -> int:
    """Fill folders OUT/1, OUT/2, ... with the files `also` and shards of data sets; returns the number of folders.

    Args:
        codes: of data sets, in the order in which they are needed.   rows: as for `reshard`.
        also: files to put first, as `<folder>/<file name>`.
    Raises:
        InputError: a file above the limit, or OUT is not empty.
        DataError, UnknownNameError: as for `reshard`.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty, and old files would be carried along; pass another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made, packed = Path(scratch, "made"), Path(scratch, "packed")
        shards = (shard for code in codes for shard in reshard(code, made / "data", rows=rows))
        packed.mkdir()
        number, filled = 1, 0
        for file in chain(also, shards):
            size = file.stat().st_size
            if size > limit_bytes:
                raise InputError(f"{file.name} has {size} bytes, above the limit of {limit_bytes}; raise --mb")
            if filled + size > limit_bytes:
                number, filled = number + 1, 0
            target = packed / str(number) / (file.name if file in also else file.relative_to(made))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
            filled += size
        packed.rename(out)
    return number


def bring(
    out: Path, groups: Iterable[Sequence[Path]], root: Path, *, part_bytes: int = PART_BYTES, total: int = TOTAL_BYTES
) -> list[Path]:
    """Write groups of files below `root` as one tar archive, cut into `runs.tar.0`, `runs.tar.1`, ... in `out`.

    `cat runs.tar.* | tar x -C ROOT` restores them. Groups are packed in order, most valuable first; a group that does
    not fit as a whole is left out.

    Args:
        part_bytes: size of a part.   total: size of all parts.
    Returns:
        The files that were left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    left_out: list[Path] = []
    room = total - 2 * tarfile.RECORDSIZE  # end of the archive and padding of the last record
    parts: Any = _Parts(out, part_bytes)  # of the methods of a file, tarfile calls `write` only
    with tarfile.open(fileobj=parts, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for group in groups:
            size = sum(_tar_bytes(file) for file in group)
            if size > room:
                left_out += group
                continue
            room -= size
            for file in group:
                archive.add(file, file.relative_to(root), recursive=False)
    parts.close()
    return left_out


def _tar_bytes(file: Path) -> int:
    """Upper bound of a file's size in an archive: up to three header blocks (long names), and whole content blocks."""
    blocks = 3 + -(-file.stat().st_size // tarfile.BLOCKSIZE)
    return blocks * tarfile.BLOCKSIZE


class _Parts:
    """A writable file that continues in the next part when one is full."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._limit, self._count, self._room = folder, part_bytes, 0, 0
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if self._file is None or not self._room:
                self.close()
                self._file = (self._folder / f"runs.tar.{self._count}").open("wb")
                self._count, self._room = self._count + 1, self._limit
            taken = self._file.write(view[: self._room])
            self._room -= taken
            view = view[taken:]
        return len(data)

    def close(self) -> None:
        if self._file:
            self._file.close()


def groups(tasks: list[queue.Task]) -> Iterator[list[Path]]:
    """Groups of files to bring back, most valuable first: all logs; the weights of finished runs, first those that
    would be published; the newest checkpoint of each other run, those nearest to their end first."""
    for task in tasks:
        yield _existing(task, "result.json", "metrics.jsonl", "log.txt")
    finished = _medians_first(tasks)
    for task in finished:
        yield _existing(task, "model.safetensors", "config.json", "vocab.txt")
    for task in sorted(tasks, key=lambda task: -len(task.rows()) / task.recipe.train.epochs):
        saved = checkpoint.folders(task.folder / "checkpoints")
        if saved and task not in finished:
            yield sorted(saved[0].iterdir())


def _medians_first(tasks: list[queue.Task]) -> list[queue.Task]:
    """The finished runs: the median of each row, which alone needs its weights to be published, then the others."""
    rows: dict[str, dict[tuple[float, int], queue.Task]] = {}
    for task in tasks:
        if result := task.result():
            metrics = result["metrics"]
            rows.setdefault(task.label, {})[metrics[metric_of(metrics)], task.recipe.train.seed] = task
    medians = [row.pop(median_run(row)) for row in rows.values()]
    return [*medians, *(task for row in rows.values() for task in row.values())]


def _existing(task: queue.Task, *parts: str) -> list[Path]:
    return [task.folder / part for part in parts if (task.folder / part).exists()]


def main(arguments: list[str] | None = None) -> int:
    """Run `send` or `bring`; returns 1 after an error."""
    parser = argparse.ArgumentParser(
        prog="python tools/transfer.py", description="Pack data and results for a machine without network."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("send", help="pack data sets into folders of limited size")
    packing.add_argument("out", type=Path, help="output folder, empty or new")
    packing.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="CODE",
        help="data sets in the order in which they are needed: c10, ...",
    )
    packing.add_argument("--mb", type=float, required=True, help="largest size of a folder in MB (1,000,000 bytes)")
    packing.add_argument("--also", nargs="+", type=Path, default=[], metavar="FILE", help="further files, put first")
    packing.add_argument("--rows", type=int, help="only the first rows of each split, for a trial")
    bringing = commands.add_parser("bring", help="pack logs, weights and checkpoints of a queue into files of 15 MB")
    bringing.add_argument("out", type=Path, help="output folder")
    bringing.add_argument("--queue", type=Path, required=True, help="a file like recipes/queue.yaml, or a sweep")
    bringing.add_argument("--state", type=Path, default=Path("runs", "queue"), help="folder of the runs")
    bringing.add_argument("--epochs", type=int, help="as for `hyperzoo queue`")
    given = parser.parse_args(arguments)
    try:
        if given.command == "bring":
            tasks = queue.load(given.queue, given.state, epochs=given.epochs)
            for file in bring(given.out, groups(tasks), given.state):
                print(f"no room for {file}")
            return 0
        count = send(given.out, given.data, limit_bytes=int(1_000_000 * given.mb), also=given.also, rows=given.rows)
    except HyperzooError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for number in range(1, count + 1):
        sizes = [file.stat().st_size for file in (given.out / str(number)).rglob("*") if file.is_file()]
        print(f"{given.out / str(number)}\t{len(sizes)} files\t{sum(sizes)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
