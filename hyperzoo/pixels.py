"""The 8-bit pixels of any picture that Pillow opens."""

import functools
from pathlib import Path

from PIL import Image, ImageOps

from hyperzoo.errors import DataError, InputError


def gray_or_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits, in mode L if it is gray and RGB otherwise, upright as its EXIF orientation says.

    Of 16-bit gray, the high byte is kept, as Pillow does for 16-bit colors. Transparency is dropped, as in timm and
    torchvision: each pixel keeps its stored color. Palettes, CMYK and other colors become RGB as in Pillow.

    Raises:
        InputError: 32-bit pixels, whose range is unknown, or a mode that Pillow cannot convert.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("L", "RGB"):
        return upright
    if upright.mode.startswith("I;16") or (upright.mode, image.format) == ("I", "PPM"):  # PGM is scaled to 16 bits
        return upright.convert("I").point(_high_bytes(), "L")
    if upright.mode in ("1", "LA"):
        return upright.convert("L")
    try:
        if upright.mode in ("I", "F"):
            raise ValueError("32-bit pixels have no fixed range")
        return upright.convert("RGBA").convert("RGB")  # by way of RGBA, because Pillow warns of transparent palettes
    except ValueError as error:
        raise InputError(f"an image of mode {upright.mode} cannot be read: {error}. Save it as 8-bit RGB") from error


def read(file: Path) -> Image.Image:
    """Decode an image file to 8 bits, as `gray_or_rgb`; of several frames, the first.

    Raises:
        DataError: a missing or damaged file, or pixels that `gray_or_rgb` refuses.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return gray_or_rgb(image)
    except Exception as error:  # the decoders of Pillow raise almost any kind for a damaged file
        raise DataError(f"the image {file} cannot be decoded: {error}. Remove or replace it") from error


@functools.cache
def _high_bytes() -> list[int]:
    """The high byte of each 16-bit number."""
    return [high for high in range(256) for _ in range(256)]
