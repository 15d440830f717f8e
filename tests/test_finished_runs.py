"""A finished run is whole, and of the recipe that is asked for; otherwise its result is made from the checkpoints."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
from conftest import MIRROR
from support import texts
from support.finished import run_of

from hyperzoo import files
from hyperzoo.errors import DataError
from hyperzoo.experiments import queue, train
from hyperzoo.training.recipe import load_recipe

RECIPE = """\
model: {arch: plain_cnn3, args: {widths: [8, 8, 8]}}
data: {name: c10, batch_size: 32, hold_out: 100}
optim: {lr: 0.1}
train: {epochs: 2, precision: fp32, compile: off}
"""
DESCRIBED = ("model.safetensors", "config.json", "metrics.jsonl")


@pytest.fixture
def recipe(tmp_path, data_mirror):
    (tmp_path / "small.yaml").write_text(RECIPE)
    return lambda *overrides: load_recipe(tmp_path / "small.yaml", overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the recipe, to be copied."""
    return run_of(RECIPE, tmp_path_factory.mktemp("finished"), MIRROR)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in DESCRIBED}


def test_a_result_describes_the_files_next_to_it(recipe, finished):
    values = json.loads((finished / "result.json").read_text())
    assert values["epochs"] == 2 and values["recipe_sha256"] == recipe().digest()
    assert values["files"] == {name: files.sha256(finished / name) for name in DESCRIBED}
    assert values["recipe_changes"] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from hyperzoo.analysis import evaluate
from hyperzoo.experiments import train
from hyperzoo.training.recipe import load_recipe
measure, epochs = evaluate.measure, int(sys.argv[3])
calls = []
def killed(*args, **more):  # after each epoch, and once for the result
    calls.append(args)
    if len(calls) > epochs:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(*args, **more)
evaluate.measure = killed
train.run(load_recipe(sys.argv[1], sys.argv[4:]), Path(sys.argv[2]), allow_change=True)
"""


def kill_while_testing(tmp_path, epochs, *overrides):
    """A run that is killed by signal 9 after `epochs` epochs, while it measures its result."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path / "small.yaml", tmp_path / "out", str(epochs)]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.full
@pytest.mark.fault("kill -9 while a run is tested")
@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "extended"])
def test_the_result_of_an_earlier_run_is_never_that_of_a_later_one(recipe, tmp_path, finished, restarted):
    out = shutil.copytree(finished, tmp_path / "out")
    before = json.loads((out / "result.json").read_text())
    overrides = ["train.epochs=3", "optim.lr=0.05"]
    if restarted:
        for path in (out / "checkpoints").iterdir():
            files.remove_folder(path)
    kill_while_testing(tmp_path, 3 if restarted else 1, *overrides)
    assert not (out / "result.json").exists()
    assert queue.Task("small", recipe(), out).result() is None
    after = train.run(recipe(*overrides), out)
    assert after.trained and (after.values["epochs"], after.values["recipe"]["optim"]["lr"]) == (3, 0.05)
    assert before["files"] != after.values["files"] == json.loads((out / "result.json").read_text())["files"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    changed = {"train.epochs": [2, 3], "optim.lr": [0.1, 0.05]}
    assert after.values["recipe_changes"] == ([] if restarted else [{"after_epoch": 2, "changed": changed}])


def test_a_result_of_another_recipe_is_not_returned(recipe, tmp_path, finished):
    """What versions before 0.6 left after a kill."""
    shutil.copytree(finished, tmp_path / "out")
    old = (tmp_path / "out" / "result.json").read_text()
    train.run(recipe("train.epochs=3"), tmp_path / "out", allow_change=True)
    (tmp_path / "out" / "result.json").write_text(old)
    assert train.run(recipe("train.epochs=3"), tmp_path / "out").values["epochs"] == 3


def flip(data):
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


@pytest.mark.fault("damaged or missing file of a finished run")
@pytest.mark.parametrize("name", [*DESCRIBED, "result.json"])
@pytest.mark.parametrize(
    "damage",
    [None, lambda _: b"", lambda data: data[: len(data) // 2], flip],
    ids=["gone", "empty", "cut", "flipped"],
)
def test_a_damaged_file_is_made_again(recipe, tmp_path, finished, name, damage, caplog):
    out = shutil.copytree(finished, tmp_path / "out")
    expected, whole = json.loads((out / "result.json").read_text()), contents(out)
    data = (out / name).read_bytes()
    (out / name).unlink() if damage is None else (out / name).write_bytes(damage(data))
    if (name, damage) == ("result.json", flip):
        (out / name).write_bytes(b"\xff" + data[1:])  # not UTF-8
    assert queue.Task("small", recipe(), out).result() is None
    again = train.run(recipe(), out)
    assert contents(out) == whole and again.values["metrics"] == expected["metrics"]
    assert json.loads((out / "result.json").read_text())["files"] == expected["files"]
    assert not train.run(recipe(), out).trained
    assert name in caplog.text or (name == "result.json" and damage is None)


@pytest.mark.parametrize("kind", ["images", "text"])
def test_a_missing_test_split_is_noticed_before_training(tmp_path, monkeypatch, kind):
    is_text = kind == "text"
    (tmp_path / "small.yaml").write_text(texts.RECIPE if is_text else RECIPE.replace(", hold_out: 100", ""))
    mirror = tmp_path / "mirror"
    texts.mirror(mirror) if is_text else shutil.copytree(MIRROR, mirror)
    for shard in mirror.glob("**/test-*.parquet"):
        shard.unlink()
    monkeypatch.setenv("HYPERZOO_DATA", str(mirror))
    with pytest.raises(DataError, match="has no test split"):
        train.run(load_recipe(tmp_path / "small.yaml"), tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoints").exists()
    if not is_text:
        assert train.run(load_recipe(tmp_path / "small.yaml", ["data.hold_out=100"]), tmp_path / "held").trained


FULL = """
import resource, signal, sys
from pathlib import Path
from hyperzoo.errors import RunError
from hyperzoo.experiments import train
from hyperzoo.training.recipe import load_recipe
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
recipe, out = load_recipe(sys.argv[1]), Path(sys.argv[2])
save = train.save_model
def full(*args, **more):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        save(*args, **more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
train.save_model = full
try:
    train.run(recipe, out)
except RunError as error:
    print(error)
train.save_model = save
print(sorted(path.name for path in out.iterdir() if path.name.startswith(".tmp")), train.run(recipe, out).trained)
"""


@pytest.mark.fault("full disk")
def test_a_disk_that_is_full_at_the_end_costs_no_epoch(recipe, tmp_path):
    recipe()
    command = [sys.executable, "-W", "ignore", "-c", FULL, tmp_path / "small.yaml", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"the run in {tmp_path / 'out'} stopped: " in done.stdout and "Free some space" in done.stdout
    assert "resuming after epoch 2" in done.stdout and done.stdout.endswith("[] True\n")


@pytest.mark.fault("full temporary folder")
def test_the_temporary_folder_is_not_needed(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        tempfile.TemporaryDirectory()
    assert train.run(recipe(), tmp_path / "out").trained
