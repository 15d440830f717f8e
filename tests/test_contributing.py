"""What CONTRIBUTING.md says about files, commands and marks is so, and its five additions work when they are made."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import datasets
import numpy as np
import pytest
from click import Context
from PIL import Image

from hyperzoo.cli.commands import cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ADDITIONS = [code for kind, code in BLOCKS if kind in ("python", "yaml")]
SHELL = [line.partition("#")[0].strip() for kind, code in BLOCKS if kind == "sh" for line in code.splitlines()]
SAID = [*SHELL, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))]


def file_of(addition: str) -> str:
    return addition.partition("\n")[0].removeprefix("# ").partition(", below: ")[0]


def apply(addition: str, root: Path) -> Path:
    """Make an addition in a copy of the repository: a new file, lines under a given one, or at the end of a file."""
    head, _, rest = addition.partition("\n")
    name, _, above = head.removeprefix("# ").partition(", below: ")
    file = root / name
    if above:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (place,) = (i for i, line in enumerate(lines) if line.strip() == above.strip())
        file.write_text("".join([*lines[: place + 1], rest, *lines[place + 1 :]]), encoding="utf-8")
    else:
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        file.write_text(before + rest, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A copy of the repository with all additions."""
    copy = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
    for addition in ADDITIONS:
        apply(addition, copy)
    return copy


def test_the_five_kinds_of_additions_are_there():
    titles = re.findall(r"^### (.*)$", TEXT, re.MULTILINE)
    assert titles == ["A model", "A layer", "A loss or a regularizer", "A recipe", "A data set, and a weight"]
    assert len(ADDITIONS) >= 10 and {kind for kind, _ in BLOCKS} == {"python", "yaml", "sh"}


def test_every_file_that_is_named_exists_or_is_made():
    words = {word for said in SAID for word in said.split() if re.search(r"\w/|\.(py|md|toml|json)$", word)}
    named = {word for word in words if not word.startswith((".venv/", "timm/", "runs/", "recipes/stridenet/"))}
    missing = named - {file_of(addition) for addition in ADDITIONS}
    missing = {word for word in missing if not any((ROOT / part / word).exists() for part in ("", "hyperzoo"))}
    assert len(named) > 15 and missing == set()


@pytest.mark.parametrize("line", [line for line in SAID if line.startswith("make ")])
def test_make_knows_its_targets(line):
    done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{line.split()[1]} " in (ROOT / "Makefile").read_text() and line.split()[1] in TEXT


@pytest.mark.parametrize("line", sorted({said for said in SAID if said.startswith("hyperzoo ")}))
def test_commands_and_their_options_exist(line):
    _, name, *words = shlex.split(line)
    command = cli.get_command(Context(cli), name)
    if words and not words[0].startswith("--"):
        command.make_context(name, words)
    else:  # a command that is only named, or with an option
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(words) <= options


def test_the_marks_are_those_of_pytest():
    marks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    table = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert table | {"fault"} == {re.match(r"\w+", mark)[0] for mark in marks}


@pytest.mark.full
def test_ruff_likes_the_additions(made):
    files = {file_of(addition) for addition in ADDITIONS if file_of(addition).endswith(".py")}
    for command in (["check"], ["format", "--check"]):
        words = [sys.executable, "-m", "ruff", *command, *sorted(files)]
        done = subprocess.run(words, cwd=made, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


RUNS = {
    "model": ["tests/test_models.py", "-k", "stridenet8"],
    "layer and regularizer": ["tests/test_unit_length.py", "tests/test_frame_potential.py", "--doctest-modules",
                              "hyperzoo/layers/unit_length.py", "hyperzoo/regularizers/frame_potential.py"],
    "words of a recipe": ["tests/test_build.py", "-k", "frame_potential or agree"],
    "layers of the package": ["tests/test_structure.py", "-k",
                              "stridenet or unit_length or frame_potential or explicitly or eats"],
    "recipe": ["tests/test_spine.py", "-k", "every_recipe_is_valid"],
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("what", RUNS)
def test_the_additions_pass_the_tests_that_they_get(made, what):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *RUNS[what]]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 1


FASHION = """
model: {arch: stridenet8}
data: {name: fashion, batch_size: 8}
optim: {lr: 0.01}
train: {epochs: 1, compile: off, precision: fp32}
"""
LOADED = """
import hyperzoo, timm, torch
from hyperzoo.data import load_images
images = load_images("fashion", "test")
model = timm.create_model("stridenet8.plain_fashion", pretrained=True).eval()
with torch.inference_mode():
    answers = model(hyperzoo.preprocess("stridenet8.plain_fashion")(images.images)).argmax(1)
cfg = model.pretrained_cfg
print(int((answers == images.labels).sum()), cfg["input_size"], cfg["mean"], cfg["std"])
"""


def gray_images(folder: Path) -> list[np.ndarray]:
    """A mirror of the added data set: made gray images of 28 x 28 pixels; returns those of the training split."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))})
    folder.mkdir(parents=True)
    splits = []
    for seed, (split, count) in enumerate((("train", 24), ("test", 20))):
        images = list(np.random.default_rng(seed).integers(0, 200, (count, 28, 28), dtype=np.uint8))
        rows = {"image": [Image.fromarray(image) for image in images], "label": [i % 10 for i in range(count)]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        splits.append(images)
    return splits[0]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_data_set_of_gray_images_trains_and_publishes(made, tmp_path):
    pixels = np.stack(gray_images(tmp_path / "data" / "zalando-datasets" / "fashion_mnist" / "fashion_mnist")) / 255
    recipe = made / "recipes" / "stridenet" / "stridenet8.plain_fashion.yaml"
    recipe.parent.mkdir()
    recipe.write_text(FASHION)
    environment = {**os.environ, "HYPERZOO_DATA": str(tmp_path / "data"), "HF_HOME": str(tmp_path / "cache")}

    def call(*words: object) -> str:
        done = subprocess.run(list(map(str, words)), cwd=made, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("git", "init", "-q")  # a result cannot be published without a commit of the code
    call("git", "add", "hyperzoo", "recipes")
    call("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", "All additions")
    hyperzoo = (sys.executable, "-m", "hyperzoo")
    call(*hyperzoo, "train", recipe, "--out", tmp_path / "run")
    call(*hyperzoo, "publish", "stridenet8.plain_fashion", tmp_path / "run")
    assert "correct of 20" in call(*hyperzoo, "verify", "stridenet8.plain_fashion")
    entry = json.loads((made / "hyperzoo" / "weights.json").read_text())["weights"]["stridenet8.plain_fashion"]
    assert (
        entry["dataset_terms"] == "MIT" and "MIT" in (made / "model_cards" / "stridenet8.plain_fashion.md").read_text()
    )
    mean, std = round(float(pixels.mean()), 4), round(float(pixels.std()), 4)
    correct = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["correct"]
    assert call(sys.executable, "-c", LOADED) == f"{correct} (1, 28, 28) ({mean},) ({std},)\n"
