"""Every kind of picture that people have, from the file to the pixels of a training set."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_own_images import own_cache, recipe  # noqa: F401

from hyperzoo import data
from hyperzoo.analysis import plots
from hyperzoo.errors import DataError
from hyperzoo.experiments import build

RED, GRAY = (200, 20, 20), (90, 90, 90)


def sixteen_bits(file):
    Image.fromarray(np.full((6, 6), 90 * 256 + 17, dtype=np.uint16)).save(file)


def palette(file):
    Image.new("RGB", (6, 6), RED).quantize(4).save(file)


def transparent(file):
    Image.new("RGBA", (6, 6), (*RED, 0)).save(file)


def animation(file):
    frames = [Image.new("RGB", (6, 6), color) for color in (RED, (0, 255, 0))]
    frames[0].save(file, save_all=True, append_images=frames[1:])


def cmyk(file):
    Image.new("CMYK", (6, 6), (55, 235, 235, 0)).save(file)  # 255 - RED


def plain(file):
    Image.new("RGB", (6, 6), RED).save(file)


def lossless(file):
    Image.new("RGB", (6, 6), RED).save(file, lossless=True)


def gray(file):
    Image.new("L", (6, 6), 90).save(file)


def single_pixel(file):
    Image.new("RGB", (1, 1), RED).save(file)


KINDS = {
    "16.png": (sixteen_bits, GRAY),
    "palette.png": (palette, RED),
    "transparent.png": (transparent, RED),
    "animated.gif": (animation, RED),
    "cmyk.tiff": (cmyk, RED),
    "photo.TIF": (plain, RED),
    "photo.JPG": (plain, RED),
    "photo.bmp": (plain, RED),
    "photo.webp": (lossless, RED),
    "gray.png": (gray, GRAY),
    "pixel.png": (single_pixel, RED),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_every_kind_of_picture_becomes_the_same_pixels(tmp_path, monkeypatch, streamed):
    for name in ("a", "b"):
        (tmp_path / "set" / "train" / name).mkdir(parents=True)
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        plain(tmp_path / "set" / "test" / name / "x.png")
    plain(tmp_path / "set" / "train" / "b" / "x.png")
    for name, (make, _) in KINDS.items():
        make(tmp_path / "set" / "train" / "a" / name)
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 0 if streamed else 10**9)
    own = build.dataset(recipe(tmp_path / "set", size_px=4))
    files, images = own.splits["train"].files, own.load("train")
    for i, file in enumerate(files):
        color = KINDS.get(file.name, (None, RED))[1]
        pixels = np.asarray(images.read(i)).reshape(-1, 3) if streamed else images.images[i].flatten(1).T.numpy()
        assert np.abs(pixels.astype(int) - color).max() <= 3, file  # JPEG is lossy


def test_a_photo_is_upright_as_its_exif_says(tmp_path):
    half = Image.new("L", (8, 8))
    half.paste(255, (0, 0, 4, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: the left is up
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            half.save(tmp_path / "set" / name / f"{i}.png", exif=exif)
    images = build.dataset(recipe(tmp_path / "set", size_px=8)).load("train").images
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[:4] = 255
    assert images.shape == (2, 1, 8, 8) and all(torch.equal(image[0], expected) for image in images)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda file: file.write_bytes(b""), "cannot be decoded"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "cannot be decoded"),
        (lambda file: Image.new("1", (20_000, 20_000)).save(file), "decompression bomb"),
        (lambda file: Image.new("L", (1, 60_000)).save(file), "crop the picture"),
        (lambda file: Image.new("F", (4, 4)).save(file, "TIFF"), "32-bit pixels"),
    ],
    ids=["empty", "cut", "bomb", "sliver", "float"],
)
@pytest.mark.fault("picture that cannot be decoded")
def test_a_picture_that_cannot_be_used_is_named(tmp_path, spoil, message):
    for name in ("a", "b"):
        for split in ("train", "test"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            plain(tmp_path / "set" / split / name / "x.png")
    spoil(tmp_path / "set" / "train" / "b" / "x.png")
    own = build.dataset(recipe(tmp_path / "set", size_px=64))
    with pytest.raises(DataError, match=rf"train/b/x\.png.*{message}"):
        own.load("train")


def test_gray_training_images_make_gray_test_images(tmp_path):
    for name, shade in (("a", 10), ("b", 200)):
        for split, mode in (("train", "L"), ("test", "RGB")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            Image.new("L", (4, 4), shade).convert(mode).save(tmp_path / "set" / split / name / "x.png")
    own = build.dataset(recipe(tmp_path / "set", size_px=4))
    train = own.load("train")
    test = own.like(train.channels).load("test")
    assert train.channels == test.channels == 1 and torch.equal(train.images, test.images)


def test_a_dark_gray_picture_is_drawn_dark(tmp_path):
    """matplotlib stretches the contrast of gray pictures to black and white if it is not told their range."""
    dark = torch.tensor([[40, 60], [60, 40]], dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    images = data.ImageSet("own", "train", dark.view(1, 1, 16, 16), torch.tensor([0]), ("a",), "made")
    with Image.open(plots.grid(images, None, tmp_path / "grid.png", title="made")) as drawn:
        shades = drawn.convert("L").histogram()
    assert all(shades[shade] > 1000 for shade in (40, 60)) and shades[0] < 1000


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
@pytest.mark.fault("12 bits in a file of 16", 2)
def test_12_bits_in_a_file_of_16_are_named_in_every_run(tmp_path, monkeypatch, caplog, streamed):
    monkeypatch.setattr("hyperzoo.data.own.MEMORY_BYTES", 0 if streamed else 10**9)
    for name, largest in (("a", 4000), ("b", 65000)):
        for split in ("train", "test"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            ramp = np.linspace(0, largest, 36).astype(np.uint16).reshape(6, 6)
            Image.fromarray(ramp).save(tmp_path / "set" / split / name / "x.png")
    for _ in range(2):  # decoded, and from the cache
        build.dataset(recipe(tmp_path / "set", size_px=4)).load("train")
    (said,) = {record.message for record in caplog.records}
    assert len(caplog.records) == 2 and said == (
        f"16-bit gray images without a value above 4000 of 65535 become nearly black: {tmp_path}/set/train/a/x.png. "
        "Unless they show darkness, multiply their values by 16, or save them with 8 bits"
    )
