"""The 8-bit pixels of any picture that Pillow opens."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageOps

from hyperzoo.errors import DataError, InputError, listed

LARGEST = "largest of 16 bits"  # key in `info` of an image that is nearly black, see `gray_or_rgb`
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_logger = logging.getLogger(__name__)


def gray_or_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits, in mode L if it is gray and RGB otherwise, upright as its EXIF orientation says.

    Of 16-bit gray, the high byte is kept, as Pillow does for 16-bit colors; of a TIFF that states 12 bits, the high
    8 of these. A 16-bit image without a value above 4095 becomes nearly black: its `info` has the largest value at
    `LARGEST`, for `warn_of_dark`. It may hold 12 bits, or show a dark scene; the file does not say which.
    Transparency is dropped, as in timm and torchvision: each pixel keeps its stored color. Palettes, CMYK and other
    colors become RGB as in Pillow.

    Raises:
        InputError: 32-bit pixels, whose range is unknown, or a mode that Pillow cannot convert.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("L", "RGB"):
        return upright
    if upright.mode.startswith("I;16") or (upright.mode, image.format) == ("I", "PPM"):  # PGM is scaled to 16 bits
        values = upright.convert("I")
        if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,):
            return values.point(_high_bytes(12), "L")
        found, (_, largest) = values.point(_high_bytes(16), "L"), values.getextrema()
        if 0 < largest < 4096:  # type: ignore[operator]
            found.info[LARGEST] = largest
        return found
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


def dark_text(found: Mapping[str, int]) -> str:
    """A warning of images, by their names, whose largest values are at `LARGEST`; empty without any."""
    if not found:
        return ""
    largest = max(found.values())
    factor = 2 ** (16 - largest.bit_length())
    return (
        f"16-bit gray images without a value above {largest} of 65535 become nearly black: {listed([*found], 3)}. "
        f"Unless they show darkness, multiply their values by {factor}, or save them with 8 bits"
    )


def warn_of_dark(text: str) -> None:
    """Log the warning `dark_text`, unless it is empty."""
    if text:
        _logger.warning("%s", text)


@functools.cache
def _high_bytes(bits: int) -> list[int]:
    """The high byte of each 16-bit number of so many bits; 255 for larger ones."""
    return [min(255, value >> bits - 8) for value in range(65536)]
