"""The mixup recipes and sweeps match the papers, and each builds its mixing."""

import pytest
import timm

from hyperzoo.experiments import build
from hyperzoo.mixup import ManifoldMixup, Mixup
from hyperzoo.training.recipe import load_recipe, recipe_folders
from hyperzoo.training.sweep_file import load_sweep, sweep_files

SWEEPS = [path.stem for path in sweep_files() if path.stem.startswith("mixup_")]
TABLES = [name for name in SWEEPS if name.startswith("mixup_table")]
RECIPES = ("fast_cnn8.mixup_c100", "fast_cnn8.manifoldmixup_c100", "preact_resnet18.manifoldmixup_c10")


def mixing_of(recipe):
    network = timm.create_model(recipe.model.arch, device="meta", **recipe.model.args)
    return build.step(recipe, network).mixing


@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_mixes_as_its_row_says(name):
    _, runs = load_sweep(name)
    for label, recipe in {label: recipe for label, recipe in runs}.items():
        mixing, row = mixing_of(recipe), label.partition("-")[0]
        if "none" in row:
            assert mixing is None or (type(mixing) is Mixup and mixing.alpha == 0), label
        elif "input" in row:
            assert type(mixing) is Mixup and mixing.alpha > 0, label
        else:
            assert isinstance(mixing, ManifoldMixup), label
            layers = {"0": "input", "1": "layer1", "2": "layer2", "3": "layer3"}
            if row[0] == "s" and row[1:].isdigit():
                assert mixing.layers == tuple(layers[k] for k in row[1:]), label
            else:
                wide_as_in_the_paper = row.startswith("wrn")
                assert mixing.layers == ("input", "layer1") + ("layer2",) * (not wide_as_in_the_paper), label
        if "_" in row and row.rpartition("_")[2][0].isdigit() and not row.startswith("wrn"):
            assert mixing.alpha == float(row.rpartition("_")[2]), label


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_trained_as_the_authors_do(name):
    _, runs = load_sweep(name)
    for label, recipe in runs:
        assert recipe.method.soft_target == "bce" and (recipe.method.mixup or recipe.method.manifold_mixup), label
        optim, epochs = recipe.optim, recipe.train.epochs
        assert (optim.optimizer, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.1, 0.9, 1e-4)
        assert (optim.schedule, optim.decay, recipe.data.batch_size) == ("multistep", ["*"], 100)
        assert recipe.data.crop_px == (4 if recipe.data.name == "tiny" else 2)
        assert recipe.data.flip == (recipe.data.name != "svhn")
        expected = {400: [200, 300], 1200: [400, 800], 2000: [1000, 1500]}
        assert optim.milestones == expected[epochs] and (epochs == 400) == label.startswith("wrn")


@pytest.mark.parametrize("name", TABLES)
def test_hidden_states_do_better_than_images_in_the_published_numbers(name):
    said, _ = load_sweep(name)
    stated = said.stated()
    for label, value in stated.items():
        if "input" in label:
            assert 0 < stated[label.replace("input", "manifold")] - value < 5, label
    assert bool(stated) == (name not in ("mixup_table4", "mixup_table7"))  # no clean accuracy in the paper


def test_the_evidence_differs_in_the_method_alone():
    _, runs = load_sweep("mixup_evidence")
    settings = [{**recipe.settings(), "method": None} for _, recipe in runs]
    assert settings[0] == settings[1] == settings[2] and settings[0]["train"]["epochs"] == 30
    assert settings[0]["data"]["hold_out"] == 0
    assert all(recipe.data.hold_out == 5000 for _, recipe in load_sweep("mixup_alpha")[1])
    plain = load_recipe("resnet20_cifar.plain_c10")
    assert {**plain.settings()["optim"], "cycles": 1, "cycle_decay": 1.0} == settings[0]["optim"]
    assert {**plain.settings()["data"], "resize_px": None} == {**settings[0]["data"], "resize_px": None}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_mix(name):
    (path,) = (path for folder in recipe_folders() for path in folder.rglob(f"{name}.yaml"))
    kind = ManifoldMixup if "manifold" in name else Mixup
    assert type(mixing_of(load_recipe(path))) is kind
