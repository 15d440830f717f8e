"""A whole run: what is in its folder, which it shares with no other run, and what it refuses to start."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file
from support.tiny import equal

import hyperzoo
from hyperzoo.analysis import activation_statistics
from hyperzoo.data import load_images
from hyperzoo.errors import BusyError, LaunchError, RunError
from hyperzoo.experiments import build, queue, run_lock, train
from hyperzoo.training.log import read_result
from hyperzoo.training.recipe import load_recipe


@pytest.fixture
def small_recipe(tmp_path, data_mirror):
    """The demo's data through the whole of `train.run`, made tiny."""
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: {arch: resnet20_cifar}\n"
        "data: {name: c10, batch_size: 16, hold_out: 100, size_px: 8}\n"
        "optim: {lr: 0.1}\n"
        "train: {epochs: 1, precision: fp32}\n"
    )
    return path


def test_a_whole_run_and_its_folder(small_recipe, tmp_path, capsys):
    recipe, out = load_recipe(small_recipe), tmp_path / "out"
    result = train.run(recipe, out)
    assert result.values["split"] == "held-out part of train"  # choices never see the test split
    assert activation_statistics.load_model_and_batch(str(out), batch_size=4)[1].shape == (4, 3, 8, 8)
    assert result.values["metrics"]["total"] == 100 and result.values["recipe_sha256"] == recipe.digest()
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "result.json", "metrics.jsonl", "checkpoints"} <= names
    assert "epoch 1/1" in capsys.readouterr().out
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert train.run(recipe, out).values == result.values  # finished: only read
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    changed = load_recipe(small_recipe, ["optim.lr=0.2", "train.epochs=2"])
    with pytest.raises(RunError, match=r"optim.lr \(0.1 -> 0.2\), train.epochs \(1 -> 2\).*--allow-change"):
        train.run(changed, out)
    changes = {"optim.lr": [0.1, 0.2], "train.epochs": [1, 2]}
    resumed = train.run(changed, out, allow_change=True).values
    assert resumed["recipe_changes"] == [{"after_epoch": 1, "changed": changes}]


@pytest.mark.fault("damaged result of a run", 7)
def test_a_damaged_result_is_made_again_and_no_command_reads_it(small_recipe, tmp_path, caplog):
    recipe, out = load_recipe(small_recipe), tmp_path / "out"
    metrics = train.run(recipe, out).values["metrics"]
    whole = (out / "result.json").read_text()
    for damaged in ("", whole[: len(whole) // 2], "[]", "\0" * len(whole), "{}", '{"metrics": {}}', '{"metrics": 3}'):
        (out / "result.json").write_text(damaged)
        assert queue.Task("small", recipe, out).result() is None
        with pytest.raises(RunError, match=r"out/result.json is damaged: .* Train with --out .*out again"):
            activation_statistics.load_model_and_batch(str(out), batch_size=4)
        assert train.run(recipe, out).values["metrics"] == metrics  # of the last checkpoint
        assert "out/result.json is damaged" in caplog.text and read_result(out)["metrics"] == metrics
        caplog.clear()


OWN_ACCELERATOR = """
import sys
from pathlib import Path
from accelerate import Accelerator
own = Accelerator(mixed_precision=sys.argv[1])
import torch
import hyperzoo
from hyperzoo.experiments import train
from hyperzoo.training.recipe import load_recipe
torch.set_num_threads(1)
for precision in ("fp32", "bf16"):
    train.run(load_recipe(sys.argv[2], [f"train.precision={precision}"]), Path(sys.argv[3], precision))
    assert own.mixed_precision == Accelerator().mixed_precision == sys.argv[1]
"""


def test_the_recipe_decides_on_the_precision_and_an_accelerator_of_the_caller_keeps_its_own(small_recipe, tmp_path):
    def weights(*folder):
        return load_file(tmp_path.joinpath(*folder, "model.safetensors"))

    for number, precision in enumerate(("fp32", "bf16", "fp32")):  # in one process
        train.run(load_recipe(small_recipe, [f"train.precision={precision}"]), tmp_path / str(number))
    assert equal(weights("0"), weights("2")) and not equal(weights("0"), weights("1"))
    for own in ("no", "bf16"):
        command = [sys.executable, "-W", "ignore", "-c", OWN_ACCELERATOR, own, small_recipe, tmp_path / own]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert equal(weights(own, "fp32"), weights("0")) and equal(weights(own, "bf16"), weights("1"))


@pytest.mark.fault("two runs in one folder")
def test_two_runs_in_one_folder(small_recipe, tmp_path):
    """The first is killed by signal 9; then the second has the folder."""
    script = (
        "import sys, time; from pathlib import Path; from hyperzoo.experiments import build, train; "
        "from hyperzoo.training.recipe import load_recipe; "
        "build.samples = lambda *_: (print('held', flush=True), time.sleep(60)); "
        "train.run(load_recipe(sys.argv[1]), Path(sys.argv[2]))"
    )
    recipe, out = load_recipe(small_recipe), tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", script, small_recipe, out], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match=f"process {holder.pid} is training in .*; use another --out"):
            train.run(recipe, out)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert train.run(recipe, out).values["epochs"] == 1


@pytest.mark.fault("two runs in one folder")
def test_a_lock_file_that_is_deleted_lets_no_second_run_in(small_recipe, tmp_path, monkeypatch):
    recipe, out, samples = load_recipe(small_recipe), tmp_path / "out", build.samples

    def again(*asked):
        (out / "run.lock").unlink()
        with pytest.raises(BusyError, match=f"process {os.getpid()} is training in"):
            train.run(recipe, out)
        return samples(*asked)

    monkeypatch.setattr(build, "samples", again)
    assert train.run(recipe, out).values["epochs"] == 1


@pytest.mark.fault("two runs in one folder")
def test_two_runs_in_one_folder_of_one_process(small_recipe, tmp_path, monkeypatch):
    recipe, out, samples = load_recipe(small_recipe), tmp_path / "out", build.samples

    def again(*asked):
        with pytest.raises(BusyError, match=f"process {os.getpid()} is training in"):
            train.run(recipe, out)
        return samples(*asked)

    monkeypatch.setattr(build, "samples", again)
    assert train.run(recipe, out).values["epochs"] == 1


def test_a_folder_that_cannot_be_written(small_recipe, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(RunError, match="cannot write to the run folder .*out"):
        train.run(load_recipe(small_recipe), tmp_path / "out")


def test_another_number_of_processes_than_asked_for(small_recipe, tmp_path, monkeypatch):
    with pytest.raises(LaunchError, match="the recipe asks for 2 processes, accelerate runs 1.*torchrun"):
        train.run(load_recipe(small_recipe, ["train.processes=2"]), tmp_path / "out")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(LaunchError, match="FSDP"):
        train.run(load_recipe(small_recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_of_other_widths_loads_from_its_folder(tmp_path, data_mirror):
    text = "model: {arch: plain_cnn3, args: {widths: [4, 6, 8], relu: false}}\ndata: {name: c10, batch_size: 65}\n"
    (tmp_path / "narrow.yaml").write_text(text + "optim: {lr: 0.01}\ntrain: {epochs: 1, precision: fp32}\n")
    folder = train.run(load_recipe(tmp_path / "narrow.yaml"), tmp_path / "run").folder
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert loaded.stage3[0].conv.weight.shape == (8, 6, 3, 3)


def test_a_run_with_an_angular_loss_loads_from_its_folder(tmp_path, data_mirror):
    text = "model: {arch: plain_cnn3, args: {widths: [4, 6, 8]}}\ndata: {name: c10, batch_size: 65}\n"
    text += "method: {angular: {operator: cosine, margin: 4}}\noptim: {lr: 0.01}\n"
    (tmp_path / "angular.yaml").write_text(text + "train: {epochs: 1, precision: fp32}\n")
    result = train.run(load_recipe(tmp_path / "angular.yaml"), tmp_path / "run")
    loaded = timm.create_model(f"local-dir:{result.folder}", pretrained=True).eval()
    images = hyperzoo.preprocess("resnet20_cifar")(load_images("c10", "test").images)
    with torch.inference_mode():
        features = loaded.forward_head(loaded.forward_features(images), pre_logits=True)
        logits = features @ torch.nn.functional.normalize(loaded.fc.weight).T  # |x| cos(theta)
        torch.testing.assert_close(loaded(images), logits, rtol=2e-3, atol=2e-3)
    labels = load_images("c10", "test").labels
    assert int((logits.argmax(1) == labels).sum()) == pytest.approx(result.values["metrics"]["correct"], abs=1)


NARROW = """
import sys
from pathlib import Path
import torch
from hyperzoo.experiments import train
from hyperzoo.training.recipe import load_recipe
torch.set_num_threads(2)
train.run(load_recipe(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.full
@pytest.mark.fault("convolution of few filters, whose channels-last form ends the process")
@pytest.mark.parametrize("width", [1, 5, 8, 12])
def test_a_narrow_network_trains_with_two_threads_and_odd_batches(tmp_path, data_mirror, width):
    (tmp_path / "narrow.yaml").write_text(
        f"model: {{arch: resnet20_cifar, args: {{widths: [{width}, {width}, {width}]}}}}\n"
        "data: {name: c10, batch_size: 65}\noptim: {lr: 0.01}\ntrain: {epochs: 2, precision: fp32, compile: off}\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", NARROW, tmp_path / "narrow.yaml", tmp_path / "out"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.fault("two runs in one folder")
def test_every_process_of_a_run_raises_the_error_of_the_first(tmp_path, monkeypatch):
    """The second of two processes does not lock; it gets the error instead of waiting for a run that never begins."""
    second = SimpleNamespace(is_main_process=False)
    monkeypatch.setattr(run_lock, "broadcast_object_list", lambda _: [BusyError("process 1 is training")])
    with pytest.raises(BusyError, match="process 1 is training"), run_lock.locked(tmp_path, second):
        raise AssertionError("the run has begun")
