"""Packed data sets arrive unchanged; packed results stay within the limit, whole groups in order of value."""

import shutil
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transfer
from huggingface_hub import constants
from shards import reshard

from hyperzoo.data import load_images, load_text, sources
from hyperzoo.errors import DataError, InputError, UnknownNameError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def text_mirror(tmp_path, monkeypatch):
    """A mirror of 'ptb' with a column that no recipe reads."""
    repository = sources.TEXT_REPOSITORIES["ptb"]
    folder = tmp_path / "texts" / repository.hub_id / repository.config
    folder.mkdir(parents=True)
    for split in repository.splits:
        lines = [f"{split} line number {i}" for i in range(50)]
        table = pa.table({repository.text: lines, "length": [len(line) for line in lines]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path / "texts"))


def fingerprints(mirror=None):
    return [load_images("c10", split, mirror).fingerprint for split in ("train", "test")]


# Shards


def test_small_shards_hold_the_same_images_in_the_same_order(tmp_path, data_mirror):
    before = fingerprints()
    shards = list(reshard("c10", tmp_path / "data", shard_bytes=50_000))
    test = [shard for shard in shards if shard.name.startswith("test")]
    size = (data_mirror / "uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet").stat().st_size
    assert len(test) > size / 50_000 - 1 and all(shard.stat().st_size < 100_000 for shard in test)
    assert test[3].name == f"test-00003-of-{len(test):05d}.parquet"
    assert fingerprints(tmp_path / "data") == before


def test_the_first_rows_of_every_split_to_try_things_out(tmp_path, data_mirror):
    whole = [load_images("c10", split) for split in ("train", "test")]
    list(reshard("c10", tmp_path / "data", rows=7))
    few = [load_images("c10", split, tmp_path / "data") for split in ("train", "test")]
    assert [part.fingerprint for part in few] == [
        part.take(part.labels.new_tensor(range(7))).fingerprint for part in whole
    ]
    assert [part.classes for part in few] == [part.classes for part in whole]


def test_a_text_keeps_its_words_and_loses_columns_that_nobody_reads(tmp_path, text_mirror):
    shards = list(reshard("ptb", tmp_path / "data", shard_bytes=400))
    assert len(shards) > 3 and {len(pq.read_schema(shard).names) for shard in shards} == {1}
    for split in ("train", "validation", "test"):
        assert load_text("ptb", split, tmp_path / "data").fingerprint == load_text("ptb", split).fingerprint


def test_only_a_mirror_can_be_cut(tmp_path, data_mirror, monkeypatch):
    with pytest.raises(UnknownNameError, match="no image data set 'c11'. Closest: c10"):
        list(reshard("c11", tmp_path))
    monkeypatch.delenv("HYPERZOO_DATA")
    with pytest.raises(DataError, match="set HYPERZOO_DATA"):
        list(reshard("c10", tmp_path))


# There


def test_folders_below_the_limit_give_the_mirror_when_copied_one_after_the_other(tmp_path, data_mirror, capsys):
    packages = tmp_path / "site.zip"
    packages.write_bytes(bytes(300_000))
    before = fingerprints()
    asked = ["send", str(tmp_path / "out"), "--data", "c10", "--mb", "0.6", "--also", str(packages)]
    real, transfer.reshard = transfer.reshard, lambda *args, **more: reshard(*args, **more, shard_bytes=100_000)
    try:
        assert transfer.main(asked) == 0
    finally:
        transfer.reshard = real
    folders = sorted((tmp_path / "out").iterdir())
    assert [folder.name for folder in folders] == ["1", "2", "3"] and packages.exists()
    assert (tmp_path / "out" / "1" / "site.zip").stat().st_size == 300_000
    sizes = [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders]
    assert max(sizes) <= 600_000 and min(sizes[:2]) > 480_000  # the next shard did not fit
    assert [int(line.split()[-2]) for line in capsys.readouterr().out.splitlines()] == sizes
    for folder in folders:
        shutil.copytree(folder, tmp_path / "there", dirs_exist_ok=True)
    assert fingerprints(tmp_path / "there" / "data") == before


def test_nothing_is_left_where_something_does_not_fit(tmp_path, data_mirror, capsys):
    with pytest.raises(InputError, match=r"parquet has \d+ bytes, above the limit of 1000"):
        transfer.send(tmp_path / "out", ["c10"], limit_bytes=1000)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    assert transfer.main(["send", str(tmp_path / "out"), "--mb", "1", "--data", "c10"]) == 1
    assert "is not empty" in capsys.readouterr().err and len(list(tmp_path.rglob("*"))) == 2


# Back


def write(folder, sizes):
    """Files of these sizes, each of bytes of its own."""
    folder.mkdir(parents=True)
    files = [folder / f"{number}.bin" for number in range(len(sizes))]
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        file.write_bytes(bytes((number + 7 * i) % 251 for i in range(size)))
    return files


def restored(out, root):
    root.mkdir()
    parts = sorted(out.glob("runs.tar.*"))
    subprocess.run(["tar", "x", "-C", root], input=b"".join(part.read_bytes() for part in parts), check=True)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_groups_come_back_whole_and_in_their_order_of_value(tmp_path):
    root = tmp_path / "runs"
    small, large, late = (
        write(root / "a", [10, 2000]),
        write(root / "b" / "0", [90_000, 5]),
        write(root / "c", [30_000]),
    )
    left_out = transfer.bring(tmp_path / "out", [small, large, late], root, part_bytes=20_000, total=80_000)
    assert left_out == large  # it does not fit, what comes after does
    parts = sorted((tmp_path / "out").iterdir())
    sizes = [part.stat().st_size for part in parts]
    assert [part.name for part in parts] == [f"runs.tar.{i}" for i in range(len(parts))]
    assert set(sizes[:-1]) == {20_000} and 0 < sizes[-1] <= 20_000 and len(sizes) == 3
    assert restored(tmp_path / "out", tmp_path / "again") == {
        str(file.relative_to(root)): file.read_bytes() for file in small + late
    }


@pytest.mark.parametrize("name", ["x", "a" * 150])
def test_the_parts_never_exceed_the_total(tmp_path, name):
    root = tmp_path / "runs"
    groups = [write(root / name / str(number), [1000, 513]) for number in range(40)]
    left_out = transfer.bring(tmp_path / "out", groups, root, part_bytes=30_000, total=100_000)
    sizes = [part.stat().st_size for part in (tmp_path / "out").iterdir()]
    assert sum(sizes) <= 100_000 and max(sizes) <= 30_000
    found = restored(tmp_path / "out", tmp_path / "again")
    kept = [file for group in groups for file in group if file not in left_out]
    assert found == {str(file.relative_to(root)): file.read_bytes() for file in kept} and len(kept) > 20


def test_nothing_to_bring_is_an_empty_archive(tmp_path):
    assert transfer.bring(tmp_path / "out", [], tmp_path) == []
    assert restored(tmp_path / "out", tmp_path / "again") == {}
