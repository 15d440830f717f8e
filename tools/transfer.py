"""What goes to a machine without network, and what comes back: files of a limited size.

    python tools/transfer.py send OUT --data c10 --mb 50 [--also FILE ...]

writes OUT/1, OUT/2, ...: folders of at most so many MB each, with the shards of the data sets below `data/`. Copied one
after the other to the same place there, they make `data` a mirror for HYPERZOO_DATA.

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

PART_BYTES, TOTAL_BYTES = 15_000_000, 60_000_000


def send(
    out: Path, codes: Iterable[str], *, limit_bytes: int, also: Sequence[Path] = (), rows: int | None = None
) -> int:
    """Fill folders OUT/1, OUT/2, ... with the files `also` and with shards of data sets; returns how many.

    A folder is filled before the next one is begun; nothing is split that a shard has not split already.

    Args:
        codes: of data sets, in the order in which they are needed.   rows: as for `reshard`.
        also: goes first, as `<folder>/<name of the file>`.
    Raises:
        InputError: a file that is larger than the limit; OUT that is not empty.
        DataError, UnknownNameError: as for `reshard`.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: name another folder, so that nothing old travels along")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made, packed = Path(scratch, "made"), Path(scratch, "packed")
        shards = (shard for code in codes for shard in reshard(code, made / "data", rows=rows))
        packed.mkdir()
        number, filled = 1, 0
        for file in chain(also, shards):
            size = file.stat().st_size
            if size > limit_bytes:
                raise InputError(f"{file.name} has {size} bytes, more than the limit of {limit_bytes}")
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

    `cat runs.tar.* | tar x -C ROOT` restores them. The most valuable group comes first: each is taken whole where it
    still fits, and left out otherwise.

    Args:
        part_bytes: size of a part.   total: of all parts.
    Returns:
        The files that were left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    left_out: list[Path] = []
    room = total - 2 * tarfile.RECORDSIZE  # the end, and what fills the last record
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
    """At most so much of an archive: up to three header blocks (long names), and whole blocks of content."""
    blocks = 3 + -(-file.stat().st_size // tarfile.BLOCKSIZE)
    return blocks * tarfile.BLOCKSIZE


class _Parts:
    """A file to write to that goes on in the next part when one is full."""

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
    """What to bring back, the most valuable first: every log; the weights of finished runs in the order of the queue;
    the newest checkpoint of the others, those nearest to their end first."""
    for task in tasks:
        yield _there(task, "result.json", "metrics.jsonl", "log.txt")
    for task in tasks:
        if task.result():
            yield _there(task, "model.safetensors", "config.json", "vocab.txt")
    for task in sorted(tasks, key=lambda task: -len(task.rows()) / task.recipe.train.epochs):
        saved = sorted((task.folder / "checkpoints").glob("epoch-*"))
        if saved and not task.result():
            yield sorted(saved[-1].iterdir())


def _there(task: queue.Task, *parts: str) -> list[Path]:
    return [task.folder / part for part in parts if (task.folder / part).exists()]


def main(arguments: list[str] | None = None) -> int:
    """The commands `send` and `bring`; exit code 1 after an error."""
    parser = argparse.ArgumentParser(prog="python tools/transfer.py", description="Carry data there and results back.")
    commands = parser.add_subparsers(dest="command", required=True)
    there = commands.add_parser("send", help="pack data sets in small folders")
    there.add_argument("out", type=Path, help="folder of the numbered folders, empty or new")
    there.add_argument("--data", nargs="+", default=[], metavar="CODE", help="data sets, such as c10, in this order")
    there.add_argument("--mb", type=float, required=True, help="of 1,000,000 bytes: the most that a folder holds")
    there.add_argument("--also", nargs="+", type=Path, default=[], metavar="FILE", help="files to carry, put first")
    there.add_argument("--rows", type=int, help="only so many of every split, to try things out")
    back = commands.add_parser("bring", help="pack logs, weights and checkpoints of a queue in files of 15 MB")
    back.add_argument("out", type=Path, help="folder of these files")
    back.add_argument("--queue", type=Path, required=True, help="a file like recipes/queue.yaml")
    back.add_argument("--state", type=Path, default=Path("runs", "queue"), help="folder of the runs")
    back.add_argument("--epochs", type=int, help="as for `hyperzoo queue`")
    said = parser.parse_args(arguments)
    try:
        if said.command == "bring":
            tasks = queue.load(said.queue, said.state, epochs=said.epochs)
            for file in bring(said.out, groups(tasks), said.state):
                print(f"no room for {file}")
            return 0
        count = send(said.out, said.data, limit_bytes=int(1_000_000 * said.mb), also=said.also, rows=said.rows)
    except HyperzooError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for number in range(1, count + 1):
        sizes = [file.stat().st_size for file in (said.out / str(number)).rglob("*") if file.is_file()]
        print(f"{said.out / str(number)}\t{len(sizes)} files\t{sum(sizes)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
