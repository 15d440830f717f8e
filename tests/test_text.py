"""Texts: every word once, in order, with the ids of a slow reader; batches continue the text."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import texts

from hyperzoo.data import TextBatches, TextSet, load_text, sources
from hyperzoo.errors import DataError, InputError, UnknownNameError

LINES = {
    "train": ["the cat sat", "", "  on   the mat <unk> "],
    "validation": ["the dog sat"],
    "test": ["cat on dog dog"],
}
WORDS = ["the", "cat", "sat", "<eos>", "on", "mat", "<unk>"]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    texts.mirror(tmp_path, LINES)
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["ptb", "wt2"])
def test_words_get_numbers_in_the_order_of_their_first_appearance(mirror, name):
    train = load_text(name, "train")
    assert train.vocabulary == tuple(WORDS) and train.unknown == 0
    assert [WORDS[token] for token in train.tokens] == "the cat sat <eos> <eos> on the mat <unk> <eos>".split()
    validation, test = load_text(name, "validation"), load_text(name, "test")
    assert [WORDS[token] for token in validation.tokens] == "the <unk> sat <eos>".split()
    assert (validation.unknown, test.unknown) == (1, 2) and test.vocabulary == train.vocabulary
    content = b"hyperzoo text 4\n" + "".join(f"{word}\n" for word in WORDS).encode()
    content += b"".join(number.to_bytes(8, "little") for number in (0, 6, 2, 3))
    assert validation.fingerprint == hashlib.sha256(content).hexdigest()


def test_faults_are_named(mirror):
    with pytest.raises(UnknownNameError, match="no text 'ptp'. Closest: ptb"):
        load_text("ptp", "train")
    with pytest.raises(DataError, match="ptb has no split 'valid'; it has train, validation, test"):
        load_text("ptb", "valid")
    repository = sources.TEXT_REPOSITORIES["ptb"]
    folder = mirror / repository.hub_id / repository.config
    (folder / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="has no validation split"):
        load_text("ptb", "validation")
    pq.write_table(pa.table({"line": ["x"]}), folder / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="needs the column sentence of text"):
        load_text("ptb", "train")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), mirror / WT2_TEST)
    with pytest.raises(DataError, match="has no lines"):
        load_text("wt2", "test")


WT2_TEST = Path("Salesforce", "wikitext", "wikitext-2-v1", "test-00000-of-00001.parquet")


def made(count):
    return TextSet("made", "train", torch.arange(count), tuple(map(str, range(count))), 0, "here")


@pytest.mark.parametrize(("count", "batch_size", "length"), [(50, 4, 5), (49, 4, 3), (23, 1, 7), (8, 4, 35)])
def test_columns_go_on_and_nothing_is_lost(count, batch_size, length):
    batches = TextBatches(made(count), batch_size=batch_size, length=length)
    pieces = list(batches.epoch(1))
    assert len(pieces) == len(batches)
    for row in range(batch_size):
        column = [row * (count // batch_size) + i for i in range(count // batch_size)]
        assert [token for piece in pieces for token in piece.tokens[row].tolist()] == column[:-1]
        assert [token for piece in pieces for token in piece.targets[row].tolist()] == column[1:]
    firsts = list(range(0, count // batch_size - 1, length))
    for piece, first in zip(pieces, firsts, strict=True):
        assert piece.indices.tolist() == [row * (count // batch_size) + first for row in range(batch_size)]
    assert all(piece.tokens.shape[1] == length for piece in pieces[:-1])


def test_processes_share_the_columns():
    whole = list(TextBatches(made(41), batch_size=4, length=3).epoch(1))
    parts = [list(TextBatches(made(41), batch_size=4, length=3, rank=r, processes=2).epoch(1)) for r in (0, 1)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(one.tokens, torch.cat([first.tokens, second.tokens]))
        assert torch.equal(one.indices, torch.cat([first.indices, second.indices]))
    for wrong in (dict(batch_size=3, processes=2), dict(batch_size=40), dict(batch_size=4, length=0)):
        with pytest.raises(InputError, match="41 tokens cannot be read as"):
            TextBatches(made(41), **{"length": 3, **wrong})


COUNTS = {  # tokens with an end mark a line, and words, as stated with the data
    "ptb": ({"train": 929_589, "validation": 73_760, "test": 82_430}, 10_000),
    "wt2": ({"train": 2_088_628, "validation": 217_646, "test": 245_569}, 33_278),
}


@pytest.mark.full
@pytest.mark.parametrize("name", COUNTS)
def test_the_whole_texts_have_their_known_sizes(name):
    data = Path(__file__).parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"the whole texts are not at {data}")
    counts, size = COUNTS[name]
    found = {split: load_text(name, split, data) for split in counts}
    assert {split: len(text) for split, text in found.items()} == counts
    assert {len(text.vocabulary) for text in found.values()} == {size}
    assert [text.unknown for text in found.values()] == [0, 0, 0]
