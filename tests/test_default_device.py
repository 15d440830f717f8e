"""Draws come from CPU generators, wherever `torch.set_default_device` puts new tensors: here the meta device."""

import pytest
import torch
from torch import nn

from hyperzoo import mixup, regularizers
from hyperzoo.analysis.attacks import pgd
from hyperzoo.data import ImageSet
from hyperzoo.data.augment import plan_epoch
from hyperzoo.layers import whitening_filters


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


NET = net()
X, LABELS = torch.arange(40.0).reshape(10, 4), torch.arange(10) % 3
IMAGES = torch.arange(10 * 3 * 8 * 8.0).sin().reshape(10, 3, 8, 8)

SET = ImageSet("made", "train", (IMAGES.abs() * 255).to(torch.uint8), LABELS, ("a", "b", "c"), "made")


def mixed(mixing, x=X):
    mixing.seed(3)
    with mixing:
        x, targets = mixing(x, LABELS)
        return x, targets, NET(x) if x.dim() == 2 else x


DRAWS = {
    "Mixup": lambda: mixed(mixup.Mixup(3)),
    "CutMix": lambda: mixed(mixup.CutMix(3), IMAGES),
    "ManifoldMixup": lambda: mixed(mixup.ManifoldMixup(NET, 3, layers="1")),
    "plan_epoch": lambda: plan_epoch(20, seed=0, epoch=1, flip="alternating"),
    "plan_epoch in order": lambda: plan_epoch(20, seed=0, epoch=1, shuffle=False),
    "MHE": lambda: [regularizers.MHE(NET, hidden=1.0, output=1.0, neurons=4)()],
    "PER": lambda: [regularizers.projected_error(X, slices=8, generator=torch.Generator().manual_seed(0))],
    "PGD": lambda: [pgd(NET, X.sin().abs(), LABELS, epsilon=0.1, step=0.1, steps=1, generator=torch.Generator())],
    "hold_out": lambda: [part.images for part in SET.hold_out(3)],
    "whitening": lambda: [whitening_filters(IMAGES, (2, 2))],
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.fault("draw under another default device")
def test_draws_are_the_same_under_another_default_device(draw):
    expected = DRAWS[draw]()
    with torch.device("meta"):
        got = DRAWS[draw]()
    for value, want in zip(got, expected, strict=True):
        assert torch.equal(value, want)
