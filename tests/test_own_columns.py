"""Your own images in parquet files, on the Hub or in its layout: columns, labels and splits."""

import io
import json

import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from test_own_images import own_cache  # noqa: F401

from hyperzoo.data import own
from hyperzoo.errors import DataError, RecipeError
from hyperzoo.experiments import build, train
from hyperzoo.training.recipe import Recipe, make_recipe


def picture(shade: int) -> dict:
    file = io.BytesIO()
    Pillow.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(file, labels, feature=None, image="picture", label="kind"):
    rows = {image: [picture(i) for i in range(len(labels))], label: labels}
    features = Features({image: Image(), label: feature or Value("string")})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(Dataset.from_dict(rows, features=features).data.table, file)
    return str(file)


def recipe(source, **plan):
    values = dict(name="own", model=dict(arch="resnet20_cifar"), optim=dict(lr=0.05))
    return make_recipe(
        values
        | dict(data=dict(source=source, batch_size=4, crop_px=0, size_px=8) | plan)
        | dict(train=dict(epochs=1, precision="fp32"))
    )


def test_words_whole_numbers_and_class_names_are_classes(tmp_path):
    kinds = {
        "words": (["b", "a", "b", "a"], Value("string"), ("a", "b"), [1, 0, 1, 0]),
        "numbers": ([7, 3, 7, 3], Value("int32"), ("3", "7"), [1, 0, 1, 0]),
        "names": ([1, 0, 1, 0], ClassLabel(names=["z", "y"]), ("z", "y"), [1, 0, 1, 0]),
    }
    for name, (labels, feature, classes, codes) in kinds.items():
        files = {split: [write(tmp_path / name / f"{split}.parquet", labels, feature)] for split in ("train", "test")}
        own = build.dataset(recipe(dict(parquet=files, label="kind")))
        images = own.load("train")
        assert (images.classes, images.labels.tolist(), own.name) == (classes, codes, name)
        assert images.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]  # the rows stay in order


def test_one_file_stands_for_a_list_and_its_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "all.parquet", ["a", "b"] * 5)
    for files in ("~/all.parquet", {"train": "~/all.parquet"}):
        own = build.dataset(recipe(dict(parquet=files, label="kind")))
        assert (len(own.load("train")), len(own.load("test"))) == (8, 2)


def test_one_list_of_files_is_divided_and_its_cache_knows_how(tmp_path):
    file = write(tmp_path / "set" / "all.parquet", ["a", "b"] * 5)
    drawn = {}
    for seed in (0, 1):
        own = build.dataset(recipe(dict(parquet=[file], label="kind", test_part=0.4, seed=seed)))
        shades = {split: own.load(split).images[:, 0, 0, 0].tolist() for split in ("train", "test")}
        assert (len(shades["train"]), len(shades["test"])) == (6, 4)
        assert sorted(shades["train"] + shades["test"]) == list(range(10))
        drawn[seed] = shades["test"]
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()  # rows have no file names
        assert drawn[seed] == sorted(row for label in (0, 1) for row in [row for row in order if row % 2 == label][:2])
    assert drawn[0] != drawn[1]


def test_a_file_that_is_missing_is_named(tmp_path):
    files = [write(tmp_path / "0.parquet", ["a", "b"]), str(tmp_path / "1.parquet")]
    for listed in (files, files[::-1]):
        with pytest.raises(DataError, match=r"1\.parquet.*exist"):
            build.dataset(recipe(dict(parquet=listed, label="kind")))


def test_streamed_parts_of_a_file_differ_and_name_the_image_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "MEMORY_BYTES", 0)
    file = write(tmp_path / "all.parquet", ["a", "b"] * 6)
    split = build.dataset(recipe(dict(parquet=[file], label="kind", test_part=0.5)))
    train, test = split.splits["train"], split.splits["test"]
    assert sorted([*train.numbers, *test.numbers]) == list(range(12))
    found = {part: split.load(part).fingerprint for part in ("train", "test")}
    again = build.dataset(recipe(dict(parquet=[file], label="kind", test_part=0.5, seed=1))).load("train")
    assert len({*found.values(), again.fingerprint}) == 3
    rows = split.load("train")
    assert rows.read(2).getpixel((0, 0))[0] == train.numbers[2]  # the shade is the number of the row
    rows.read._rows = [{"image": None}] * 6
    with pytest.raises(DataError, match=f"image {train.numbers[2]} cannot be decoded"):
        rows.read(2)


def test_a_repository_in_the_layout_of_the_hub_is_read_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path))
    folder = tmp_path / "somebody" / "leaves" / "default"
    for split, count in (("train", 6), ("validation", 2), ("test", 4)):
        feature = ClassLabel(names=["oak", "elm"])
        write(folder / f"{split}-00000-of-00001.parquet", [0, 1] * (count // 2), feature, "image", "species")
    own = build.dataset(recipe(dict(hub="somebody/leaves")))
    assert {split: len(part.rows) for split, part in own.splits.items()} == {"train": 6, "test": 4, "validation": 2}
    done = train.run(
        recipe(dict(hub="somebody/leaves", splits=dict(train="train", test="validation"))), tmp_path / "run"
    )
    assert done.values["metrics"]["total"] == 2 and set(done.values["metrics"]["class_accuracy"]) == {"oak", "elm"}
    with pytest.raises(DataError, match="no such folder"):
        build.dataset(recipe(dict(hub="somebody/flowers")))


@pytest.mark.fault("data set of the Hub that cannot be had")
def test_a_set_on_the_hub_without_network_is_one_error(tmp_path, monkeypatch):
    monkeypatch.delenv("HYPERZOO_DATA", raising=False)
    with pytest.raises(DataError, match="nobody/nothing on the Hub, could not be read .*hf auth login"):
        train.run(recipe(dict(hub="nobody/nothing")), tmp_path / "run")


@pytest.mark.parametrize(
    "labels, feature, source, message",
    [
        ([0.5, 1.0], Value("float64"), {}, "the labels are float64"),
        ([True, False], Value("bool"), {}, "the labels are bool"),
        ([0, -1, 0], Value("int64"), {}, "row 1 has the label -1"),
        (["a", None, "b"], Value("string"), {}, "row 1 has the label None"),
        (["a", " ", "b"], Value("string"), {}, r"row 1 has the label ' ', which is none of the 2 classes \(a, b\)"),
        ([[0], [1]], [Value("int64")], {}, "the labels are .*; use words or whole numbers"),
        ([{"x": 0}, {"x": 1}], {"x": Value("int64")}, {}, "the labels are .*; use words or whole numbers"),
        (["a", "a"], Value("string"), {}, "one class, 'a'"),
        ([0, 0], ClassLabel(names=["x", "y"]), {}, "no image of the class 'y'"),
        ([], Value("string"), {}, "has no rows"),
        (["a", "b"], Value("string"), {"label": "knd"}, r"no column 'knd' \(data.source.label\). Closest: kind"),
        (["a", "b"], Value("string"), {"label": None}, "Set data.source.label to one of picture, kind"),
        (["a", "b"], Value("string"), {"image": "kind"}, "both 'kind'"),
        (["a", "b"], Value("string"), {"image": "kind", "label": "picture"}, "the labels are PIL"),
    ],
)
@pytest.mark.fault("labels or columns of own images that cannot be trained on")
def test_bad_labels_and_columns_are_one_error_before_the_training(tmp_path, labels, feature, source, message):
    files = {split: [write(tmp_path / "set" / f"{split}.parquet", labels, feature)] for split in ("train", "test")}
    with pytest.raises(DataError, match=message):
        train.run(recipe({"parquet": files, "label": "kind", **source}), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}


@pytest.mark.fault("picture that cannot be decoded")
def test_a_row_without_an_image_is_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "picture", lambda shade: None if shade == 3 else {"bytes": b"x", "path": None})
    files = {split: [write(tmp_path / f"{split}.parquet", ["a", "b"] * 3)] for split in ("train", "test")}
    with pytest.raises(DataError, match=r"row 3 has no image bytes; .* Add the bytes, or remove the row$"):
        build.dataset(recipe({"parquet": files, "label": "kind"})).load("train")


@pytest.mark.fault("labels or columns of own images that cannot be trained on", 3)
def test_a_test_split_of_other_classes_is_refused(tmp_path):
    file = write(tmp_path / "a.parquet", ["a", "b"])
    for labels, message in ((["a", "c"], "label 'c'"), (["a", "a"], "no image of the class 'b'")):
        other = write(tmp_path / "b.parquet", labels)
        with pytest.raises(DataError, match=message):
            build.dataset(recipe({"parquet": {"train": [file], "test": [other]}, "label": "kind"}))
    with pytest.raises(DataError, match="cannot be read as parquet"):
        build.dataset(recipe({"parquet": [str(tmp_path / "absent.parquet")]}))


@pytest.mark.parametrize(
    "source, message",
    [
        ({}, "exactly one of folder, hub and parquet; got none"),
        ({"folder": "a", "hub": "b/c"}, "got folder, hub"),
        ({"folder": "a", "label": "kind"}, "data.source.label is not for a folder"),
        ({"parquet": {"test": ["a"]}}, "need train"),
        ({"parquet": {"train": []}}, "names no file of train"),
        ({"parquet": {"train": ["a"], "test": []}}, "names no file of test"),
        ({"parquet": ["a", "b", "./a"]}, "names a twice"),
        ({"parquet": {"train": ["a"], "test": ["a"]}}, "names a twice"),
        ({"hub": "b/c", "splits": {"train": "x", "test": "x"}}, "names x twice"),
        ({"folder": "a", "test_part": 1.0}, "less than 1"),
        ({"foldr": "a"}, "unknown key 'foldr'"),
    ],
)
@pytest.mark.fault("contradictory data.source")
def test_a_contradictory_source_is_a_fault_of_the_recipe(source, message):
    with pytest.raises(RecipeError, match=message):
        recipe(source)


def test_a_stored_recipe_with_own_images_keeps_its_sizes_and_its_digest():
    made = recipe({"folder": "my photos"}, resize_px={1: 4})
    again = Recipe.stored(json.loads(made.model_dump_json()))
    assert again.data == made.data and again.digest() == made.digest() and again.data.name == "my photos"
