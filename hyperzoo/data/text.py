"""Texts for language models: token ids of words and line ends, and batches in which the text continues."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hyperzoo.data import sources
from hyperzoo.data.batches import check_processes
from hyperzoo.errors import DataError, InputError

EOS, UNK = "<eos>", "<unk>"


@dataclass(frozen=True, eq=False)
class TextSet:
    """One split of a text.

    Attributes:
        name: code of the text, such as 'ptb'.   split: 'train', 'validation' or 'test'.
        tokens: (N,) int64, ids of words: positions in `vocabulary`.
        vocabulary: the words of the training split in order of first appearance.
        unknown: number of words of this split outside the vocabulary; they became `<unk>`.
        origin: a readable description of the source.
        fingerprint: sha256, hexadecimal, of the ASCII line "hyperzoo text <N>\\n", the words of the vocabulary, one per
            line, and the tokens as little-endian int64.
    """

    name: str
    split: str
    tokens: Tensor
    vocabulary: tuple[str, ...]
    unknown: int
    origin: str
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"hyperzoo text {len(self.tokens)}\n".encode())
        digest.update("".join(f"{word}\n" for word in self.vocabulary).encode())
        digest.update(self.tokens.numpy().astype("<i8", copy=False).data)
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def classes(self) -> tuple[str, ...]:
        """The vocabulary: the classes of a language model."""
        return self.vocabulary

    @property
    def channels(self) -> int:
        return 1


def load_text(name: str, split: str, mirror: Path | None = None) -> TextSet:
    """Load a split of a text from the mirror in HYPERZOO_DATA, or from the Hub if that is not set.

    A line becomes its words, split at white space, and `<eos>`, also if it is blank. All splits share the vocabulary of
    the training split, with `<eos>` and `<unk>`.

    Args:
        name: 'ptb' or 'wt2'.
        split: 'train', 'validation' or 'test'; the last is for `hyperzoo.analysis.evaluate` only.
    Raises:
        UnknownNameError: no such text.
        DataError: an unknown split, an absent or damaged text, or the Hub cannot be reached.
        MissingExtraError: `datasets` is missing: pip install hyperzoo[train].
    """
    train = sources.find_text(name, "train", mirror)
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words(train.lines())))}
    for mark in (EOS, UNK):
        numbers.setdefault(mark, len(numbers))
    source = train if split == "train" else sources.find_text(name, split, mirror)
    unknown, found = numbers[UNK], []
    missing = 0
    for word in words(source.lines()):
        missing += word not in numbers
        found.append(numbers.get(word, unknown))
    if not found:
        raise DataError(f"{source.origin} has no lines")
    return TextSet(name, split, torch.tensor(found), tuple(numbers), missing, source.origin)


def words(lines: Iterable[str]) -> Iterator[str]:
    """The words of all lines, with `<eos>` after each line.

    Example:
        >>> list(words(['no it was', '']))
        ['no', 'it', 'was', '<eos>', '<eos>']
    """
    for line in lines:
        yield from line.split()
        yield EOS


class TextBatch(NamedTuple):
    """A batch on one device: tokens (B, T) int64; targets (B, T) int64, the next tokens; indices (B,) int64.

    An index is the position in the text of a row's first token.
    """

    tokens: Tensor
    targets: Tensor
    indices: Tensor


class TextBatches:
    """A text cut into `batch_size` equal columns, which are read in parallel in pieces of `length` tokens.

    Row b of a batch continues row b of the previous batch, so the state of a network can be carried over (truncated
    backpropagation through time). The end of the text that does not fill all columns is dropped, and the last piece may
    be shorter. All epochs are equal; process `rank` gets its share of the columns.

    Args:
        batch_size: columns over all processes.   length: tokens per piece.
    Raises:
        InputError: fewer than two tokens per column, or a batch_size that the processes do not divide.
    Example:
        >>> text = TextSet('made', 'train', torch.arange(9), tuple('abcdefghi'), 0, 'here')
        >>> [batch.tokens.tolist() for batch in TextBatches(text, batch_size=2, length=2).epoch(1)]
        [[[0, 1], [4, 5]], [[2], [6]]]
    """

    def __init__(
        self,
        text: TextSet,
        *,
        batch_size: int,
        length: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        check_processes(rank, processes)
        if length < 1 or batch_size < 1 or batch_size % processes or len(text) < 2 * batch_size:
            raise InputError(
                f"{len(text)} tokens cannot be read as {batch_size} columns by {processes} processes in pieces of "
                f"{length}: choose a batch_size that is a multiple of the processes and at most half of the tokens"
            )
        share = batch_size // processes
        columns = text.tokens[: len(text) // batch_size * batch_size].view(batch_size, -1)
        self._columns = columns[rank * share : (rank + 1) * share].to(device)
        self._starts = (rank * share + torch.arange(share, device=device)) * columns.shape[1]
        self._length = length

    def __len__(self) -> int:
        return -(-(self._columns.shape[1] - 1) // self._length)

    def epoch(self, epoch: int) -> Iterator[TextBatch]:
        """Yield the pieces in order; the epoch makes no difference."""
        last = self._columns.shape[1] - 1
        for first in range(0, last, self._length):
            end = min(first + self._length, last)
            targets = self._columns[:, first + 1 : end + 1]
            yield TextBatch(self._columns[:, first:end], targets, self._starts + first)
