"""Whitening filters decorrelate the patches of images; a whitened layer trains its bias only."""

import itertools

import pytest
import torch
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.layers import whiten_, whitening_filters


def images(count=40, channels=2, size=7):
    noise = torch.randn(count, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(0))
    return (noise[..., 2:, 2:] + noise[..., 1:-1, 1:-1] + noise[..., 1:-1, 2:]) * 0.7 + 0.1  # neighbors correlate


def patches(x, height, width):
    """Every patch of every image, by plain loops: (number, C height width)."""
    rows, columns = range(x.shape[2] - height + 1), range(x.shape[3] - width + 1)
    found = [
        image[:, i : i + height, j : j + width].flatten()
        for image, i, j in itertools.product(x.double(), rows, columns)
    ]
    return torch.stack(found)


@pytest.mark.parametrize("kernel", [(2, 2), (1, 3)])
def test_responses_have_unit_second_moments_and_no_correlation(kernel):
    x = images()
    filters = whitening_filters(x, kernel, eps=0.0)
    assert filters.shape == (2 * kernel[0] * kernel[1], 2, *kernel) and filters.dtype == torch.float32
    responses = patches(x, *kernel) @ filters.double().flatten(1).T
    moments = responses.T @ responses / len(responses)
    torch.testing.assert_close(
        moments, torch.eye(len(filters), dtype=torch.float64), atol=1e-4, rtol=0
    )  # float32 filters


def test_filters_are_ordered_by_the_energy_of_their_direction_and_eps_bounds_them():
    x = images()
    filters = whitening_filters(x, (2, 2), eps=0.5).double().flatten(1)
    energies = (patches(x, 2, 2) @ nn.functional.normalize(filters, dim=1).T).square().mean(0)
    assert (energies.diff() <= 1e-9).all()
    torch.testing.assert_close(filters.norm(dim=1), (energies + 0.5).rsqrt(), rtol=1e-5, atol=0)


def test_the_sign_and_the_order_of_images_do_not_matter():
    x = images()
    torch.testing.assert_close(
        whitening_filters(-x.flip(0), (2, 2)), whitening_filters(x, (2, 2)), rtol=1e-4, atol=1e-5
    )


def test_a_layer_gets_each_filter_with_its_negative_and_trains_its_bias_only():
    x, conv = images(), nn.Conv2d(2, 6, 2)
    whiten_(conv, x)
    expected = whitening_filters(x, (2, 2))[:3]
    assert torch.equal(conv.weight, torch.cat([expected, -expected])) and not conv.weight.requires_grad
    assert conv.bias.requires_grad and not conv.bias.any()


def test_filters_beyond_those_of_the_patches_keep_their_values():
    x, conv = images(), nn.Conv2d(2, 18, 2)
    before = conv.weight[16:].clone()
    whiten_(conv, x)
    expected = whitening_filters(x, (2, 2))  # 8 for patches of 8 numbers
    assert torch.equal(conv.weight[:16], torch.cat([expected, -expected])) and torch.equal(conv.weight[16:], before)


@pytest.mark.parametrize(
    "conv, x, told",
    [
        (nn.Conv2d(2, 5, 2), images(), "got 5 filters"),
        (nn.Conv2d(3, 6, 2), images(), "3 channels"),
        (nn.Conv2d(2, 6, 2, groups=2), images(), "groups=2"),
        (nn.Conv2d(2, 6, 8), images(), "at least 8 x 8"),
        (nn.Conv2d(2, 6, 2), images()[:0], "got \\(0, 2, 7, 7\\)"),
    ],
)
def test_what_cannot_be_whitened_is_refused_and_left_alone(conv, x, told):
    before = conv.weight.clone()
    with pytest.raises(InputError, match=told):
        whiten_(conv, x)
    assert torch.equal(conv.weight, before) and conv.weight.requires_grad
