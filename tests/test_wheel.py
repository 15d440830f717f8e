"""The sdist builds, the wheel builds out of it, and does without checkout and extras: all weights load, every command
runs or says in one sentence what it lacks."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hyperzoo.cli import commands
from hyperzoo.zoo import weight_files

pytestmark = pytest.mark.full
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TRAIN, EXPORT = r'pip install "?hyperzoo\[train\]', r'pip install "?hyperzoo\[export\]'
# What each command is given, and what it says that it lacks; None where it needs nothing else.
COMMANDS = {
    "list": ([], None),
    "info": (["spherenet20"], None),
    "train": (["spherenet20.sphere_c10"], TRAIN),
    "eval": (["spherenet20"], TRAIN),
    "predict": (["spherenet20", "nowhere"], TRAIN),
    "verify": (["--all"], None),
    "reproduce": (["spherenet20"], TRAIN),
    "queue": (["queue.yaml", "--minutes", "1"], TRAIN),
    "card": (["--check"], TRAIN),
    "push": (["run", "me/run"], TRAIN),
    "publish": (["spherenet20.sphere_c10", "run"], TRAIN),
    "export": (["spherenet20", "out.onnx"], EXPORT),
    "plot": (["operators"], TRAIN),
    "energy": (["spherenet20"], TRAIN),
    "activations": (["spherenet20"], TRAIN),
    "generate": (["spherenet20"], "is not a language model"),
    "site": (["page", "--no-demo"], TRAIN),
}


def run(*command, **kwargs):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built out of it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / sdist.name[:-7])
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (file,) = dist.glob("*.whl")
    return file


def described(wheel: Path) -> metadata.Distribution:
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name)
    return metadata.PathDistribution(zipfile.Path(wheel) / folder)


def required(dist: metadata.Distribution, extras: tuple[str, ...] = ("",)) -> dict[str, metadata.Distribution]:
    """The installed distributions that one needs with these extras, and those that these need."""
    found: dict[str, metadata.Distribution] = {}
    todo = [(dist, extras)]
    while todo:
        dist, extras = todo.pop()
        for requirement in map(Requirement, dist.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                name = canonicalize_name(requirement.name)
                if name not in found or requirement.extras:
                    found[name] = metadata.distribution(name)
                    todo.append((found[name], ("", *requirement.extras)))
    return found


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that holds the wheel and links to what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for dist in required(described(wheel)).values():
        for top in {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(dist.locate_file(top))))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, "check")
    return python


DRIVER = """
import contextlib, io, json, sys
def refuse(event, args):
    if event == "socket.connect":
        raise OSError("no network here")
sys.addaudithook(refuse)
import hyperzoo
from hyperzoo.cli import main
loaded = {name: len(hyperzoo.load(name).model.state_dict()) for name in hyperzoo.zoo.weight_files.MANIFEST.bundled()}
results = {}
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(words)
        except SystemExit as end:
            results[words[0]] = end.code, out.getvalue(), err.getvalue()
print(json.dumps([hyperzoo.__file__, loaded, results]))
"""


@pytest.fixture(scope="module")
def outcome(clean, tmp_path_factory):
    """Where the package lies, the weights that were loaded, and (exit code, stdout, stderr) of every command."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    env = {"PATH": os.environ["PATH"], "HF_HOME": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    commands = json.dumps([[name, *arguments] for name, (arguments, _) in COMMANDS.items()])
    return json.loads(run(clean, "-W", "ignore", "-c", DRIVER, commands, cwd=cwd, env=env).splitlines()[-1])


def test_the_wheel_holds_the_package_its_weights_and_recipes_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "hyperzoo", "recipes")
    tracked = run(*listed, cwd=ROOT).splitlines()
    expected = {f"hyperzoo/{name}" if name.startswith("recipes/") else name for name in tracked}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 95_000_000  # PyPI takes 100 MB


def test_the_sdist_holds_what_the_wheel_is_built_of(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    files = {"README.md", "LICENSE", "CHANGELOG.md", "hubconf.py", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert tops == {"hyperzoo", "recipes", *files}


def test_the_metadata(wheel):
    said = described(wheel).metadata
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("hyperzoo", PROJECT["version"], "MIT")
    assert said["Description-Content-Type"] == "text/markdown" and "# hyperzoo" in said.get_payload()
    assert said["Requires-Python"] == ">=3.11" and said["Summary"] == PROJECT["description"]
    assert said["Keywords"].split(",") == sorted(PROJECT["keywords"]) and len(said.get_all("Classifier")) >= 5
    assert len(said.get_all("Project-URL")) == len(PROJECT["urls"])
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_the_environment_has_no_optional_package(clean, wheel):
    extras = required(described(wheel), ("train", "export")).keys() - required(described(wheel)).keys()
    assert {"datasets", "pydantic", "matplotlib", "onnx"} <= extras
    names = json.loads(run(clean, "-c", "import json, importlib.metadata as m; "
                           "print(json.dumps([dist.name for dist in m.distributions()]))"))  # fmt: skip
    assert not extras & set(map(canonicalize_name, names)) and "hyperzoo" in names


def test_every_bundled_weight_loads_from_the_installed_package(outcome, clean):
    place, loaded, _ = outcome
    assert clean.parent.parent in Path(place).parents
    assert loaded.keys() >= set(weight_files.MANIFEST.bundled()) and all(loaded.values())


def test_every_command_is_tried():
    assert COMMANDS.keys() == commands.COMMANDS.keys(), "write into COMMANDS what the new command is to be tried with"


@pytest.mark.fault("command without the extras and without a checkout")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_or_says_in_one_sentence_what_it_lacks(outcome, command):
    code, out, err = outcome[2][command]
    lacks = COMMANDS[command][1]
    if lacks is None:
        assert (code, err) == (0, "") and out, err
    else:
        assert (code, len(err.splitlines())) == (1, 1) and re.search(lacks, err), err


def test_the_console_script_runs(clean, tmp_path):
    env = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path)}
    assert "spherenet20.sphere_c10\t" in run(clean.parent / "hyperzoo", "list", cwd=tmp_path, env=env)
