"""VCL equals its formula, owns one beta per entry, and sends gradients to layer and betas."""

import copy
from fractions import Fraction

import pytest
import timm
import torch
from torch import nn

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.regularizers import VCL, variance_constancy


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
    )


def images(batch=12, size=6):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def variance(values):
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)


def slow(x, beta, group):
    """One entry at a time."""
    rows, total = x.flatten(1).tolist(), 0.0
    betas = beta.flatten().tolist()
    for entry, b in enumerate(betas):
        column = [row[entry] for row in rows]
        total += (1 - variance(column[:group]) / (variance(column[group : 2 * group]) + b)) ** 2
    return total / len(betas)


@pytest.mark.parametrize("shape, group", [((10, 3), 5), ((23, 2, 3, 2), 5), ((5, 4, 2), 2), ((6, 1), 3)])
def test_equals_the_loop(shape, group):
    torch.manual_seed(len(shape))
    x = torch.randn(shape, dtype=torch.float64)
    beta = torch.rand(shape[1:], dtype=torch.float64) + 0.1
    got = variance_constancy(x, beta, group=group)
    assert float(got) == pytest.approx(slow(x, beta, group), rel=1e-10)  # rounding
    assert float(variance_constancy(x.float(), beta.float(), group=group)) == pytest.approx(float(got), rel=1e-4)
    inputs = (x.requires_grad_(), beta.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, beta: variance_constancy(x, beta, group=group), inputs)


def test_samples_behind_the_two_groups_do_not_count():
    x = images().flatten(1)
    beta = torch.ones(x.shape[1])
    assert variance_constancy(x, beta) == variance_constancy(x[:10], beta)
    constant = torch.ones(10, 3).requires_grad_()
    variance_constancy(constant, torch.ones(3)).backward()  # zero variance: (1 - 0 / 1)^2, not NaN
    assert constant.grad.isfinite().all()
    assert variance_constancy(torch.ones(10, 3), torch.ones(3)) == 1


def test_the_term_is_the_formula_on_each_layer_and_reaches_its_betas():
    model, x = net(), images()
    term = VCL(model, layers=["0", "2"], strength=0.1, input_size=(3, 6, 6))
    betas = term.parameters()
    assert [tuple(beta.shape) for beta in betas] == [(4, 4, 4), (4, 4, 4)]
    assert all(isinstance(beta, nn.Parameter) and (beta == 1).all() for beta in betas)
    with torch.no_grad():
        betas[0] += torch.rand_like(betas[0])
    with term:
        model(x)
        value = term()
    plain = copy.deepcopy(model)
    plain[1].inplace = False
    first = plain[0](x)
    second = plain[2](plain[1](first))
    expected = 0.1 * (variance_constancy(first, betas[0]) + variance_constancy(second, betas[1]))
    torch.testing.assert_close(value, expected)
    tensors = [model[0].weight, model[0].bias, *betas]
    wanted = torch.autograd.grad(expected, [plain[0].weight, plain[0].bias, *betas])
    for got, grad in zip(torch.autograd.grad(value, tensors), wanted, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-3, atol=1e-6)  # other order of sums
        assert got.abs().sum() > 0
    report = term.report()
    assert report["0"] == pytest.approx(slow(first, betas[0], 5), rel=1e-3) and list(report) == ["0", "2"]


def test_making_the_term_leaves_the_model_as_it_was():
    model = net()
    model[2].eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    VCL(model, layers="0", input_size=(3, 6, 6))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(RuntimeError):  # the model itself rejects the size
        VCL(model, layers="0", input_size=(3, 1, 1))
    assert [module.training for module in model.modules()] == modes
    assert not model[0]._forward_hooks


def test_the_size_comes_from_the_description_of_a_timm_model():
    model = timm.create_model("resnet20_cifar")
    term = VCL(model, layers=["bn1", "layer3.0.bn1"])
    assert [tuple(beta.shape) for beta in term.parameters()] == [(16, 32, 32), (64, 8, 8)]
    assert not any("beta" in key for key in model.state_dict())


def test_nothing_in_evaluation():
    model = net().eval()
    term = VCL(model, layers="0", input_size=(3, 6, 6))
    with term:
        model(images())
        assert term() == 0
    assert not model[0]._forward_hooks


def test_the_betas_follow_a_model_that_is_converted_later():
    model = net()
    term = VCL(model, layers="0", input_size=(3, 6, 6))
    (beta,) = term.parameters()
    optimizer = torch.optim.SGD([beta], lr=0.1)
    for dtype in (torch.float32, torch.float64):  # the second time, beta has a gradient
        model.to(dtype)
        with term:
            model(images().to(dtype))
            term().backward()
        assert term.parameters()[0] is beta and beta.dtype == beta.grad.dtype == dtype
    optimizer.step()
    assert (beta != 1).any()


def test_half_precision_keeps_the_betas_in_float32():
    model = net().bfloat16()
    term = VCL(model, layers="0", input_size=(3, 6, 6))
    with term:
        model(images().bfloat16())
        term().backward()
    assert term.parameters()[0].dtype == torch.float32


def test_the_betas_are_saved_and_loaded():
    term, other = (VCL(net(), layers=["0", "2"], input_size=(3, 6, 6)) for _ in range(2))
    (before, _), (beta, _) = other.parameters(), term.parameters()
    with torch.no_grad():
        beta += torch.rand_like(beta)
    state = term.state_dict()
    assert list(state) == ["0", "2"] and not any(value.requires_grad for value in state.values())
    other.load_state_dict(state)
    assert other.parameters()[0] is before and torch.equal(before, beta)
    with torch.no_grad():
        beta += 1
    assert not torch.equal(before, beta)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"0": torch.zeros(4, 4, 4)}, r"betas of the layers '0', '2' are needed; got '0'"),
        ({"0": torch.zeros(4, 4, 4), "2": torch.zeros(4)}, r"'2' must have the shape \(4, 4, 4\); got \(4,\)"),
    ],
)
def test_betas_of_another_term_are_refused(state, message):
    term = VCL(net(), layers=["0", "2"], input_size=(3, 6, 6))
    with pytest.raises(InputError, match=message):
        term.load_state_dict(state)
    assert all((beta == 1).all() for beta in term.parameters())


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (dict(strength=-0.1), InputError, "strength must be a finite number of at least 0; got -0.1"),
        (dict(group=1), InputError, "must be a whole number of at least 2; got 1"),
        (dict(group=2.5), InputError, "got 2.5"),
        (dict(input_size=None), InputError, "VCL needs the size of one sample"),
        (dict(input_size=(3, 0, 6)), InputError, r"got \(3, 0, 6\)"),
        (dict(layers=[]), InputError, r"got \[\]"),
        (dict(layers="7"), UnknownNameError, "no layer '7'"),
    ],
)
def test_bad_arguments_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        VCL(net(), **{"layers": "0", "input_size": (3, 6, 6), **arguments})


def nearest(index, size, whole):
    """The one of `whole` cells on the unit interval that contains the center of cell `index` of `size`."""
    middle = Fraction(2 * index + 1, 2 * size)
    return next(cell for cell in range(whole) if middle < Fraction(cell + 1, whole))


@pytest.mark.parametrize("size, untouched", [(2, 3 / 4), (3, 7 / 16), (5, 0), (8, 0)])
def test_a_map_of_another_size_takes_the_nearest_betas(size, untouched):
    model = net()
    term = VCL(model, layers="0", input_size=(3, 6, 6))  # a map of 4 x 4
    (beta,) = term.parameters()
    with torch.no_grad():
        beta += torch.rand(beta.shape, generator=torch.Generator().manual_seed(2))
    with term:
        maps = model[0](images(size=size + 2))
        value = term()
    cells = [nearest(index, size, 4) for index in range(size)]
    taken = torch.stack([torch.stack([beta[:, row, column] for column in cells], -1) for row in cells], -2)
    assert float(value) == pytest.approx(0.01 * slow(maps, taken, 5), rel=1e-4)
    value.backward()
    assert float((beta.grad == 0).float().mean()) == untouched


def test_small_batches_and_other_shapes_are_refused():
    model = net()
    term = VCL(model, layers="0", input_size=(3, 6, 6))
    with pytest.raises(InputError, match=r"two groups of 5 samples.*\(8, 4, 4, 4\)"), term:
        model(images(8))
        term()
    rows = nn.Sequential(nn.Linear(3, 2))
    term = VCL(rows, layers="0", input_size=(5, 3))
    with pytest.raises(InputError, match=r"beta has the shape \(5, 2\), .* have \(7, 2\) per sample"), term:
        rows(torch.randn(12, 7, 3))
        term()
