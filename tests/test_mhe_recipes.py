"""The MHE recipes match the paper's tables and logs, and differ from their baselines in the energy only."""

import itertools

import pytest
import timm

from hyperzoo.experiments import build
from hyperzoo.training.recipe import load_recipe, recipe_folders
from hyperzoo.training.sweep_file import load_sweep, sweep_files

DRAFTS = recipe_folders()[-1] / "drafts"
SWEEPS = [path.stem for path in sweep_files() if path.stem.startswith("mhe_")]
# strengths (hidden, output) in the published logs, in the convention of the authors' code
LOGS = {
    ("mhe", "half"): {0: (1.0, 10.0), 1: (1.0, 10.0), 2: (1.0, 10.0)},
    ("mhe", "full"): {0: (0.1, 1.0), 1: (0.1, 1.0), 2: (0.1, 1.0)},
    ("angular", "half"): {0: (1.0, 10.0), 1: (0.1, 1.0), 2: (0.1, 1.0)},
    ("angular", "full"): {0: (0.1, 1.0), 1: (0.01, 0.1), 2: (0.01, 0.1)},
}
CONVERSION = {("mhe", 0): 2, ("angular", 1): 3.14159265, ("angular", 2): 9.8696044}


def recipes(sweep):
    return {run.label: run.recipe for run in load_sweep(sweep)[1]}


def without_terms(recipe):
    settings = recipe.settings()
    return {**settings, "method": {**settings["method"], "mhe": None, "orthogonality": None, "minimum_angle": None}}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_rows_of_a_sweep_differ_in_the_term_only(sweep):
    said, runs = load_sweep(sweep)
    plain = {"baseline", "plain", "none", "m1", "m4"} & set(said.rows)
    assert plain or sweep in ("mhe_layers_paper", "mhe_margin_paper")
    changed_by_rows = {key for changes in said.rows.values() for key in changes}
    assert changed_by_rows <= {"method.mhe", "method.orthogonality", "method.minimum_angle", "method.angular"}
    by_column = itertools.groupby(
        sorted(runs, key=lambda run: run.label.partition("-")[2]), key=lambda run: run.label.partition("-")[2]
    )
    for _, group in by_column:
        others = {(run.recipe.train.seed, str(run.recipe.method.angular)): without_terms(run.recipe) for run in group}
        for settings in others.values():
            settings["method"]["angular"] = settings["train"]["seed"] = None
        assert len({str(settings) for settings in others.values()}) == 1


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_short_sweep_leaves_the_test_set_alone_and_a_long_one_states_the_published_numbers(sweep):
    said, runs = load_sweep(sweep)
    epochs = {run.recipe.train.epochs for run in runs}
    if runs[0].recipe.data.name == "imagenet":
        return
    if sweep == "mhe_resnet20_c100":  # its runs are published weights, not used for any choice
        assert epochs == {30} and {run.recipe.data.hold_out for run in runs} == {0} and not said.published
    elif max(epochs) < 30:
        assert {run.recipe.data.hold_out for run in runs} == {5000} and not said.published
    else:
        assert epochs == {109} and {run.recipe.data.hold_out for run in runs} == {0}
        assert bool(said.published) == (sweep in ("mhe_table1", "mhe_table2", "mhe_table3"))  # those that logs confirm


def test_published_numbers_are_the_last_evaluations_of_the_logs():
    table = {row: values["c100"] for row, values in load_sweep("mhe_table1")[0].published.items()}
    assert table["baseline"] == 69.74 and (table["mhe_2"], table["half_2"]) == (72.78, 73.99)
    assert [table[f"angular_{power}"] for power in (0, 1, 2)] == [71.97, 72.50, 72.76]
    for sweep, column in (("mhe_table2", "w64"), ("mhe_table3", "cnn9")):
        stated = {"baseline": {column: 69.74}, "mhe": {column: 72.78}, "half": {column: 73.99}}
        assert load_sweep(sweep)[0].published == stated


def test_table_1_has_every_variant_with_the_strengths_of_its_log():
    paper, ours = recipes("mhe_table1"), recipes("mhe_variants")
    seen = set()
    for (kind, space), strengths in LOGS.items():
        for power, (hidden, output) in strengths.items():
            row = "_".join(
                ["half"] * (space == "half") + [kind] * (kind == "angular" or space == "full") + [str(power)]
            )
            term, converted = paper[f"{row}-c100"].method.mhe, ours[row].method.mhe
            assert (term.hidden, term.output, term.power) == (hidden, output, power)
            assert term.half_space == converted.half_space == (space == "half")
            assert term.angular == converted.angular == (kind == "angular")
            assert term.authors_code and not converted.authors_code and converted.power == power
            factor = CONVERSION.get((kind, power), 1)
            assert (converted.hidden, converted.output) == pytest.approx((factor * hidden, factor * output), rel=1e-3)
            assert paper[f"{row}-c10"].data.name == "c10" and paper[f"{row}-c10"].method.mhe == term
            seen.add(row)
    assert len(seen) == 12 and {f"{row}-{data}" for row in seen for data in ("c10", "c100")} <= paper.keys()
    assert len(paper) == 26 and paper["baseline-c100"].method.mhe is None


def test_the_faithful_recipe_is_that_of_the_authors_code():
    recipe = load_recipe(DRAFTS / "cnn9_w64.mhe_c100.yaml")
    updates = 50_000 // 128  # per epoch; the last, incomplete batch is dropped
    assert [round(epoch * updates, -2) for epoch in recipe.optim.milestones] == [20_000, 30_000, 37_500]
    assert round(recipe.train.epochs * updates, -2) == 42_500
    assert recipe.data.border == "symmetric" and recipe.method.label_smoothing == 0.01
    assert (recipe.optim.optimizer, recipe.optim.lr, recipe.optim.weight_decay) == ("momentum", 0.1, 5e-4)


def test_twins_share_their_recipe():
    def settings(path):
        recipe = load_recipe(path)
        assert recipe.method.mhe is None or recipe.train.epochs >= 30
        return {**without_terms(recipe), "train": None}

    assert settings("resnet20_cifar.mhe_c100") == settings("resnet20_cifar.plain_c100")
    term = load_recipe("resnet20_cifar.mhe_c100").method.mhe
    assert (term.hidden, term.output, term.power, term.half_space) == (1.0, 10.0, 2, True)


def test_rare_classes_are_a_tenth():
    for recipe in recipes("mhe_imbalance").values():
        assert recipe.data.keep == {"airplane": 0.1} and recipe.data.hold_out == 5000
    paper = recipes("mhe_imbalance_paper")
    assert {len(recipe.data.keep) for recipe in paper.values()} == {1, 5}
    assert {part for recipe in paper.values() for part in recipe.data.keep.values()} == {0.1}


def test_every_term_of_every_sweep_can_be_built():
    methods = {}
    for sweep in SWEEPS:
        for recipe in recipes(sweep).values():
            methods.setdefault(str(recipe.method), recipe)
    assert len(methods) > 30
    for recipe in methods.values():
        network = timm.create_model("cnn9_w16", num_classes=10)
        step = build.step(recipe, network)
        asked = {name for name in build.TERMS if getattr(recipe.method, name)}
        assert step.terms.keys() == asked and step.angular == (recipe.method.angular is not None)
        for term in step.terms.values():
            assert term().isfinite()
