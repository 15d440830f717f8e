"""A rerun of a published recipe gets a verdict by a stated rule, and none if it cannot be compared."""

import dataclasses
import json
import math

import pytest

from hyperzoo.cli.main import _exit_code
from hyperzoo.errors import InputError, RunError
from hyperzoo.experiments import reproduce
from hyperzoo.experiments.train import RunResult
from hyperzoo.training.recipe import load_recipe
from hyperzoo.zoo import weight_files

NAME = "spherenet20.sphere_c10"
RECIPE = load_recipe(NAME)
INFO = dataclasses.replace(weight_files.MANIFEST.info(NAME), recipe_sha256=RECIPE.digest())
INFO = dataclasses.replace(INFO, training=dataclasses.replace(INFO.training, epochs=RECIPE.train.epochs))


@pytest.fixture(autouse=True)
def of_this_recipe(monkeypatch):
    monkeypatch.setitem(weight_files.MANIFEST.weights, NAME, INFO)


@pytest.fixture
def trained(monkeypatch):
    """What the training would have given: accuracies by seed; and the recipes that were asked for."""
    asked, accuracies = [], {}

    def run(recipe, folder):
        folder.mkdir(parents=True)
        asked.append(recipe)
        metrics = {"accuracy": accuracies[recipe.train.seed], "fingerprint": INFO.dataset.test_fingerprint}
        values = {"seed": recipe.train.seed, "epochs": recipe.train.epochs, "metrics": metrics}
        return RunResult(folder, values | {"train_fingerprint": INFO.dataset.train_fingerprint})

    monkeypatch.setattr(reproduce.train, "run", run)
    return asked, accuracies


def published(monkeypatch, mean, sd, n):
    spread = dataclasses.replace(INFO.metrics.accuracy, mean=mean, sd=sd, n=n, seeds=tuple(range(n)))
    info = dataclasses.replace(INFO, metrics=dataclasses.replace(INFO.metrics, accuracy=spread))
    monkeypatch.setitem(weight_files.MANIFEST.weights, NAME, info)


@pytest.mark.parametrize(
    ("sd", "found", "agrees"), [(0.2, 90.99, True), (0.2, 91.00, False), (0.2, 89.01, True), (0.2, 89.00, False)]
)
def test_a_new_run_is_within_the_prediction_interval_of_the_published_ones(
    trained, monkeypatch, tmp_path, sd, found, agrees
):
    """4.303 is the 97.5 % point of Student's t with two degrees of freedom, as tables give it."""
    published(monkeypatch, 90.0, sd, 3)
    trained[1][3] = found
    report = reproduce.run(NAME, tmp_path)
    assert (
        report.agrees is agrees
        and report.seeds == (3,)
        and report.allowed == pytest.approx(4.303 * sd * math.sqrt(1 / 3 + 1), abs=1e-3)
    )
    assert ("agrees" if agrees else "DIFFERS") in report.verdict and "published 90.00 %" in report.verdict
    assert json.loads((tmp_path / "report.json").read_text())["values"] == [found]


def test_one_published_run_gets_the_rule_of_two_counts(trained, monkeypatch, tmp_path):
    published(monkeypatch, 90.0, None, 1)
    one_count = 100 * math.sqrt(0.9 * 0.1 / 10_000)
    allowed = 3 * math.sqrt(one_count**2 + one_count**2 / 2)  # of one count, and of the mean of two
    trained[1].update({1: 90.0 + allowed - 0.3, 2: 90.0 + allowed + 0.29})
    report = reproduce.run(NAME, tmp_path, seeds=2)
    assert report.agrees and report.allowed == pytest.approx(allowed, abs=1e-4) and "n = 1" in report.rule


def test_no_verdict_on_part_of_the_epochs_or_other_images(trained, tmp_path, monkeypatch, capsys):
    published(monkeypatch, 90.0, 0.1, 3)
    trained[1].update({3: 50.0})
    assert _exit_code(["reproduce", NAME, "--budget", "0.2", "--out", str(tmp_path / "part")]) == 0
    (short,) = trained[0]
    assert short.train.epochs == round(0.2 * INFO.training.epochs) and "no verdict" in capsys.readouterr().out
    assert max(short.data.resize_px, default=1) <= short.train.epochs
    other = dataclasses.replace(INFO.dataset, test_fingerprint="f" * 64)
    monkeypatch.setitem(weight_files.MANIFEST.weights, NAME, dataclasses.replace(INFO, dataset=other))
    trained[1][1] = 90.0
    assert reproduce.run(NAME, tmp_path / "other").agrees is None


def test_a_difference_is_exit_code_1(trained, monkeypatch, tmp_path, capsys):
    published(monkeypatch, 90.0, 0.1, 3)
    trained[1][3] = 85.0
    assert _exit_code(["reproduce", NAME, "--out", str(tmp_path)]) == 1
    assert "DIFFERS, 5.00 points apart, 0.50 allowed" in capsys.readouterr().out


def test_bad_arguments(tmp_path, monkeypatch):
    for wrong in ({"seeds": 0}, {"budget": 0.0}, {"budget": 1.5}):
        with pytest.raises(InputError, match="seeds must be 1 or more and budget in"):
            reproduce.run(NAME, tmp_path, **wrong)
    monkeypatch.setitem(weight_files.MANIFEST.weights, NAME, dataclasses.replace(INFO, recipe_sha256="0" * 64))
    with pytest.raises(RunError, match="is not the one that made the weight"):
        reproduce.run(NAME, tmp_path)


def test_a_real_rerun_of_the_shortest_kind(tmp_path, data_mirror):
    """One epoch of the 130 embedded images: the whole way, without a verdict."""
    report = reproduce.run(NAME, tmp_path, budget=1e-9)
    assert report.agrees is None and report.epochs == 1 and 0 <= report.values[0] <= 100
