"""Evaluation on a folder of images: its folders are the classes of the network, whatever their order."""

import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import MIRROR
from PIL import Image
from test_own_images import COLORS, fill, own_cache, recipe  # noqa: F401
from torchvision.transforms.functional import to_pil_image

from hyperzoo import data
from hyperzoo.analysis import activation_statistics, evaluate
from hyperzoo.cli.commands import cli
from hyperzoo.errors import DataError, InputError
from hyperzoo.experiments import train

WEIGHT = "resnet20_cifar.plain_c10"


@pytest.fixture
def run(tmp_path):
    """A run on images of three colors, and where they are."""
    folder = fill(tmp_path / "photos")
    return str(train.run(recipe(folder), tmp_path / "run").folder), folder


def test_a_weight_is_evaluated_on_a_folder_as_on_its_data_set(tmp_path):
    images = data.load_images("c10", "test", MIRROR)
    chosen = [n for n in range(200) if images.classes[images.labels[n]] in ("cat", "frog", "ship")]
    for n in chosen:
        (tmp_path / "set" / images.classes[images.labels[n]]).mkdir(parents=True, exist_ok=True)
        to_pil_image(images.images[n]).save(tmp_path / "set" / images.classes[images.labels[n]] / f"{n}.png")
    command = ["eval", WEIGHT, "--data", str(tmp_path / "set"), "--json"]
    found = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)
    model, _ = evaluate.load_model_and_samples(WEIGHT, dataset=str(tmp_path / "set"))
    expected = evaluate.measure(model, images.take(torch.tensor(chosen)))
    assert 40 < len(chosen) == found["total"] and found["correct"] == expected.correct
    assert found["nll"] == pytest.approx(expected.nll, rel=1e-4)  # the order of the images is another
    assert found["class_accuracy"] == pytest.approx(expected.class_accuracy) and len(found["class_accuracy"]) == 3
    _, batch, origin = activation_statistics.load_model_and_batch(WEIGHT, dataset=str(tmp_path / "set"))
    assert len(batch) == len(chosen) and str(tmp_path / "set") in origin


@pytest.mark.parametrize("streamed", [False, True])
def test_classes_are_matched_by_name_and_not_by_order(run, tmp_path, monkeypatch, streamed):
    name, _ = run
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 0 if streamed else 10**9)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["label_names"] = list(COLORS)[::-1]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    fill(tmp_path / "other", classes=dict(list(COLORS.items())[1:]))
    _, samples = evaluate.load_model_and_samples(name, dataset=str(tmp_path / "other"))
    assert samples.classes == tuple(COLORS)[::-1] and samples.labels.tolist() == [0] * 5 + [1] * 5
    assert evaluate.run(name, dataset=str(tmp_path / "other")).total == 10


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.fault("12 bits in a file of 16")
def test_12_bits_in_a_file_of_16_are_named(run, tmp_path, monkeypatch, caplog, streamed):
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 0 if streamed else 10**9)
    (tmp_path / "other" / "blau").mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "other" / "blau" / "x.png")
    evaluate.load_model_and_samples(run[0], dataset=str(tmp_path / "other"))
    assert [record.message.partition(":")[2].split(". ")[0] for record in caplog.records] == [
        f" {tmp_path}/other/blau/x.png"
    ]


def test_a_split_of_a_folder_is_chosen(run, tmp_path):
    for count, split in ((2, "train"), (3, "Testing")):
        fill(tmp_path / "split" / split, count=count)
    for split, count in (("test", 9), ("train", 6)):
        assert evaluate.run(run[0], dataset=str(tmp_path / "split"), split=split).total == count
    with pytest.raises(DataError, match="split has no validation split; it has train, test"):
        evaluate.run(run[0], dataset=str(tmp_path / "split"), split="validation")
    with pytest.raises(DataError, match="photos has no train split; it has class folders, which are evaluated as test"):
        evaluate.run(run[0], dataset=str(run[1]), split="train")


def test_training_images_in_the_folder_are_counted(run, tmp_path, caplog):
    evaluate.run(run[0], dataset=str(run[1]))
    (record,) = caplog.records
    assert record.message.startswith(f"12 of the 15 images in {run[1]} are training images of {run[0]}; without --data")
    evaluate.run(run[0], dataset=str(fill(tmp_path / "other")))
    assert len(caplog.records) == 1


@pytest.mark.fault("folder of images that a network cannot be evaluated on", 5)
def test_a_folder_that_does_not_fit_is_one_error(run, tmp_path):
    folder = fill(tmp_path / "other", classes={"blau": (1, 2, 3), "grün grass": (4, 5, 6), "rot": (7, 8, 9)})
    text = "other: 2 of 3 class folders are named like none of the 3 classes of the network: grün grass, rot. Closest: "
    with pytest.raises(DataError, match=text):
        evaluate.run(run[0], dataset=str(folder))
    (folder / "blau" / "0 x.png").write_bytes(b"no picture")
    for name in ("grün grass", "rot"):
        (folder / name).rename(tmp_path / name)
    with pytest.raises(DataError, match=r"blau/0 x.png cannot be decoded: .*Replace or remove it$"):
        evaluate.run(run[0], dataset=str(folder))
    for name, kind, message in (
        (run[0], DataError, "nowhere/at all has no class folders"),
        ("resnet18", InputError, "resnet18 does not name its classes, so no folder of images fits them"),
        ("lstm200.plain_ptb", InputError, "lstm200.plain_ptb reads texts, but --data"),
    ):
        place = "nowhere/at all" if kind is DataError else str(folder)
        with pytest.raises(kind, match=re.escape(message)):
            evaluate.run(name, dataset=place)
