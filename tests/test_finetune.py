"""Fine-tuning: a run starts from a weight, a model of timm or another run."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support.tiny import equal
from test_own_images import COLORS, fill, own_cache, recipe  # noqa: F401

import hyperzoo
from hyperzoo import files
from hyperzoo.cli.commands import cli
from hyperzoo.errors import RecipeError, RunError, UnknownNameError, WeightUnavailableError
from hyperzoo.experiments import build, train
from hyperzoo.experiments.pretrained import finetuning_recipe
from hyperzoo.training import seeding
from hyperzoo.training.schedule import make_optimizer
from hyperzoo.zoo import weight_files

WEIGHT = "resnet20_cifar.plain_c10"


def test_a_weight_is_loaded_under_a_new_classifier():
    plan = recipe("photos", model=dict(pretrained=WEIGHT))
    weight = hyperzoo.load(WEIGHT).model.state_dict()
    for classes in (("a", "b", "c"), tuple("abcdefghij")):  # also if their number is that of the weight
        network = build.model(plan, classes, 3)
        tensors = network.state_dict()
        differ = {
            name
            for name in weight
            if tensors[name].shape != weight[name].shape or (tensors[name] != weight[name]).any()
        }
        assert differ == {"fc.weight", "fc.bias"} and len(tensors["fc.bias"]) == len(classes)
    kept = build.model(plan, hyperzoo.load(WEIGHT).classes, 3).state_dict()  # the same classes: the same classifier
    assert all(torch.equal(kept[name], weight[name]) for name in weight)


def test_a_new_classifier_is_not_the_one_from_which_the_earlier_run_was_trained(tmp_path):
    folder = fill(tmp_path / "set")
    plan = recipe(folder, model=dict(pretrained=WEIGHT))
    first = train.run(plan, tmp_path / "first")
    seeding.seed_epoch(0, 0)  # as every run with the seed 0 begins
    earlier = build.model(plan, ("a", "b", "c"), 3)
    seeding.seed_epoch(0, 0)
    again = build.model(recipe(folder, model=dict(pretrained=str(first.folder))), ("a", "b", "c"), 3)
    cosine = torch.nn.functional.cosine_similarity(earlier.fc.weight, again.fc.weight)
    assert (cosine.abs() < 0.6).all()  # of independent directions in 64 dimensions; 1 before
    seeding.seed_epoch(1, 0)
    assert torch.equal(build.model(plan, ("a", "b", "c"), 3).fc.weight, earlier.fc.weight)  # whatever was drawn before


@pytest.mark.parametrize("frozen, trained", [("backbone", {"fc.weight", "fc.bias"}), (["layer*", "conv1.*"], None)])
def test_frozen_layers_keep_their_weights_and_their_statistics(tmp_path, frozen, trained):
    folder = fill(tmp_path / "set")
    plan = recipe(folder, model=dict(pretrained=WEIGHT, freeze=frozen))
    train.run(plan, tmp_path / "run")
    before, after = hyperzoo.load(WEIGHT).model.state_dict(), hyperzoo.load(str(tmp_path / "run")).model.state_dict()
    same = {
        name for name in before if before[name].shape == after[name].shape and torch.equal(before[name], after[name])
    }
    if trained is not None:
        assert before.keys() - same == trained
    else:
        assert {name for name in before if name.startswith(("layer", "conv1."))} <= same and "bn1.weight" not in same


def test_layer_decay_scales_the_rate_by_the_depth(tmp_path):
    plan = recipe(
        "photos", model=dict(arch="test_vit", args=dict(img_size=8, patch_size=4)), optim=dict(layer_decay=0.5)
    )
    step = build.step(plan, build.model(plan, 3, 3))
    scales = {p: group["lr_scale"] for group in make_optimizer(step, plan.optim).param_groups for p in group["params"]}
    found = {name: scales[p] for name, p in step.model.named_parameters()}
    depth = len(step.model.blocks)
    assert found["head.weight"] == 1 and found["blocks.0.attn.qkv.weight"] == 0.5**depth
    assert found["patch_embed.proj.weight"] == 0.5 ** (depth + 1)


def test_a_run_says_from_what_it_started_and_another_run_starts_from_it(tmp_path):
    folder = fill(tmp_path / "set")
    done = train.run(recipe(folder, model=dict(pretrained=WEIGHT)), tmp_path / "first")
    assert done.values["started_from"] == {
        "name": WEIGHT,
        "sha256": files.sha256(weight_files.path(WEIGHT, "model.safetensors")),
    }
    plan = recipe(folder, model=dict(pretrained=str(tmp_path / "first"), freeze="backbone"))
    network, first = build.model(plan, tuple(COLORS), 3), hyperzoo.load(str(tmp_path / "first")).model
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), first.state_dict().values(), strict=True)
    )
    again = train.run(plan, tmp_path / "second")
    assert again.values["started_from"]["sha256"] == files.sha256(tmp_path / "first" / "model.safetensors")


def test_a_stopped_run_goes_on_from_its_checkpoint_and_not_from_the_weight(tmp_path):
    folder = fill(tmp_path / "set")
    plan = recipe(folder, model=dict(pretrained=WEIGHT))
    plan = plan.model_copy(update={"optim": plan.optim.model_copy(update={"schedule": "constant"})})
    longer = plan.model_copy(update={"train": plan.train.model_copy(update={"epochs": 2})})
    whole = train.run(longer, tmp_path / "whole")
    train.run(plan, tmp_path / "parts")  # one epoch of two
    with pytest.raises(RunError, match="train.epochs"):
        train.run(longer, tmp_path / "parts")
    done = train.run(longer, tmp_path / "parts", allow_change=True)
    assert done.values["started_from"] == whole.values["started_from"] and done.values["epochs"] == 2
    assert equal(*(load_file(tmp_path / place / "model.safetensors") for place in ("whole", "parts")))


@pytest.mark.fault("start that a run cannot have", 2)
def test_a_folder_with_the_run_of_another_weight_is_not_to_be_continued(tmp_path, monkeypatch):
    fill(tmp_path / "photos", size=(32, 32))
    monkeypatch.chdir(tmp_path)
    command = ["photos", "train.epochs=1", "train.precision=fp32"]
    CliRunner().invoke(cli, ["finetune", WEIGHT, *command], catch_exceptions=False)
    for flag in ([], ["--allow-change"]):
        found = CliRunner().invoke(cli, ["finetune", "spherenet20.sphere_c10", *command, *flag]).exception
        assert isinstance(found, RunError) and str(found).startswith(
            "a run cannot resume with another model.arch, model.pretrained: model.arch ('resnet20_cifar' -> 'sph"
        )
        assert str(found).endswith("Use another --out") and "allow" not in str(found)


@pytest.mark.parametrize(
    "model, kind, message",
    [
        (dict(pretrained="resnet20_cifar.plain_c1000"), ValueError, "plain_c1000"),
        (dict(pretrained="spherenet20.sphere_c10"), RecipeError, "is a spherenet20, but model.arch is resnet20_cifar"),
        (dict(pretrained=WEIGHT, sphereize="cosine"), RecipeError, "remove model.pretrained, or model.sphereize"),
        (dict(pretrained="nowhere"), UnknownNameError, "no architecture 'nowhere'"),
        (dict(arch="test_resnet", pretrained=True), WeightUnavailableError, "not cached and cannot be downloaded"),
        (dict(arch="test_resnet", pretrained="test_resnet.imagenet"), RuntimeError, "imagenet"),
        (dict(arch="resnet32_cifar", pretrained=True), RecipeError, "no default weight"),
        (dict(freeze=["layr*"]), RecipeError, "'layr\\*' matches no parameter"),
        (dict(freeze=["*"]), RecipeError, "no parameter to train"),
    ],
)
@pytest.mark.fault("start that a run cannot have")
def test_a_wrong_start_is_one_error_before_the_training(tmp_path, model, kind, message):
    folder = fill(tmp_path / "set", count=2)
    with pytest.raises(kind, match=message):
        train.run(recipe(folder, model=model), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}


def test_the_command_finetune_needs_a_name_and_a_folder(tmp_path, monkeypatch):
    fill(tmp_path / "my photos", size=(40, 32))
    monkeypatch.chdir(tmp_path)
    command = ["finetune", "spherenet20.sphere_c10", "my photos/", "train.epochs=2", "--json"]
    values = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)
    assert values["folder"] == "runs/my photos" and values["started_from"]["name"] == "spherenet20.sphere_c10"
    assert values["recipe"]["data"]["source"]["folder"] == "my photos"
    assert json.loads((tmp_path / "runs" / "my photos" / "config.json").read_text())["label_names"] == list(COLORS)


def test_one_epoch_of_finetuning_needs_no_other_word(tmp_path):
    folder = fill(tmp_path / "photos", size=(32, 32))
    for words, warmup in (
        ([], 1.0),
        (["train.epochs=2"], 1.0),
        (["train.epochs=1"], 0.1),
        (["train.epochs=1", "optim.warmup_epochs=0.5"], 0.5),
    ):
        assert finetuning_recipe(WEIGHT, folder, words).optim.warmup_epochs == warmup
    with pytest.raises(RecipeError, match="warmup_epochs 1 must be below train.epochs 1; lower it, to 0 for no warm"):
        finetuning_recipe(WEIGHT, folder, ["train.epochs=1", "optim.warmup_epochs=1"])
    done = train.run(finetuning_recipe(WEIGHT, folder, ["train.epochs=1", "train.precision=fp32"]), tmp_path / "run")
    (row,) = (json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines())
    assert row["lr"] == 1e-3  # of the only update


@pytest.mark.parametrize(
    "method",
    [
        {"mhe": dict(hidden=1.0, output=1.0)},
        {"per": dict(strength=0.01)},
        {"mixup": dict(alpha=1.0)},
        {"minimum_angle": dict(hidden=0.1, output=0.1)},
    ],
    ids=lambda method: next(iter(method)),
)
def test_an_architecture_of_timm_trains_with_every_method(tmp_path, method):
    folder = fill(tmp_path / "set")
    values = recipe(folder, model=dict(arch="test_resnet"), size_px=32).model_dump() | {"method": method}
    done = train.run(type(recipe(folder)).model_validate(values), tmp_path / "run")
    assert done.values["metrics"]["total"] == 3
    assert hyperzoo.load(f"local-dir:{tmp_path / 'run'}").classes == tuple(COLORS)
