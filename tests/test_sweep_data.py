"""The runs of a sweep that are compared have the same data, and networks that take its images."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hyperzoo.errors import RecipeError, RunError
from hyperzoo.experiments import sweep
from hyperzoo.experiments.sweep_data import check_data
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.sweep_file import Run

ROOT = Path(__file__).parent.parent
RESULTS = sorted({*ROOT.glob("results/*.json")} - {ROOT / "results" / "summary.json"})
BASE = """\
model: {arch: plain_cnn3, args: {widths: [8, 8, 8]}}
data: {%s, batch_size: 8, crop_px: 1, size_px: 8}
optim: {lr: 0.01}
train: {epochs: 1, compile: off, precision: fp32}
"""
ROWS = "base: base.yaml\nrows: {plain: {}, fast: {optim.lr: 0.02}}\nseeds: %s\n"


def write(folder: Path, source: str, seeds: list[int], rows: str = ROWS) -> Path:
    (folder / "base.yaml").write_text(BASE % source)
    (folder / "some.yaml").write_text(rows % seeds)
    return folder / "some.yaml"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Folders of own images with a train and a test split, and `add(split)`, which adds an image to one of them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    images = tmp_path / "images"

    def add(split: str) -> None:
        for shade, name in enumerate("ab"):
            (folder := images / split / name).mkdir(parents=True, exist_ok=True)
            number = len([*folder.iterdir()])
            Image.new("RGB", (8, 8), (100 * shade, 9 * number, 50)).save(folder / f"{number}.png")

    for _ in range(4):
        add("train")
        add("test")
    return f"source: {{folder: {images}}}", add


@pytest.mark.fault("data that change between the runs of a sweep", 2)
def test_training_data_that_changed_are_refused_before_a_run(own, tmp_path, monkeypatch):
    source, add = own
    sweep.run(write(tmp_path, source, [0]), out := tmp_path / "out")
    before = (out / "sweep.json").read_bytes()
    add("train")
    monkeypatch.setattr(sweep.train, "run", lambda *_: pytest.fail("a run was trained"))
    expected = rf"training data of images have changed \(sha256 \w{{8}}\) since plain/0, fast/0 in {out} were trained"
    with pytest.raises(RunError, match=rf"{expected}, with which plain would be .*move these .* another --out"):
        sweep.run(write(tmp_path, source, [0, 1]), out)
    assert (out / "sweep.json").read_bytes() == before
    assert [line.n for line in sweep.run(write(tmp_path, source, [0]), out)[1]] == [1, 1]  # its own runs still agree


@pytest.mark.fault("data that change between the runs of a sweep", 2)
def test_a_test_set_that_changed_stops_the_sweep_after_one_run(own, tmp_path):
    source, add = own
    sweep.run(write(tmp_path, source, [0]), out := tmp_path / "out")
    before = (out / "sweep.json").read_bytes()
    add("test")
    for _ in range(2):  # after the run, and at the start of the next call
        with pytest.raises(RunError) as caught:
            sweep.run(write(tmp_path, source, [0, 1]), out)
        found = [json.loads((out / f"plain/{seed}/result.json").read_text()) for seed in (0, 1)]
        first, second = (values["metrics"]["fingerprint"][:8] for values in found)
        assert first != second and not (out / "fast" / "1").exists()
        shown = [f"plain/0, fast/0 (sha256 {first})", f"plain/1 (sha256 {second})"]
        assert str(caught.value) == (
            f"runs in {out} with the same data settings were judged on different data of images: {'; '.join(shown)}. "
            "The data have changed between these runs. Move the folders of one group away, or train all runs under "
            "another --out"
        )
        assert (out / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "others", "conflict"),
    [
        ({}, {"batch_size": 7, "crop_px": 0, "flip": False}, "trained"),  # no part of the samples
        ({"judge_on": "test"}, {"judge_on": "test"}, "judged"),
        ({"judge_on": "test"}, {"judge_on": "test", "per_class": 10}, "judged"),  # the test set is the same
        ({}, {"label_noise": 0.5}, "judged"),  # so are the validation images
        ({}, {"hold_out": 30}, ""),
        ({"judge_on": "test"}, {"judge_on": "test", "size_px": 8}, ""),
        ({}, {"name": "c100"}, ""),
    ],
)
def test_settings_that_determine_the_samples_decide_which_runs_are_compared(tmp_path, settings, others, conflict):
    runs, results = [], {}
    for seed, changes in enumerate((settings, others)):
        recipe = Recipe.model_validate(
            {
                "name": "made",
                "model": {"arch": "plain_cnn3"},
                "data": {"name": "c10", "hold_out": 20, "batch_size": 50, **changes},
                "optim": {"lr": 0.1},
                "train": {"epochs": 1, "seed": seed},
            }
        )
        runs.append(Run("row", recipe))
        judged = "same" if conflict == "trained" else str(seed)
        results[f"row/{seed}"] = {
            "split": "test" if "judge_on" in changes else "held-out part of train",
            "metrics": {"fingerprint": judged},
            "train_fingerprint": str(seed),
        }
    if conflict:
        with pytest.raises(RunError, match=f"were {conflict} on different data of c10: row/0 .*; row/1 "):
            check_data(runs, results, tmp_path)
        for values in results.values():  # results of an older version
            values["metrics"].pop("fingerprint"), values.pop("train_fingerprint")
    check_data(runs, results, tmp_path)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_runs_of_a_study_have_the_same_data(file):
    values, runs, results = json.loads(file.read_text(encoding="utf-8")), [], {}
    for run in values["runs"]:
        recipe = Recipe.stored(values["recipes"][run["label"]])
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": run["seed"]})})
        runs.append(Run(run["label"], recipe))
        results[runs[-1].subfolder] = run
    check_data(runs, results, file)
    with_fingerprint = [run for run in values["runs"] if "fingerprint" in run["metrics"]]
    if len({run["seed"] for run in with_fingerprint}) > 1:
        with_fingerprint[-1]["metrics"]["fingerprint"] = "f" * 64
        with pytest.raises(RunError, match="judged on different data"):
            check_data(runs, results, file)


@pytest.mark.fault("a network that takes no images of the size of the data")
def test_a_row_whose_network_is_too_large_is_named_before_a_run(tmp_path, data_mirror, monkeypatch):
    rows = "base: base.yaml\nrows: {plain: {}, large: {model.arch: convnext_atto, model.args: {}}}\nseeds: %s\n"
    file = write(tmp_path, "name: c10, hold_out: 20", [0], rows)
    monkeypatch.setattr(sweep.train, "run", lambda *_: pytest.fail("a run was trained"))
    expected = r"row large: convnext_atto takes no images of 8 x 8 pixels \(.*\); set data.size_px to 224, the network"
    with pytest.raises(RecipeError, match=f"{expected}'s own size, or choose another network"):
        sweep.run(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("a network that takes no images of the size of the data")
def test_a_single_run_of_such_a_network_is_one_sentence(tmp_path, data_mirror):
    values = {"name": "made", "model": {"arch": "convnext_atto"}, "optim": {"lr": 0.1}, "train": {"epochs": 1}}
    recipe = Recipe.model_validate({**values, "data": {"name": "c10", "hold_out": 20, "size_px": 16}})
    with pytest.raises(RecipeError, match="convnext_atto takes no images of 16 x 16 pixels"):
        sweep.train.run(recipe, tmp_path / "out")
