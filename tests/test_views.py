"""Test-time augmentation averages the logits of exactly the views that its definition names."""

import pytest
import torch

from hyperzoo.analysis import evaluate, views
from hyperzoo.cli.networks import eval_
from hyperzoo.data import ImageSet
from hyperzoo.errors import InputError


def linear(x):
    """Logits whose every entry is a weighted sum of all pixels, so that each view leaves its trace."""
    weights = torch.randn(5, x[0].numel(), dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    return x.flatten(1) @ weights.T


def moved(image, rows, columns, mirrored):
    """One view by plain loops: out[y, x] = image at (y + rows, x + columns), reflected at the border."""
    _, height, width = image.shape
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y + rows, x + columns
            source_y = -source_y if source_y < 0 else 2 * (height - 1) - source_y if source_y >= height else source_y
            source_x = -source_x if source_x < 0 else 2 * (width - 1) - source_x if source_x >= width else source_x
            out[:, y, width - 1 - x if mirrored else x] = image[:, source_y, source_x]
    return out


@pytest.mark.parametrize(
    "kind, offsets",
    [
        ("none", [(1.0, 0)]),
        ("flip", [(0.5, 0)]),
        ("multicrop", [(0.25, 0), (0.125, -1), (0.125, 1)]),
    ],
)
def test_equals_the_loop_over_views(kind, offsets):
    x = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(1))
    mirrors = (False,) if kind == "none" else (False, True)
    expected = sum(
        weight * linear(torch.stack([moved(image, offset, offset, mirrored) for image in x]))
        for weight, offset in offsets
        for mirrored in mirrors
    )
    torch.testing.assert_close(views.averaged(linear, x, kind), expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(InputError, match="multicrop"):
        views.averaged(linear, torch.zeros(1, 2, 4, 4), "multicrops")


def test_metrics_are_those_of_the_averaged_logits():
    class Left(torch.nn.Module):
        """Class 1 if the left half is brighter, with the difference as its logit."""

        num_classes = 2
        pretrained_cfg = dict(input_size=(3, 4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            left, right = x[..., :2].mean((1, 2, 3)), x[..., 2:].mean((1, 2, 3))
            return torch.stack([torch.zeros_like(left), self.scale * (left - right) - 0.1], 1)

    pixels = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    pixels[:2, ..., :2] = 255  # two images are bright on the left
    images = ImageSet("c10", "test", pixels, torch.tensor([1, 1, 0, 0]), ("right", "left"), "made")
    assert evaluate.measure(Left(), images).correct == 4
    assert evaluate.measure(Left(), images, tta="flip").correct == 2  # a mirrored average knows no sides


def test_the_command_offers_every_kind():
    (option,) = (option for option in eval_.params if option.name == "tta")
    assert tuple(option.type.choices) == views.KINDS  # written out there: help must not import torch
