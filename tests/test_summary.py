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

ROWS = {
    "none": {},
    "mixed": {"method": {"mixup": {"alpha": 1.0}}},
    "half": {"method": {"mhe": {"hidden": 1.0, "output": 10.0, "half_space": True}}},
    "faster": {"optim": {"lr": 0.3}},
    "both": {"optim": {"lr": 0.3}, "method": {"mixup": {"alpha": 1.0}}},
}
COLUMNS = {"clean": {}, "noisy": {"label_noise": 0.5}}
ACCURACIES = {  # label: accuracy, NLL and images per second in the fastest epoch, by seed
    "none-clean": [(50.0, 1.5, 900.0), (51.0, 1.4, 1000.0), (52.0, 1.6, 10.0)],  # the last on a loaded machine
    "mixed-clean": [(52.0, 1.4, 30.0), (53.0, 1.2, 700.0), (54.5, 1.3, 800.0)],
    "half-clean": [(50.0, 1.5, 900.0), (50.5, 1.3, 900.0)],
    "faster-clean": [(60.0, 1.0, 900.0)],
    "both-clean": [(61.0, 1.0, 900.0)],
    "none-noisy": [(30.0, 2.0, 900.0)],
    "mixed-noisy": [(35.0, 1.9, 900.0)],
}


@pytest.fixture
def results(tmp_path):
    """The folder of the results, with those of one study."""
    folder = tmp_path / "results"
    folder.mkdir()
    runs = [
        {
            "label": label,
            "seed": seed,
            "split": "test",
            "metrics": {"accuracy": accuracy, "nll": nll, "ece": 3.0},
            "epochs": 40,
            "rate": rate,
            "log": [{"epoch": 40, "loss": 1.0}],
        }
        for label, rows in ACCURACIES.items()
        for seed, (accuracy, nll, rate) in enumerate(rows)
    ]
    baselines = {f"{row}-{column}": f"none-{column}" for row in ("mixed", "half") for column in ("clean", "noisy")}
    baselines["faster-clean"] = baselines["both-clean"] = "none-clean"
    recipes = {
        f"{row}-{column}": {
            "model": {"arch": "resnet20_cifar"},
            "data": {"name": "c10", "per_class": 100, **data},
            "optim": {"lr": 0.1},
            "train": {"epochs": 40},
            **changes,
        }
        for row, changes in ROWS.items()
        for column, data in COLUMNS.items()
    }
    contents = {"sweep": "some", "baselines": baselines, "published": {}, "recipes": recipes, "runs": runs}
    (folder / "some.json").write_text(json.dumps(contents))
    return folder


def test_differences_times_and_verdicts(results):
    found = {one.label: one for one in summary.comparisons(results)}
    assert list(found) == [
        "half-clean",
        "mixed-noisy",
        "mixed-clean",
    ]  # equal rates only
    mixed = found["mixed-clean"]
    # differences 2, 2, 2.5: mean 2.1667, sd 0.2887, standard error 0.16667; t(0.975, 2) = 4.30265
    assert mixed.score.mean == pytest.approx(6.5 / 3)
    assert mixed.score.low == pytest.approx(6.5 / 3 - 4.30265 / 6, abs=1e-4)
    assert (mixed.score.n, mixed.score.verdict, mixed.metric, mixed.split) == (3, "gain", "accuracy", "test")
    assert mixed.nll.mean == pytest.approx((-0.1 - 0.2 - 0.3) / 3)
    assert mixed.cost == 1.25  # 1000 images/s over 800
    assert mixed.method == "input mixup" and mixed.setting == "CIFAR-10, 100 images a class, resnet20_cifar, 40 epochs"
    half = found["half-clean"]  # differences 0 and -0.5: only the seeds that both have
    assert (half.score.n, half.score.mean, half.score.verdict, half.cost) == (2, -0.25, "too few seeds", None)
    noisy = found["mixed-noisy"]
    assert (noisy.score.verdict, noisy.score.low, noisy.cost) == ("too few seeds", None, None)
    assert "50 % of the labels random" in noisy.setting


def test_the_same_runs_in_two_studies_count_once(results):
    [file] = results.glob("*.json")
    found = summary.comparisons(results)
    shutil.copy(file, results / "zz_again.json")
    assert summary.comparisons(results) == found


def test_tables_and_json(results):
    found = summary.comparisons(results)
    head, *lines = summary.details(found)
    mixed = dict(zip(head, lines[-1], strict=True))
    assert mixed["difference (95 %)"] == "+2.17 [+1.45, +2.88] points" and mixed["time per step"] == "1.25 x"
    assert mixed["NLL"] == "-0.200" and mixed["study and row"] == "`some`, `mixed-clean`"
    assert dict(zip(head, lines[1], strict=True))["difference (95 %)"] == "+5.00 points"
    assert summary.overview(found)[1:] == [
        ("MHE, half space", "0", "0", "0", "1", "-"),
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


def test_only_three_pairs_are_evidence(results):
    assert summary.evidence(summary.comparisons(results)) == [
        summary.EVIDENCE,
        (
            "input mixup",
            "1",
            "0",
            "0",
            "51.0 ± 1.0 → 53.2 ± 1.3 % (n = 3): CIFAR-10, 100 images a class, resnet20_cifar, 40 epochs",
            "-",
            "1.25 x",
        ),
    ]


@pytest.mark.parametrize(
    "split, word",
    [
        ("test", "test"),
        ("test at 12 px", "test"),
        ("held-out part of train", "validation"),
        ("validation", "validation"),
    ],
)
def test_the_page_says_what_was_measured_on(results, split, word):
    file = results / "some.json"
    file.write_text(file.read_text().replace('"split": "test"', f'"split": "{split}"'))
    assert {one.measured_on for one in summary.comparisons(results)} == {word}


def test_a_lower_perplexity_is_a_gain(results):
    file = results / "some.json"
    values = json.loads(file.read_text())
    for run in values["runs"]:
        run["metrics"] = {"perplexity": 200 - run["metrics"]["accuracy"], "nll": 4.0}
    file.write_text(json.dumps(values))
    mixed = next(one for one in summary.comparisons(results) if one.label == "mixed-clean")
    assert mixed.score.verdict == "gain" and mixed.difference.startswith("-2.17 [-2.88, -1.45] perplexity")


def test_rows_without_a_common_seed_are_left_out(results):
    file = results / "some.json"
    values = json.loads(file.read_text())
    for run in values["runs"]:
        run["seed"] += 7 * (run["label"] == "mixed-noisy")
    file.write_text(json.dumps(values))
    assert [one.label for one in summary.comparisons(results)] == ["half-clean", "mixed-clean"]


def test_rare_classes_are_compared_too(results):
    file = results / "some.json"
    values = json.loads(file.read_text())
    for run in values["runs"]:
        run["rare"] = ["cat", "dog"]
        score = run["metrics"]["accuracy"] + (4.0 if run["label"] == "mixed-clean" else 0.0)
        run["metrics"]["class_accuracy"] = {"cat": score - 30, "dog": score - 10, "ship": 99.0}
    file.write_text(json.dumps(values))
    whole, rare = (one for one in summary.comparisons(results) if one.label == "mixed-clean")
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


def test_another_strength_is_no_method_and_conversion_is_one():
    strong, weak = (recipe(mhe={"hidden": value, "output": 1.0}) for value in (1.0, 0.1))
    assert summary.method_of(strong, weak) == ""
    converted = recipe().model_copy(update={"model": recipe().model.model_copy(update={"sphereize": "linear"})})
    assert summary.method_of(converted, recipe()) == "sphere layers, linear"


def test_damaged_results_are_named_and_those_without_recipes_left_out(results):
    values = json.loads((results / "some.json").read_text())
    values["recipes"]["none-clean"]["later"] = 1
    (results / "some.json").write_text(json.dumps(values))
    with pytest.raises(RecipeError, match="not one of this version"):
        summary.comparisons(results)
    del values["recipes"]
    (results / "some.json").write_text(json.dumps(values))
    assert summary.comparisons(results) == []
    (results / "some.json").write_text('{"runs": 3}')
    with pytest.raises(RunError, match="cannot read the results .*some.json"):
        summary.comparisons(results)


def test_the_page_and_the_json_are_written_with_the_other_generated_texts(results, tmp_path):
    place = finished.new_checkout(tmp_path / "checkout")
    shutil.copytree(results, place.results("some").parent, dirs_exist_ok=True)
    place.docs.mkdir(exist_ok=True)
    (place.docs / "when.md").write_text(
        "a\n<!-- summary: overview -->\n<!-- end of summary -->\n"
        "<!-- summary: details -->\nstale\n<!-- end of summary -->\n"
    )
    place.readme.write_text(place.readme.read_text() + "<!-- summary: evidence -->\n<!-- end of summary -->\n")
    manifest = Manifest(place.package)
    assert cards.write(manifest, place) and cards.check(manifest, place) == []
    assert "| input mixup | 1 | 0 | 0 | 51.0 ± 1.0 → 53.2 ± 1.3 % (n = 3)" in place.readme.read_text()
    text = (place.docs / "when.md").read_text()
    assert "| input mixup | 1 | 0 | 0 | 1 |" in text and "`mixed-clean` |" in text and "stale" not in text
    found = summary.comparisons(place.results("some").parent)
    assert place.results("summary").read_text() == summary.as_json(found)
