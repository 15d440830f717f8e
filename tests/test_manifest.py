"""A damaged, false or hostile `weights.json` raises one error that names the fault; nothing of it is used."""

import copy
import json

import pytest

from hyperzoo import errors
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest

NAME, TEXT = "spherenet20.sphere_c10", "lstm200.plain_ptb"
WHOLE = json.loads((weight_files.MANIFEST.root / "weights.json").read_text())
DAMAGED = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "not UTF-8": b'{"format": 1, "namespace": "\xff"}',
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "endless number": b'{"format": ' + b"1" * 9_999 + b"}",
    "weights null": b'{"format": 1, "namespace": "hyperzoo", "weights": null}',
    "weights a list": b'{"format": 1, "namespace": "hyperzoo", "weights": []}',
    "entry null": b'{"format": 1, "namespace": "hyperzoo", "weights": {"spherenet20.sphere_c10": null}}',
    "namespace null": b'{"format": 1, "namespace": null, "weights": {}}',
    "namespace a path": b'{"format": 1, "namespace": "../x", "weights": {}}',
    "format a text": b'{"format": "1", "namespace": "hyperzoo", "weights": {}}',
}


@pytest.mark.fault("damaged manifest")
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_manifest_is_named(tmp_path, kind):
    (tmp_path / "weights.json").write_bytes(DAMAGED[kind])
    with pytest.raises(errors.WeightFileError, match=r"weights\.json") as caught:
        Manifest(tmp_path)
    assert len(str(caught.value)) < 600


FALSE = [
    (NAME, "bytes", 0),
    (NAME, "parameters", -1),
    (NAME, "num_classes", 0),
    (NAME, "input.size", [3, 32]),
    (NAME, "input.size", [3, 0, 32]),
    (NAME, "input.size", [3, 10**9, 32]),
    (NAME, "input.mean", [0.5]),
    (NAME, "input.mean", [0.5, 0.5, float("nan")]),
    (NAME, "input.std", [0.2, 0.0, 0.2]),
    (NAME, "input.crop_pct", 0.0),
    (NAME, "metrics.accuracy.mean", 101.0),
    (NAME, "metrics.accuracy.mean", float("nan")),
    (NAME, "metrics.accuracy.mean", 50.0),
    (NAME, "metrics.accuracy.values", [float("inf")]),
    (NAME, "metrics.accuracy.seeds", [-1]),
    (NAME, "metrics.this_file.accuracy", 99.9),
    (NAME, "metrics.this_file.ece", -1.0),
    (NAME, "metrics.this_file.multicrop", 100.5),
    (NAME, "metrics.this_file.nll", float("nan")),
    (NAME, "metrics.this_file.correct", 10_001),
    (NAME, "metrics.this_file.total", 0),
    (NAME, "metrics.this_file.sample.correct", 501),
    (NAME, "training.epochs", 0),
    (NAME, "training.minutes", float("inf")),
    (NAME, "recipe", "../../etc/passwd"),
    (NAME, "recipe", "/etc/passwd"),
    (NAME, "recipe", "spherenet/../x.yaml"),
    (NAME, "recipe", "spherenet\\..\\x.yaml"),
    (NAME, "dataset.train_fingerprint", "x"),
    (NAME, "code_commit", "main"),
    (TEXT, "metrics.perplexity.mean", 0.5),
    (TEXT, "metrics.this_file.perplexity", 12.0),
]


@pytest.mark.fault("false entry of the manifest")
@pytest.mark.parametrize("name, path, value", FALSE, ids=lambda value: str(value)[:30])
def test_a_value_out_of_its_range_is_refused(tmp_path, name, path, value):
    raw = copy.deepcopy(WHOLE)
    *parents, key = path.split(".")
    entry = raw["weights"][name]
    for parent in parents:
        entry = entry[parent]
    assert entry[key] != value
    entry[key] = value
    (tmp_path / "weights.json").write_text(json.dumps(raw))
    with pytest.raises(errors.WeightFileError, match=rf"weights\.json: {name}"):
        Manifest(tmp_path)


@pytest.mark.fault("false entry of the manifest", 3)
def test_names_that_leave_the_folder_are_refused(tmp_path):
    for name in ("../x", "/etc/passwd", "spherenet20.sphere_c10/../../x"):
        raw = {**WHOLE, "weights": {**WHOLE["weights"], name: WHOLE["weights"][NAME]}}
        (tmp_path / "weights.json").write_text(json.dumps(raw))
        with pytest.raises(errors.InvalidNameError):
            Manifest(tmp_path)


def test_the_manifest_of_the_package_is_read(tmp_path):
    (tmp_path / "weights.json").write_text(json.dumps(WHOLE))
    assert Manifest(tmp_path).weights == weight_files.MANIFEST.weights
