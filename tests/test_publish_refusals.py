"""Runs that must not be published are refused, and nothing changes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import finished
from support.finished import NAME, another_seed, change, contents, result, stamp

from hyperzoo import errors
from hyperzoo.publishing import publish


def retensor(run, change):
    state = load_file(run / "model.safetensors")
    change(state)
    save_file(state, run / "model.safetensors")
    stamp(run)


def nan(checkout, run):
    retensor(run, lambda state: state["fc.bias"].fill_(float("nan")))


def drop_a_tensor(checkout, run):
    retensor(run, lambda state: state.pop("layer2.0.conv1.weight"))


def int8(checkout, run):
    retensor(run, lambda state: state.update({"fc.bias": state["fc.bias"].to(torch.int8)}))


def other_weights(checkout, run):
    retensor(run, lambda state: (state["fc.weight"].neg_(), state["fc.bias"].neg_()))
    change(run, "result.json", metrics={**result(run)["metrics"], "correct": 16, "accuracy": 100.0})


def weights_of_another_run(checkout, run):
    save_file({k: v * 1.01 for k, v in load_file(run / "model.safetensors").items()}, run / "model.safetensors")


def log_of_another_run(checkout, run):
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    (run / "metrics.jsonl").write_text(json.dumps({**row, "loss": 0.5}) + "\n")


def log_of_a_shorter_run(checkout, run):
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    (run / "metrics.jsonl").write_text(json.dumps({**row, "epoch": row["epoch"] + 1}) + "\n")
    stamp(run)


def metrics(**values):
    return lambda checkout, run: change(run, "result.json", metrics={**result(run)["metrics"], **values})


def label_names(count, **values):
    names = [f"class {i}" for i in range(count)]
    return lambda checkout, run: change(run, "config.json", label_names=names, **values)


def embedded_sample(checkout, run):
    shutil.rmtree(checkout.mirror)
    finished.mirror(checkout.mirror, slice(10, 18), slice(0, 12))  # the training images of the run


def other_recipe(checkout, run):
    file = checkout.recipes / "resnet_cifar" / f"{NAME}.yaml"
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.02"))


def path_in_the_config(checkout, run):
    change(run, "result.json", environment={**result(run)["environment"], "torch": "/home/someone/torch"})


def reversed_names(checkout, run):
    names = json.loads((run / "config.json").read_text())["label_names"]
    change(run, "config.json", label_names=names[::-1])


FAULTS = {
    "NaN": (nan, r"NaN or infinity: fc\.bias"),
    "int8": (int8, r"other dtype: fc\.bias int8, not float32"),
    "9 names": (label_names(9), "must be a list of 10 names; got 9"),
    "11 names": (label_names(11), "must be a list of 10 names; got 11"),
    "9 classes": (label_names(9, num_classes=9), r"other shape: fc\.weight \(10, 64\), not \(9, 64\)"),
    "accuracy of another run": (metrics(accuracy=99.9), "accuracy 99.9 does not fit"),
    "accuracy NaN": (metrics(accuracy=float("nan")), "accuracy nan does not fit"),
    "more than all": (metrics(correct=17, accuracy=106.25), "17 correct answers of 16"),
    "NLL of another run": (metrics(nll=0.1), "reports an NLL of 0.1, but its file gives"),
    "no NLL": (metrics(nll=None), "metrics.nll is None"),
    "weights of another run": (weights_of_another_run, "model.safetensors has changed since the run ended"),
    "log of another run": (log_of_another_run, "metrics.jsonl has changed since the run ended"),
    "log of a shorter run": (log_of_a_shorter_run, r"metrics\.jsonl ends with epoch 2, but the result is of 1"),
    "result without a recipe": (lambda checkout, run: change(run, "result.json", recipe=None), "recipe is None"),
    "result without a seed": (lambda checkout, run: change(run, "result.json", seed="0"), "seed is '0'"),
    "missing tensor": (drop_a_tensor, "missing: layer2.0.conv1.weight"),
    "another network than measured": (other_weights, "16 correct answers, but its file gives"),
    "embedded sample": (embedded_sample, "embedded sample"),
    "other recipe": (other_recipe, f"its recipe differs from {NAME}.yaml"),
    "unfinished": (lambda checkout, run: (run / "result.json").unlink(), "result.json is missing"),
    "damaged result": (lambda checkout, run: (run / "result.json").write_text("{"), "result.json is damaged"),
    "held out": (
        lambda checkout, run: change(run, "result.json", split="held-out part of train"),
        "not on the test split",
    ),
    "unknown commit": (
        lambda checkout, run: change(run, "result.json", environment={**result(run)["environment"], "commit": None}),
        "commit is unknown",
    ),
    "changed recipe": (
        lambda checkout, run: change(run, "result.json", recipe_changes=[{"after_epoch": 1, "changed": {}}]),
        "its recipe was changed while it ran",
    ),
    "path": (path_in_the_config, "path of this machine"),
    "class names in another order": (reversed_names, "'truck' in the place of 'airplane'"),
    "README without marks": (lambda checkout, run: checkout.readme.write_text("nothing"), "lacks the line"),
    "no recipe": (lambda checkout, run: shutil.rmtree(checkout.recipes), "needs exactly one recipe"),
}


@pytest.mark.fault("run that must not be published")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_changes_nothing(work, fault):
    checkout, run = work
    spoil, message = FAULTS[fault]
    spoil(checkout, run)
    before = contents(checkout.root)
    with pytest.raises((errors.PublishError, errors.WeightFileError), match=message):
        publish.publish(NAME, [run], checkout=checkout)
    assert contents(checkout.root) == before


def test_runs_that_do_not_match_are_refused(work):
    checkout, run = work
    with pytest.raises(errors.PublishError, match="same seed: 0, 0"):
        publish.publish(NAME, [run, run], checkout=checkout)
    with pytest.raises(errors.PublishError, match="its train data differ from those of"):
        publish.publish(NAME, [run, another_seed(run, 1, train_fingerprint="0" * 64)], checkout=checkout)
    with pytest.raises(errors.PublishError, match="pass at least one run folder"):
        publish.publish(NAME, [], checkout=checkout)
