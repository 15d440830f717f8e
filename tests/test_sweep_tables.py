"""The table of a sweep: its columns, its curves, and its place in the documents."""

import json

import pytest
from support import finished

from hyperzoo.analysis import plots, sweep_table
from hyperzoo.errors import RunError
from hyperzoo.publishing import cards
from hyperzoo.zoo.manifest import Manifest


def metrics(accuracy, **classes):
    return {"accuracy": accuracy, "nll": 1.25, "class_accuracy": classes}


def test_rare_classes_have_a_column_and_empty_columns_have_none(tmp_path):
    common = {"label": "x", "split": "test", "epochs": 1, "rare": ["a", "b"], "log": [{"loss": 1.0}]}
    runs = [
        {**common, "metrics": metrics(50.0, a=10.0, b=20.0, c=99.0) | {"ece": 3.0}},
        {**common, "metrics": metrics(52.0, a=30.0, b=40.0, c=99.0) | {"ece": 5.0}},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs, "published": {}}))
    head, line = sweep_table.table(sweep_table.lines(tmp_path / "sweep.json"))
    assert dict(zip(head, line, strict=True)) == {
        "run": "x",
        "accuracy (%)": "51.00",
        "sd": "1.41",
        "NLL": "1.250",
        "ECE (%)": "4.00",
        "training loss": "1.000",
        "n": "2",
        "epochs": "1",
        "measured on": "test",
        "rare classes (%)": "25.00",
    }


def test_the_best_epoch_stands_beside_the_last_one_and_the_test(tmp_path):
    common = {"label": "x", "split": "test at 12 px", "epochs": 3}
    runs = [
        {**common, "metrics": metrics(50.0), "best": 61.0, "log": [{"loss": 1.0, "accuracy": 51.0}]},
        {**common, "metrics": metrics(52.0), "best": 62.0, "log": [{"loss": 1.0, "accuracy": 54.0}]},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs, "published": {}}))
    head, line = sweep_table.table(sweep_table.lines(tmp_path / "sweep.json"))
    shown = dict(zip(head, line, strict=True))
    assert (shown["accuracy (%)"], shown["best epoch (%)"], shown["last epoch (%)"]) == ("51.00", "61.50", "52.50")


def test_curves_and_tables_compare_the_task_alone(tmp_path, monkeypatch):
    logs = {
        "none": [{"epoch": 1, "loss": 2.0, "train_accuracy": 10.0, "accuracy": 30.0}],
        "strong": [
            {"epoch": 1, "loss": 9.0, "loss_task": 1.5, "loss_per": 7.5, "train_accuracy": 20.0, "accuracy": 40.0}
        ],
    }
    runs = [{"label": k, "split": "s", "epochs": 1, "metrics": metrics(1.0), "log": log} for k, log in logs.items()]
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": "x", "runs": [*runs, *runs], "published": {}}))
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, picture: drawn.append(figure))
    plots.curves(tmp_path / "sweep.json", tmp_path / "x.png")
    assert [[float(line.get_ydata()[0]) for line in axes.lines[:2]] for axes in drawn[0].axes] == [
        [2.0, 1.5],
        [30.0, 40.0],
    ]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["none", "strong"]
    assert [line.train_loss for line in sweep_table.lines(tmp_path / "sweep.json")] == [2.0, 1.5]


def test_curves_of_long_names_fit_and_a_run_that_diverged_hides_no_other(tmp_path, monkeypatch):
    losses = {f"a_long_name_of_a_row-and_column_{i}": [2.5, 1.5] for i in range(6)} | {"diverged": [7e5, 2e3]}
    runs = [
        {
            "label": label,
            "split": "s",
            "epochs": 2,
            "metrics": metrics(1.0),
            "log": [{"epoch": i + 1, "loss": loss, "accuracy": 1.0 if i else 99.0} for i, loss in enumerate(values)],
        }
        for label, values in losses.items()
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": "x", "runs": runs, "published": {}}))
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, picture: drawn.append(figure))
    plots.curves(tmp_path / "sweep.json", tmp_path / "x.png")
    (figure,) = drawn
    figure.canvas.draw()
    left, right = figure.axes
    low, high = left.get_ylim()
    assert 1 < low < 1.5 and 2.5 < high < 3
    assert right.get_ylim()[1] > 99  # no accuracy is too high
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width
    assert figure.legends[0].texts[0].get_text() == "a long name of a row, and column 0"
    assert all(axes.yaxis.label.get_window_extent().y1 <= figure.bbox.height for axes in figure.axes)


@pytest.mark.parametrize("shared", [True, False])
def test_a_table_names_the_baselines_if_there_are_several(tmp_path, shared):
    runs = [
        {"label": label, "seed": 0, "split": "test", "epochs": 2, "metrics": metrics(50.0), "log": [{"loss": 1.0}]}
        for label in ("a", "b", "c", "d")
    ]
    file = tmp_path / "some.json"
    baselines = {"b": "a", "d": "a" if shared else "c"}
    file.write_text(json.dumps({"runs": runs, "published": {}, "baselines": baselines}))
    header, *rows = sweep_table.table(sweep_table.lines(file))
    assert ("baseline" in header) == (not shared)
    if not shared:
        place = header.index("baseline")
        assert [row[place] for row in rows] == ["-", "a", "-", "c"]


def test_documents_quote_the_results(tmp_path):
    place = finished.new_checkout(tmp_path)
    runs = [
        {"label": label, "seed": seed, "split": "test", "epochs": 2, "metrics": metrics(accuracy), "log": log}
        for label, seed, accuracy, log in (
            ("a", 0, 50.0, [{"loss": 3.0}, {"loss": 1.0}]),
            ("a", 1, 53.0, [{"loss": 3.0}, {"loss": 2.0}]),
            ("b", 0, 60.0, [{"loss": 0.125}]),
        )
    ]
    for folder in (place.docs, place.results("some").parent):
        folder.mkdir()
    place.results("some").write_text(json.dumps({"runs": runs, "published": {"b": 61.0}}))
    (place.docs / "some.md").write_text("before\n<!-- sweep: some -->\nold\n<!-- end of sweep -->\nafter\n")
    (place.docs / "other.md").write_text("no table\n")
    manifest = Manifest(place.package)
    assert cards.write(manifest, place) and cards.check(manifest, place) == []
    lines = (place.docs / "some.md").read_text().splitlines()
    assert lines[:2] == ["before", "<!-- sweep: some -->"] and lines[-2:] == ["<!-- end of sweep -->", "after"]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:-2]] == [
        ["a", "51.50", "2.12", "1.250", "1.500", "2", "2", "test", "-"],  # sd = 3 / sqrt 2
        ["b", "60.00", "-", "1.250", "0.125", "1", "2", "test", "61.00"],
    ]
    assert (place.docs / "other.md").read_text() == "no table\n"
    place.results("some").unlink()
    with pytest.raises(RunError, match="cannot read the results"):
        cards.texts(manifest, place)
