"""Deformations agree with scipy's affine transform, and with rotated arrays at right angles."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from hyperzoo.analysis.deform import DEFORMATIONS, deform
from hyperzoo.errors import InputError


def made(rows=3, height=9, width=7):
    return torch.rand(rows, 2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def matrix(kind, t, amount):
    """The matrix in (row, column) order; the docstring of `deform` has (x, y)."""
    return {
        "rotation": [[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]],
        "shear": [[1, -math.sin(t)], [0, math.cos(t)]],
        "zoom": [[amount, 0], [0, amount]],
    }[kind]


@pytest.mark.parametrize("kind", DEFORMATIONS)
def test_every_deformation_of_the_paper_agrees_with_scipy(kind):
    images, draws = made(), torch.tensor([-0.9, 0.3, 1.0], dtype=torch.float64)
    center = np.array([(images.shape[2] - 1) / 2, (images.shape[3] - 1) / 2])
    for amount in DEFORMATIONS[kind]:
        got = deform(images, kind, amount, draws)
        for i, draw in enumerate(draws.tolist()):
            a = np.array(matrix(kind, math.radians(draw * amount), amount))
            for channel in range(2):
                expected = affine_transform(images[i, channel].numpy(), a, center - a @ center, order=1, mode="nearest")
                torch.testing.assert_close(got[i, channel], torch.from_numpy(expected), rtol=0, atol=1e-9)


def test_quarter_turns_and_identities():
    square, rows = made(height=8, width=8), torch.ones(3)
    for turns in (1, 2, 3):
        torch.testing.assert_close(deform(square, "rotation", 90.0 * turns, rows), square.rot90(turns, (2, 3)))
    torch.testing.assert_close(deform(square, "zoom", 1.0, rows), square)
    for kind in ("rotation", "shear"):
        torch.testing.assert_close(deform(square, kind, 80.0, 0 * rows), square)


def test_memory_layout_and_dtype_are_kept():
    images = made().float().contiguous(memory_format=torch.channels_last)
    got = deform(images, "rotation", 20.0, torch.ones(3))
    assert got.dtype == torch.float32 and got.shape == images.shape
    assert got.min() >= 0 and got.max() <= 1  # bilinear interpolation keeps pixels in [0, 1]


@pytest.mark.parametrize(
    ("images", "kind", "amount", "draws", "message"),
    [
        (made().byte(), "zoom", 0.5, torch.ones(3), r"uint8 \(3, 2, 9, 7\)"),
        (made()[0], "zoom", 0.5, torch.ones(2), r"\(2, 9, 7\)"),
        (made(), "zoom", 0.5, torch.ones(2), r"and \(2,\)"),
        (made(), "twist", 0.5, torch.ones(3), "rotation, shear, zoom.* got 'twist' and 0.5"),
        (made(), "zoom", 0.0, torch.ones(3), "'zoom' and 0.0"),
        (made(), "rotation", math.nan, torch.ones(3), "and nan"),
    ],
)
def test_bad_input_is_refused(images, kind, amount, draws, message):
    with pytest.raises(InputError, match=message):
        deform(images, kind, amount, draws)
