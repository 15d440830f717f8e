"""A queue trains its runs in order and in parallel, stops in time, and resumes from packed runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transfer
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

from hyperzoo import names
from hyperzoo.cli.main import _exit_code
from hyperzoo.data import sources
from hyperzoo.errors import RecipeError
from hyperzoo.experiments import queue, train
from hyperzoo.training.recipe import load_recipe, recipe_folders
from hyperzoo.training.sweep_file import load_queue

BASE = """\
model: {arch: resnet20_cifar}
data: {name: c10, batch_size: 65}
optim: {lr: 0.01, warmup_epochs: 2, schedule: multistep, milestones: [6]}
train: {epochs: 8, compile: off, precision: fp32}
"""
QUEUE = """\
jobs:
  first:
    base: base.yaml
    rows:
      resnet20_cifar.plain_c10: {}
      spherenet20.sphere_c10: {model.arch: spherenet20}
    seeds: [0, 1]
  second:
    base: base.yaml
    set: {train.epochs: 3, optim.milestones: [2]}
    rows: {other: {optim.lr: 0.02}}
"""


def write(folder, text=QUEUE):
    (folder / "base.yaml").write_text(BASE)
    (folder / "queue.yaml").write_text(text)
    return folder / "queue.yaml"


# The file


def test_a_shortened_queue_keeps_out_of_the_way_of_the_real_one(tmp_path):
    real, short = (queue.load(write(tmp_path), tmp_path / "runs", epochs=epochs) for epochs in (None, 2))
    assert {task.folder for task in real}.isdisjoint(task.folder for task in short)
    assert {task.folder.name for task in short} == {"0-2epochs", "1-2epochs"}


def test_runs_come_in_the_order_of_the_file(tmp_path):
    tasks = queue.load(write(tmp_path), tmp_path / "runs")
    assert [str(task.folder.relative_to(tmp_path / "runs")) for task in tasks] == [
        "resnet20_cifar.plain_c10/0",
        "resnet20_cifar.plain_c10/1",
        "spherenet20.sphere_c10/0",
        "spherenet20.sphere_c10/1",
        "other/0",
    ]
    assert [task.recipe.train.epochs for task in tasks] == [8, 8, 8, 8, 3]
    assert tasks[0].recipe.settings() == load_recipe(tmp_path / "base.yaml").settings()
    one = queue.load(tmp_path / "queue.yaml", tmp_path, epochs=2)[1].recipe
    assert (one.train.epochs, one.train.seed, one.optim.warmup_epochs, one.optim.milestones) == (2, 1, 0.5, [1.5])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rows: {other:", "rows: {spherenet20.sphere_c10:", "two jobs have the row 'spherenet20.sphere_c10'"),
        ("    seeds:", "    sets:", "Line 7: unknown key 'sets' (did you mean 'set'?)"),
        ("train.epochs: 3", "train.epoch: 3", "unknown key 'epoch' (did you mean 'epochs'?)"),
        ("jobs:", "job:", "Line 1: unknown key 'job' (did you mean 'jobs'?)"),
        ("base: base.yaml\n    set", "base: none.yaml\n    set", "cannot read the recipe"),
    ],
)
def test_one_fault_one_sentence(tmp_path, old, new, expected, capsys):
    assert old in QUEUE
    with pytest.raises(RecipeError) as caught:
        load_queue(write(tmp_path, QUEUE.replace(old, new)))
    assert expected in str(caught.value)
    assert _exit_code(["queue", str(tmp_path / "queue.yaml"), "--minutes", "1", "--state", str(tmp_path / "runs")]) == 1
    assert expected in capsys.readouterr().err and not (tmp_path / "runs").exists()


OURS = recipe_folders()[-1] / "queue.yaml"


def test_the_queue_of_the_package_names_what_it_trains():
    runs = load_queue(OURS)
    assert len(runs) > 60 and sum(recipe.train.epochs == 200 for _, recipe in runs) > 50
    for label in dict.fromkeys(label for label, _ in runs):
        recipes = [recipe for other, recipe in runs if other == label]
        seeds = [recipe.train.seed for recipe in recipes]
        assert len(seeds) in (3, 4, 5) and seeds == list(range(seeds[0], seeds[0] + len(seeds)))  # others are trained
        arch, _, rest = label.partition(".")
        method, _, dataset = rest.partition("_")
        said = recipes[0].method
        assert (recipes[0].model.arch, recipes[0].data.name) == (arch, dataset), label
        terms = {"mhe": said.mhe, "per": said.per, "vcl": said.vcl, "mixup": said.mixup}
        terms["manifoldmixup"] = said.manifold_mixup
        used = {word for word, block in terms.items() if block}
        assert used == ({method.removesuffix("half")} & terms.keys()), label
        assert method in {*names.METHODS, "mhehalf", "fast"}
        assert not recipes[0].data.hold_out and not recipes[0].data.choice  # the test split is read, once


def test_a_sweep_is_a_queue_too(tmp_path):
    write(tmp_path)
    (tmp_path / "study.yaml").write_text("base: base.yaml\nrows: {a: {}, b: {optim.lr: 0.1}}\nseeds: [0, 3]\n")
    tasks = queue.load(tmp_path / "study.yaml", tmp_path / "runs")
    assert [str(task.folder.relative_to(tmp_path / "runs")) for task in tasks] == ["a/0", "a/3", "b/0", "b/3"]
    assert len(load_queue(Path("fast_cnn_methods"))) == 12  # by the name of a sweep of the package


# How many side by side


class Process:
    """A process that only does what it is told."""

    exitcode = None

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *_: self.told.append(name)


def log(task, *rates):
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / "metrics.jsonl").write_text("".join(json.dumps({"images_per_s": rate}) + "\n" for rate in rates))


@pytest.fixture
def crew(tmp_path, monkeypatch):
    monkeypatch.setattr(
        queue.Crew, "start", lambda self, task: self.members.append(queue.Member(task, Process(), len(task.rows())))
    )
    return queue.Crew(1, growing=True), queue.load(write(tmp_path), tmp_path / "runs")


def test_a_crew_grows_as_long_as_it_pays(crew):
    crew, tasks = crew
    crew.start(tasks[0])
    assert crew.grow() == [] and crew.size == 1  # nothing is known yet
    log(tasks[0], 50.0)
    assert crew.grow() == [] and crew.size == 1  # the first epoch may hold a compilation
    log(tasks[0], 50.0, 1000.0)
    assert crew.grow() == [] and crew.size == 2
    log(tasks[0], 50.0, 1000.0, 1000.0, 1000.0)
    assert crew.grow() == [] and crew.size == 2  # nobody has come yet
    log(tasks[1], 60.0, 600.0)  # of an earlier call
    crew.start(tasks[1])
    log(tasks[0], 50.0, 1000.0, 1000.0, 1000.0, 600.0, 600.0)
    assert crew.grow() == [] and crew.size == 2  # the newest has no epoch yet
    log(tasks[1], 60.0, 600.0, 600.0, 600.0)
    assert crew.grow() == [] and crew.size == 3  # 1200 against 1000
    crew.start(tasks[2])
    log(tasks[1], *[600.0] * 4, 430.0, 430.0)
    log(tasks[2], 430.0, 430.0)
    assert crew.grow() == [] and crew.size == 3  # the first has no epoch beside the newest
    log(tasks[0], *[600.0] * 6, 430.0, 430.0)
    newest = crew.members[2]
    assert crew.grow() == [tasks[2]] and crew.size == 2  # 1290 against 1200 is less than a tenth
    assert [member.task for member in crew.members] == tasks[:2] and newest.process.told[0] == "terminate"
    for task in tasks[:2]:
        log(task, *[5000.0] * 9)
    assert crew.grow() == [] and crew.size == 2  # it stays


def test_a_fixed_crew_does_not_grow_and_those_who_leave_are_told(crew):
    crew, tasks = crew
    crew.growing = False
    crew.start(tasks[0])
    log(tasks[0], 1.0, 1.0, 1.0)
    assert crew.grow() == [] and crew.size == 1
    crew.start(tasks[1])
    first, second = crew.members
    first.process.exitcode = 0
    assert crew.leave() == [first] and crew.members == [second]


# What comes back


def test_logs_come_first_then_finished_weights_then_the_furthest_checkpoints(tmp_path):
    tasks = queue.load(write(tmp_path), tmp_path / "runs")
    for number, task in enumerate(tasks):
        log(task, *[1.0] * (2, 5, 8, 0, 2)[number])
        for epoch in (1, 2):
            (task.folder / "checkpoints" / f"epoch-{epoch:05d}").mkdir(parents=True)
            (task.folder / "checkpoints" / f"epoch-{epoch:05d}" / "step.safetensors").touch()
        (task.folder / "checkpoints" / ".tmp-1").mkdir()
    for part in ("model.safetensors", "config.json"):
        (tasks[2].folder / part).touch()
    for task, digest in ((tasks[2], tasks[2].recipe.digest()), (tasks[3], "of another recipe")):
        result = {"recipe_sha256": digest, "metrics": {"accuracy": 90.0}}
        (task.folder / "result.json").write_text(json.dumps(result))
    found = [[str(file.relative_to(tmp_path / "runs")) for file in group] for group in transfer.groups(tasks)]
    plain, sphere = "resnet20_cifar.plain_c10", "spherenet20.sphere_c10"
    last = "checkpoints/epoch-00002/step.safetensors"
    assert found == [
        [f"{plain}/0/metrics.jsonl"],
        [f"{plain}/1/metrics.jsonl"],
        [f"{sphere}/0/result.json", f"{sphere}/0/metrics.jsonl"],
        [f"{sphere}/1/result.json", f"{sphere}/1/metrics.jsonl"],
        ["other/0/metrics.jsonl"],
        [f"{sphere}/0/model.safetensors", f"{sphere}/0/config.json"],
        [f"other/0/{last}"],  # 2 of 3 epochs
        [f"{plain}/1/{last}"],  # 5 of 8
        [f"{plain}/0/{last}"],
        [f"{sphere}/1/{last}"],
    ]


def test_the_weights_that_would_be_published_come_before_those_of_other_seeds(tmp_path):
    tasks = queue.load(write(tmp_path, QUEUE.replace("[0, 1]", "[0, 1, 2]")), tmp_path / "runs")
    for task, accuracy in zip(tasks[:5], (90.0, 92.0, 91.0, 80.0, 70.0), strict=True):
        log(task, 1.0)
        result = {"recipe_sha256": task.recipe.digest(), "metrics": {"accuracy": accuracy}}
        (task.folder / "result.json").write_text(json.dumps(result))
        (task.folder / "model.safetensors").touch()
    packed = [file for group in transfer.groups(tasks) for file in group]
    models = [
        tasks.index(next(task for task in tasks if task.folder == file.parent)) for file in packed if "mod" in file.name
    ]
    assert models == [2, 4, 0, 1, 3]  # the medians 91 and, of two, the lower: 70


def test_of_equal_scores_and_of_perplexities_the_published_median_comes_first(tmp_path):
    tasks = queue.load(write(tmp_path, QUEUE.replace("[0, 1]", "[3, 1, 2]")), tmp_path / "runs")
    scores = [{"accuracy": 90.0}] * 3 + [{"perplexity": value} for value in (80.0, 90.0, 100.0)]
    for task, metrics in zip(tasks[:6], scores, strict=True):
        log(task, 1.0)
        (task.folder / "result.json").write_text(
            json.dumps({"recipe_sha256": task.recipe.digest(), "metrics": metrics})
        )
    assert transfer._medians_first(tasks)[:2] == [tasks[2], tasks[4]]  # seed 2 of 1, 2, 3; perplexity 90


@pytest.mark.fault("damaged file of one run in a queue", 6)
@pytest.mark.parametrize("damage", ["", "{", "null", "[" * 200_000, "\0\xff", "3\n"], ids=range(6))
def test_one_damaged_run_keeps_no_other_from_being_packed(tmp_path, damage):
    tasks = queue.load(write(tmp_path), tmp_path / "runs")
    for task in tasks[:3]:
        log(task, 1.0)
        result = {"recipe_sha256": task.recipe.digest(), "metrics": {"accuracy": 90.0}}
        (task.folder / "result.json").write_text(json.dumps(result))
        (task.folder / "model.safetensors").touch()
    (tasks[0].folder / "result.json").write_text(damage, encoding="latin-1")
    (tasks[1].folder / "metrics.jsonl").write_text(damage, encoding="latin-1")
    packed = [file for group in transfer.groups(tasks) for file in group]
    models = [file.parent for file in packed if file.name == "model.safetensors"]
    assert models == [tasks[1].folder, tasks[2].folder]
    assert [queue._summary(task).partition(": ")[2] for task in tasks[:2]] == [
        f"1 of 8 epochs, not finished, see {tasks[0].folder / 'log.txt'}",
        "0 of 8 epochs, accuracy 90.00",
    ]


def test_a_copy_of_a_checkpoint_is_not_packed(tmp_path):
    task = queue.load(write(tmp_path), tmp_path / "runs")[0]
    log(task, 1.0)
    for name in ("epoch-00001", "epoch-00001-keep"):
        (task.folder / "checkpoints" / name).mkdir(parents=True)
        (task.folder / "checkpoints" / name / "state.json").touch()
    assert list(transfer.groups([task]))[-1] == [task.folder / "checkpoints" / "epoch-00001" / "state.json"]


# The command


def command(folder, state, *more):
    asked = [folder / "queue.yaml", "--state", state, "--processes", "1", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "hyperzoo", "queue", *map(str, asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.full
def test_a_stopped_queue_goes_on_elsewhere_to_the_same_weights(tmp_path, data_mirror):
    write(tmp_path, QUEUE.replace("seeds: [0, 1]", "seeds: [0]").replace("spherenet20.sphere_c10: {", "#"))
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    plain = "resnet20_cifar.plain_c10/0"
    stopped = command(tmp_path, here, "--minutes", "4")
    while stopped.poll() is None and not (here / plain / "checkpoints" / "epoch-00002").exists():
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate()[0]
    assert stopped.returncode == 130 and "0 of 2 runs are finished" in said, said
    begun = len((here / plain / "metrics.jsonl").read_text().splitlines())
    assert 2 <= begun < 8
    there.mkdir()
    assert transfer.main(["bring", str(out), "--queue", str(tmp_path / "queue.yaml"), "--state", str(here)]) == 0
    parts = b"".join(part.read_bytes() for part in sorted(out.glob("runs.tar.*")))
    subprocess.run(["tar", "x", "-C", there], input=parts, check=True)

    again = command(tmp_path, there, "--minutes", "4")
    said = again.communicate()[0]
    assert again.returncode == 0 and "2 of 2 runs are finished" in said, said
    assert f"resuming after epoch {begun}" in (there / plain / "log.txt").read_text()
    for task in queue.load(tmp_path / "queue.yaml", there):
        straight = train.run(task.recipe, tmp_path / "straight" / task.label)
        found, expected = (load_file(folder / "model.safetensors") for folder in (task.folder, straight.folder))
        assert all(found[name].equal(expected[name]) for name in expected) and found.keys() == expected.keys()
    assert queue.work(queue.load(tmp_path / "queue.yaml", there), minutes=0.1) == []  # nothing is trained twice


@pytest.mark.full
@pytest.mark.fault("kill -9 of a queue")
def test_the_runs_of_a_killed_queue_stop(tmp_path, data_mirror):
    write(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE.replace("epochs: 8", "epochs: 1000"))
    killed = command(tmp_path, tmp_path / "runs", "--minutes", "4")
    folder = tmp_path / "runs" / "resnet20_cifar.plain_c10" / "0"
    while killed.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    run, until = int((folder / "run.pid").read_text()), time.monotonic() + 60
    while Path("/proc", str(run)).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path("/proc", str(run)).exists()
    assert "Stopped: stopped by SIGTERM" in (folder / "log.txt").read_text()


@pytest.mark.full
def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, data_mirror):
    text = QUEUE.replace("seeds: [0, 1]", "seeds: [0]").replace("sphere_c10: {", "sphere_c10: {optim.lr: 1e30, ")
    write(tmp_path, text)
    process = command(tmp_path, tmp_path / "runs", "--minutes", "4", "--epochs", "2")
    said = process.communicate()[0]
    assert process.returncode == 1 and "2 of 3 runs are finished" in said, said
    assert "spherenet20.sphere_c10, seed 0: 1 of 2 epochs, not finished, see" in said
    assert "NonFiniteError" in (tmp_path / "runs" / "spherenet20.sphere_c10" / "0-2epochs" / "log.txt").read_text()
    asked = ["--queue", str(tmp_path / "queue.yaml"), "--state", str(tmp_path / "runs"), "--epochs", "2"]
    assert transfer.main(["bring", str(tmp_path / "out"), *asked]) == 0
    assert (tmp_path / "out" / "runs.tar.0").stat().st_size > 2_000_000  # two finished weights


# All of it


@pytest.fixture(scope="module")
def small_mirror(tmp_path_factory):
    """16 made images for each split of c10 and c100, and 60 made lines of each text."""
    folder = tmp_path_factory.mktemp("mirror")
    pixels = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for code, classes in (("c10", 10), ("c100", 100)):
        repository = sources.IMAGE_REPOSITORIES[code]
        rows = [{repository.image: Image.fromarray(x.numpy()), repository.label: i % 10} for i, x in enumerate(pixels)]
        labels = datasets.ClassLabel(names=[f"class {i}" for i in range(classes)])
        features = datasets.Features({repository.image: datasets.Image(), repository.label: labels})
        for split in repository.splits:
            place = folder / repository.hub_id / repository.config / f"{split}-00000-of-00001.parquet"
            place.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows, features=features).to_parquet(place)
    for repository in sources.TEXT_REPOSITORIES.values():
        for split in repository.splits:
            place = folder / repository.hub_id / repository.config / f"{split}-00000-of-00001.parquet"
            place.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({repository.text: [f"word {i % 7} of the {split}" for i in range(60)]}), place)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("task", queue.load(OURS, Path("unused"), epochs=1)[::3], ids=lambda task: task.label)
def test_every_row_of_the_queue_of_the_package_trains(task, tmp_path, small_mirror, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(small_mirror))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    values = train.run(task.recipe, tmp_path / "run").values
    assert values["split"] == "test" and values["epochs"] == 1 and (tmp_path / "run" / "model.safetensors").exists()
