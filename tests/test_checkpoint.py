"""A checkpoint is complete or absent: damage, a full disk and kill -9 leave the last complete one."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open

from hyperzoo.errors import CheckpointError
from hyperzoo.training import checkpoint
from hyperzoo.training.checkpoint import Checkpoint


def made(epoch, size=10):
    return Checkpoint(epoch, {"step": {"w": torch.full((size,), float(epoch))}, "empty": {}}, {"rows": [epoch]})


def test_round_trip_and_pruning(tmp_path):
    for epoch in (1, 2, 10):
        checkpoint.save(tmp_path, made(epoch))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00002", "epoch-00010"]
    found = checkpoint.newest(tmp_path)
    assert found.epoch == 10 and found.state == {"rows": [10]} and found.tensors["empty"] == {}
    assert torch.equal(found.tensors["step"]["w"], torch.full((10,), 10.0))
    with safe_open(tmp_path / "epoch-00010" / "step.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_nothing_there(tmp_path):
    assert checkpoint.newest(tmp_path / "missing") is None


@pytest.mark.fault("damaged file of a training checkpoint")
@pytest.mark.parametrize("name", ["step.safetensors", "empty.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damage_falls_back_to_the_one_before(tmp_path, name, damage, caplog):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, made(epoch))
    path = tmp_path / "epoch-00002" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    elif damage == "cut":
        del data[-1]
    elif damage == "empty":
        data.clear()
    path.unlink() if damage == "gone" else path.write_bytes(data)
    assert checkpoint.newest(tmp_path).epoch == 1
    assert "epoch-00002 cannot be used" in caplog.text


def bits(text):
    """The text with each one of its bits flipped."""
    data = text.encode()
    return [data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :] for i in range(len(data)) for bit in range(8)]


@pytest.mark.fault("flipped bit in the manifest of a checkpoint", 2_360)
def test_every_flipped_bit_of_a_manifest_means_the_checkpoint_before(tmp_path):
    for epoch in (2, 3):
        checkpoint.save(tmp_path, made(epoch))
    file = tmp_path / "epoch-00003" / "manifest.json"
    whole, used = file.read_text(), []
    for damaged in bits(whole):
        file.write_bytes(damaged)
        found = checkpoint.newest(tmp_path)
        assert found.tensors["step"]["w"][0] == found.epoch and found.state == {"rows": [found.epoch]}
        used += [damaged] if found.epoch == 3 else []
    assert used == [] and len(bits(whole)) == 2_360


@pytest.mark.fault("manifest of a checkpoint of another kind", 14)
def test_a_manifest_that_is_no_manifest_means_the_checkpoint_before(tmp_path, caplog):
    for epoch in (2, 3):
        checkpoint.save(tmp_path, made(epoch))
    file = tmp_path / "epoch-00003" / "manifest.json"
    good = json.loads(file.read_text())
    for manifest in (
        *(None, [], "text", 3, {}, {**good, "epoch": "3"}, {**good, "epoch": None}, {**good, "epoch": 2}),
        *({**good, "files": None}, {**good, "files": []}, {**good, "files": {}}, {**good, "files": {"state.json": 3}}),
        {**good, "files": {**good["files"], "../epoch-00002/step.safetensors": 0}},
    ):
        file.write_text(json.dumps(manifest))
        assert checkpoint.newest(tmp_path).epoch == 2, manifest
    file.write_text("[" * 200_000)
    assert checkpoint.newest(tmp_path).epoch == 2
    file.write_text(json.dumps(good))
    assert checkpoint.newest(tmp_path).epoch == 3


def test_what_is_not_ours_is_left_alone(tmp_path):
    """Copies of the user, and names that only look like those of a checkpoint."""
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path, made(epoch))
    names = (
        "epoch-00003-keep",
        "epoch-²",
        "epoch-٣",
        "epoch-00009 (copy)",
        "epoch-9",
        "epoch-000009",
        "epoch-",
        "notes",
    )
    for name in names:
        shutil.copytree(tmp_path / "epoch-00003", tmp_path / name)
    (tmp_path / "epoch-00008").write_text("a file")
    assert checkpoint.newest(tmp_path).epoch == 3
    for epoch in (4, 5):
        checkpoint.save(tmp_path, made(epoch))
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*names, "epoch-00008", "epoch-00004", "epoch-00005"}
    assert all((tmp_path / name / "manifest.json").is_file() for name in names)


@pytest.mark.fault("damaged later checkpoints, and a kill after an earlier epoch")
def test_epochs_trained_since_come_before_later_ones_that_were_damaged(tmp_path):
    for epoch in (8, 9, 10):
        checkpoint.save(tmp_path, made(epoch))
    whole = {path: path.read_bytes() for path in tmp_path.glob("*/state.json")}
    for path in whole:
        path.unlink()
    assert checkpoint.newest(tmp_path) is None  # the run starts again, and is killed after its first epoch
    checkpoint.save(tmp_path, made(1))
    assert checkpoint.newest(tmp_path).epoch == 1
    names = ["epoch-00001", "unusable-epoch-00009", "unusable-epoch-00010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for epoch in range(2, 12):
        checkpoint.save(tmp_path, made(epoch))
        assert checkpoint.newest(tmp_path).epoch == epoch
    shutil.copytree(tmp_path / "epoch-00011", tmp_path / "epoch-00012")  # once more, under a name that is taken
    shutil.copytree(tmp_path / "epoch-00011", tmp_path / "unusable-epoch-00012")
    checkpoint.save(tmp_path, made(11))
    assert checkpoint.newest(tmp_path).epoch == 11 and not (tmp_path / "epoch-00012").exists()


@pytest.mark.fault("NaN in a checkpoint")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_skipped(tmp_path, value, caplog):
    """Versions before 0.6 saved them."""
    checkpoint.save(tmp_path, made(1))
    checkpoint.save(tmp_path, Checkpoint(2, {"step": {"w": torch.tensor([1.0, value]), "n": torch.tensor(3)}}, {}))
    assert checkpoint.newest(tmp_path).epoch == 1
    assert "epoch-00002 cannot be used (NaN or infinity in step.w)" in caplog.text


def test_another_format_is_not_guessed_at(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        checkpoint.save(tmp_path, made(1))
    assert checkpoint.newest(tmp_path) is None and "it has format 2, this version reads 1" in caplog.text


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon"])
def test_optimizer_state_survives_packing_bit_for_bit(name):
    from timm.optim import create_optimizer_v2

    def steps(model, optimizer, first, last):
        for i in range(first, last):
            optimizer.zero_grad()
            model(torch.full((2, 4), float(i + 1))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    straight = torch.nn.Linear(4, 3)
    resumed = torch.nn.Linear(4, 3)
    one = create_optimizer_v2(straight, name, lr=0.01, weight_decay=0.1)
    steps(straight, one, 0, 3)
    resumed.load_state_dict(straight.state_dict())
    two = create_optimizer_v2(resumed, name, lr=0.5, weight_decay=0.2)
    tensors, rest = checkpoint.pack_optimizer(one)
    read_back = {name: value.clone() for name, value in tensors.items()}
    checkpoint.unpack_optimizer(two, read_back, json.loads(json.dumps(rest)))
    for model, optimizer in ((straight, one), (resumed, two)):
        steps(model, optimizer, 3, 6)
    assert torch.equal(straight.weight, resumed.weight) and torch.equal(straight.bias, resumed.bias)


FULL = """
import resource, sys
from pathlib import Path
import torch
from hyperzoo.errors import CheckpointError
from hyperzoo.training import checkpoint
folder = Path(sys.argv[1])
save = lambda epoch, size: checkpoint.save(folder, checkpoint.Checkpoint(epoch, {"step": {"w": torch.ones(size)}}, {}))
save(1, 10)
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(2, 100_000)
except CheckpointError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()), checkpoint.newest(folder).epoch)
"""


def test_a_group_setting_younger_than_the_checkpoint_keeps_its_fresh_value():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [weight], "lr_scale": 0.5}], lr=0.1, momentum=0.9)
    tensors, rest = checkpoint.pack_optimizer(optimizer)
    del rest["groups"][0]["lr_scale"]
    rest["groups"][0]["lr"] = 0.3
    checkpoint.unpack_optimizer(optimizer, tensors, rest)
    assert optimizer.param_groups[0]["lr_scale"] == 0.5 and optimizer.param_groups[0]["lr"] == 0.3


@pytest.mark.fault("full disk")
def test_a_full_disk_leaves_the_old_checkpoint_and_no_rubbish(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    assert "cannot write the checkpoint" in done.stdout and "Free some space" in done.stdout
    assert done.stdout.endswith("['epoch-00001'] 1\n")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path / "file", made(1))


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from hyperzoo.training import checkpoint
torch.set_num_threads(1)
folder, moments, epoch, torn, kills = Path(sys.argv[1]), random.Random(int(sys.argv[2])), 0, 0, 0

def save(folder, epoch):
    tensors = {"step": {"w": torch.full((50_000,), float(epoch))}}
    checkpoint.save(folder, checkpoint.Checkpoint(epoch, tensors, {"epoch": epoch}))

def save_for_ever(epoch):
    while True:
        epoch += 1
        save(folder, epoch)

started = time.perf_counter()
for _ in range(5):  # how long a process takes that saves once, on this machine and under its load
    pid = os.fork()
    if not pid:
        save(folder.with_name("timed"), 1)
        os._exit(0)
    os.waitpid(pid, 0)
longest = max(0.05, (time.perf_counter() - started) / 5 * 4)

while kills < 200:
    pid = os.fork()
    if not pid:
        save_for_ever(epoch)
    time.sleep(moments.uniform(0.001, longest))
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    kills += 1
    torn += any(folder.glob(".tmp-*"))
    found = checkpoint.newest(folder)
    if found is not None or epoch:
        assert found.epoch >= epoch, (found.epoch, epoch)
        assert found.state == {"epoch": found.epoch}
        assert found.tensors["step"]["w"].eq(found.epoch).all()
        epoch = found.epoch
print(kills, torn, epoch)
"""


@pytest.mark.full
@pytest.mark.fault("kill -9 while checkpoints are saved", 200)
def test_two_hundred_kills_leave_a_whole_checkpoint_and_never_an_older_one(tmp_path):
    seed = str(time.time_ns() % 10**6)
    done = subprocess.run([sys.executable, "-c", KILLS, tmp_path / "run", seed], capture_output=True, text=True)
    assert done.returncode == 0, (seed, done.stderr)
    assert "cannot be used" not in done.stderr, (seed, done.stderr)  # no half-written one had a final name
    kills, torn, epochs = map(int, done.stdout.split())
    assert kills == 200 and torn > 20 and epochs > 20, (seed, done.stdout)  # the moments met savings


@pytest.mark.fault("manifest of a checkpoint of another kind", 2)
@pytest.mark.parametrize("change", [lambda listed: listed.pop("step.safetensors"), lambda listed: listed.clear()])
def test_a_manifest_that_lists_only_some_files_means_the_checkpoint_before(tmp_path, change):
    for epoch in (2, 3):
        checkpoint.save(tmp_path, made(epoch))
    file = tmp_path / "epoch-00003" / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest["files"])
    file.write_text(json.dumps(manifest))
    assert checkpoint.newest(tmp_path).epoch == 2
