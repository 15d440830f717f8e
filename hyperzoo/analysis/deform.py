"""Rotations, shears and zooms of images: the deformations of Manifold Mixup (arXiv 1806.05236, Table 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError

DEFORMATIONS = {  # Tables 4 and 9: degrees; degrees (0.5, 1, 2, 2.5, 3 radians); visible fraction of each side
    "rotation": (20.0, 40.0, 60.0, 80.0),
    "shear": (28.6, 57.3, 114.6, 143.2, 171.9),
    "zoom": (0.2, 0.4, 0.6, 0.8, 1.2, 1.4, 1.6, 1.8),
}


def deform(images: Tensor, kind: str, amount: float, draws: Tensor) -> Tensor:
    """Deform each image about its center, with bilinear interpolation and replicated edges.

    out(c + o) = image(c + A o) for every offset o = (x, y) from the center c; with t = draw * amount

    rotation: A = [[cos t, -sin t], [sin t, cos t]]     shear: A = [[cos t, 0], [-sin t, 1]]     zoom: A = amount I

    Shapes:
        images: (B, C, H, W), floating point.   draws: (B,) in [-1, 1], ignored by zoom.   return: like images.
    Args:
        kind: 'rotation', 'shear' or 'zoom'.
        amount: largest angle in degrees; for zoom, the visible fraction of height and width (below 1 enlarges).
    Raises:
        InputError: an unknown kind, an amount of 0 or less, or wrong shapes.
    Differs:
        The paper states the ranges, but not the matrix of a shear, the values beyond the edges or the interpolation.
        This shear matrix stays bounded at the angles above 90 degrees that the paper uses.
    Example:
        >>> row = torch.arange(4.0).expand(1, 1, 4, 4)
        >>> deform(row, 'zoom', 0.5, torch.zeros(1))[0, 0, 0]          # the central half
        tensor([0.7500, 1.2500, 1.7500, 2.2500])
    """
    if images.dim() != 4 or not images.is_floating_point() or tuple(draws.shape) != (len(images),):
        raise InputError(
            f"expected floating-point images (B, C, H, W) and draws (B,); got {images.dtype} {tuple(images.shape)} and "
            f"{tuple(draws.shape)}"
        )
    if kind not in DEFORMATIONS or not amount > 0:
        raise InputError(
            f"expected a deformation ({', '.join(DEFORMATIONS)}) and an amount above 0; got {kind!r} and {amount}"
        )
    angle = (draws.to(images) * amount).deg2rad()
    cos, sin, one = angle.cos(), angle.sin(), torch.ones_like(angle)
    rows = {
        "rotation": (cos, -sin, sin, cos),
        "shear": (cos, 0 * one, -sin, one),
        "zoom": (amount * one, 0 * one, 0 * one, amount * one),
    }[kind]
    matrices = torch.stack(rows, 1).view(-1, 2, 2)
    size = images.new_tensor(images.shape[:1:-1])  # width and height; grid_sample scales both to [-1, 1]
    grid = F.affine_grid(F.pad(matrices * size / size[:, None], (0, 1)), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
