"""A run that resumes with a changed recipe follows it from there and says so, or is refused with the reason."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MIRROR
from support import tiny
from support.finished import run_of

from hyperzoo.errors import CheckpointError, RunError
from hyperzoo.experiments import train
from hyperzoo.training import checkpoint
from hyperzoo.training.recipe import load_recipe

RECIPE = """\
model: {arch: plain_cnn3, args: {widths: [8, 8, 8]}}
data: {name: c10, batch_size: 32, hold_out: 100}
optim: {lr: 0.1, schedule: constant, weight_decay: 0.01}
train: {epochs: 2, precision: fp32, compile: off}
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two epochs, to be copied."""
    return run_of(RECIPE, tmp_path_factory.mktemp("begun"), MIRROR)


@pytest.fixture
def resume(begun, tmp_path, data_mirror):
    """A call that resumes a copy of the run with overrides."""
    shutil.copytree(begun, tmp_path / "out")
    return lambda *overrides: train.run(
        load_recipe(begun.parent / "small.yaml", overrides), tmp_path / "out", allow_change=True
    )


def contents(folder):
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith("run.")
    }


@pytest.mark.fault("change of a recipe that a checkpoint does not fit")
@pytest.mark.parametrize(
    "change",
    [
        "model.arch=cnn11_elu",
        "model.args={widths: [8, 8, 8], relu: false}",
        "optim.optimizer=adamw",
        "optim.args={nesterov: false}",
        "optim.decay=['*']",
        "optim.lr_scale={'*bias': 2.0}",
        "train.ema=0.9",
        "method.angular={operator: cosine, margin: 1}",
        "method.vcl={layers: [stage1]}",
        "data.hold_out=90",
    ],
)
def test_what_a_checkpoint_does_not_fit_is_refused_before_anything_changes(resume, tmp_path, change):
    before, key = contents(tmp_path / "out"), change.partition("=")[0]
    with pytest.raises(RunError, match=rf"a run cannot resume with another {key}.*: .*{key}.* -> .*Use another --out"):
        resume(change, "train.epochs=3")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("change", [["optim.lr=0.2"], ["train.epochs=1"], ["method.label_smoothing=0.1"]], ids=str)
def test_a_change_with_no_epoch_left_is_refused(resume, tmp_path, change):
    before = contents(tmp_path / "out")
    with pytest.raises(RunError, match=r"has trained 2 epochs, so none is left .*: .* -> .* Set train.epochs above 2"):
        resume(*change)
    assert contents(tmp_path / "out") == before


def test_other_changes_are_followed_from_there_and_listed(resume, tmp_path):
    overrides = ["optim.lr=0.02", "optim.weight_decay=0.5", "optim.momentum=0.5", "method.label_smoothing=0.1"]
    values = resume("train.epochs=3", *overrides).values
    rows = [json.loads(row) for row in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.1, 0.1, 0.02]
    groups = checkpoint.newest(tmp_path / "out" / "checkpoints").state["optimizer"]["groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert {(group["lr"], group["momentum"]) for group in groups} == {(0.02, 0.5)}
    changed = {
        "method.label_smoothing": [0.0, 0.1],
        "optim.lr": [0.1, 0.02],
        "optim.momentum": [0.9, 0.5],
        "optim.weight_decay": [0.01, 0.5],
        "train.epochs": [2, 3],
    }
    assert values["recipe_changes"] == [{"after_epoch": 2, "changed": changed}]
    later = resume("train.epochs=4", *overrides).values["recipe_changes"]
    assert later == [*values["recipe_changes"], {"after_epoch": 3, "changed": {"train.epochs": [3, 4]}}]


@pytest.mark.fault("checkpoint of another model or epoch", 3)
def test_a_checkpoint_of_another_model_or_epoch_is_no_traceback(tmp_path):
    tiny.run(tmp_path, tiny.recipe(2))
    saved = checkpoint.newest(tmp_path / "checkpoints")
    for damaged, expected in (
        (replace(saved, tensors={"step": {}}), "of epoch 2 in .* does not fit the recipe and its data: .*Missing key"),
        (replace(saved, state={**saved.state, "optimizer": {"groups": []}}), "does not fit the recipe and its data"),
        (replace(saved, epoch=1), "of epoch 1 in .* logs 2 epochs; delete it"),
    ):
        with pytest.raises(CheckpointError, match=f"(?s){expected}"):
            tiny.trainer(tmp_path, tiny.recipe(3)).run(damaged)


def test_the_annealing_of_an_angular_loss_fixes_the_parts_of_a_batch(data_mirror, tmp_path):
    """It counts forward passes, `accumulate` of them per update."""
    words = [
        "train.epochs=1",
        "optim.warmup_epochs=0",
        "method.angular={operator: cosine, margin: 2}",
        "train.accumulate=2",
    ]
    path = Path(__file__).parent.parent / "recipes" / "demo.yaml"
    train.run(load_recipe(path, words), tmp_path / "out")
    with pytest.raises(RunError, match="cannot resume with another train.accumulate"):
        train.run(load_recipe(path, [*words[1:3], "train.epochs=2"]), tmp_path / "out", allow_change=True)
