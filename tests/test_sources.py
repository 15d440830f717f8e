"""SVHN and Tiny-ImageNet are read from made files in the layout of the Hub; every row has its terms."""

import io
import json

import datasets
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image

import hyperzoo
from hyperzoo import names
from hyperzoo.analysis import evaluate
from hyperzoo.data import ImageSet, load_images
from hyperzoo.data.sources import NOT_EXAMINED, REPOSITORIES
from hyperzoo.errors import DataError, InputError
from hyperzoo.experiments import train
from hyperzoo.training.recipe import load_recipe
from hyperzoo.zoo.model_folder import save_model

LAYOUT = {  # code: folder, side, classes, {split: file}
    "svhn": ("ufldl-stanford/svhn/cropped_digits", 32, [str(i) for i in range(10)], dict(train="train", test="test")),
    "tiny": ("zh-plus/tiny-imagenet/default", 64, [f"n{i:08}" for i in range(200)], dict(train="train", test="valid")),
}
COUNT = 6


def test_a_row_states_the_terms_that_the_cards_of_its_weights_state():
    weights = [hyperzoo.weight_info(name) for name in hyperzoo.list_weights()]
    assert {names.parse(info.name).dataset for info in weights} == {"c10", "c100", "ptb"}
    for info in weights:
        assert REPOSITORIES[names.parse(info.name).dataset].terms == info.dataset_terms != NOT_EXAMINED


def image(code, split, i):
    """Of one color; every third of Tiny-ImageNet's is gray."""
    side, bright = LAYOUT[code][1], 20 * i + 100 * (split == "test")
    gray = code == "tiny" and i % 3 == 2
    return Image.new("L", (side, side), bright) if gray else Image.new("RGB", (side, side), (bright, 7, 9))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HYPERZOO_DATA", str(tmp_path))
    for code, (folder, _, classes, files) in LAYOUT.items():
        (tmp_path / folder).mkdir(parents=True)
        for split, name in files.items():
            rows = []
            for i in range(COUNT):
                image(code, split, i).save(buffer := io.BytesIO(), "PNG")
                rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": (7 * i) % len(classes)})
            features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
            table = datasets.Dataset.from_list(rows, features=features)
            table.to_parquet(tmp_path / folder / f"{name}-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize("code", LAYOUT)
def test_both_splits(mirror, code):
    _, side, classes, files = LAYOUT[code]
    for split, name in files.items():
        for found in (load_images(code, split), load_images(code, split)):  # decoded, and from the cache
            assert (found.name, found.split, found.classes) == (code, split, tuple(classes))
            assert found.images.shape == (COUNT, 3, side, side) and found.origin.endswith(f"split {name}")
            assert found.labels.tolist() == [(7 * i) % len(classes) for i in range(COUNT)]
            for i, pixels in enumerate(found.images):
                color = torch.tensor(image(code, split, i).convert("RGB").getpixel((0, 0)), dtype=torch.uint8)
                assert torch.equal(pixels, color.view(3, 1, 1).expand_as(pixels))


def test_what_is_not_there_is_named_as_the_hub_names_it(mirror):
    (mirror / LAYOUT["tiny"][0] / "valid-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"zh-plus/tiny-imagenet/default .* has no valid split: .*valid-\*-of-"):
        load_images("tiny", "test")
    with pytest.raises(DataError, match="tiny has no split 'valid'; it has train, test"):
        load_images("tiny", "valid")
    with pytest.raises(DataError, match="svhn has no split 'extra'"):
        load_images("svhn", "extra")


def test_a_recipe_trains_on_tiny_imagenet(mirror, tmp_path):
    (tmp_path / "some.yaml").write_text(
        """
model: {arch: preact_resnet18, args: {widths: [8, 8, 8, 8], stem_width: 8, stem_stride: 2}}
data: {name: tiny, batch_size: 3}
method: {manifold_mixup: {alpha: 0.2}, soft_target: bce}
optim: {lr: 0.01}
train: {epochs: 1, compile: off, precision: fp32}
"""
    )
    result = train.run(load_recipe(tmp_path / "some.yaml"), tmp_path / "run").values
    assert result["metrics"]["total"] == COUNT and result["split"] == "test"


@pytest.mark.fault("size, mean or crop of the images lost in a run folder")
@pytest.mark.parametrize("arch", ["preact_resnet18", "test_resnet"])  # timm's crops 95 % of the side
def test_a_run_folder_prepares_images_as_the_run_tested_them(mirror, tmp_path, arch):
    args = "{widths: [8, 8, 8, 8], stem_width: 8, stem_stride: 2}" if arch == "preact_resnet18" else "{}"
    (tmp_path / "some.yaml").write_text(
        f"""
model: {{arch: {arch}, args: {args}}}
data: {{name: tiny, batch_size: 3}}
optim: {{lr: 0.01}}
train: {{epochs: 1, compile: off, precision: fp32}}
"""
    )
    train.run(load_recipe(tmp_path / "some.yaml"), tmp_path / "run")
    place = f"local-dir:{tmp_path / 'run'}"
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = ImageSet("tiny", "test", pixels, torch.tensor([0, 1]), ("a", "b"), "made")
    (batch,) = evaluate.batches(hyperzoo.load(place).model, made)
    prepare = hyperzoo.preprocess(place)
    torch.testing.assert_close(prepare(pixels), batch.images, rtol=0, atol=1e-6)  # a sum in another order
    one = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(prepare(one), batch.images[0], rtol=0, atol=1e-6)
    used = json.loads((tmp_path / "run" / "config.json").read_text())["pretrained_cfg"]
    assert used["input_size"] == [3, 64, 64] and not {"test_input_size", "test_crop_pct"} & used.keys()


@pytest.mark.fault("class names in another order")
def test_labels_of_a_saved_model_in_another_order_are_refused(mirror, tmp_path):
    names_of = list(load_images("svhn", "test").classes)
    model = timm.create_model("resnet20_cifar", num_classes=10)
    for place, classes in enumerate((names_of, [f"digit {name}" for name in names_of], names_of[::-1])):
        save_model(model, tmp_path / str(place), classes=tuple(classes))
    for place in (0, 1):  # the same names, and names of another kind
        assert evaluate.run(f"local-dir:{tmp_path / str(place)}", dataset="svhn").total == COUNT
    with pytest.raises(InputError, match="has the class '9' at position 0, but svhn has it at 9"):
        evaluate.run(f"local-dir:{tmp_path / '2'}", dataset="svhn")
