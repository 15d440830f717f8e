"""Streamed images of one's own with broken pictures: left out, counted, named, and the same in every epoch."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.made_images import toy, write_mirror
from test_own_images import fill, own_cache, recipe  # noqa: F401

from hyperzoo import data
from hyperzoo.data import readable
from hyperzoo.errors import DataError
from hyperzoo.experiments import build, train
from hyperzoo.training.recipe import Recipe

BROKEN = ("blau/1 x.png", "红/3 x.png")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """train/, val/ and test/ of three classes with five pictures each; two of train/ and one of val/ are broken."""
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 1)
    for split in ("train", "val", "test"):
        fill(tmp_path / "set" / split)
    for name in BROKEN:
        (tmp_path / "set" / "train" / name).write_bytes(b"no picture")
    cut = tmp_path / "set" / "val" / BROKEN[0]
    cut.write_bytes(cut.read_bytes()[:-30])
    return tmp_path / "set"


def plan(folder, epochs=2, **values) -> Recipe:
    made = recipe(folder, on_error="skip", batch_size=4, **values)
    return Recipe.model_validate(made.model_dump() | {"train": dict(epochs=epochs, precision="fp32")})


def equal(one: Path, two: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.fault("picture that cannot be decoded", 3)
def test_broken_pictures_of_a_streamed_set_are_left_out_counted_and_named(folder, tmp_path, capfd):
    done = train.run(plan(folder), tmp_path / "run").values
    assert done["skipped"] == {"train": 2, "test": 0, "validation": 1}
    assert done["train_images"] == 13 and done["metrics"]["total"] == 15
    said = capfd.readouterr().out
    names = ", ".join(str(folder / "train" / name) for name in BROKEN)
    assert f"2 that cannot be decoded are left out of train: {names}" in said
    assert "1 images that cannot be decoded are left out of validation" in said
    without = shutil.copytree(folder, tmp_path / "without")
    for name in (*(f"train/{name}" for name in BROKEN), f"val/{BROKEN[0]}"):
        (without / name).unlink()
    plain = Recipe.model_validate(plan(without).model_dump() | {"name": "plain"})
    assert train.run(plain, tmp_path / "plain").values["metrics"]["nll"] == done["metrics"]["nll"]
    assert equal(tmp_path / "run", tmp_path / "plain")  # as if the broken ones had never been there


def test_every_epoch_has_the_same_pictures(folder):
    images = build.dataset(plan(folder)).load("train")
    assert isinstance(images, data.StreamedSet) and images.labels.tolist() == [0] * 4 + [1] * 5 + [2] * 4
    batches = data.StreamedBatches(images, batch_size=13, seed=0, size_px=8, flip=True, mean=(0.5,) * 3, std=(0.5,) * 3)
    for epoch in (1, 2):
        (batch,) = batches.epoch(epoch)
        assert sorted(batch.indices.tolist()) == list(range(13))


def test_the_pictures_are_read_once_until_a_file_changes(folder, monkeypatch):
    calls = []
    find = readable._find
    monkeypatch.setattr("hyperzoo.data.readable._find", lambda images: calls.append(1) or find(images))
    for _ in range(2):
        assert len(build.dataset(plan(folder)).load("train")) == 13
    assert len(calls) == 1
    shutil.copy(folder / "train" / "blau" / "0 x.png", folder / "train" / BROKEN[0])
    assert len(build.dataset(plan(folder)).load("train")) == 14 and len(calls) == 2


@pytest.mark.fault("cache that is damaged", 4)
def test_a_damaged_list_of_broken_pictures_is_made_anew(folder, tmp_path):
    build.dataset(plan(folder)).load("train")
    (file,) = (tmp_path / "cache" / "hyperzoo").glob("*-broken.json")
    right = json.loads(file.read_text())
    for wrong in ("", "{}", "[true]", "[99]"):
        file.write_text(wrong)
        assert len(build.dataset(plan(folder)).load("train")) == 13
        assert json.loads(file.read_text()) == right


def test_a_resumed_run_ends_with_the_same_bits(folder, tmp_path):
    whole = train.run(plan(folder, 3), tmp_path / "whole").folder
    stopped = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hyperzoo.data.streamed.StreamedBatches.epoch", stop_in_epoch(3))
        with pytest.raises(KeyboardInterrupt):
            train.run(plan(folder, 3), stopped)
    assert equal(train.run(plan(folder, 3), stopped).folder, whole)


def stop_in_epoch(last):
    epoch_of = data.StreamedBatches.epoch

    def epoch(self, number):
        if number == last:
            raise KeyboardInterrupt
        return epoch_of(self, number)

    return epoch


@pytest.mark.fault("picture that cannot be decoded")
def test_a_class_of_broken_pictures_is_an_error_before_the_training(folder, tmp_path):
    for file in (folder / "train" / "blau").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no image of the class 'blau' can be decoded"):
        train.run(plan(folder), tmp_path / "run")


@pytest.mark.fault("picture that cannot be decoded")
def test_a_broken_row_of_a_parquet_file_is_named_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 1)
    (file,) = write_mirror(tmp_path, toy(12), shards=1).iterdir()
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[4]["img"]["bytes"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    source = dict(parquet=dict(train=[str(file)], test=[str(shutil.copy(file, tmp_path / "test.parquet"))]))
    values = plan(tmp_path).model_dump()
    made = Recipe.model_validate(values | {"data": values["data"] | {"source": source, "name": ""}})
    images = build.dataset(made).load("train")
    assert len(images) == 11 and images.skipped[0].endswith("columns img and label, image 4")
    assert torch.equal(images.labels, toy(12).labels[[n for n in range(12) if n != 4]])
