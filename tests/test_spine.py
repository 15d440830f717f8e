"""Recipes, manifest, checkpoints, cards and golden files name the same weights and agree with each other."""

import json

import pytest
import timm

import hyperzoo
from hyperzoo import names, zoo
from hyperzoo.publishing import cards
from hyperzoo.publishing.checkout import find_checkout
from hyperzoo.publishing.verify import verify
from hyperzoo.training.recipe import load_recipe
from hyperzoo.training.sweep_file import sweep_files
from hyperzoo.zoo import weight_files

CHECKOUT = find_checkout()
PUBLISHED = hyperzoo.list_weights()
MAX_BYTES, MAX_TOTAL_BYTES = 12_000_000, 90_000_000  # with the rest a wheel below the 100 MB that PyPI takes


def stems(folder, pattern, suffix):
    return sorted(path.name.removesuffix(suffix) for path in folder.glob(pattern))


def test_the_first_two_weights_are_published():
    assert {"spherenet20.sphere_c10", "resnet20_cifar.plain_c10"} <= set(PUBLISHED)


def test_all_places_hold_the_same_weights():
    drafts = CHECKOUT.recipes / "drafts"
    recipes = [path for path in CHECKOUT.recipes.rglob("*.*_*.yaml") if drafts not in path.parents]
    assert sorted(path.stem for path in recipes) == PUBLISHED
    assert stems(CHECKOUT.root / "model_cards", "*.*_*.md", ".md") == PUBLISHED
    pictures = stems(CHECKOUT.root / "model_cards", "*.png", ".png")
    assert pictures == sorted(name + kind for name in PUBLISHED for kind in ("", ".energy"))
    assert stems(CHECKOUT.root / "model_cards", "*.jsonl", ".metrics.jsonl") == PUBLISHED
    assert stems(CHECKOUT.root / "tests" / "golden", "*.safetensors", ".safetensors") == PUBLISHED
    assert stems(CHECKOUT.package / "checkpoints", "*", "") == weight_files.MANIFEST.bundled()
    tags = {f"{arch}.{tag}" for arch in hyperzoo.list_models() for tag in timm.list_pretrained(f"{arch}.*") if tag}
    assert sorted(tags) == sorted(f"{names.parse(name).arch}.{name}" for name in PUBLISHED)


def test_a_recipe_is_in_the_folder_of_its_model_file():
    for path in CHECKOUT.recipes.rglob("*.*_*.yaml"):
        if path.parent.name != "drafts":
            module = timm.model_entrypoint(names.parse(path.stem).arch).__module__
            assert path.parent.name == module.rpartition(".")[2], path


def test_every_recipe_is_valid():
    others = {*sweep_files(), CHECKOUT.recipes / "queue.yaml"}
    found = sorted(path for path in CHECKOUT.recipes.rglob("*.yaml") if path not in others)
    assert len(found) >= 3
    for path in found:
        load_recipe(path)


def test_one_default_per_architecture_with_weights():
    for arch in {names.parse(name).arch for name in PUBLISHED}:
        assert sum(hyperzoo.weight_info(name).default for name in hyperzoo.list_weights(arch)) == 1
        assert timm.get_pretrained_cfg(arch).tag == hyperzoo.weight_info(arch).tag


def test_bundled_weights_stay_small():
    sizes = {name: weight_files.MANIFEST.folder(name) / "model.safetensors" for name in weight_files.MANIFEST.bundled()}
    sizes = {name: file.stat().st_size for name, file in sizes.items()}
    assert not [name for name, size in sizes.items() if size > MAX_BYTES] and sum(sizes.values()) < MAX_TOTAL_BYTES


def test_generated_texts_are_up_to_date():
    assert cards.check(weight_files.MANIFEST, CHECKOUT) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_weight_agrees_with_its_manifest_entry(name, monkeypatch):
    monkeypatch.delenv("HYPERZOO_DATA", raising=False)
    found = {check.what: (check.ok, check.detail) for check in verify(name)}
    assert {what: ok for what, (ok, _) in found.items()} == {
        "hash": True,
        "tensors": True,
        "size": True,
        "golden": True,
        "sample": True if CHECKOUT.has_sample(names.parse(name).dataset) else None,
        "test set": None,
    }, found


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_the_one_of_the_published_runs(name):
    info = hyperzoo.weight_info(name)
    recipe = load_recipe(CHECKOUT.recipes / info.recipe)
    assert recipe.name == name and recipe.digest() == info.recipe_sha256
    assert recipe.train.epochs == info.training.epochs
    assert names.DATASETS[recipe.data.name] == info.dataset.id
    rows = CHECKOUT.card(name, ".metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(1, info.training.epochs + 1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_notes_in_config_json_agree(name):
    info = hyperzoo.weight_info(name)
    config = json.loads((weight_files.MANIFEST.folder(name) / "config.json").read_text())
    words = zoo.class_names(weight_files.MANIFEST.folder(name))
    assert config["architecture"] == info.arch and len(words) == info.num_classes
    assert config["hyperzoo"]["recipe_sha256"] == info.recipe_sha256
    assert config["hyperzoo"]["code_commit"] == info.code_commit
    assert tuple(config["pretrained_cfg"]["mean"]) == info.input.mean
    assert (config["hyperzoo"]["name"], config["hyperzoo"]["parameters"]) == (name, info.parameters)
