"""Which files of your own images are read, and in which split each is."""

import hashlib
import shutil
from pathlib import Path

import pytest
from test_own_images import COLORS, fill, own_cache, recipe  # noqa: F401

from hyperzoo.data.folders import class_files
from hyperzoo.experiments import build


def test_a_folder_of_class_folders_is_divided_by_class_and_seed(tmp_path):
    folder = fill(tmp_path / "my photos", count=5)
    own = build.dataset(recipe(folder, source=dict(test_part=0.4)))
    labels = {split: part.rows["label"][:] for split, part in own.splits.items()}
    assert labels == {"train": [0, 0, 0, 1, 1, 1, 2, 2, 2], "test": [0, 0, 1, 1, 2, 2]}  # round(0.4 x 5) of each
    files = [file for part in own.splits.values() for file in part.files]
    assert sorted(files) == sorted(folder.rglob("*.png"))
    assert own.splits["train"].classes == ("blau", "grün gras", "红") and own.name == "my photos"
    again, other = (build.dataset(recipe(folder, source=dict(test_part=0.4, seed=seed))) for seed in (0, 1))
    assert again.splits["test"].files == own.splits["test"].files != other.splits["test"].files


def lowest(folder: Path, share: float, seed: int) -> set[Path]:
    """Of each class folder, the files with the lowest hashes: round(share n), but at least one, and not all."""
    chosen = set()
    for place in folder.iterdir():
        left = {path: f"{seed} {path.relative_to(place).as_posix()}" for path in place.rglob("*.png")}
        for _ in range(min(max(1, round(share * len(left))), len(left) - 1)):
            first = min(left, key=lambda path: hashlib.sha256(left[path].encode()).hexdigest())
            chosen.add(first)
            del left[first]
    return chosen


@pytest.mark.parametrize("inside", ["", "Train"])
def test_the_test_images_of_a_folder_have_the_lowest_hashes_of_their_names(tmp_path, inside):
    folder = fill(tmp_path / "set" / inside, count=7)
    (folder / "blau" / "deep" / "er").mkdir(parents=True)
    (folder / "blau" / "3 x.png").rename(folder / "blau" / "deep" / "er" / "3 x.png")
    for seed in (0, 1, 7):
        own = build.dataset(recipe(tmp_path / "set", source=dict(test_part=0.3, seed=seed)))
        expected = lowest(folder, 0.3, seed)
        assert set(own.splits["test"].files) == expected and len(expected) == 6
        assert set(own.splits["train"].files) == {*folder.rglob("*.png")} - expected
        named = {split: [part.classes[label] for label in part.rows["label"][:]] for split, part in own.splits.items()}
        for split, part in own.splits.items():
            assert named[split] == [file.relative_to(folder).parts[0] for file in part.files]


def test_added_images_and_renamed_classes_leave_the_test_images(tmp_path):
    folder = fill(tmp_path / "set", count=12)

    def test_files():
        return {str(file.relative_to(folder)) for file in build.dataset(recipe(folder)).splits["test"].files}

    before = test_files()
    for number in range(12):
        shutil.copy(folder / "blau" / "0 x.png", folder / "blau" / f"a{number}.png")
        after = test_files()
        assert len(before - after) <= 1 and len(after - before) <= 1
        before = after
    (folder / "blau").rename(folder / "violett")  # from the first class to the last but one
    assert test_files() == {name.replace("blau", "violett") for name in before}


def test_hidden_pictures_are_left_out(tmp_path):
    for place in ("a/x.png", "a/.x.png", "a/.ipynb_checkpoints/x-checkpoint.png", "a/__MACOSX/x.png", "a/b/y.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert class_files(tmp_path, "images") == {"a": [tmp_path / "a/b/y.png", tmp_path / "a/x.png"]}


def test_train_test_and_validation_folders_are_the_splits(tmp_path):
    for split, count in (("train", 4), ("Test", 2), ("valid", 3)):
        fill(tmp_path / "set" / split, count=count)
    own = build.dataset(recipe(tmp_path / "set"))
    assert {split: len(part.rows) for split, part in own.splits.items()} == {"train": 12, "validation": 9, "test": 6}
    training, held = build.images(recipe(tmp_path / "set"))
    assert (len(training), len(held), held.split) == (12, 9, "validation")
    shutil.rmtree(tmp_path / "set" / "Test")  # train/ and val/ only: the latter is the test
    own = build.dataset(recipe(tmp_path / "set"))
    assert {split: len(part.rows) for split, part in own.splits.items()} == {"train": 12, "test": 9}


@pytest.mark.parametrize("words", [("Training", "Testing"), ("train_set", "test_set"), ("train", "testing")])
def test_other_usual_names_of_the_split_folders_are_not_classes(tmp_path, words):
    for word, count in zip(words, (4, 2), strict=True):
        fill(tmp_path / "set" / word, count=count)
    own = build.dataset(recipe(tmp_path / "set"))
    assert {split: len(part.rows) for split, part in own.splits.items()} == {"train": 12, "test": 6}
    assert own.summary().startswith("set: 3 classes (blau, grün gras, 红); images: 12 train, 6 test; ")


def test_a_summary_shows_the_first_of_many_classes(tmp_path):
    fill(tmp_path / "set", count=2, classes={f"class {i:02}": (i, i, i) for i in range(40)})
    assert "40 classes (class 00, class 01, " in (text := build.dataset(recipe(tmp_path / "set")).summary())
    assert "...); images: 40 train" in text and "class 39" not in text


@pytest.mark.parametrize("split", [False, True])
def test_the_summary_counts_the_files_that_are_not_read(tmp_path, split):
    top = tmp_path / "set"
    folder = fill(top / "train" if split else top, count=4)
    assert "not read" not in build.dataset(recipe(top)).summary()
    for place in (
        "blau/0.heic",
        "blau/1.HEIC",
        "blau/deep/2.heic",
        "红/a.jp2",
        "红/b.jp2",
        "红/no suffix",
        "loose.png",
    ):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).touch()
    for place in (".DS_Store", "blau/.hidden.heic", "blau/.cache/3.heic", "红/Thumbs.db", "红/odd.caf\udce9"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).touch()
    (top / "labels.csv").touch()
    own = build.dataset(recipe(top))
    assert sum(len(part.rows) for part in own.splits.values()) == 12
    assert own.summary().endswith(
        "; 9 files were not read: 3 .heic, 2 .jp2, 1 .csv, 1 .png beside the class folders, 2 other"
    )


def test_a_single_file_that_is_not_read_is_counted_before_the_broken_ones(tmp_path):
    (fill(tmp_path / "set") / "blau" / "x.avif").touch()
    text = build.dataset(recipe(tmp_path / "set")).summary(("a.png",))
    assert text.endswith("; 1 file was not read: 1 .avif; 1 that cannot be decoded are left out of train: a.png")
