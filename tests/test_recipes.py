"""Recipes are read strictly: all faults at once, each with its line and the nearest key; no content is executed."""

import hashlib
import json

import pytest

from hyperzoo import names
from hyperzoo.errors import RecipeError
from hyperzoo.training.recipe import Recipe, load_recipe, recipe_folders
from hyperzoo.training.sweep_file import sweep_files

GOOD = """\
model:
  arch: spherenet20
data:
  name: c10
optim:
  lr: 1e-3
train:
  epochs: 2
"""


def read(tmp_path, text, *overrides, name="some.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return load_recipe(path, overrides)


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path):
    recipe = read(tmp_path, GOOD.replace("  epochs: 2", "  epochs: 2\n  compile: off"))
    assert recipe.optim.lr == 0.001 and recipe.train.compile == "off" and recipe.name == "some"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 2", "epoch: 2", "Line 8: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("epochs: 2", "epoch: 2", "train.epochs is missing"),
        ("lr: 1e-3", "lr: 1e-3x", "Line 6: optim.lr: should be a valid number, got '1e-3x'"),
        ("lr: 1e-3", 'lr: "True"', "Line 6: optim.lr"),
        ("lr: 1e-3", "lr: .nan", "Line 6: optim.lr"),
        ("lr: 1e-3", "lr: -1", "Line 6: optim.lr: should be greater than 0, got -1"),
        ("epochs: 2", "epochs: 2\n  mixed_precision: no", "Line 9: unknown key 'mixed_precision'"),
        ("epochs: 2", "epochs: 2\n  epochs: 3", "Line 9: repeated key 'epochs'"),
        ("epochs: 2", "epochs: 2.5", "Line 8: train.epochs"),
        ("arch: spherenet20", "arch: spherenet2", "Line 2: unknown architecture 'spherenet2'. Closest: spherenet"),
        ("lr: 1e-3", "lr: 1e-3\n  optimizer: sdg", "Line 7: unknown optimizer 'sdg'. Closest: sgd"),
        ("lr: 1e-3", "lr: 1e-3\n  optimizer: kron", "Line 7: the state of 'kron' fits no checkpoint"),
        ("lr: 1e-3", "lr: 1e-3\n  schedule: cosin", "Line 7: optim.schedule"),
        ("epochs: 2", "epochs: !!python/object/apply:os.system ['true']", "is not allowed"),
        ("train:", "expect: {accuracy: 101}\ntrain:", "Line 7: expect.accuracy"),
        *(
            (
                "spherenet20",
                f"spherenet20\n  args: {{{key}: {value}}}",
                f"model.args cannot set {key}, which hyperzoo sets",
            )
            for key, value in {
                "pretrained": "true",
                "checkpoint_path": "x.pth",
                "num_classes": 9,
                "in_chans": 1,
            }.items()
        ),
        ("model:", "modle:", "did you mean 'model'?"),
        ("train:", "epochs: 2\ntrain:", "Line 7: unknown key 'epochs' (did you mean 'train.epochs'?)"),
        (
            "optim:",
            "method: {mixup: 0.2}\noptim:",
            "Line 5: method.mixup is a block of settings, got 0.2; write alpha: 0.",
        ),
        ("data:", "data: [", "not readable as YAML"),
        (GOOD, "", "model is missing"),
        (GOOD, "- 1", "model is missing"),
        ("epochs: 2", "epochs: 2\n  accumulate: 3", "does not divide by accumulate 3"),
        ("lr: 1e-3", "lr: 1e-3\n  warmup_epochs: 2", "warmup_epochs 2 must be below train.epochs 2; lower it"),
        ("lr: 1e-3", "lr: 1e-3\n  schedule: constant\n  cycles: 2", "optim.cycles 2 needs optim.schedule cosine"),
        ("lr: 1e-3", "lr: 1e-3\n  schedule: multistep", "needs optim.milestones"),
        ("name: c10", "name: c10\n  resize_px: {3: 16}", "resize_px has epoch 3, but train.epochs is 2"),
        ("name: c10", "name: c10\n  size_px: 16", "data.size_px needs data.hold_out"),
        ("name: c10", "name: c10\n  choice: true", "data.choice is for texts; data.hold_out gives validation images"),
        ("optim:", "method: {soft_target: bce}\noptim:", "method.soft_target is the loss of mixed labels; add mixup"),
        ("optim:", "method: {mixup: {alpha: 0.001}}\noptim:", "alpha must be 0 (no mixing) or from 0.01 to 1e6"),
        ("optim:", "method: {manifold_mixup: {alpha: 1e7}}\noptim:", "alpha must be 0 (no mixing) or from 0.01 to 1e6"),
        ("optim:", "method: {mhe: {hidden: 1, output: 1, neurons: 1}}\noptim:", "greater than or equal to 2"),
        ("optim:", "method: {vcl: {layers: [a], group: 1}}\noptim:", "greater than or equal to 2"),
    ],
)
def test_one_fault_one_sentence(tmp_path, old, new, expected):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert expected in str(caught.value)


def test_five_faults_are_reported_at_once_in_the_order_of_their_lines(tmp_path):
    text = GOOD.replace("spherenet20", "sphernet20").replace("name: c10", "nme: c10").replace("1e-3", "fast")
    text = text.replace("epochs: 2", "epochs: 0\n  epochs: 0")
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith("some.yaml has 6 faults.")  # a misspelled key is unknown, and the right one missing
    lines = ["Line 2:", "Line 4: unknown key 'nme' (did you mean 'name'?)", "Line 6:", "Line 9: repeated key 'epochs'"]
    assert [message.index(line) for line in lines] == sorted(message.index(line) for line in lines)


def test_overrides_go_through_the_same_checks(tmp_path):
    assert read(tmp_path, GOOD, "optim.lr=5e-4", "data.flip=false").optim.lr == 5e-4
    for bad in ("optim.lr", "optim.lr.x=1"):
        with pytest.raises(RecipeError, match="not of the form block.key=value"):
            read(tmp_path, GOOD, bad)


@pytest.mark.parametrize(
    "override, fault",
    [
        ("optim.lrr=0.1", "unknown key 'lrr' (did you mean 'lr'?)."),
        ("optim.lr=-1", "optim.lr: should be greater than 0, got -1."),
        ("optim.momentum=2", "optim.momentum: should be less than 1, got 2."),
        ("method.mhe={hiden: 1, output: 1}", "unknown key 'hiden' (did you mean 'hidden'?)."),
        ("method.mhe={hidden: 1}", "method.mhe.output is missing."),
        ("optim.lr=[1", "not readable as YAML: "),
        ("optm.lr=1", "unknown key 'optm' (did you mean 'optim'?)"),
        ("optim.lr=", "optim.lr: should be a valid number, got None."),
        ("epochs=5", "unknown key 'epochs' (did you mean 'train.epochs'?)."),
        ("seed=5", "unknown key 'seed' (did you mean 'train.seed' or 'data.source.seed'?)."),
        ("train.lr=0.1", "unknown key 'lr' (did you mean 'optim.lr'?)."),
        ("learning_rate=0.1", "unknown key 'learning_rate' (did you mean 'optim.lr'?)."),
        ("optim.learning_rate=0.1", "unknown key 'learning_rate' (did you mean 'optim.lr'?)."),
        (
            "train.device=cpu",
            "unknown key 'device' (a GPU is used if there is one; for the CPU, set ACCELERATE_USE_CPU",
        ),
        ("model=resnet18", "model is a block of settings, got 'resnet18'; write model.arch=resnet18 (keys: arch, args"),
        ("data.source=here", "data.source is a block of settings, got 'here'; write data.source.folder=here (keys: "),
        ("method.mixup=0.2", "method.mixup is a block of settings, got 0.2; write method.mixup.alpha=0.2 (keys: alpha"),
        ("method.mhe=true", "method.mhe is a block of settings, got True; write method.mhe.hidden=... (keys: hidden, "),
        ("method=mhe", "method is a block of settings, got 'mhe'; write method.label_smoothing=... (keys: label_smo"),
        ("optim.optimizer=SGD", "unknown optimizer 'SGD'. Closest: sgd"),
        (
            "model.arch=resnet18.a1_in1k",
            "model.arch 'resnet18.a1_in1k' has a tag; set model.arch to resnet18 and model.p",
        ),
        ("model.arch=spherenet2", "unknown architecture 'spherenet2'. Closest: "),
        ("optim.momentum=high", "optim.momentum: should be a valid number, got 'high'."),  # the file lacks this key
        ("method.mhe={hidden: 1, output: 1", "not readable as YAML: "),
        ("method.mhe={hidden: 1, hidden: 2, output: 1}", "repeated key 'hidden'."),
        ("optim.betas=[0.9, 0.99", "not readable as YAML: "),
        ("optim.clip_norm=[5", "not readable as YAML: "),
        ("optim.clip_norm=!x 5", "the tag '!x' is not allowed."),
        ("optim.clip_norm=!!null 5", "'5' is not a null."),
        ("data.flip=!!bool maybe", "'maybe' is not a bool."),
        ("train.processes=@2", "not readable as YAML: "),
        ("train.seed=9223372036854775808", "train.seed: should be less than 9223372036854775808, got"),
    ],
)
@pytest.mark.fault("malformed override")
def test_a_fault_of_an_override_is_blamed_on_the_override(tmp_path, override, fault):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, GOOD, override)
    message = str(caught.value)
    assert f"override {override}: {fault}" in message and "Line" not in message


def levels(depth):
    return "".join(f"{' ' * i}a:\n" for i in range(depth))


def bomb(lines):
    """Ten to the power of `lines` values."""
    return "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]\n" for i in range(lines))


@pytest.mark.parametrize(
    "text, fault",
    [
        ("a: &a [*a]", "Line 1: not readable as YAML: more than 20 levels of nesting."),
        ("a: &a {b: *a}", "Line 1: not readable as YAML: more than 20 levels of nesting."),
        (levels(21), "Line 21: not readable as YAML: more than 20 levels of nesting."),
        ("[" * 1_000, "not readable as YAML: more than 20 levels of nesting."),
        ("? " * 9_000, "not readable as YAML: more than 20 levels of nesting."),
        ("[" * 200_000, "not readable as YAML: longer than 20,000 characters."),
        (bomb(9), "not readable as YAML: more than 10,000 values."),
        ("a: " + "9" * 15_000, "unknown key 'a'"),
        ("".join(f"{i}{'a' * 990}: 1\n" for i in range(9)), "unknown key '0aaa"),
        (b"model: \xff", "cannot read the recipe "),
    ],
    ids=["list in itself", "map in itself", "levels", "lists", "keys", "long", "bomb", "number", "key", "not UTF-8"],
)
@pytest.mark.fault("hostile recipe")
def test_a_hostile_text_is_one_error(tmp_path, text, fault):
    path = tmp_path / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert fault in str(caught.value) and len(str(caught.value)) < 10_000


def test_anchors_within_the_limits_are_read(tmp_path):
    text = GOOD.replace("name: c10", "name: c10\n  keep: {cat: &part 0.5, dog: *part}")
    assert read(tmp_path, text).data.keep == {"cat": 0.5, "dog": 0.5}


def test_a_fault_of_the_file_keeps_its_line_beside_an_override(tmp_path):
    with pytest.raises(RecipeError, match=r"2 faults\. override optim\.lr=0: .*\. Line 8: unknown key 'epoch'"):
        read(tmp_path, GOOD.replace("epochs: 2", "epoch: 2\n  epochs: 2"), "optim.lr=0")


def test_a_stored_recipe_of_an_earlier_version_gets_the_defaults_of_keys_that_it_lacks(tmp_path):
    recipe = read(tmp_path, GOOD, "data.resize_px={1: 16}")
    stored = json.loads(recipe.model_dump_json())
    del stored["method"], stored["train"]["ema"], stored["expect"]
    assert Recipe.stored(stored) == recipe and Recipe.stored(stored).digest() == recipe.digest()
    assert Recipe.stored({**stored, "optim": {"lr": 1.0}}).digest() != recipe.digest()
    with pytest.raises(RecipeError, match="not one of this version"):
        Recipe.stored({**stored, "later": 1})


def test_the_digest_is_that_of_what_the_recipe_says(tmp_path):
    said = {"data": {"name": "c10"}, "model": {"arch": "spherenet20"}, "optim": {"lr": 0.001}, "train": {"epochs": 2}}
    expected = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    assert read(tmp_path, GOOD).digest() == read(tmp_path, GOOD, "train.ema=0").digest() == expected


def test_a_list_for_the_constructor_keeps_its_whole_numbers_whole(tmp_path):
    text = GOOD.replace("  arch: spherenet20", "  arch: spherenet20\n  args: {widths: [16, 32], rates: [0, 0.05]}")
    args = read(tmp_path, text).settings()["model"]["args"]
    assert json.dumps(args) == '{"widths": [16, 32], "rates": [0, 0.05]}'  # so digests of older recipes stand


def test_a_missing_file_and_hostile_names(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="cannot read the recipe nowhere.yaml"):
        load_recipe("nowhere.yaml")
    with pytest.raises(RecipeError, match="no recipe 'spherenet20.vcl_c10'. Closest: spherenet20"):
        load_recipe("spherenet20.vcl_c10")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"no recipe 'qqqq'. Known: (\S+ \(\w[\w ]*\)(, )?){5} and \d+ more. Or pass"):
        load_recipe("qqqq")
    (tmp_path / "qqqq.yaml").touch()
    with pytest.raises(RecipeError, match=r"no recipe 'qqqq'; did you mean qqqq.yaml\?"):
        load_recipe("qqqq")
    with pytest.raises(RecipeError, match=r"no recipe '\.\./\.\./etc/passwd'"):
        load_recipe("../../etc/passwd")


@pytest.mark.parametrize(
    "word, suggested",
    [
        ("spherenet20.sphere_c1", "spherenet20.sphere_c10 (weight)"),
        ("sphere_cnn9.sphere_c100", "sphere_cnn9.sphere_c10 (draft)"),
        ("spherenet_tabel4", "spherenet_table4 (table of a paper)"),
        ("mhe_imbalanc", "mhe_imbalance (study)"),
        ("0123456789", "cnn11_elu.per_c10 (weight)"),
    ],
)
def test_an_unknown_name_suggests_recipes_of_every_kind(word, suggested):
    with pytest.raises(RecipeError, match=f"no recipe '{word}'") as caught:
        load_recipe(word)
    assert suggested in str(caught.value)


def test_a_draft_has_a_name_too():
    assert load_recipe("spherenet18_imagenet").model.arch.startswith("spherenet18")


def test_the_file_name_must_agree_with_the_architecture(tmp_path):
    with pytest.raises(RecipeError, match="named 'resnet20_cifar.plain_c10', but model.arch is 'spherenet20'"):
        read(tmp_path, GOOD, name="resnet20_cifar.plain_c10.yaml")


def test_the_digest_sees_settings_but_not_the_name(tmp_path):
    one = read(tmp_path, GOOD)
    assert one.digest() == read(tmp_path, "# a comment\n" + GOOD, name="other.yaml").digest()
    assert one.digest() != read(tmp_path, GOOD, "train.seed=1").digest()


RECIPES = sorted(
    path
    for folder in recipe_folders()
    for path in folder.rglob("*.yaml")
    if path not in sweep_files() and path.name != "queue.yaml"
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_trains_on_all_of_its_data_and_says_what_to_expect(path):
    recipe = load_recipe(path)
    if path.name != "demo.yaml" and "drafts" not in path.parts:
        name = names.parse(recipe.name)
        assert name.dataset == recipe.data.name and recipe.data.hold_out == 0 and not recipe.data.training_part
        assert recipe.expect is not None


def test_a_baseline_is_the_name_of_a_weight_and_changes_no_digest(tmp_path):
    expect = "expect:\n  accuracy: 90\n  baseline: "
    assert read(tmp_path, GOOD + expect + "resnet20_cifar.plain_c10\n").digest() == read(tmp_path, GOOD).digest()
    with pytest.raises(RecipeError, match="'resnet20' is not a weight name"):
        read(tmp_path, GOOD + expect + "resnet20\n")


def test_the_twins_share_one_recipe():
    sphere, plain = load_recipe("spherenet20.sphere_c10"), load_recipe("resnet20_cifar.plain_c10")
    assert {**sphere.settings(), "model": None} == {**plain.settings(), "model": None}
