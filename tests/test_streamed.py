"""Streamed images: equal crops for any number of workers, every image once, and clear errors."""

import math
from dataclasses import replace

import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from torchvision.transforms.v2.functional import resized_crop, to_pil_image

from hyperzoo import data
from hyperzoo.data import StreamedBatches, streamed_eval_batches
from hyperzoo.data.streamed import _Crops, crop_box, image_folder
from hyperzoo.errors import DataError, InputError, RecipeError
from hyperzoo.experiments import build, train
from hyperzoo.training.recipe import Recipe, load_recipe

NORM = dict(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))  # pixels stay 0 to 255
SIZES = ((40, 30), (25, 50), (32, 32))


@pytest.fixture
def folder(tmp_path):
    """Two splits of three classes with four JPEGs each, of different sizes; every image has one color of its own."""
    root = tmp_path / "ILSVRC" / "imagenet-1k"
    for split, shift in (("train", 0), ("validation", 5)):
        for label, name in enumerate(("n01", "n02", "n03")):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                color = (60 * label + shift, 50 * i + shift, 120)
                Image.new("RGB", SIZES[(label + i) % 3], color).save(root / split / name / f"{i}.JPEG", quality=95)
    return tmp_path


@pytest.fixture
def images(folder):
    return image_folder(folder / "ILSVRC" / "imagenet-1k" / "train", "imagenet", "train")


def batches(images, **changes):
    return StreamedBatches(images, **{**dict(batch_size=4, seed=1, size_px=16, flip=True), **NORM, **changes})


def test_a_folder_is_a_set(images):
    assert len(images) == 12 and images.classes == ("n01", "n02", "n03")
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.read(5).getpixel((3, 3)) == pytest.approx((60, 50, 120), abs=4)  # JPEG of one color


def test_a_part_of_a_set_reads_its_own_images(images):
    part = images.take(torch.tensor([7, 2]))
    assert len(part) == 2 and part.labels.tolist() == [1, 0] and part.origin.endswith(", 2 of 12 images")
    assert [part.read(i).tobytes() for i in (0, 1)] == [images.read(i).tobytes() for i in (7, 2)]
    assert len({images.fingerprint, part.fingerprint, images.take(torch.tensor([2, 7])).fingerprint}) == 3


def test_every_image_once_an_epoch_with_its_label_and_color(images):
    one = batches(images)
    assert len(one) == 3
    seen = []
    for x, labels, indices in one.epoch(1):
        assert (
            x.shape == (4, 3, 16, 16)
            and x.dtype == torch.float32
            and x.is_contiguous(memory_format=torch.channels_last)
        )
        assert labels.tolist() == [index // 4 for index in indices.tolist()]
        for pixels, index in zip(x, indices.tolist(), strict=True):
            expected = torch.tensor([60.0 * (index // 4), 50.0 * (index % 4), 120.0]).view(3, 1, 1)
            assert (pixels - expected).abs().max() < 6  # JPEG and interpolation
        seen += indices.tolist()
    assert sorted(seen) == list(range(12)) and seen != sorted(seen)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core, by torch
def test_neither_workers_nor_processes_change_the_crops(folder):
    generator = torch.Generator().manual_seed(0)
    for path in sorted(folder.rglob("train/*/*.JPEG")):  # noise, so that another crop is seen
        with Image.open(path) as image:
            width, height = image.size
        noise = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(path)
    images = image_folder(folder / "ILSVRC" / "imagenet-1k" / "train", "imagenet", "train")
    plain = list(batches(images).epoch(2))
    for other in (batches(images, workers=2), batches(images)):
        for one, two in zip(plain, other.epoch(2), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    shares = [list(batches(images, rank=rank, processes=2).epoch(2)) for rank in (0, 1)]
    for whole, *parts in zip(plain, *shares, strict=True):
        assert all(torch.equal(a, torch.cat(pieces)) for a, *pieces in zip(whole, *parts, strict=True))
    assert not torch.equal(plain[0].images, next(iter(batches(images).epoch(3))).images)


def test_a_crop_is_that_of_torchvision(images):
    noise = torch.randint(0, 256, (3, 40, 25), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    draws = torch.tensor([[0.5, 0.2, 0.7, 0.4, 0.9]], dtype=torch.float64)
    made = replace(images, read=lambda _: to_pil_image(noise))
    crop, index = _Crops(made, torch.tensor([0]), draws, 16, 0.08)[0]
    box = crop_box(40, 25, draws[0].tolist(), 0.08)
    expected = resized_crop(noise, *box, size=[16, 16], antialias=True).flip(-1)  # the fifth number is above 1/2
    assert index == 0 and torch.equal(crop, expected)


def test_crops_are_inside_and_cover_what_was_asked():
    generator = torch.Generator().manual_seed(0)
    for draws in torch.rand(500, 4, generator=generator).tolist():
        top, left, height, width = crop_box(90, 120, draws, 0.25)
        assert 0 <= top <= 90 - height and 0 <= left <= 120 - width and height > 0 and width > 0
        if height < 90 and width < 120:
            area, ratio = (0.25 + 0.75 * draws[0]) * 90 * 120, math.exp(math.log(3 / 4) + math.log(16 / 9) * draws[1])
            assert height * width == pytest.approx(area, rel=0.05) and width / height == pytest.approx(ratio, rel=0.05)


def test_evaluation_sees_every_center_once(images):
    rows = [
        streamed_eval_batches(
            images, batch_size=5, size_px=16, crop_pct=0.8, interpolation="bicubic", rank=r, processes=2, **NORM
        )
        for r in (0, 1)
    ]
    found = [batch for part in rows for batch in part]
    assert torch.cat([batch.indices for batch in found]).tolist() == list(range(12))
    assert {batch.images.shape[-1] for batch in found} == {16}


@pytest.mark.parametrize("interpolation, crop_pct", [("bicubic", 0.95), ("bilinear", 0.875), ("bicubic", 1.0)])
def test_evaluation_sees_the_pixels_of_timm(images, interpolation, crop_pct):
    [found] = streamed_eval_batches(
        images, batch_size=12, size_px=18, crop_pct=crop_pct, interpolation=interpolation, **NORM
    )
    settings = dict(input_size=(3, 18, 18), crop_pct=crop_pct, interpolation=interpolation, **NORM)
    transform = timm.data.create_transform(**settings)  # 18 / 0.95 = 18.9 becomes 18
    expected = torch.stack([transform(images.read(number)) for number in range(12)])
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-4)  # of 255


def test_keys_for_images_in_memory_are_refused(folder, images, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(folder))

    def recipe(**block):
        values = dict(name="imagenet", batch_size=4, judge_on="test", **block)
        return Recipe.model_validate(
            dict(name="a", model=dict(arch="resnet20_cifar"), data=values, optim=dict(lr=1), train=dict(epochs=1))
        )

    with pytest.raises(RecipeError, match="data.size_px resizes images in memory, but imagenet is streamed; remove it"):
        build.images(recipe(size_px=64))
    network = timm.create_model("resnet20_cifar")
    with pytest.raises(RecipeError, match="data.flip alternating needs images in memory, but .* is streamed; set true"):
        build.batches(recipe(flip="alternating"), images, network, Accelerator())


def test_a_recipe_trains_on_it_and_reads_the_test_images_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(folder))
    recipe = tmp_path / "folder.yaml"
    recipe.write_text(
        "model: {arch: resnet20_cifar}\ndata: {name: imagenet, batch_size: 4, workers: 1}\noptim: {lr: 0.01}\n"
        "train: {epochs: 1, precision: fp32}\n"
    )
    result = train.run(load_recipe(recipe), tmp_path / "run").values
    assert result["metrics"]["total"] == 12 and result["train_images"] == 12
    assert result["metrics"]["fingerprint"] != result["train_fingerprint"]
    with pytest.raises(InputError, match="hold_out needs images in memory"):
        build.images(load_recipe(recipe, ("data.hold_out=3",)))


def test_faults(folder, images, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(folder))
    with pytest.raises(DataError, match="imagenet has no split 'val'"):
        data.load_images("imagenet", "val")
    root = folder / "ILSVRC" / "imagenet-1k" / "train"
    (root / "n02" / "1.JPEG").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"n02/1\.JPEG cannot be decoded"):
        list(batches(images).epoch(1))
    (root / "n04").mkdir()
    with pytest.raises(DataError, match="n04 has no image"):
        image_folder(root, "imagenet", "train")
    with pytest.raises(DataError, match="has no class folders"):
        image_folder(root / "n01", "imagenet", "train")
    assert len(batches(images, batch_size=13)) == 1 and batches(images, batch_size=13).batch_size == 12  # as in memory
    for wrong in ({"batch_size": 0}, {"processes": 3}):
        with pytest.raises(InputError, match="choose a batch_size"):
            batches(images, **wrong)
