"""Sphere layers at the ends of the number formats: overflowing squares are NaN, and gradients at zero patches."""

import pytest
import torch
from torch import nn

from hyperzoo.layers import SphereConv2d, SphereLinear
from hyperzoo.layers.operators import OPERATORS

RANGE = "input of a sphere layer beyond the range of its dtype"


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.fault(RANGE)
def test_squares_that_overflow_give_nan_and_not_0(groups, operator, grad):
    """3e19 has the square 9e38, above float32's 3.4e38; one pixel of it, so that patches without it stay exact."""
    torch.manual_seed(0)
    layer = SphereConv2d(4, 6, 3, groups=groups, operator=operator)
    x = torch.randn(2, 4, 6, 6)
    expected = layer(x).detach()
    x[0, :, 0, 0] = 3e19
    with torch.set_grad_enabled(grad):
        out = layer(x)
    assert out[0, :, 0, 0].isnan().all() and out.isnan().sum() == 6
    torch.testing.assert_close(out[1].detach(), expected[1])
    linear = SphereLinear(4, 3, operator=operator)
    assert linear(torch.full((2, 4), 3e19)).isnan().all()


@pytest.mark.fault(RANGE)
def test_filters_that_overflow_give_nan_and_not_0():
    layer = SphereConv2d(4, 6, 3)
    layer.weight.data[2] = 3e19
    assert layer(torch.ones(1, 4, 5, 5)).isnan().sum((0, 2, 3)).tolist() == [0, 0, 9, 0, 0, 0]


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1.0, 1e18])
def test_large_inputs_have_the_angles_of_float64(scale):
    torch.manual_seed(0)
    layer, x = SphereConv2d(3, 4, 3), torch.randn(1, 3, 5, 5) * scale
    got = layer(x).detach().double()
    torch.testing.assert_close(got, layer.double()(x.double()).detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.fault(RANGE, 2)
def test_float16_gradient_at_a_zero_patch_is_that_of_the_formula():
    """d c / d x = w / (|w| sqrt(eps)) at x = 0: with eps = 1e-4, 100 times the unit filter, far below 65,504."""
    torch.manual_seed(0)
    layer = SphereConv2d(3, 1, 3)
    unit = (layer.weight / (layer.weight.square().sum() + 1e-4).sqrt()).detach()
    for factor in (1.0, 500.0):  # of the incoming gradient, as a loss scale multiplies it
        x = torch.zeros(1, 3, 3, 3, dtype=torch.float16, requires_grad=True)
        with torch.autocast("cpu", torch.float16):
            out = layer(x)
        out.backward(torch.full_like(out, factor))
        torch.testing.assert_close(x.grad.float(), 100 * factor * unit, rtol=2e-3, atol=2e-3 * factor)


@pytest.mark.fault(RANGE)
def test_float16_training_with_a_blank_image_settles():
    """The loss scale falls until the gradient at the blank image fits, and then no step is skipped."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net = nn.Sequential(SphereConv2d(3, 8, 3, padding=1), nn.ReLU(), SphereConv2d(8, 8, 3, padding=1), *head)
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cpu", growth_interval=1000)
    scales = []
    for _ in range(30):
        x = torch.randn(4, 3, 5, 5)
        x[0] = 0
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(net(x), torch.arange(4))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert len(set(scales[-15:])) == 1 and scales[-1] >= 64
