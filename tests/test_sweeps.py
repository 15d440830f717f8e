"""A sweep is read strictly, trains each of its recipes once, resumes, and collects the results in one file."""

import json
import os
import shutil
import signal

import pytest
from scipy import stats

from hyperzoo.analysis import plots, sweep_table
from hyperzoo.cli.main import _exit_code
from hyperzoo.errors import RecipeError, RunError
from hyperzoo.experiments import sweep
from hyperzoo.training.loop import Stopped
from hyperzoo.training.recipe import load_recipe
from hyperzoo.training.sweep_file import is_sweep, load_sweep, size, sweep_files

BASE = """\
model: {arch: resnet20_cifar}
data: {name: c10, batch_size: 65}
optim: {lr: 0.01}
train: {epochs: 1, compile: off, precision: fp32}
expect: {accuracy: 90.0}
"""
SWEEP = """\
base: base.yaml
set: {optim.lr: 0.02}
rows:
  plain: {}
  wide: {train.epochs: 2, model.arch: spherenet20}
columns:
  few: {data.batch_size: 26}
  many: {data.batch_size: 65}
seeds: [0, 3]
published: {plain: {few: 12.5}}
source: a made one
"""


def write(folder, text=SWEEP):
    (folder / "base.yaml").write_text(BASE)
    (folder / "some.yaml").write_text(text)
    return folder / "some.yaml"


def test_rows_times_grid_times_seeds(tmp_path):
    said, runs = load_sweep(write(tmp_path))
    found = [(label, r.data.batch_size, r.train.seed, r.train.epochs, r.model.arch, r.optim.lr) for label, r in runs]
    assert found == [
        (f"{row}-{column}", size, seed, epochs, arch, 0.02)
        for row, epochs, arch in (("plain", 1, "resnet20_cifar"), ("wide", 2, "spherenet20"))
        for column, size in (("few", 26), ("many", 65))
        for seed in (0, 3)
    ]
    base = load_recipe(tmp_path / "base.yaml", ("optim.lr=0.02", "data.batch_size=26"))
    assert runs[0].recipe.settings() == base.settings() and runs[0].recipe.expect is None
    assert said.stated() == {"plain-few": 12.5}
    assert is_sweep(tmp_path / "some.yaml") and not is_sweep(tmp_path / "base.yaml") and not is_sweep("a.b_c10")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rows:", "row:", "unknown key 'row' (did you mean 'rows'?)"),
        ("  plain: {}", "  plain: {}\n  plain: {}", "Line 5: repeated key 'plain'"),
        ("  plain: {}", "  ../up: {}", "'../up'"),
        ("  plain: {}", "  ..: {}", "'..'"),
        ("  few:", "  f-w:", "'f-w'"),
        ("{plain: {few: 12.5}}", "{plane: 1.0}", "published has 'plane', which is not a run. Runs: plain-few"),
        ("source: a made one", "", "`published` needs a `source`"),
        ("seeds: [0, 3]", "seeds: [0, 3]\nbaseline: plane", "baseline 'plane' is not a row. Rows: plain, wide"),
        ("seeds: [0, 3]", "seeds: [0, 3]\nbaseline: {wide: plane}", "baseline 'plane' is not a row. Rows: plain, wide"),
        (
            "seeds: [0, 3]",
            "seeds: [0, 3]\nbaseline: {wider: plain}",
            "baseline 'wider' is not a row. Rows: plain, wide",
        ),
        ("seeds: [0, 3]", "seeds: [3, 3]", "repeats a seed"),
        ("  plain: {}", "  plain: {train.seed: 1}", "list the seeds under `seeds`"),
        ("seeds: [0, 3]", "seeds: []", "at least one row and one seed"),
        ("  few: {data.batch_size: 26}\n  many: {data.batch_size: 65}", "  {}", "at least one column"),
        ("optim.lr: 0.02", "optim.lrr: 0.02", "plain-few has 1 fault. unknown key 'lrr' (did you"),
        ("optim.lr: 0.02", "lr: 0.02", "has 1 fault. unknown key 'lr' (did you mean 'optim.lr'?)"),
        ("train.epochs: 2", "train.epochs: two", "some.yaml, wide-few has 1 fault. train.epochs"),
        ("base.yaml", "nowhere.yaml", "cannot read the recipe"),
    ],
)
def test_one_fault_one_sentence(tmp_path, old, new, expected):
    assert old in SWEEP
    with pytest.raises(RecipeError) as caught:
        load_sweep(write(tmp_path, SWEEP.replace(old, new)))
    assert expected in str(caught.value)


def test_an_unknown_name_lists_the_sweeps():
    with pytest.raises(RecipeError, match="no sweep 'mixup_alfa'. Closest: mixup_alpha, .*Or pass a .yaml file"):
        load_sweep("mixup_alfa")


SMALL = """\
base: base.yaml
rows: {plain: {}, other: {train.ema: 0}}
seeds: [0, 1]
published: {plain: 91.25}
source: nowhere
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A sweep of four runs of one epoch, trained by the command, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    patch = pytest.MonkeyPatch()
    patch.setenv("HYPERZOO_DATA", str(request.config.rootpath / "tests" / "assets" / "mirror"))
    yield write(folder, SMALL), folder / "out"
    patch.undo()


def test_a_sweep_trains_and_resumes_and_its_file_holds_the_runs(trained, capsys):
    file, out = trained
    assert _exit_code(["train", str(file), "--out", str(out)]) == 0
    header, *table = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert " ".join(header) == "run accuracy (%) sd NLL ECE (%) training loss n epochs measured on published"
    assert [(row[0], *row[6:]) for row in table] == [
        ("plain", "2", "1", "test", "91.25"),
        ("other", "2", "1", "test", "-"),
    ]
    results = json.loads((out / "sweep.json").read_text())
    stated = {(run["label"], run["seed"]): run["metrics"]["accuracy"] for run in results["runs"]}
    for (label, seed), accuracy in stated.items():
        folder = out / label / str(seed)
        assert json.loads((folder / "result.json").read_text())["metrics"]["accuracy"] == accuracy
    assert stated["plain", 0] == stated["other", 0]  # the same recipe and seed
    assert float(table[0][1]) == pytest.approx((stated["plain", 0] + stated["plain", 1]) / 2, abs=0.006)
    assert [row["epoch"] for row in results["runs"][0]["log"]] == [1]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")

    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    shutil.rmtree(out / "other" / "1")
    again, lines = sweep.run(file, out)  # only the missing run is trained
    assert [line.n for line in lines] == [2, 2] and again == out / "sweep.json"
    kept = {path for path, when in before.items() if path.exists() and path.stat().st_mtime_ns == when}
    assert len(kept) == 3 and (out / "other" / "1" / "result.json").exists()


def test_a_run_that_another_process_is_at_is_left_to_it(trained, monkeypatch, capsys):
    from hyperzoo.errors import BusyError

    file, out = trained
    sweep.run(file, out)
    real = sweep.train.run

    def busy(recipe, folder):
        if "plain" in str(folder.parent.name):
            raise BusyError("process 1 is training there")
        return real(recipe, folder)

    monkeypatch.setattr(sweep.train, "run", busy)
    shutil.copytree(out, unfinished := out.parent / "unfinished")
    for result in (unfinished / "plain").glob("*/result.json"):
        result.unlink()
    capsys.readouterr()
    assert _exit_code(["train", str(file), "--out", str(unfinished)]) == 0
    table, said = capsys.readouterr()
    assert [row.split("\t")[0] for row in table.splitlines()] == ["run", "other"]
    assert said.splitlines()[-1] == (
        "2 of 4 runs finished; another process is training plain/0, plain/1. Repeat the command when it ends"
    )
    assert [(line.label, line.n) for line in sweep.run(file, out)[1]] == [("plain", 2), ("other", 2)]  # finished by now
    monkeypatch.setattr(sweep.train, "run", lambda recipe, folder: busy(recipe, folder / "plain" / "x"))
    with pytest.raises(RunError, match="other processes are training all runs of some"):
        sweep.run(file, out.parent / "new")


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal; a process in the background may have been started without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("interruptible")
def test_a_stop_outside_of_epochs_loses_no_finished_run(trained, tmp_path, monkeypatch, capsys, number):
    file, before = trained[0], signal.getsignal(signal.SIGTERM)
    sweep.run(*trained)
    shutil.copytree(trained[1], out := tmp_path / "out")
    for name in ("sweep.json", "plain/1/result.json", "other/0/result.json", "other/1/result.json"):
        (out / name).unlink()
    monkeypatch.setattr(sweep.train, "run", lambda recipe, folder: os.kill(os.getpid(), number))
    capsys.readouterr()
    assert _exit_code(["train", str(file), "--out", str(out)]) == 128 + number
    assert [(line.label, line.n) for line in sweep_table.lines(out / "sweep.json")] == [("plain", 1)]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"SweepStopped: stopped by {number.name}; 1 of 4 runs finished -> {out}; repeat the command to go on"
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_within_an_epoch_is_a_stop_of_the_sweep(trained, tmp_path, monkeypatch):
    def stopped(recipe, folder):
        raise Stopped(signal.SIGTERM, 0)

    monkeypatch.setattr(sweep.train, "run", stopped)
    with pytest.raises(RunError, match="stopped by SIGTERM; 0 of 4 runs finished") as caught:
        sweep.run(trained[0], tmp_path / "out")
    assert caught.value.exit_code == 143


def test_a_changed_sweep_is_refused_before_anything_is_written(trained, tmp_path):
    sweep.run(*trained)
    shutil.copytree(trained[1], out := tmp_path / "out")
    (out / "other" / "1" / "result.json").unlink()  # its checkpoint has the recipe
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = SMALL.replace("{train.ema: 0}", "{optim.lr: 0.5, method.mixup: {alpha: 1.0}}, third: {}")
    with pytest.raises(RunError) as caught:
        sweep.run(write(tmp_path, changed), out)
    assert str(caught.value) == (
        f"2 of 6 runs in {out} were trained with another recipe: other/0, other/1 (method.mixup None -> "
        "{'alpha': 1.0, 'cutmix': False}, optim.lr 0.01 -> 0.5). Train into another folder (--out), rename the row, or "
        "delete these folders"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_sweep_says_its_size_and_the_place_of_each_run(trained, tmp_path, capsys):
    sweep.run(*trained)
    shutil.copytree(trained[1], out := tmp_path / "out")
    (out / "other" / "1" / "result.json").unlink()
    capsys.readouterr()
    sweep.run(trained[0], out)
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        f"sweep some: 2 rows x 2 seeds = 4 runs of 1 epoch, 3 finished -> {out}",
        "run 4 of 4: other, seed 1",
    ]
    assert not any(line.startswith("run ") for line in said[2:])
    spec, runs = load_sweep(write(tmp_path))
    assert size(spec, runs) == "2 rows x 2 columns x 2 seeds = 8 runs of 1 to 2 epochs"


def test_plot_takes_the_folder_of_a_sweep(trained, tmp_path, capsys):
    sweep.run(*trained)
    shutil.copytree(trained[1], out := tmp_path / "out")
    (out / "sweep.png").unlink(missing_ok=True)
    capsys.readouterr()
    assert _exit_code(["plot", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'sweep.png'}\n"
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_that_cannot_be_compared_leaves_the_others_in_the_table(trained, tmp_path):
    values = json.loads(sweep.run(*trained)[0].read_text())
    values["baselines"] = {"other": "plain"}
    (file := tmp_path / "sweep.json").write_text(json.dumps(values))
    assert [line.difference is None for line in sweep_table.lines(file)] == [True, False]
    values["runs"] = [run for run in values["runs"] if (run["label"], run["seed"]) in {("plain", 0), ("other", 1)}]
    file.write_text(json.dumps(values))
    assert [(line.label, line.n, line.difference) for line in sweep_table.lines(file)] == [
        ("plain", 1, None),
        ("other", 1, None),
    ]


def test_bad_results_and_overrides(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text('{"runs": 3}')
    for call in (sweep_table.lines, lambda file: plots.curves(file, tmp_path / "x.png")):
        with pytest.raises(RunError, match="cannot read the results"):
            call(tmp_path / "sweep.json")
    assert _exit_code(["train", str(write(tmp_path)), "optim.lr=1"]) == 2
    assert "a sweep takes no overrides" in capsys.readouterr().err


SWEEPS = sweep_files()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_package_is_sound(path):
    _, runs = load_sweep(path)
    assert runs and len({(label, recipe.train.seed) for label, recipe in runs}) == len(runs)


def test_a_name_means_one_sweep():
    stems = [path.stem for path in SWEEPS]
    assert len(set(stems)) == len(stems) and {path.parent.name for path in SWEEPS} == {"papers", "studies"}


STUDY = """\
base: base.yaml
set: {data.judge_on: test, data.hold_out: 60, data.per_class: 5, data.batch_size: 25, data.size_px: 8, train.epochs: 2}
rows: {whole: {}, tail: {data.long_tail: 10}, rare: {data.keep: {cat: 0.5}}}
seeds: [1, 0]
"""


def test_a_stopped_study_keeps_one_seed_of_all_rows_and_names_rare_classes(tmp_path, data_mirror, monkeypatch):
    file, real, order = write(tmp_path, STUDY), sweep.train.run, []

    def stopping(recipe, folder):
        order.append((folder.parent.name, folder.name))
        if len(order) > 3:
            raise RunError("stopped")
        return real(recipe, folder)

    monkeypatch.setattr(sweep.train, "run", stopping)
    with pytest.raises(RunError, match="stopped"):
        sweep.run(file, tmp_path / "out")
    assert order[:3] == [("whole", "1"), ("tail", "1"), ("rare", "1")]
    runs = {run["label"]: run for run in json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]}
    classes = list(runs["whole"]["metrics"]["class_accuracy"])
    assert {label: run["rare"] for label, run in runs.items()} == {"whole": [], "tail": classes[5:], "rare": ["cat"]}
    assert classes[0] == "airplane" and classes[-1] == "truck"
    for run in runs.values():
        assert run["best"] == max(row["accuracy"] for row in run["log"]) and run["split"] == "test at 8 px"
        assert run["rate"] == max(row["images_per_s"] for row in run["log"])


def test_rows_are_compared_with_the_baseline_of_their_column(tmp_path):
    said, _ = load_sweep(write(tmp_path, SWEEP + "baseline: plain\n"))
    assert said.baselines() == {"wide-few": "plain-few", "wide-many": "plain-many"}
    mapped, _ = load_sweep(write(tmp_path, SWEEP + "baseline: {plain: wide}\n"))
    assert mapped.baselines() == {"plain-few": "wide-few", "plain-many": "wide-many"}
    assert load_sweep(write(tmp_path))[0].baselines() == {}
    accuracies = {
        "plain-few": {0: 90.1, 3: 90.5, 4: 89.9},
        "wide-few": {4: 90.5, 0: 90.6, 3: 91.2},
        "plain-many": {0: 80.0},
    }
    runs = [
        {
            "label": label,
            "seed": seed,
            "split": "test",
            "epochs": 1,
            "metrics": {"accuracy": value, "nll": 1.25, "class_accuracy": {}},
            "log": [{"loss": 1.0}],
        }
        for label, values in accuracies.items()
        for seed, value in values.items()
    ]
    contents = {"runs": runs, "published": {}, "baselines": said.baselines()}
    (tmp_path / "sweep.json").write_text(json.dumps(contents))
    found = {line.label: line.difference for line in sweep_table.lines(tmp_path / "sweep.json")}
    interval = stats.ttest_rel([90.6, 91.2, 90.5], [90.1, 90.5, 89.9]).confidence_interval(0.95)
    assert found["plain-few"] is found["plain-many"] is None
    assert (found["wide-few"].low, found["wide-few"].high) == pytest.approx((interval.low, interval.high))
    head, *lines = sweep_table.table(sweep_table.lines(tmp_path / "sweep.json"))
    shown = dict(zip(head, lines[1], strict=True))
    assert (shown["to baseline (95 %)"], shown["verdict"]) == ("+0.60 [+0.35, +0.85]", "gain")
