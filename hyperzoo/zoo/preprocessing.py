"""From an image to the input of a network: timm's evaluation transform, also for uint8 batches."""

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from hyperzoo import names
from hyperzoo.errors import InputError
from hyperzoo.pixels import gray_or_rgb
from hyperzoo.zoo.load import described


def preprocess(name: str) -> Callable[[Image.Image | Tensor], Tensor]:
    """Return the transform from images to the network's input; it equals timm's evaluation transform bit for bit,
    except that images are first made upright, and 16-bit gray ones scaled (see `pixels.gray_or_rgb`).

    It serves as the `transform` of torchvision's data sets, and prints what it does.

    Shapes:
        a PIL image.   return: (C, h, w) float32.
        uint8 (B, C, H, W).   return: (B, C, h, w) float32.
    Args:
        name: as for `load`, or a model of timm; an architecture without a weight is prepared for as its own description
            says.
    Raises:
        InputError: a language model. The transform raises it for any other kind of image, with type, dtype and shape,
            and for PIL images that `pixels.gray_or_rgb` refuses.
    Example:
        >>> preprocess('spherenet20')(Image.new('RGB', (40, 32))).shape
        torch.Size([3, 32, 32])
    """
    arch, cfg = described(name)
    if names.is_language(arch):
        raise InputError(f"{name} reads token ids, not images: the position of each word in load(name).classes")
    return Preprocess(resolve_data_config(pretrained_cfg=cfg))


class Preprocess:
    """timm's evaluation transform, which takes one PIL image, extended to uint8 batches.

    Args:
        config: as `timm.data.resolve_data_config` returns it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.channels, *self.size = config["input_size"]
        self.mean, self.std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.transform = create_transform(**config)

    def __call__(self, images: Image.Image | Tensor) -> Tensor:
        if isinstance(images, Image.Image):
            return self.transform(gray_or_rgb(images).convert("RGB" if self.channels == 3 else "L"))
        if not (isinstance(images, Tensor) and images.dtype == torch.uint8 and images.dim() == 4):
            raise InputError(
                f"expected a PIL image or uint8 (batch, {self.channels}, height, width); got {_shown(images)}"
            )
        if images.shape[1] != self.channels or 0 in images.shape[2:]:
            raise InputError(f"expected {self.channels} channels and at least one pixel; got {_shown(images)}")
        if not len(images):
            return torch.empty(0, self.channels, *self.size, device=images.device)
        if self.config["crop_pct"] == 1.0 and list(images.shape[2:]) == self.size:
            scaled = images.float().div_(255)  # the operations of ToTensor and Normalize, on the whole batch
            return scaled.sub_(self.mean.to(images.device)).div_(self.std.to(images.device))
        return torch.stack([self.transform(to_pil_image(image)) for image in images.cpu()]).to(images.device)

    def __repr__(self) -> str:
        height, width = self.size
        shorter = math.floor(height / self.config["crop_pct"])
        steps = (
            f"convert: {'RGB' if self.channels == 3 else 'gray'}",
            f"resize: shorter side to {shorter} px, {self.config['interpolation']}",
            f"crop: {height} x {width} px at the center",
            "scale: to [0, 1]",
            f"normalize: (x - {tuple(self.config['mean'])}) / {tuple(self.config['std'])}",
            f"return: float32, ({self.channels}, {height}, {width}) per image",
        )
        return "\n    ".join(("Preprocess(", *steps)) + "\n)"


def _shown(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
