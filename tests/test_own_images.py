"""Your own images, from a folder to a trained run that evaluates itself."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from hyperzoo import data
from hyperzoo.analysis import activation_statistics, evaluate
from hyperzoo.cli.commands import cli
from hyperzoo.errors import DataError, RecipeError, RunError
from hyperzoo.experiments import build, train
from hyperzoo.training.recipe import Recipe

COLORS = {"blau": (20, 40, 220), "grün gras": (10, 200, 30), "红": (230, 30, 20)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))


def fill(folder: Path, count: int = 5, classes=COLORS, size=(12, 9), mode: str = "RGB") -> Path:
    """One class folder per color, with pictures of one color, lighter from picture to picture."""
    for name, color in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shade = tuple(min(255, value + 3 * i) for value in color)
            Image.new("RGB", size, shade).convert(mode).save(folder / name / f"{i} x.png")
    return folder


def recipe(folder: Path, model=None, optim=None, **plan) -> Recipe:
    return Recipe.model_validate(
        dict(
            name="own",
            model=dict(arch="resnet20_cifar") | (model or {}),
            data=dict(source=dict(folder=str(folder), **plan.pop("source", {})), batch_size=8, crop_px=1, size_px=8)
            | plan,
            optim=dict(lr=0.05) | (optim or {}),
            train=dict(epochs=1, precision="fp32"),
        )
    )


def test_mixed_sizes_are_brought_to_the_size_of_the_network(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "b").mkdir()
    wide = Image.new("RGB", (20, 4))
    wide.paste((255, 255, 255), (8, 0, 12, 4))  # the center square
    wide.save(tmp_path / "set" / "a" / "wide.png")
    wide.rotate(90, expand=True).save(tmp_path / "set" / "a" / "high.png")
    for name in ("0.png", "1.png"):
        Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "set" / "b" / name)
    plan = recipe(tmp_path / "set", size_px=4, source=dict(test_part=0.5))
    own = build.dataset(plan)
    images = {split: own.load(split).images for split in ("train", "test")}
    assert images["train"].shape == images["test"].shape == (2, 3, 4, 4)
    for part in images.values():
        assert torch.equal(part[0], torch.full((3, 4, 4), 255, dtype=torch.uint8))
        assert torch.equal(part[1], torch.tensor([7, 8, 9], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4))
    assert build.dataset(recipe(tmp_path / "set", size_px=None)).fit.size_px == 32  # what timm says of resnet20_cifar


def test_a_run_on_a_folder_evaluates_itself(tmp_path, monkeypatch):
    folder = fill(tmp_path / "my photos", mode="L")
    done = train.run(recipe(folder), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["label_names"] == list(COLORS)
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8] and len(config["pretrained_cfg"]["mean"]) == 1
    assert done.values["metrics"]["total"] == 3 and done.values["split"] == "test"
    for command in (["eval", str(tmp_path / "run"), "--json"], ["eval", f"local-dir:{tmp_path / 'run'}", "--json"]):
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        values = json.loads(result.stdout)
        assert {key: values[key] for key in done.values["metrics"]} == done.values["metrics"]
    _, batch, origin = activation_statistics.load_model_and_batch(str(tmp_path / "run"))
    assert batch.shape == (3, 1, 8, 8) and "the first 3 images of the folder" in origin
    shutil.rmtree(folder)
    assert isinstance(CliRunner().invoke(cli, command).exception, DataError)


def add_a_picture(folder, name="later.png"):  # whose hash, 173c..., makes it a test image with seed 0
    Image.new("RGB", (12, 9), (1, 2, 3)).save(folder / "blau" / name)
    return "the training data of own have changed since this run began (1 epochs)"


def rename_a_class(folder):
    (folder / "blau").rename(folder / "azul")  # the order, and so every label, stays
    return "the names of the classes of own have changed"


@pytest.mark.parametrize("change", [add_a_picture, rename_a_class])
@pytest.mark.fault("images that changed since a run began")
def test_a_run_resumes_with_the_images_it_began_with_only(tmp_path, change):
    folder = fill(tmp_path / "own", count=10)
    train.run(recipe(folder), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # as if the run had ended after its last epoch
    again = train.run(recipe(folder), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    message = change(folder)
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*.*")}
    with pytest.raises(RunError, match=re.escape(message)):
        train.run(recipe(folder), tmp_path / "run")
    assert before == {path: path.read_bytes() for path in before} and again.values["epochs"] == 1


@pytest.mark.fault("images that changed since a run began")
def test_another_augmentation_does_not_hide_other_names_of_classes(tmp_path):
    folder = fill(tmp_path / "own", count=10)
    train.run(recipe(folder), tmp_path / "run")
    changed = recipe(folder, flip=False)
    changed = changed.model_copy(update={"train": changed.train.model_copy(update={"epochs": 2})})
    rename_a_class(folder)
    with pytest.raises(RunError, match="the names of the classes of own have changed"):
        train.run(changed, tmp_path / "run", allow_change=True)
    (folder / "azul").rename(folder / "blau")
    add_a_picture(folder)
    with pytest.raises(RunError, match="the training data of own have changed"):
        train.run(changed, tmp_path / "run", allow_change=True)


@pytest.mark.fault("images that changed since a run began")
def test_an_evaluation_on_changed_images_says_so(tmp_path, caplog):
    folder = fill(tmp_path / "own", count=10)
    done = train.run(recipe(folder), tmp_path / "run")
    assert evaluate.run(str(done.folder)).as_dict() == done.values["metrics"] and not caplog.records
    add_a_picture(folder, "new.png")  # a training image
    evaluate.run(str(done.folder))
    assert not caplog.records
    add_a_picture(folder)
    evaluate.run(str(done.folder))
    assert [record.message for record in caplog.records] == [
        f"the test data are not those of {done.folder / 'result.json'}: files were added, removed or changed; if the "
        "test images are drawn from one folder, some of them may have been trained on"
    ]


def test_the_folder_takes_the_place_of_the_data_set_of_a_recipe(tmp_path, monkeypatch):
    fill(tmp_path / "photos", count=3, size=(32, 32))
    monkeypatch.chdir(tmp_path)
    changes = ["train.epochs=2", "optim.cycles=1", "optim.warmup_epochs=0", "data.resize_px={1: 16, 2: 32}"]
    command = ["train", "spherenet20.sphere_c10", "data.source.folder=photos", *changes, "--json"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    values = json.loads(result.stdout)
    assert values["folder"] == "runs/spherenet20.sphere_c10-photos/0"
    assert values["recipe"]["data"]["name"] == "photos" and values["train_images"] == 6


def test_what_fits_is_held_in_memory_and_the_rest_is_streamed(tmp_path, monkeypatch):
    folder = fill(tmp_path / "set", count=4, size=(10, 10))
    plan = recipe(folder, source=dict(test_part=0.25))
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 9 * 3 * 8 * 8)  # N C S S of the training images
    own = build.dataset(plan)
    assert isinstance(own.load("train"), data.ImageSet)
    assert own.summary().startswith(
        "set: 3 classes (blau, grün gras, 红); images: 9 train, 3 test; held in memory at 8 px"
    )
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 9 * 3 * 8 * 8 - 1)
    assert isinstance(own.load("train"), data.StreamedSet)
    done = train.run(plan, tmp_path / "run")
    assert done.values["metrics"]["total"] == 3
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 8, 8]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.fault("contradictory data.source")
def test_a_training_size_that_is_not_the_one_of_the_test_is_refused(tmp_path, monkeypatch, streamed):
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 0 if streamed else 10**9)
    folder = fill(tmp_path / "set")
    with pytest.raises(RecipeError, match="ends at 4 px, but set is evaluated at 8; end it at 8, or set data.size_px"):
        build.images(recipe(folder, resize_px={1: 4}))
    build.images(recipe(folder, resize_px={1: 8}))


@pytest.mark.fault("validation images that take a class from the training")
def test_held_out_images_leave_every_class_in_the_training(tmp_path):
    folder = fill(tmp_path / "set", count=5)  # 12 training images, 4 of each class
    assert len(build.images(recipe(folder, hold_out=9))[0]) == 3
    with pytest.raises(RecipeError, match="data.hold_out 10 leaves no training image of the class 'blau', which has 4"):
        build.images(recipe(folder, hold_out=10))


@pytest.mark.fault("picture that cannot be decoded", 2)
def test_a_broken_picture_stops_the_run_or_is_left_out_and_counted(tmp_path, capfd):
    folder = fill(tmp_path / "set", count=5)
    (folder / "blau" / "0 x.png").write_bytes(b"no picture")
    once = r"^\S+blau/0 x\.png cannot be decoded: cannot identify [^.]+x\.png.\. Replace or .* data.on_error to skip$"
    with pytest.raises(DataError, match=once):
        train.run(recipe(folder), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}
    done = train.run(recipe(folder, on_error="skip"), tmp_path / "run")
    assert done.values["skipped"] in ({"train": 1, "test": 0}, {"train": 0, "test": 1})
    assert done.values["train_images"] + done.values["metrics"]["total"] == 14
    assert "left out of t" in capfd.readouterr().out


@pytest.mark.fault("picture that cannot be decoded", 13)
def test_all_broken_pictures_are_named_in_one_error(tmp_path):
    folder, names = fill(tmp_path / "set", count=15), []
    for file in [*sorted((folder / "blau").iterdir())[:12], folder / "红" / "9 x.png"]:
        file.write_bytes(b"no picture")
        names.append(str(file))
    with pytest.raises(DataError, match="^13 images cannot be decoded: .* set data.on_error to skip$") as caught:
        train.run(recipe(folder), tmp_path / "run")
    listed, _, rest = str(caught.value).partition(": ")[2].partition(" and 3 more; the first: cannot identify")
    assert len(set(listed.split(", "))) == 10 and {*listed.split(", ")} <= {*names} and rest
    for name in names[3:]:
        fill(tmp_path / "good", count=1)
        shutil.copy(tmp_path / "good" / "blau" / "0 x.png", name)
        shutil.rmtree(tmp_path / "good")
    with pytest.raises(DataError, match="^3 images cannot be decoded") as caught:  # in both splits
        train.run(recipe(folder), tmp_path / "run")
    assert all(name in str(caught.value) for name in names[:3])


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.fault("picture that cannot be decoded")
def test_a_broken_picture_of_a_streamed_test_stops_the_run_before_the_training(tmp_path, monkeypatch, split):
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 0)
    for part in ("train", "val", "test"):
        fill(tmp_path / "set" / part, count=3)
    (tmp_path / "set" / split / "blau" / "1 x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"{split}/blau/1 x\.png cannot be decoded\. Replace or .* to skip$"):
        train.run(recipe(tmp_path / "set"), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}


@pytest.mark.fault("network that does not take images of this size", 2)
def test_a_network_of_one_size_is_refused_before_the_training(tmp_path):
    folder = fill(tmp_path / "set")
    arch = "vit_tiny_patch16_224"
    for size_px, words in ((32, dict(size_px=32)), (160, dict(size_px=224, resize_px={1: 160, 2: 224}))):
        values = recipe(folder, model=dict(arch=arch)).model_dump()
        made = Recipe.model_validate(values | dict(data=values["data"] | words, train=dict(epochs=2)))
        with pytest.raises(RecipeError, match=f"{arch} takes no images of {size_px} x {size_px} .*size_px to 224"):
            train.run(made, tmp_path / "run")
        assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}


@pytest.mark.fault("cache of files that have changed", 2)
def test_the_content_of_the_files_decides_whether_a_cache_is_used(tmp_path):
    folder = fill(tmp_path / "set")
    own = build.dataset(recipe(folder))
    before, file = own.load("train"), own.splits["train"].files[0]
    about = file.stat()
    Image.new("RGB", (12, 9), (1, 2, 3)).save(file)
    changed = file.read_bytes().ljust(about.st_size, b"\0")
    assert len(changed) == about.st_size
    file.write_bytes(changed)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    after = own.load("train")
    assert after.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert torch.equal(after.images[1:], before.images[1:])
    moved = next((tmp_path / "cache").rglob("*train*.safetensors")).stat().st_mtime_ns
    file.touch()  # the time alone changes nothing
    own.load("train")
    assert next((tmp_path / "cache").rglob("*train*.safetensors")).stat().st_mtime_ns == moved


@pytest.mark.fault("file name that is not UTF-8")
def test_a_class_folder_in_another_encoding_is_named(tmp_path):
    folder = fill(tmp_path / "set")
    os.rename(os.fsencode(folder / "blau"), os.fsencode(folder) + b"/caf\xe9")
    with pytest.raises(DataError, match="is not UTF-8; rename the folder"):
        build.dataset(recipe(folder))


@pytest.mark.fault("file name that is not UTF-8")
def test_a_file_name_in_another_encoding_is_read(tmp_path):
    folder = fill(tmp_path / "set")
    for number, file in enumerate(list((folder / "blau").iterdir())):
        file.rename(os.fsdecode(os.fsencode(folder / "blau") + b"/caf\xe9%d.png" % number))
    own = build.dataset(recipe(folder))
    assert (len(own.load("train")), len(own.load("test"))) == (12, 3)


@pytest.mark.fault("cache that cannot be written")
def test_an_unwritable_cache_is_one_error_before_the_training(tmp_path):
    folder = fill(tmp_path / "set")
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    with pytest.raises(DataError, match=r"cache/hyperzoo cannot be written .*Set HF_HOME"):
        train.run(recipe(folder), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}


def one_class(folder):
    shutil.rmtree(folder / "blau")
    shutil.rmtree(folder / "红")


def empty_class(folder):
    (folder / "leer").mkdir()


def single_image(folder):
    for file in sorted((folder / "blau").iterdir())[1:]:
        file.unlink()


def train_and_test(folder):
    shutil.copytree(folder, folder / "train")
    shutil.copytree(folder / "train", folder / "test")
    for name in COLORS:
        shutil.rmtree(folder / name)


def class_missing_in_the_test_part(folder):
    train_and_test(folder)
    shutil.rmtree(folder / "test" / "blau")


def class_missing_in_the_training_part(folder):
    train_and_test(folder)
    shutil.rmtree(folder / "train" / "blau")


def no_training_part(folder):
    train_and_test(folder)
    shutil.rmtree(folder / "train")


def class_named_like_a_split(folder):
    fill(folder / "train", classes={"electric": (1, 2, 3), "steam": (4, 5, 6)})


def two_training_parts(folder):
    train_and_test(folder)
    shutil.copytree(folder / "train", folder / "Training")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "is not a folder"),
        (lambda folder: [shutil.rmtree(path) for path in folder.iterdir()], "has no class folders"),
        (one_class, "has one class, 'grün gras'"),
        (empty_class, "leer has no image"),
        (single_image, "the class 'blau' in .* has one image"),
        (class_missing_in_the_test_part, "the class 'blau' is in .*train only"),
        (class_missing_in_the_training_part, "the class 'blau' is in .*test only"),
        (no_training_part, "has test, but no train"),
        (class_named_like_a_split, "'blau' has images and lies beside the split train.* move 'blau' .* rename 'train'"),
        (two_training_parts, "'(train|Training)' has images and lies beside the split (train|Training)"),
    ],
)
@pytest.mark.fault("folder of own images that cannot be trained on")
def test_a_bad_folder_is_one_error_before_the_training(tmp_path, spoil, message):
    folder = fill(tmp_path / "set")
    spoil(folder)
    with pytest.raises(DataError, match=message):
        train.run(recipe(folder), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}
