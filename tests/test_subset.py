"""A part of the training images, and false labels: drawn by a seed of their own, from the training split only."""

import json
from collections import Counter

import pytest
import torch
from conftest import MIRROR
from safetensors.torch import load_file
from test_own_images import fill
from test_own_images import recipe as own_recipe
from test_rare_classes import numbered

from hyperzoo import data
from hyperzoo.analysis import evaluate, plots
from hyperzoo.data import StreamedBatches, subset
from hyperzoo.data.streamed import image_folder
from hyperzoo.errors import InputError, RecipeError, UnknownNameError
from hyperzoo.experiments import build, train
from hyperzoo.training.loop import Trainer
from hyperzoo.training.recipe import load_recipe
from hyperzoo.training.recipe_data import Data

RECIPE = """\
model: {arch: resnet20_cifar}
data: {name: c10, batch_size: 16, hold_out: 30, size_px: 8, crop_px: 1}
optim: {lr: 0.1}
train: {epochs: 1, precision: fp32}
"""


@pytest.fixture
def read(tmp_path, data_mirror):
    path = tmp_path / "some.yaml"
    path.write_text(RECIPE)
    return lambda *overrides: load_recipe(path, overrides)


def counts(images) -> dict[str, int]:
    found = Counter(images.labels.tolist())
    return {name: found[label] for label, name in enumerate(images.classes)}


def pixels(images) -> list[int]:
    return images.images.flatten().tolist()


def test_as_many_of_each_class_in_their_order_and_fewer_are_among_more():
    images = numbered()
    seven, four = subset.per_class(images, 7, seed=4), subset.per_class(images, 4, seed=4)
    assert counts(seven) == {"a": 7, "b": 7, "c": 7} and counts(four) == {"a": 4, "b": 4, "c": 4}
    assert pixels(seven) == sorted({*pixels(seven)}) and {*pixels(four)} < {*pixels(seven)}
    assert torch.equal(images.labels[pixels(seven)], seven.labels)
    assert pixels(seven) == pixels(subset.per_class(images, 7, seed=4)) != pixels(subset.per_class(images, 7, seed=5))
    with pytest.raises(InputError, match="the class 'c' of toy has 21 training images, the fewest of all; 22 of each"):
        subset.per_class(images, 22)


def test_a_long_tail_falls_geometrically():
    assert subset.long_tail(tuple("abc"), 16) == {"a": 1, "b": 0.25, "c": 0.0625}
    assert counts(subset.thin(numbered((64, 64, 64)), subset.long_tail(tuple("abc"), 16))) == {"a": 64, "b": 16, "c": 4}
    assert subset.long_tail(("a",), 16) == {"a": 1}
    for factor in (0.5, float("nan")):
        with pytest.raises(InputError, match="must be 1 or more"):
            subset.long_tail(tuple("abc"), factor)


def test_noise_draws_the_asked_part_of_the_labels_uniformly_from_all_classes():
    images = numbered((2000, 1000, 3000))
    noisy = subset.label_noise(images, 0.4, seed=3)
    assert torch.equal(noisy.images, images.images) and noisy.fingerprint != images.fingerprint
    moved = Counter()
    for before, after in zip(images.labels.tolist(), noisy.labels.tolist(), strict=True):
        moved[before, after] += 1
    for old, size in enumerate((2000, 1000, 3000)):
        for new in range(3):
            if old != new:  # a binomial: 0.4 of the class was drawn, a third of that became this class
                expected = size * 0.4 / 3
                assert abs(moved[old, new] - expected) < 4 * expected**0.5  # 4 standard deviations
    assert abs(sum(n for (old, new), n in moved.items() if old != new) - 6000 * 0.4 * 2 / 3) < 4 * (2400 * 2 / 9) ** 0.5
    again, other = subset.label_noise(images, 0.4, seed=3), subset.label_noise(images, 0.4, seed=4)
    assert torch.equal(again.labels, noisy.labels) and not torch.equal(other.labels, noisy.labels)
    assert subset.label_noise(images, 0).fingerprint == images.fingerprint
    assert int((subset.label_noise(images, 0.001).labels != images.labels).sum()) <= 6  # round(0.001 x 6000)
    for part in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="label noise must be from 0 to 1"):
            subset.label_noise(images, part)


def test_all_labels_replaced_say_nothing_of_the_image():
    images = numbered((3000, 3000, 3000))
    right = int((subset.label_noise(images, 1.0).labels == images.labels).sum())
    assert abs(right - 3000) < 4 * (9000 * 2 / 9) ** 0.5  # a third, within 4 standard deviations


def test_a_recipe_changes_what_is_trained_on_and_not_what_is_held_out(read):
    whole, held = build.images(read())
    for words in (["fraction=0.5"], ["per_class=3"], ["long_tail=8"], ["label_noise=0.5"], ["keep={cat: 0.2}"]):
        train_images, same = build.images(read(*(f"data.{word}" for word in words)))
        assert same.fingerprint == held.fingerprint and train_images.fingerprint != whole.fingerprint
    assert counts(build.images(read("data.per_class=3"))[0]) == dict.fromkeys(whole.classes, 3)
    half = {name: max(1, round(count / 2)) for name, count in counts(whole).items()}
    assert counts(build.images(read("data.fraction=0.5"))[0]) == half
    tail = {name: max(1, round(n * 8 ** (-k / 9))) for k, (name, n) in enumerate(counts(whole).items())}
    assert counts(build.images(read("data.long_tail=8"))[0]) == tail
    few, _ = build.images(read("data.per_class=10", "data.keep={cat: 0.2}", "data.label_noise=0"))
    assert counts(few) == dict.fromkeys(whole.classes, 10) | {"cat": 2}


def test_the_part_is_the_same_for_every_method_and_training_seed(read):
    words = ("data.per_class=3", "data.label_noise=0.5")
    first, _ = build.images(read(*words))
    for others in (
        ("train.seed=7",),
        ("model.arch=spherenet20", "method.mixup={alpha: 1.0}"),
        ("data.batch_size=30", "optim.lr=1", "method.angular={}"),
    ):
        assert build.images(read(*words, *others))[0].fingerprint == first.fingerprint
    assert build.images(read(*words, "data.keep_seed=1"))[0].fingerprint != first.fingerprint


def test_your_own_images_can_be_fewer_and_wrongly_labeled_too(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    folder = fill(tmp_path / "photos", count=10)
    images, _ = build.images(own_recipe(folder, per_class=4, label_noise=0.5))
    clean, _ = build.images(own_recipe(folder, per_class=4))
    assert [*counts(clean).values()] == [4, 4, 4] and torch.equal(images.images, clean.images)
    assert not torch.equal(images.labels, clean.labels)
    with pytest.raises(InputError, match="has 8 training images, the fewest of all; 9 of each class were asked for"):
        build.images(own_recipe(folder, per_class=9))


def test_streamed_images_too_for_any_number_of_workers(tmp_path):
    images = image_folder(fill(tmp_path / "photos", count=6), "own", "train")
    part = subset.label_noise(subset.per_class(images, 4), 0.5)
    assert not torch.equal(part.labels, subset.per_class(images, 4).labels)
    assert len(part) == 12 and len({images.fingerprint, part.fingerprint, subset.per_class(images, 4).fingerprint}) == 3
    for workers in (0, 1):
        found = {}
        options = dict(batch_size=4, device="cpu", seed=0, flip=True, size_px=8, area=0.5, workers=workers)
        for _, labels, indices in StreamedBatches(part, mean=(0.5,) * 3, std=(0.5,) * 3, **options).epoch(1):
            found |= dict(zip(indices.tolist(), labels.tolist(), strict=True))
        assert [found[index] for index in range(12)] == part.labels.tolist()


@pytest.mark.parametrize(
    "words, fault",
    [
        (["fraction=0"], "data.fraction: should be greater than 0, got 0"),
        (["fraction=1.5"], "data.fraction: should be less than or equal to 1"),
        (["per_class=0"], "data.per_class: should be greater than or equal to 1"),
        (["label_noise=-0.1"], "data.label_noise: should be greater than or equal to 0"),
        (["label_noise=1.1"], "data.label_noise: should be less than or equal to 1"),
        (["long_tail=0.5"], "data.long_tail: should be greater than or equal to 1"),
        (["long_tail=.inf"], "data.long_tail"),
        (["fraction=0.5", "per_class=3"], "data.per_class 3 and data.fraction 0.5 exclude each other"),
        (["keep={cat: 0.5}", "long_tail=10"], "data.keep and data.long_tail both make classes rare; remove one"),
        (["judge_on=train"], "data.judge_on"),
        (["hold_out=0"], "data.size_px needs data.hold_out: the test split is resized only with data.judge_on: test"),
    ],
)
@pytest.mark.fault("impossible part of the data")
def test_what_cannot_be_drawn_is_refused_before_any_image_is_read(read, words, fault):
    with pytest.raises(RecipeError) as caught:
        read(*(f"data.{word}" for word in words))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "words, kind, fault",
    [
        (["per_class=1"], RecipeError, "data.per_class leaves 10 training images, fewer than data.batch_size 16"),
        (["fraction=1e-9"], RecipeError, "data.fraction leaves 10 training images, fewer than data.batch_size 16; set"),
        (["per_class=9999"], InputError, r"the class '\w+' of c10 has \d+ training images, the fewest of all; 9999 of"),
        (["keep={cot: 0.5}"], UnknownNameError, "no class of c10 'cot'. Closest: cat"),
    ],
)
@pytest.mark.fault("impossible part of the data")
def test_what_the_images_do_not_give_is_refused_before_training(read, words, kind, fault):
    with pytest.raises(kind, match=fault):
        build.images(read(*(f"data.{word}" for word in words)))


def test_words_for_images_are_refused_for_texts(read, tmp_path):
    path = tmp_path / "text.yaml"
    path.write_text("model: {arch: lstm200}\ndata: {name: ptb}\noptim: {lr: 1}\ntrain: {epochs: 1}\n")
    for word in ("fraction=0.5", "per_class=3", "label_noise=0.1", "long_tail=10", "judge_on=test"):
        with pytest.raises(RecipeError, match=f"data.{word.partition('=')[0]} is for images, not for ptb"):
            load_recipe(path, [f"data.{word}"])


def test_defaults_are_no_part_of_the_digest(read):
    defaults = [f"data.{word}" for word in ("fraction=1", "per_class=null", "long_tail=1", "label_noise=0")]
    assert read(*defaults, "data.judge_on=null", "train.validate_every=1").digest() == read().digest()
    assert read("data.label_noise=0.1").digest() != read().digest()


def test_a_card_says_what_the_data_lacked():
    assert Data(name="c10").training_part == Data(name="c10", keep_seed=2).training_part == ""
    assert Data(name="c10", per_class=5, label_noise=0.2).training_part == "per_class 5, label_noise 0.2"
    assert Data(name="c10", keep={"cat": 0.5}, keep_seed=2).training_part == "keep {'cat': 0.5}, keep_seed 2"


WORDS = ("data.per_class=4", "data.label_noise=0.5", "train.epochs=3", "data.judge_on=test", "train.validate_every=2")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of three epochs on 40 images with noise, validated after the second and the last, judged on the test."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "some.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERZOO_DATA", str(MIRROR))
        recipe = load_recipe(folder / "some.yaml", WORDS)
        return recipe, train.run(recipe, folder / "run")


def test_a_run_is_validated_on_held_out_images_and_judged_on_resized_test_images(straight, data_mirror):
    recipe, run = straight
    images, held = build.images(recipe)
    assert run.values["train_fingerprint"] == images.fingerprint and run.values["train_images"] == 40
    assert run.values["split"] == "test at 8 px" and run.values["recipe"]["data"]["label_noise"] == 0.5
    test = data.load_images("c10", "test")
    assert run.values["metrics"]["total"] == len(test)
    assert run.values["metrics"]["fingerprint"] == test.resized(8).fingerprint
    log = rows(run.folder)
    assert [row["epoch"] for row in log if "accuracy" in row] == [2, 3]
    assert {row["fingerprint"] for row in log if "fingerprint" in row} == {held.fingerprint}


@pytest.mark.fault("a run evaluated at another size than its own")
def test_a_run_is_evaluated_at_its_own_size_again(straight, data_mirror):
    _, run = straight
    for dataset in (None, "c10"):
        assert evaluate.run(str(run.folder), dataset=dataset).as_dict() == run.values["metrics"]


def test_a_resumed_run_trains_on_the_same_part_and_validates_after_the_same_epochs(straight, tmp_path, data_mirror):
    recipe, run = straight

    class Killed(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        epoch = Trainer._epoch
        patch.setattr(Trainer, "_epoch", lambda self, n: epoch(self, n) if n < 3 else (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train.run(recipe, tmp_path / "run")
    resumed = train.run(recipe, tmp_path / "run")
    assert resumed.values["train_fingerprint"] == run.values["train_fingerprint"]
    assert resumed.values["metrics"] == run.values["metrics"]
    expected, found = (load_file(folder / "model.safetensors") for folder in (run.folder, resumed.folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [row["epoch"] for row in rows(resumed.folder) if "accuracy" in row] == [2, 3]


def test_a_word_for_validation_needs_validation_images(read):
    with pytest.raises(RecipeError, match="train.validate_every needs validation images; set data.hold_out"):
        read("data.hold_out=0", "data.size_px=null", "train.validate_every=2")
    read("data.hold_out=0", "data.judge_on=test")


def test_curves_have_the_validated_epochs_only(straight, tmp_path, monkeypatch):
    _, run = straight
    log = rows(run.folder)
    one = {"label": "x", "split": "s", "epochs": 3, "log": log}
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": "x", "runs": [one]}))
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, picture: drawn.append(figure))
    plots.curves(tmp_path / "sweep.json", tmp_path / "x.png")
    plots.learning_curve(run.folder / "metrics.jsonl", tmp_path / "x.png", title="x")
    for figure, line in ((drawn[0], 0), (drawn[1], 1)):
        found = figure.axes[1].lines[line]
        assert found.get_xdata().tolist() == [2, 3]
        assert found.get_ydata().tolist() == [log[1]["accuracy"], log[2]["accuracy"]]
