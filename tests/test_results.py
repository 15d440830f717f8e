"""Results belong to the studies as they stand; they hold what documents and figures read, and no more."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

import hyperzoo
from hyperzoo.analysis import evaluate, plots, sweep_table
from hyperzoo.errors import RunError
from hyperzoo.experiments import train
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.training.sweep_file import load_sweep

ROOT = Path(__file__).parent.parent
RESULTS = sorted({*ROOT.glob("results/*.json")} - {ROOT / "results" / "summary.json"})
EACH = pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
DOCUMENTS = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md"))


def tool():
    spec = importlib.util.spec_from_file_location("study_results", ROOT / "tools" / "study_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@EACH
def test_a_file_holds_runs_of_the_study_as_it_stands(file):
    _, runs = load_sweep(ROOT / "recipes" / "studies" / f"{file.stem}.yaml")
    digests = {(label, recipe.train.seed): recipe.digest() for label, recipe in runs}
    stated = json.loads(file.read_text(encoding="utf-8"))["runs"]
    found = {(run["label"], run["seed"]): run["recipe_sha256"] for run in stated}
    assert found and len(found) == len(stated) and found.items() <= digests.items()
    assert f"<!-- sweep: {file.stem} -->" in DOCUMENTS


@EACH
def test_a_recipe_in_a_file_is_that_of_its_runs(file):
    values = json.loads(file.read_text(encoding="utf-8"))
    for run in values["runs"] if "recipes" in values else ():
        recipe = Recipe.stored(values["recipes"][run["label"]])
        train = recipe.train.model_copy(update={"seed": run["seed"]})
        assert recipe.model_copy(update={"train": train}).digest() == run["recipe_sha256"]


@EACH
def test_only_what_a_figure_reads_is_kept_of_earlier_epochs(file, tmp_path, monkeypatch):
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    assert all(run["log"][-1]["epoch"] == run["epochs"] for run in runs)
    monkeypatch.setattr(plots, "save", lambda figure, picture: picture)
    if all("reports" in run["log"][0] for run in runs) or (ROOT / "docs" / f"{file.stem}.png").exists():
        assert all(len(run["log"]) == run["epochs"] for run in runs)
        assert plots.curves(file, tmp_path / "x.png") == tmp_path / "x.png"
    else:
        assert all(len(run["log"]) == 1 for run in runs)
        with pytest.raises(RunError, match="has only the last epoch of each run"):
            plots.curves(file, tmp_path / "x.png")


def made(tmp_path):
    """A sweep.json of two runs of two epochs."""
    reports = {"per": {"conv/mean": 0.5, "conv/variance": 1.5, "conv/error": 0.75}, "vcl": {"conv/beta": 2.0}}
    log = [{"epoch": n, "loss": 3.0 - n, "loss_task": 2.5 - n, "sample": "sha", "reports": reports} for n in (1, 2)]
    common = {"split": "test", "epochs": 2, "metrics": {"accuracy": 50.0, "nll": 1.0}, "log": log}
    values = {"sweep": "x", "published": {}, "environments": [{"torch": "2"}, {"torch": "3"}]}
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(values | {"runs": [{"label": label, **common} for label in "ab"]}))
    return file


def test_reducing_keeps_the_table_and_the_numbers_of_the_last_epoch(tmp_path):
    whole = made(tmp_path)
    values, last = json.loads(whole.read_text()), {"epoch": 2, "loss": 1.0, "loss_task": 0.5}
    reduced = tmp_path / "reduced.json"
    reduced.write_text(tool().text(values))
    kept = json.loads(reduced.read_text())
    assert kept == values | {"runs": [run | {"log": [last]} for run in values["runs"]]}
    assert sweep_table.lines(reduced) == sweep_table.lines(whole)


def test_a_figure_may_ask_for_all_epochs_and_for_reports_of_activations(tmp_path):
    values = json.loads(made(tmp_path).read_text())
    (log, other) = (run["log"] for run in json.loads(tool().text(values, epochs=True, reports="per"))["runs"])
    reports = {"per": {"conv/mean": 0.5, "conv/variance": 1.5}}
    assert (
        log
        == other
        == [
            {"epoch": 1, "loss": 2.0, "loss_task": 1.5, "reports": reports},
            {"epoch": 2, "loss": 1.0, "loss_task": 0.5, "reports": reports},
        ]
    )


def test_the_attack_meets_the_images_of_the_run_at_their_size(tmp_path, data_mirror, monkeypatch):
    recipe = tmp_path / "some.yaml"
    recipe.write_text(
        "model: {arch: resnet20_cifar}\ndata: {name: c10, batch_size: 50, per_class: 10, size_px: 8, judge_on: test}\n"
        "optim: {lr: 0.05}\ntrain: {epochs: 2, precision: fp32}\n"
    )
    train.run(load_recipe(recipe), tmp_path / "x" / "0")
    run = {"label": "x", "seed": 0, "metrics": {"accuracy": 1.0, "nll": 1.0, "ece": 2.0}, "split": "test", "epochs": 1}
    values = {"runs": [run | {"log": [{"loss": 1.0}]}], "published": {}}
    found = tool().under_attack(values, tmp_path, 40)["runs"][0]["metrics"]
    model, images = evaluate.load_model_and_samples(str(tmp_path / "x" / "0"), limit=40)
    assert images.images.shape == (40, 3, 8, 8)
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    hits = 0
    for image, label in zip(images.images / 255, images.labels, strict=True):
        pixels = image.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model.eval()(((pixels - mean) / std)[None]), label[None])
        (slope,) = torch.autograd.grad(loss, pixels)
        attacked = (image + 4 / 255 * slope.sign()).clamp(0, 1)
        hits += int(model(((attacked - mean) / std)[None]).argmax() == label)
    assert found == {"accuracy": 1.0, "nll": 1.0, "ece": 2.0, "fgsm": pytest.approx(100 * hits / 40, abs=2.5)}  # a tie
    (tmp_path / "sweep.json").write_text(
        json.dumps({**values, "runs": [run | {"metrics": found, "log": [{"loss": 1.0}]}]})
    )
    head, line = sweep_table.table(sweep_table.lines(tmp_path / "sweep.json"))
    assert dict(zip(head, line, strict=True))["FGSM (%)"] == f"{found['fgsm']:.2f}"


def test_the_command_writes_the_file(tmp_path, monkeypatch):
    shutil.copy(ROOT / "results" / "spherenet_deep.json", tmp_path / "sweep.json")
    command = ["study_results.py", str(tmp_path / "sweep.json"), str(tmp_path / "out.json"), "--epochs"]
    monkeypatch.setattr("sys.argv", command)
    tool().main()
    assert (tmp_path / "out.json").read_bytes() == (ROOT / "results" / "spherenet_deep.json").read_bytes()


def test_a_run_that_is_a_published_weight_has_its_metrics():
    """Accuracy and calibration error in percent, as in the manifest; results have two digits of the older entries."""
    weights = {info.recipe_sha256: info for info in map(hyperzoo.weight_info, hyperzoo.list_weights())}
    compared = set()
    for study in RESULTS:
        for run in json.loads(study.read_text(encoding="utf-8"))["runs"]:
            info = weights.get(run["recipe_sha256"])
            if info is None or run["split"] != "test":
                continue
            compared.add(info.name)
            metrics, file, name = run["metrics"], info.metrics.this_file, info.name
            assert any(metrics[info.metric] == pytest.approx(value, abs=0.006) for value in info.score.values), name
            if info.score.n == 1:
                assert metrics["nll"] == pytest.approx(file.nll, abs=0.006), name
                slack = 0.006 if info.bytes > 3 * info.parameters else 0.1  # rounding to float16 moves its bins
                assert "ece" not in metrics or metrics["ece"] == pytest.approx(file.ece, abs=slack), name
    assert {name for name in hyperzoo.list_weights() if name.startswith(("fast_", "lstm"))} - compared == {
        "fast_cnn8_wide.plain_c100"  # of no study
    }
