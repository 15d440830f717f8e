"""Every code block of README and guides runs unchanged, and their statements on commands and files are true."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from hyperzoo.cli.commands import COMMANDS, cli
from hyperzoo.cli.main import TRAIN_EXTRA
from hyperzoo.training.recipe import load_recipe
from hyperzoo.training.sweep_file import load_sweep

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(path for path in ROOT.glob("docs/*.md") if path.name != "own_images.md")  # that one: test_tutorial
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCED.findall(README)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
SHELL = [
    command
    for text in (README, *(path.read_text(encoding="utf-8") for path in DOCS))
    for kind, code in FENCED.findall(text)
    if kind == "sh"
    for line in code.splitlines()
    if (command := line.partition("  #")[0].strip())
]
SHORTER = [
    "train.epochs=1",
    "optim.warmup_epochs=0",
    "data.resize_px={}",
    "train.compile=off",
]  # one epoch on 130 images


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch, data_mirror):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code, tmp_path):
    exec(compile(code, "README.md", "exec"), {"out": tmp_path / "run"} if "out)" in code else {})


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_the_blocks_of_a_document_run_one_after_the_other(path, tmp_path):
    blocks = FENCED.findall(path.read_text(encoding="utf-8"))
    assert {kind for kind, _ in blocks} <= {"python", "yaml", "sh", "bibtex"}
    space: dict[str, object] = {}
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, path.name, "exec"), space)
        elif kind == "yaml" and "rows:" in code:
            (tmp_path / "sweep.yaml").write_text(code, encoding="utf-8")
            assert load_sweep(tmp_path / "sweep.yaml")[1]
        elif kind == "yaml":  # part of a recipe: laid over a whole one
            overrides = YAML(typ="safe", pure=True).load(code)
            assert load_recipe(ROOT / "recipes" / "demo.yaml", overrides_of(overrides))


def overrides_of(values, prefix=""):
    """Nested keys as 'block.key=value'."""
    found = []
    for key, value in values.items():
        found += (
            overrides_of(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else [f"{prefix}{key}={json.dumps(value)}"]
        )
    return found


@pytest.mark.parametrize("line", [line for line in SHELL if re.match(r"(\w+=\S+ )?hyperzoo ", line)])
def test_commands_run(line, tmp_path, monkeypatch):
    words = shlex.split(line)
    while "=" in words[0]:
        variable, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(variable, value)
    assert words.pop(0) == "hyperzoo"
    result_file = "result.json"
    if "tiny.yaml" in words:  # the sweep on the page, with one seed
        (code,) = (code for kind, code in FENCED.findall(TRAINING) if kind == "yaml" and "rows:" in code)
        (tmp_path / "tiny.yaml").write_text(code.replace("seeds: [0, 1]", "seeds: [0]"), encoding="utf-8")
        words, result_file = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")], "sweep.json"
    elif words[0] == "train":
        shorter = [] if "recipes/demo.yaml" in words else SHORTER
        words += [*shorter, "--out", str(tmp_path / "run")]
    if words[0] == "export":
        words[2] = str(tmp_path / words[2])
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    assert result.exception is None and not result.return_value, result.output
    assert words[0] != "train" or (tmp_path / "run" / result_file).is_file()


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("make ")])
def test_make_knows_its_targets(line):
    done = subprocess.run([*shlex.split(line), "-n"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("demo.py" if "demo" in line else "pytest") in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("line", [line for line in SHELL if "torchrun" in line])
def test_two_processes_run(line, tmp_path):
    variable, _, command = line.partition(" ")
    words = [*shlex.split(command), *SHORTER, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict([variable.split("=")])}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:]], env=environment, timeout=200)
    assert done.returncode == 0 and (tmp_path / "run" / "result.json").is_file()


def test_every_block_is_run_by_one_of_these_tests():
    assert {kind for kind, _ in BLOCKS} == {"python", "sh"} and len(PYTHON) >= 3
    assert [line for line in SHELL if not re.match(r"(\w+=\S+ )?(hyperzoo|make|pip|torchrun) ", line)] == []


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("pip ")])
def test_installed_extras_exist(line):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.search(r"\[(\w+)\]", line)
    assert asked and asked[1] in extras


def test_every_command_is_named():
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", path.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (path.parent / link).exists()] == []


def test_the_optional_packages_are_those_of_the_metadata():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert {re.match(r"\w+", package)[0] for package in extras} == set(TRAIN_EXTRA)
