"""`import hyperzoo` shows the public names only, registers the models with timm, and costs the command nothing."""

import os
import pydoc
import re
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import hyperzoo

FUNCTIONS = {"list_models", "list_weights", "load", "preprocess", "weight_info"}
CLASSES = {"Loaded", "WeightInfo"}
PACKAGES = {"data", "layers", "losses", "mixup", "models", "regularizers"}
HEAVY = ("torch", "timm", "numpy", "accelerate", "datasets", "huggingface_hub", "rich")


def run(*arguments, **environment):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=280
    )


def test_dir_and_all_are_the_public_names():
    assert set(hyperzoo.__all__) == FUNCTIONS | CLASSES | PACKAGES
    assert dir(hyperzoo) == sorted([*hyperzoo.__all__, "__version__"])
    with pytest.raises(AttributeError, match="module 'hyperzoo' has no attribute 'lod'"):
        _ = hyperzoo.lod


def test_help_lists_the_functions():
    text = pydoc.render_doc(hyperzoo, renderer=pydoc.plaintext)
    listed = re.split(r"\n(?=[A-Z])", text.split("\nFUNCTIONS\n")[1])[0]
    assert {line.strip().split("(")[0] for line in listed.splitlines() if line[4:5].strip()} == FUNCTIONS
    assert "Load a published weight or a run folder" in listed


IMPORTED = """
import sys, hyperzoo
assert "torch" in sys.modules
print([m for m in ("accelerate", "datasets", "hyperzoo.data", "hyperzoo.training") if m in sys.modules])
import timm
print(type(timm.create_model("spherenet20", device="meta")).__module__)
print(hyperzoo.mixup.Mixup.__module__, hyperzoo.regularizers.MHE.__module__, hyperzoo.losses.SoftTarget.__module__)
print(hyperzoo.data.load_images.__name__, hyperzoo.layers.SphereConv2d.__name__, "datasets" in sys.modules)
"""


def test_a_program_gets_the_models_at_once_and_the_rest_on_use():
    assert run("-c", IMPORTED).stdout.splitlines() == [
        "[]",
        "hyperzoo.models.spherenet",
        "hyperzoo.mixup.images hyperzoo.regularizers.mhe hyperzoo.losses.soft_target",
        "load_images SphereConv2d False",
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["info", "--help"]])
def test_the_command_answers_without_torch(arguments):
    loaded = run("-X", "importtime", "-m", "hyperzoo", *arguments).stderr
    names = {line.rpartition("|")[2].strip() for line in loaded.splitlines() if line.startswith("import time:")}
    assert "hyperzoo.cli.main" in names and not names & set(HEAVY)


def test_shell_completion_answers_without_torch():
    words = dict(_HYPERZOO_COMPLETE="bash_complete", COMP_WORDS="hyperzoo ver", COMP_CWORD="1")
    done = run("-X", "importtime", "-m", "hyperzoo", **words)
    assert done.stdout == "plain,verify\n"
    assert not {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()} & set(HEAVY)


SCRIPT = """
import sys
from hyperzoo.cli.main import main
print("torch" in sys.modules)
sys.argv = ["hyperzoo", *sys.argv[1:]]
main()
"""


def test_the_console_script_is_recognized_and_its_commands_find_the_models(tmp_path):
    script = tmp_path / "bin" / "hyperzoo"  # as an installer writes it
    script.parent.mkdir()
    script.write_text(SCRIPT)
    lines = run(str(script), "info", "spherenet20.sphere_c10").stdout.splitlines()
    assert lines[0] == "False" and any("spherenet20.sphere_c10" in line for line in lines[1:])
    other = tmp_path / "bin" / "mine"
    other.write_text(SCRIPT)
    assert run(str(other), "--version").stdout.splitlines()[0] == "True"


def test_another_module_that_is_run_gets_the_models(tmp_path):
    (tmp_path / "hyper").mkdir()
    (tmp_path / "hyper" / "__init__.py").write_text("import hyperzoo\n")  # imported while Python looks for hyper.main
    (tmp_path / "hyper" / "main.py").write_text("import timm\nprint(timm.is_model('spherenet20'))\n")
    assert run("-m", "hyper.main", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}").stdout == "True\n"


def test_preprocess_is_the_transform_of_an_image_folder(tmp_path):
    from PIL import Image

    for label, (width, height) in (("cat", (40, 33)), ("dog", (32, 32))):
        (tmp_path / label).mkdir()
        Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / label / "1.png")
    folder = ImageFolder(tmp_path, transform=hyperzoo.preprocess("spherenet20"))
    images, labels = next(iter(DataLoader(folder, batch_size=2)))
    assert images.shape == (2, 3, 32, 32) and labels.tolist() == [0, 1]
    assert hyperzoo.load("spherenet20").model(images).shape == (2, 10)
