"""Pictures of every mode become the 8-bit gray or RGB pixels that the format stands for."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import hyperzoo
from hyperzoo.errors import InputError
from hyperzoo.pixels import LARGEST, dark_text, gray_or_rgb


def stored(image, encoding="PNG", **options):
    """The image, written to a file and opened again."""
    image.save(file := io.BytesIO(), encoding, **options)
    return Image.open(file)


def palette(**options):
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return stored(image, **options)


def sixteen_bits():
    return Image.fromarray(np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16))


def pgm(largest, *values):
    """One row of gray values of two bytes each."""
    pixels = b"".join(value.to_bytes(2, "big") for value in values)
    return Image.open(io.BytesIO(f"P5 {len(values)} 1 {largest}\n".encode() + pixels))


def twelve_bits(*values):
    """One row of an even number of gray values, in a TIFF of 12 bits a pixel."""
    pixels = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    tags = {256: len(values), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    content = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
    return Image.open(io.BytesIO(content))


def rotated():
    """Two pixels side by side, with the EXIF orientation of a camera held upright: rotate by 90 degrees clockwise."""
    image = Image.new("RGB", (2, 1))
    image.putdata([(10, 20, 30), (40, 50, 60)])
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(image, exif=exif)


HIGH = [[0, 0, 1, 0x7F, 0x80, 0xFF]]  # of each 16-bit value, the high byte
CASES = {
    "16-bit PNG": (stored(sixteen_bits()), "L", HIGH),
    "16-bit TIFF": (stored(sixteen_bits(), "TIFF"), "L", HIGH),
    "16-bit PGM": (pgm(65535, 0, 255, 256, 0x7FFF, 0x8000, 0xFFFF), "L", HIGH),
    "12-bit TIFF": (twelve_bits(0, 15, 16, 2048, 4095, 4095), "L", [[0, 0, 1, 128, 255, 255]]),
    "12-bit PGM": (pgm(4095, 0, 2048, 4095), "L", [[0, 128, 255]]),
    "one bit": (stored(Image.new("1", (1, 1), 1)), "L", [[255]]),
    "gray": (stored(Image.new("L", (1, 1), 7)), "L", [[7]]),
    "gray, transparent": (stored(Image.new("LA", (1, 1), (7, 0))), "L", [[7]]),
    "RGB, transparent": (stored(Image.new("RGBA", (1, 1), (9, 8, 7, 0))), "RGB", [[[9, 8, 7]]]),
    "palette": (palette(), "RGB", [[[1, 2, 3], [200, 100, 50]]]),
    "palette, transparent": (palette(transparency=b"\x00\x80"), "RGB", [[[1, 2, 3], [200, 100, 50]]]),
    "CMYK": (stored(Image.new("CMYK", (1, 1), (255, 0, 51, 0)), "TIFF"), "RGB", [[[0, 255, 204]]]),  # 255 - ink
    "CMYK, black": (stored(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF"), "RGB", [[[0, 0, 0]]]),
    "EXIF": (rotated(), "RGB", [[[10, 20, 30]], [[40, 50, 60]]]),
}


@pytest.mark.fault("odd kind of picture")
@pytest.mark.parametrize("name", CASES)
def test_the_values_are_those_of_the_format(name):
    image, mode, expected = CASES[name]
    found = gray_or_rgb(image)
    assert found.mode == mode and np.asarray(found).tolist() == expected


@pytest.mark.parametrize("largest, said", [(0, None), (255, 255), (4095, 4095), (4096, None), (65535, None)])
def test_16_bits_that_become_nearly_black_say_so(largest, said):
    image = Image.fromarray(np.array([[0, largest]], np.uint16))
    for decoded in (gray_or_rgb(stored(image)), gray_or_rgb(stored(image, "TIFF"))):
        assert decoded.info.get(LARGEST) == said
    assert LARGEST not in gray_or_rgb(twelve_bits(0, 4095)).info


@pytest.mark.parametrize("largest, factor", [(4095, 16), (2048, 16), (2047, 32), (255, 256)])
def test_the_remedy_fills_16_bits(largest, factor):
    assert largest * factor <= 65535 < 2 * (largest + 1) * factor
    assert f"multiply their values by {factor}, or save" in dark_text({"a.png": 1, "b.png": largest})
    assert dark_text({}) == ""


@pytest.mark.fault("odd kind of picture")
@pytest.mark.parametrize("image", [Image.new("I", (1, 1), 70000), Image.new("F", (1, 1), 0.5), Image.new("La", (1, 1))])
def test_pixels_without_a_known_range_are_refused(image):
    with pytest.raises(InputError, match=f"an image of mode {image.mode} cannot be read: .* Save it as 8-bit RGB"):
        hyperzoo.preprocess("spherenet20")(image)


def test_preprocess_scales_16_bits_and_turns_pictures_upright():
    prepare = hyperzoo.preprocess("spherenet20")
    gray = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    high = Image.fromarray((gray >> 8).astype(np.uint8))
    assert torch.equal(prepare(stored(Image.fromarray(gray))), prepare(high))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert torch.equal(prepare(stored(high, exif=exif)), prepare(high.rotate(180)))
