"""The examples run unchanged on the embedded data; their terms act, and a missing package is named with its remedy."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from timm.utils import CheckpointSaver

from hyperzoo.regularizers import MHE, PER

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (examples/.*)$", README, re.MULTILINE)


@pytest.fixture
def example(monkeypatch, data_mirror):
    """Import an example by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_the_table_has_every_example_and_every_script_has_its_command():
    files = {file.name for file in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"\]\((\w+\.py)\)", README)) == files
    assert {Path(command.split()[0]).name for command in COMMANDS} == files - {"timm_script.py"}
    for command in COMMANDS:
        name, *arguments = command.split()
        said = f"HYPERZOO_DATA=tests/assets/mirror python {name}{' FOLDER' * len(arguments)}"
        assert said in (ROOT / name).read_text(encoding="utf-8")


MISSING = """
import runpy, sys
sys.modules[sys.argv[1]] = None  # an import of it now raises ModuleNotFoundError
runpy.run_path(sys.argv[2], run_name="__main__")
"""


@pytest.mark.parametrize(
    "name, package, install",
    [
        ("bare_loop", "timm", '"hyperzoo[train]"'),
        ("finetune", "timm", '"hyperzoo[train]"'),
        ("huggingface_trainer", "transformers", '"hyperzoo[train]" transformers'),
        ("lightning_trainer", "lightning", '"hyperzoo[train]" lightning'),
        ("timm_script", "torch", "hyperzoo"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(name, package, install):
    command = [sys.executable, "-c", MISSING, package, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"{package} is not installed: pip install {install}\n")


def test_the_bare_loop_is_short_mixes_and_learns(example, monkeypatch):
    values, mixed = {MHE: [], PER: []}, []
    for kind in values:
        call = kind.__call__
        monkeypatch.setattr(kind, "__call__", lambda term, k=kind, call=call: values[k].append(v := call(term)) or v)
    loop = example("bare_loop")
    mixup = loop.ManifoldMixup.__call__
    monkeypatch.setattr(loop.ManifoldMixup, "__call__", lambda *args: mixed.append(out := mixup(*args)) or out)
    losses = loop.main(epochs=3)
    assert losses[0] > losses[2] > 0
    assert {len(found) for found in (*values.values(), mixed)} == {15}
    assert all(value > 0 and value.requires_grad for found in values.values() for value in found)
    assert any((0 < targets).sum() > len(targets) for _, targets in mixed)  # some rows mix two classes
    body = (EXAMPLES / "bare_loop.py").read_text().partition("def main")[2].partition("if __name__")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30


@pytest.mark.parametrize("name", ["bare_loop", "huggingface_trainer", "lightning_trainer"])
@pytest.mark.parametrize("term, guide", [("MHE", "mhe"), ("PER", "per")])
def test_strengths_are_those_of_the_guides(name, term, guide):
    def settings(text):
        called = re.search(rf"{term}\((?:self\.)?model, ([^)]*)\)", text)[1]
        return {key: value for key, value in re.findall(r"(\w+)=([^,]+)", called) if key not in ("layers", "slices")}

    document = (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")
    assert settings((EXAMPLES / f"{name}.py").read_text(encoding="utf-8")) == settings(document) != {}


@pytest.mark.full
def test_fine_tuning_is_worth_more_than_a_start_from_nothing(example):
    finetune = example("finetune")
    _, labels = finetune.three_classes("test").tensors
    assert labels.bincount().tolist() == [300, 100, 100]
    assert finetune.main(epochs=4) > 88 > 66 > finetune.main(epochs=4, pretrained=False)  # the largest class has 60 %


def test_a_model_brings_its_term_into_a_script_that_knows_none(example):
    example("timm_script")
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    model = timm.create_model("spherenet20_mhe", num_classes=3, hidden=0.5, output=2.0)
    plain = timm.create_model("spherenet20", num_classes=3)
    plain.load_state_dict(model.state_dict())
    loss = ClassificationTask(model, verbose=False)(images, labels)["loss"]
    loss.backward()
    term = MHE(plain, hidden=0.5, output=2.0)
    expected = torch.nn.functional.cross_entropy(plain(images), labels)
    assert loss == expected
    without = torch.autograd.grad(expected, plain.fc.weight, retain_graph=True)[0]
    (expected + term()).backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)  # the order of one sum differs
    assert not torch.allclose(plain.fc.weight.grad, without, rtol=1e-3)
    model.eval(), plain.eval()
    assert torch.equal(model(images), plain(images)) and "AddTerm" not in model(images).grad_fn.name()


@pytest.mark.full
def test_what_timms_script_does_with_the_model(example, tmp_path, monkeypatch):
    """The steps of timm 1.0.31's train.py on random images, with averaged weights and checkpoints."""
    example("timm_script")
    torch.manual_seed(0)
    unset = dict.fromkeys(("drop_path_rate", "drop_block_rate", "global_pool", "bn_momentum", "bn_eps"))
    args = dict(in_chans=3, num_classes=3, drop_rate=0.0, scriptable=False, checkpoint_path="", **unset)
    model = timm.create_model("spherenet20_mhe", pretrained=True, **args)
    task = ClassificationTask(model, device=torch.device("cpu"), criterion_kwargs=dict(smoothing=0.1), verbose=False)
    optimizer = create_optimizer_v2(task.get_trainable_module(), "sgd", lr=0.01)
    task.setup_ema(decay=0.9)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), task=task)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    losses = []
    for step in range(1, 5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task(images, labels)["loss"]
        loss.backward()
        optimizer.step()
        task.update_ema(step=step)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert task.get_eval_model(ema=True).eval()(images).shape == (6, 3)
    written, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda content, path: written.append(content) or save(content, path))
    saver.save_checkpoint(0, metric=losses[-1])  # a pickle, which is not opened here
    assert (tmp_path / "checkpoint-0.pth.tar").stat().st_size > 0
    (saved,) = (content["state_dict"] for content in written)
    assert saved.keys() == timm.create_model("spherenet20", num_classes=3).state_dict().keys()


DEVICE_MODULES = """
import argparse, importlib, json, timm
parser = argparse.ArgumentParser()
parser.add_argument("--device-modules", nargs="+")
parser.add_argument("--model")
args = parser.parse_args()
before = timm.is_model(args.model)
for module in args.device_modules:
    importlib.import_module(module)
made = timm.create_model(args.model).pretrained_cfg["architecture"]
print(json.dumps([before, timm.is_model(args.model), made]))
"""


@pytest.mark.full
@pytest.mark.parametrize(
    "module, model, made",
    [("hyperzoo", "resnet20_cifar", "resnet20_cifar"), ("timm_script", "spherenet20_mhe", "spherenet20")],
)
def test_device_modules_registers_the_models(module, model, made):
    command = [sys.executable, "-c", DEVICE_MODULES, "--device-modules", module, "--model", model]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(EXAMPLES)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, True, made]


COUNTED = """
import json, runpy, sys
from hyperzoo.regularizers import MHE, PER
calls = {"MHE": 0, "PER": 0}
def count(kind):
    call = kind.__call__
    def counted(term):
        calls[kind.__name__] += 1
        return call(term)
    kind.__call__ = counted
count(MHE), count(PER)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(json.dumps(calls))
"""
STEPS = {"bare_loop": 25, "finetune": 0, "huggingface_trainer": 12, "lightning_trainer": 12}


@pytest.mark.full
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: Path(command.split()[0]).stem)
def test_the_commands_run(command, tmp_path, data_mirror):
    words = [str(tmp_path / "out") if word.startswith("runs/") else word for word in shlex.split(command)]
    done = subprocess.run([sys.executable, "-c", COUNTED, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, calls = done.stdout.splitlines()
    steps = STEPS[Path(words[0]).stem]
    assert json.loads(calls) == {"MHE": steps, "PER": steps}
    assert re.search("accuracy|loss", said[-1])
    if "huggingface" in command:
        tensors = load_file(tmp_path / "out" / "model.safetensors")
        again = timm.create_model("spherenet20", checkpoint_path=str(tmp_path / "out" / "model.safetensors"))
        assert all(torch.equal(value, tensors[name]) for name, value in again.state_dict().items())
