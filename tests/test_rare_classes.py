"""`data.keep` makes classes rare in training, drawn by its own seed, and the metrics show these classes."""

import json

import pytest
import torch
from torch import nn

from hyperzoo.analysis import evaluate
from hyperzoo.data import ImageSet, subset
from hyperzoo.errors import InputError, RecipeError, UnknownNameError
from hyperzoo.experiments import build
from hyperzoo.training.recipe import load_recipe

RECIPE = """\
model: {arch: resnet20_cifar}
data: {name: c10, batch_size: 16, hold_out: 30, keep: {cat: 0.1, ship: 0.5}}
optim: {lr: 0.1}
train: {epochs: 1}
"""


def numbered(sizes=(50, 30, 21)) -> ImageSet:
    """Image n is one pixel of value n; the classes are mixed."""
    labels = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet("toy", "train", pixels, labels, ("a", "b", "c"), "made")


def test_a_class_keeps_its_fraction_and_the_others_everything():
    images = numbered()
    rare = subset.thin(images, {"a": 0.1, "c": 0.5}, seed=4)
    assert rare.labels.bincount().tolist() == [5, 30, 10]  # 21 / 2 is rounded to even
    kept = rare.images.flatten().tolist()
    assert kept == sorted(set(kept)) and torch.equal(images.labels[kept], rare.labels)
    assert set(images.images[images.labels == 1].flatten().tolist()) <= set(kept)
    again, other = subset.thin(images, {"a": 0.1, "c": 0.5}, seed=4), subset.thin(images, {"a": 0.1, "c": 0.5}, seed=5)
    assert again.fingerprint == rare.fingerprint != other.fingerprint
    assert subset.thin(images, {"b": 1.0}).fingerprint == images.fingerprint
    assert subset.thin(images, {"a": 1e-9}).labels.bincount().tolist() == [1, 30, 21]  # never none


def test_one_class_is_drawn_whatever_happens_to_the_others():
    images = numbered()
    alone, both = subset.thin(images, {"a": 0.2}), subset.thin(images, {"b": 0.1, "a": 0.2})
    assert torch.equal(alone.images[alone.labels == 0], both.images[both.labels == 0])


def test_unknown_classes_and_fractions_are_refused():
    with pytest.raises(UnknownNameError, match="no class of toy 'd'. Known: a, b, c.$"):
        subset.thin(numbered(), {"d": 0.5})
    for fraction in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="'b' to keep must be above 0 and at most 1"):
            subset.thin(numbered(), {"b": fraction})


def test_a_recipe_thins_what_is_trained_on_and_not_what_is_held_out(tmp_path, data_mirror):
    path = tmp_path / "rare.yaml"
    path.write_text(RECIPE)
    train, held = build.images(load_recipe(path))
    whole, same = build.images(load_recipe(path, ["data.keep={}"]))
    expected = dict(zip(whole.classes, whole.labels.bincount().tolist(), strict=True))
    expected |= {"cat": round(expected["cat"] / 10), "ship": round(expected["ship"] / 2)}
    assert dict(zip(train.classes, train.labels.bincount().tolist(), strict=True)) == expected
    assert held.fingerprint == same.fingerprint
    other, _ = build.images(load_recipe(path, ["data.keep_seed=1"]))
    seeded, _ = build.images(load_recipe(path, ["train.seed=1"]))
    assert other.fingerprint != train.fingerprint == seeded.fingerprint
    with pytest.raises(UnknownNameError, match="no class of c10 'cot'. Closest: cat"):
        build.images(load_recipe(path, ["data.keep={cot: 0.1}"]))
    for wrong in ("{cat: 0}", "{cat: 1.5}", "{cat: much}", "0.1"):
        with pytest.raises(RecipeError, match="data.keep"):
            load_recipe(path, [f"data.keep={wrong}"])


class Answers(nn.Module):
    """Says what it is told, in order."""

    num_classes = 4

    def __init__(self, said):
        super().__init__()
        self.said, self.unused = said, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        answers, self.said = self.said[: len(x)], self.said[len(x) :]
        return nn.functional.one_hot(torch.tensor(answers), 4).float()


def test_the_metrics_tell_the_classes_apart(monkeypatch):
    labels = [0, 0, 0, 0, 1, 1, 0, 2]
    said = [0, 0, 1, 2, 1, 0, 0, 0]
    images = ImageSet(
        "toy", "test", torch.zeros(8, 1, 1, 1, dtype=torch.uint8), torch.tensor(labels), tuple("abcd"), ""
    )
    monkeypatch.setattr(evaluate.timm.data, "resolve_model_data_config", lambda _: {"mean": (0.0,), "std": (1.0,)})
    metrics = evaluate.measure(Answers(said), images, batch_size=4)
    assert metrics.class_accuracy == {"a": 60.0, "b": 50.0, "c": 0.0}  # no image of d
    assert (metrics.correct, metrics.total) == (4, 8) and metrics.accuracy == 50
    assert json.loads(json.dumps(metrics.as_dict()))["class_accuracy"] == metrics.class_accuracy
