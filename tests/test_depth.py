"""Depth without shortcuts: the slope of the ReLUs and the identity as first filters, against formulas."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.models.sphere_cnn import SphereCNN

ALIKE = dict(widths=(8, 8, 8), norm="none")


def images(count=12, size=12):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def measured(model, x):
    """Gradient norm of the first unit's output over that of the last, and the mean cosine of two images' outputs."""
    outputs = []
    for unit in (model.stage1[0], model.stage3[-1]):
        unit.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    loss = F.cross_entropy(model.train()(x), torch.arange(len(x)) % 10)
    first, last = (gradient.norm() for gradient in torch.autograd.grad(loss, outputs))
    rows = F.normalize(outputs[-1].flatten(1))
    return (first / last).item(), ((rows @ rows.T).sum().item() - len(x)) / (len(x) * (len(x) - 1))


def test_without_norm_an_identity_network_of_inner_products_passes_the_first_feature_map_on():
    torch.manual_seed(0)
    model = timm.create_model("plain_cnn69", identity_init=True, **ALIKE).eval()
    x = images()
    first = model.stage1[0](x)
    torch.testing.assert_close(model.stage1(x), first, rtol=0, atol=0)
    pooled = F.max_pool2d(F.max_pool2d(first, 2), 2)
    torch.testing.assert_close(model.forward_intermediates(x)[1][-1], pooled, rtol=0, atol=0)


def test_an_identity_unit_of_the_sphere_divides_by_the_norm_of_the_patch():
    torch.manual_seed(0)
    model = timm.create_model("sphere_cnn9", identity_init=True, **ALIKE).eval()
    x = torch.rand(2, 8, 5, 5)
    expected = torch.empty_like(x)
    padded = F.pad(x, (1, 1, 1, 1))
    for i in range(5):
        for j in range(5):
            norm = (padded[:, :, i : i + 3, j : j + 3].square().sum((1, 2, 3)) + 1e-4).sqrt() * math.sqrt(1 + 1e-4)
            expected[:, :, i, j] = x[:, :, i, j] / norm[:, None]
    torch.testing.assert_close(model.stage2[1](x), expected)


def test_additional_filters_and_the_first_convolution_start_as_without_it():
    models = []
    for identity_init in (False, True):
        torch.manual_seed(0)
        models.append(SphereCNN(9, (4, 6, 8), identity_init=identity_init))
    usual, model = models
    for name in ("stage1.0.conv", "fc6.conv", "fc"):
        assert torch.equal(model.get_submodule(name).weight, usual.get_submodule(name).weight)
    weight = model.stage2[0].conv.weight
    assert weight.shape == (6, 4, 3, 3) and torch.equal(weight[4:], usual.stage2[0].conv.weight[4:])
    assert torch.equal(weight[:4, :, 1, 1], torch.eye(4)) and weight[:4].count_nonzero() == 4


@pytest.mark.parametrize("norm", ["batch", "none", "sphere"])
def test_the_slope_is_that_of_negative_values(norm):
    torch.manual_seed(0)
    model = SphereCNN(3, (4, 6, 8), norm=norm, negative_slope=0.25).train()
    unit, x = model.stage1[0], images()
    y = unit.bn(unit.conv(x))
    assert (y < 0).any()
    torch.testing.assert_close(unit(x), torch.where(y < 0, y / 4, y))
    model(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert isinstance(SphereCNN(3, (4, 6, 8), negative_slope=1).stage1[0].act, nn.Identity)


@pytest.mark.parametrize("slope", [-0.1, 1.5, math.nan])
def test_a_slope_outside_of_0_to_1_is_refused(slope):
    with pytest.raises(InputError, match="negative_slope must be a finite number from 0 to 1; got"):
        SphereCNN(negative_slope=slope)


def test_what_stops_a_deep_network_and_what_mends_it():
    """Batch norm and ReLU multiply the squared gradient by pi / (pi - 1) per unit (arXiv 1902.08129), 1,600 in the norm
    over 40 units; without batch norm the images become one. The slope and the identity mend both."""

    def found(**args):
        torch.manual_seed(0)
        return measured(timm.create_model("sphere_cnn45", widths=(8, 8, 8), **args), images())

    ratio, similarity = found()
    assert ratio > 300 and similarity < 0.8
    ratio, _ = found(negative_slope=0.7)
    assert ratio < 10
    ratio, similarity = found(norm="none")
    assert ratio < 10 and similarity > 0.98
    ratio, similarity = found(norm="none", identity_init=True)
    assert 0.1 < ratio < 10 and similarity < 0.8
