"""Pictures of any size, brought to one size."""

import math
from dataclasses import dataclass

from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from hyperzoo.errors import DataError

LARGEST_PIXELS = 100_000_000  # of a resized picture


@dataclass(frozen=True)
class Fit:
    """How pictures of any size, color and quality become images of one shape, as in timm's evaluation transform.

    The shorter side is resized to `size_px`, and the center is cropped.

    Attributes:
        interpolation: 'bilinear', 'bicubic', ..., as in timm.
        channels: 1 or 3 [default: 3, or 1 if all pictures are gray].
        skip: leave out pictures that cannot be decoded; the set names them.
    """

    size_px: int
    interpolation: str
    channels: int | None = None
    skip: bool = False

    def __call__(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side to `size_px`, and crop the center.

        Raises:
            DataError: the resized picture would be too large for memory, because it is far longer than wide.
        """
        short, long = sorted(image.size)
        if self.size_px**2 * long > LARGEST_PIXELS * short:
            raise DataError(
                f"{image.width} x {image.height} pixels, resized to a shorter side of {self.size_px}, would exceed "
                f"{LARGEST_PIXELS} pixels; crop the picture"
            )
        return center(image, self.size_px, self.interpolation)


def center(image: Image.Image, size_px: int, interpolation: str, crop_pct: float = 1.0) -> Image.Image:
    """The center of a picture after its shorter side was resized to floor(size_px / crop_pct), as timm rounds it."""
    mode = InterpolationMode(interpolation if interpolation != "random" else "bilinear")
    return center_crop(resize(image, [math.floor(size_px / crop_pct)], mode), [size_px, size_px])
