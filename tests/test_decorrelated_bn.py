"""Decorrelated batch norm whitens groups of channels, with finite gradients even for equal eigenvalues."""

import pytest
import torch
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.layers.decorrelated_bn import DecorrelatedBatchNorm, InverseRoot


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(x, group_size, eps):
    """The definition, group by group, on rows (m, C)."""
    out = []
    for group in x.split(group_size, dim=1):
        centered = group - group.mean(0)
        covariance = sum(torch.outer(row, row) for row in centered) / len(group) + eps * torch.eye(
            group.shape[1], dtype=torch.float64
        )
        values, vectors = torch.linalg.eigh(covariance)
        out.append(centered @ (vectors @ torch.diag(values**-0.5) @ vectors.T))
    return torch.cat(out, 1)


@pytest.mark.parametrize("shape, group_size", [((40, 6), 3), ((5, 4, 3, 3), 2), ((7, 4, 5), 4)])
def test_equals_the_definition(shape, group_size):
    layer = DecorrelatedBatchNorm(shape[1], group_size=group_size, eps=0.01, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    x = normal(*shape)
    rows = slow(x.movedim(1, -1).reshape(-1, shape[1]), group_size, 0.01) * layer.weight + layer.bias
    expected = rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)  # rounding
    half = layer.float()(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_a_group_of_one_is_batch_norm():
    x = normal(8, 4, 3, 3)
    layer, plain = DecorrelatedBatchNorm(4, group_size=1, dtype=torch.float64), nn.BatchNorm2d(4, eps=1e-3).double()
    torch.testing.assert_close(layer(x), plain(x))


def test_gradients_also_with_equal_eigenvalues():
    assert torch.autograd.gradcheck(
        lambda a: InverseRoot.apply(a @ a.mT + torch.eye(3).double(), 0.5)[0], normal(2, 3, 3).requires_grad_()
    )
    same = (4 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    root = InverseRoot.apply(same, 0.0)[0]
    torch.testing.assert_close(root, torch.eye(3, dtype=torch.float64) / 2)
    (grad,) = torch.autograd.grad(root.trace(), same)
    torch.testing.assert_close(grad, -torch.eye(3, dtype=torch.float64) / 16)  # d s^-1/2 = -s^-3/2 / 2
    layer = DecorrelatedBatchNorm(4, group_size=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(layer, normal(5, 4).requires_grad_(), atol=1e-4)
    constant = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    layer(constant).sum().backward()
    assert constant.grad.isfinite().all()


def test_evaluation_takes_the_running_averages():
    layer = DecorrelatedBatchNorm(4, group_size=2, momentum=0.25, dtype=torch.float64)
    x = normal(50, 4) * 3 + 1
    first = layer.eval()(x)
    torch.testing.assert_close(first, x)  # initial statistics: mean 0, root 1
    layer.train()(x)
    mean = 0.25 * x.mean(0)
    torch.testing.assert_close(layer.running_mean.flatten(), mean)
    before = layer.running_root.clone()
    layer.eval()(x)
    assert torch.equal(layer.running_root, before)
    for _ in range(100):
        layer.train()(x)
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))


def test_a_second_derivative_is_refused():
    x = torch.randn(8, 4, requires_grad=True)
    with pytest.raises(InputError, match="no second derivatives"):
        torch.autograd.grad(DecorrelatedBatchNorm(4, group_size=2)(x).square().sum(), x, create_graph=True)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="divide the 6 channels; got 4"):
        DecorrelatedBatchNorm(6, group_size=4)
    with pytest.raises(InputError, match="eps must be a finite number above 0; got 0"):
        DecorrelatedBatchNorm(4, group_size=4, eps=0)
    layer = DecorrelatedBatchNorm(4, group_size=2)
    with pytest.raises(InputError, match=r"\(batch, 4, ...\); got \(2, 3\)"):
        layer(torch.zeros(2, 3))
    with pytest.raises(InputError, match="at least 2 positions in training; got 1"):
        layer(torch.zeros(1, 4))


@pytest.mark.parametrize(
    "scale, channels, positions, eps", [(100, 16, 4096, 1e-3), (255, 16, 8, 1e-3), (1, 16, 8, 1e-9)]
)
def test_rounding_makes_no_eigenvalue_negative(scale, channels, positions, eps):
    """The least eigenvalue is eps in theory, and negative by rounding, if channels are proportional or many."""
    torch.manual_seed(0)
    x = scale * torch.randn(positions, 1) * torch.linspace(0.5, 1.5, channels)
    layer = DecorrelatedBatchNorm(channels, group_size=channels, eps=eps)
    out = layer(x.requires_grad_())
    out.square().sum().backward()
    assert all(value.isfinite().all() for value in (out, x.grad, layer.running_root))


def test_an_empty_batch_and_the_memory_format_are_kept():
    layer = DecorrelatedBatchNorm(4, group_size=2).eval()
    assert layer(torch.zeros(0, 4)).shape == (0, 4)
    x = torch.randn(2, 4, 3, 3)
    assert layer(x).is_contiguous()
    assert layer(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(InputError, match="momentum"):
        DecorrelatedBatchNorm(4, group_size=2, momentum=2)
