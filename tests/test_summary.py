"""The summary compares each row of a study with its baseline; expected values are computed by hand."""

import json
import shutil

import pytest
from support import finished

from hyperzoo.analysis import summary
from hyperzoo.errors import RecipeError, RunError
from hyperzoo.publishing import cards
from hyperzoo.training.recipe import Recipe
from hyperzoo.zoo.manifest import Manifest

BASE = "model: {arch: resnet20_cifar}\ndata: {name: c10, per_class: 100}\noptim: {lr: 0.1}\ntrain: {epochs: 40}\n"
STUDY = """\
base: base.yaml
rows:
  none: {}
  mixed: {method.mixup: {alpha: 1.0}}
  half: {method.mhe: {hidden: 1.0, output: 10.0, half_space: true}}
  faster: {optim.lr: 0.3}
columns: {clean: {}, noisy: {data.label_noise: 0.5}}
seeds: [0, 1, 2]
baseline: none
"""
ACCURACIES = {  # label: accuracy, NLL and minutes by seed
    "none-clean": [(50.0, 1.5, 1.0), (51.0, 1.4, 1.0), (52.0, 1.6, 2.0)],
    "mixed-clean": [(52.0, 1.4, 1.5), (53.0, 1.2, 1.5), (54.5, 1.3, 2.0)],
    "half-clean": [(50.0, 1.5, 1.0), (50.5, 1.3, 1.0)],
    "faster-clean": [(60.0, 1.0, 1.0)],
    "none-noisy": [(30.0, 2.0, 1.0)],
    "mixed-noisy": [(35.0, 1.9, 1.0)],
}


@pytest.fixture
def rooms(tmp_path):
    """The folders of the results and of the studies, with one study."""
    results, studies = tmp_path / "results", tmp_path / "recipes" / "studies"
    results.mkdir()
    studies.mkdir(parents=True)
    (studies / "base.yaml").write_text(BASE)
    (studies / "some.yaml").write_text(STUDY)
    runs = [
        {
            "label": label,
            "seed": seed,
            "split": "test",
            "metrics": {"accuracy": accuracy, "nll": nll, "ece": 3.0},
            "epochs": 40,
            "minutes": minutes,
            "log": [{"epoch": 40, "loss": 1.0}],
        }
        for label, rows in ACCURACIES.items()
        for seed, (accuracy, nll, minutes) in enumerate(rows)
    ]
    baselines = {f"{row}-{column}": f"none-{column}" for row in ("mixed", "half") for column in ("clean", "noisy")}
    baselines["faster-clean"] = "none-clean"
    contents = {"sweep": "some", "baselines": baselines, "published": {}, "runs": runs}
    (results / "some.json").write_text(json.dumps(contents))
    return results, studies


def test_differences_times_and_verdicts(rooms):
    found = {one.label: one for one in summary.comparisons(*rooms)}
    assert list(found) == ["half-clean", "mixed-noisy", "mixed-clean"]  # another rate is no method
    mixed = found["mixed-clean"]
    # differences 2, 2, 2.5: mean 2.1667, sd 0.2887, standard error 0.16667; t(0.975, 2) = 4.30265
    assert mixed.score.mean == pytest.approx(6.5 / 3)
    assert mixed.score.low == pytest.approx(6.5 / 3 - 4.30265 / 6, abs=1e-4)
    assert (mixed.score.n, mixed.verdict, mixed.metric, mixed.split) == (3, "gain", "accuracy", "test")
    assert mixed.nll.mean == pytest.approx((-0.1 - 0.2 - 0.3) / 3)
    assert mixed.cost == 1.25  # 5 minutes against 4
    assert mixed.method == "input mixup" and mixed.setting == "CIFAR-10, 100 images a class, resnet20_cifar, 40 epochs"
    half = found["half-clean"]  # differences 0 and -0.5: only the seeds that both have
    assert (half.score.n, half.score.mean, half.verdict, half.cost) == (2, -0.25, "not told apart", None)
    noisy = found["mixed-noisy"]
    assert (noisy.verdict, noisy.score.low, noisy.cost) == ("one pair", None, None)
    assert "50 % of the labels random" in noisy.setting


def test_tables_and_json(rooms):
    found = summary.comparisons(*rooms)
    head, *lines = summary.details(found)
    mixed = dict(zip(head, lines[-1], strict=True))
    assert mixed["difference (95 %)"] == "+2.17 [+1.45, +2.88] points" and mixed["time per step"] == "1.25 x"
    assert mixed["NLL"] == "-0.200" and mixed["study and row"] == "`some`, `mixed-clean`"
    assert dict(zip(head, lines[1], strict=True))["difference (95 %)"] == "+5.00 points"
    assert summary.overview(found)[1:] == [
        ("MHE, half space", "0", "0", "1", "0", "-"),
        (
            "input mixup",
            "1",
            "0",
            "0",
            "1",
            "+2.17 [+1.45, +2.88] points: CIFAR-10, 100 images a class, resnet20_cifar, 40 epochs",
        ),
    ]
    stated = json.loads(summary.as_json(found))["comparisons"]
    assert [one["label"] for one in stated] == ["half-clean", "mixed-noisy", "mixed-clean"]
    assert stated[2]["score"]["n"] == 3 and stated[2]["score"]["verdict"] == "gain"


def test_a_lower_perplexity_is_a_gain(rooms):
    results, studies = rooms
    file = results / "some.json"
    values = json.loads(file.read_text())
    for run in values["runs"]:
        run["metrics"] = {"perplexity": 200 - run["metrics"]["accuracy"], "nll": 4.0}
    file.write_text(json.dumps(values))
    mixed = next(one for one in summary.comparisons(results, studies) if one.label == "mixed-clean")
    assert mixed.verdict == "gain" and mixed.difference.startswith("-2.17 [-2.88, -1.45] perplexity")


def test_rare_classes_are_compared_too(rooms):
    results, studies = rooms
    file = results / "some.json"
    values = json.loads(file.read_text())
    for run in values["runs"]:
        run["rare"] = ["cat", "dog"]
        score = run["metrics"]["accuracy"] + (4.0 if run["label"] == "mixed-clean" else 0.0)
        run["metrics"]["class_accuracy"] = {"cat": score - 30, "dog": score - 10, "ship": 99.0}
    file.write_text(json.dumps(values))
    whole, rare = (one for one in summary.comparisons(results, studies) if one.label == "mixed-clean")
    assert (whole.metric, rare.metric) == ("accuracy", "accuracy of rare classes")
    assert rare.score.mean == pytest.approx(6.5 / 3 + 4) and whole.score.mean == pytest.approx(6.5 / 3)
    assert rare.difference == "+6.17 [+5.45, +6.88] points, rare classes"


def recipe(arch="resnet20_cifar", args=None, **method):
    values = {"model": {"arch": arch, "args": args or {}}, "data": {"name": "c10"}, "optim": {"lr": 1.0}}
    return Recipe.model_validate({"name": "x", **values, "train": {"epochs": 1}, "method": method})


@pytest.mark.parametrize(
    "row, title",
    [
        (recipe(), ""),
        (recipe(args={"drop_rate": 0.5}), ""),
        (recipe(label_smoothing=0.1), "label smoothing"),
        (recipe(mixup={"alpha": 0.2, "cutmix": True}), "CutMix"),
        (recipe(manifold_mixup={}), "manifold mixup"),
        (recipe(mhe={"hidden": 0, "output": 1.0}), "MHE, output layer"),
        (recipe(mhe={"hidden": 1.0, "output": 1.0}), "MHE"),
        (recipe(angular={"margin": 1}), "W-Softmax"),
        (recipe(angular={"margin": 4}), "A-Softmax"),
        (recipe(angular={"margin": 4, "operator": "linear"}), "GA-Softmax"),
        (recipe("spherenet20"), "sphere layers, cosine"),
        (recipe("spherenet20_linear", angular={"margin": 4}), "sphere layers, linear + A-Softmax"),
        (recipe("cnn11_elu_bn"), "batch norm"),
        (recipe(activation_norm={"strength": 1.0, "p": 2}), "L2 of activations"),
    ],
)
def test_a_method_is_what_the_baseline_lacks(row, title):
    assert summary.method_of(row, recipe()) == title
    assert summary.method_of(row, row) == ""


def test_damaged_results_and_missing_studies_are_named(rooms):
    results, studies = rooms
    (studies / "some.yaml").unlink()
    with pytest.raises(RecipeError, match="some.yaml"):
        summary.comparisons(results, studies)
    (results / "some.json").write_text('{"runs": 3}')
    with pytest.raises(RunError, match="cannot read the results .*some.json"):
        summary.comparisons(results, studies)


def test_the_page_and_the_json_are_written_with_the_other_generated_texts(rooms, tmp_path):
    results, _ = rooms
    place = finished.new_checkout(tmp_path / "checkout")
    shutil.copytree(results.parent / "recipes" / "studies", place.recipes / "studies", dirs_exist_ok=True)
    shutil.copytree(results, place.results("some").parent, dirs_exist_ok=True)
    place.docs.mkdir(exist_ok=True)
    (place.docs / "when.md").write_text(
        "a\n<!-- summary: overview -->\n<!-- end of summary -->\n"
        "<!-- summary: details -->\nstale\n<!-- end of summary -->\n"
    )
    manifest = Manifest(place.package)
    assert cards.write(manifest, place) and cards.check(manifest, place) == []
    text = (place.docs / "when.md").read_text()
    assert "| input mixup | 1 | 0 | 0 | 1 |" in text and "`mixed-clean` |" in text and "stale" not in text
    found = summary.comparisons(place.results("some").parent, place.recipes / "studies")
    assert place.results("summary").read_text() == summary.as_json(found)
