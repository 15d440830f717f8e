"""PER's vectors lie along the axis of the channels, in every layout of a layer's output."""

import math

import pytest
import scipy.special
import timm
import torch
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.layers import hooks
from hyperzoo.regularizers import PER, VCL, projected_error
from hyperzoo.training.recipe_methods import PERSettings


class Qk(nn.Module):
    """Only normalizes queries of several heads, (B, heads, N, d)."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x)


def slow_error(h, axis):
    """The mean error of the vectors along an axis, by scipy in float64."""
    rows = h.detach().double().movedim(axis, -1).flatten(0, -2)
    d = rows.shape[1]
    return math.sqrt(2 / math.pi) * scipy.special.hyp1f1(-0.5, d / 2, -rows.square().sum(1).numpy() / 2).mean()


@pytest.mark.parametrize("slices", [None, 4])
@pytest.mark.parametrize(
    "model, shape, layer, axis, by_default",
    [
        (nn.Sequential(nn.Linear(3, 6), nn.GELU()), (2, 5, 4, 3), "1", -1, False),  # MLP of ConvNeXt
        (nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU()), (2, 3, 7), "1", 1, False),
        (nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU()), (2, 3, 7), "0", 1, True),
        (nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6)), (2, 3, 7), "1", 1, True),
        (nn.Sequential(nn.Linear(3, 6)), (2, 5, 4, 3), "0", 3, True),
        (Qk(nn.LayerNorm(6)), (2, 3, 5, 6), "norm", -1, True),
        (Qk(timm.layers.LayerNorm(6)), (2, 3, 5, 6), "norm", 3, True),
        (Qk(timm.layers.LayerNorm2d(6)), (2, 6, 5, 3), "norm", 1, True),
    ],
)
def test_vectors_lie_along_the_axis_of_the_layer(model, shape, layer, axis, by_default, slices):
    torch.manual_seed(0)
    x, found = torch.randn(shape), []
    with hooks.attached({layer: model.get_submodule(layer)}, lambda name, output: found.append(output)):
        model(x)
    expected = slow_error(found[0], axis)
    for choice in [axis, None] if by_default else [axis]:
        term = PER(model, strength=1.0, layers=layer, slices=slices, axis=choice)
        with term:
            model(x)
            value = term()
        assert value.item() == pytest.approx(expected, rel=1e-5)
        draws = torch.Generator().manual_seed(0)
        h = found[0].detach().requires_grad_()
        model.zero_grad()
        value.backward()
        (wanted,) = torch.autograd.grad(projected_error(h, slices=slices, axis=axis, generator=draws), h)
        first = next(model.parameters())
        (pulled,) = torch.autograd.grad(found[0], first, wanted, retain_graph=True)
        torch.testing.assert_close(first.grad, pulled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_of_a_transformer_layer(batch_first):
    """reduce='batch' divides by the samples, wherever their axis is."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)
    model, x = nn.Sequential(layer), torch.randn(3, 7, 4)  # (B, T, d)
    term = PER(model, strength=1.0, layers="0", reduce="batch")
    with term:
        h = model(x if batch_first else x.transpose(0, 1))
        assert term().item() == pytest.approx(slow_error(h, -1) * 7, rel=1e-5)


def test_the_axis_of_a_recipe():
    """Digests of published recipes leave out defaults; see `Recipe.digest`."""
    assert "axis" not in PERSettings(strength=1.0).model_dump(exclude_defaults=True)
    assert PERSettings(strength=1.0, axis=-1).axis == -1
    for wrong in (dict(axis=0), dict(axis=1, view="flatten")):
        with pytest.raises(ValueError, match="axis"):
            PERSettings(strength=1.0, **wrong)


def test_the_axis_of_swin():
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, depths=(1, 1), num_heads=(1, 1), embed_dim=8
    )
    x, found = torch.randn(2, 3, 32, 32), []
    term = PER(model, strength=1.0, layers="layers.0", axis=-1)
    with term, hooks.attached({"": model.layers[0]}, lambda name, output: found.append(output)):
        model(x)
        assert term().item() == pytest.approx(slow_error(found[0], 3), rel=1e-5)


@pytest.mark.parametrize("term", [PER, VCL])
def test_maps_with_channels_last_are_refused(term):
    """timm's Swin has (B, H, W, C); axis 1 would be a column of the image."""
    model = timm.create_model("swin_tiny_patch4_window7_224", device="meta")
    with pytest.raises(InputError, match="height, width, channels"):
        term(model, strength=0.1, layers="stages")
