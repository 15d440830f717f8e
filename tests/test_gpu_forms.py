"""The forms that layers and terms take on a GPU, run on a CPU: equal to the definition, and few kernels."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperzoo.layers import SphereConv2d, functional, patches, precision
from hyperzoo.regularizers import (
    MHE,
    PER,
    exact_error,
    hyperspherical_energy,
    pair_energy,
    projected_error,
    weight_term,
)

EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class Launches(TorchDispatchMode):
    """Counts the operations that start a kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if not function.is_view and name not in EMPTY:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    for module in (precision, patches, functional, exact_error, pair_energy, weight_term):
        monkeypatch.setattr(module, "on_cpu", lambda x: False)


# arguments of the layer and input; padding 2 of a kernel of 3 and dilation have no pooling
LAYERS = [
    (dict(kernel_size=3, padding=1), (2, 4, 7, 6)),
    (dict(kernel_size=1), (2, 4, 5, 5)),
    (dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 7, 6)),
    (dict(kernel_size=3, stride=2, padding=1, groups=2), (2, 4, 8, 8)),
    (dict(kernel_size=3, padding=2), (2, 4, 5, 5)),
    (dict(kernel_size=3, padding=2, dilation=2, groups=4), (1, 4, 8, 7)),
    (dict(kernel_size=3, padding="tf_same", stride=2), (2, 4, 7, 8)),
]


@pytest.mark.parametrize("settings, shape", LAYERS, ids=[str(settings) for settings, _ in LAYERS])
def test_values_and_gradients_are_those_of_the_definition(as_on_a_gpu, settings, shape):
    torch.manual_seed(0)
    layer = SphereConv2d(4, 8, **settings, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    padded = functional.pad_tf_same(x, *sizes[:2], layer.dilation) if layer.tf_same else x
    columns = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = columns.unflatten(1, (layer.groups, -1))  # (B, groups, entries of a patch, patches)
    filters = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    dots = filters @ columns  # (B, groups, filters, patches)
    norms = (columns.square().sum(2, keepdim=True) + layer.eps).sqrt()
    lengths = (filters.square().sum(-1, keepdim=True) + layer.eps).sqrt()
    expected = dots / norms / lengths
    out = layer(x)
    torch.testing.assert_close(out.flatten(), expected.flatten())
    upstream = torch.randn_like(out)
    wanted = torch.autograd.grad(expected.flatten() @ upstream.flatten(), (x, layer.weight))
    found = torch.autograd.grad(out, (x, layer.weight), upstream)
    torch.testing.assert_close(found, wanted)


def test_half_precision_agrees_with_full_precision(as_on_a_gpu):
    torch.manual_seed(0)
    layer = SphereConv2d(64, 32, 3, padding=1)
    x = torch.randn(2, 64, 9, 9)
    found = []
    for low in (False, True):
        each = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = layer(each.bfloat16() if low else each)
        found.append((out.float(), *torch.autograd.grad(out.float().square().sum(), (each, layer.weight))))
    for exact, rounded in zip(*found, strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_a_layer_starts_few_kernels(as_on_a_gpu):
    layer = SphereConv2d(4, 8, 3, padding=1)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with Launches() as launches:
        layer(x).sum().backward()
    assert launches.counts.total() <= 40, launches.counts  # about 80 when autograd differentiated the norms


@pytest.mark.parametrize("operator", ["linear", "sigmoid", "learnable"])
def test_operators_are_those_of_the_cpu(operator, monkeypatch):
    torch.manual_seed(0)
    layer = SphereConv2d(4, 8, 3, operator=operator)
    x, found = torch.randn(2, 4, 6, 6), []
    for _ in range(2):
        found.append(torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))
        for module in (patches, functional):
            monkeypatch.setattr(module, "on_cpu", lambda x: False)
    torch.testing.assert_close(*found)


def mean_error(h):
    """The projected error by a quadrature over the angle, for vectors of two entries."""
    angles = torch.arange(2000, dtype=torch.float64) * (2 * torch.pi / 2000)
    t = h.norm(dim=1, keepdim=True) * angles.cos()
    psi = t * torch.erf(t / 2**0.5) + (2 / torch.pi) ** 0.5 * torch.exp(-t * t / 2)
    return psi.mean(1)


@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_per_is_that_of_the_definition(as_on_a_gpu, dtype, close):
    torch.manual_seed(0)
    pair = torch.randn(7, 2).to(dtype).requires_grad_()
    wide = pair.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(mean_error(wide).mean(), wide)
    (found,) = torch.autograd.grad(projected_error(pair), pair)
    assert found.dtype == dtype and (found.double() - wanted).norm() < close * wanted.norm()


def test_per_of_several_layers_is_the_sum_of_single_layers(as_on_a_gpu):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8), nn.ReLU()).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    errors, h = {}, x
    for name, layer in net.named_children():
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            errors[f"{name}/error"] = projected_error(h)
    wanted = torch.stack([*errors.values()]).sum()
    term = PER(net, strength=1.0, layers="type:ReLU")
    with term:
        net(x)
        found = term()
    torch.testing.assert_close(found, wanted)
    weights = list(net.parameters())
    torch.testing.assert_close(torch.autograd.grad(found, weights), torch.autograd.grad(wanted, weights))
    assert {key: term.report()[key] for key in errors} == pytest.approx({key: float(e) for key, e in errors.items()})


def test_per_joins_vectors_up_to_a_limit(as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(exact_error, "_JOINED", 5)
    kept = [(torch.rand(size), d) for size, d in ((2, 3), (4, 7), (3, 3), (1, 3), (9, 7), (4, 3), (1, 3))]
    assert exact_error._groups(kept) == [[0, 2], [1], [3, 5], [4], [6]]
    for (squares, d), errors in zip(kept, exact_error.exact_errors(kept), strict=True):
        torch.testing.assert_close(errors, exact_error.ExactError.apply(squares, d))


def test_batched_gradients_of_groups(as_on_a_gpu):
    torch.manual_seed(0)
    layer = SphereConv2d(4, 2, 3, groups=2)
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    out = layer(x)
    directions = torch.eye(out.numel()).view(-1, *out.shape)
    found = torch.autograd.grad(out, x, directions, is_grads_batched=True, retain_graph=True)[0]
    wanted = torch.stack([torch.autograd.grad(out, x, each, retain_graph=True)[0] for each in directions])
    torch.testing.assert_close(found, wanted)


def test_per_starts_few_kernels_for_a_further_layer(as_on_a_gpu):
    counts = []
    for depth in (2, 12):
        net = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(8, 8, bias=False), nn.ReLU())))
        term, x = PER(net, strength=1.0, layers="type:ReLU"), torch.randn(4, 8)
        for _ in range(2):  # the coefficients of the series are computed once
            with Launches() as launches, term:
                (net(x).sum() + term()).backward()
        with Launches() as plain:
            net(x).sum().backward()
        counts.append(launches.counts.total() - plain.counts.total())
    assert counts[1] - counts[0] <= 15 * 10, counts  # about 62 a layer when each had its own series


@pytest.mark.parametrize("half_space", [False, True])
def test_energies_are_those_of_a_double_loop(as_on_a_gpu, half_space, monkeypatch):
    monkeypatch.setattr(pair_energy, "BLOCK", 5)
    monkeypatch.setattr(pair_energy, "ENTRIES_ON_GPU", 36)
    torch.manual_seed(0)
    w = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    unit = w / (w.square().sum(1, keepdim=True) + 1e-4).sqrt()
    pairs = [(i, j) for i in range(12) for j in range(i)]
    cosines = torch.stack([unit[i] @ unit[j] for i, j in pairs])
    wanted = 1 / (2 - 2 * cosines)
    if half_space:  # the 24 vectors [W; -W], whose pairs of a vector and its negative have the distance 2
        wanted = (2 * (wanted + 1 / (2 + 2 * cosines)).sum() + 12 / 4) / (12 * 23)
    else:
        wanted = wanted.mean()
    found = hyperspherical_energy(w, half_space=half_space)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, w), torch.autograd.grad(wanted, w))


def test_mhe_stacks_equal_layers(as_on_a_gpu, monkeypatch):
    net = nn.Sequential(*(nn.Linear(600, 600, bias=False) for _ in range(4)), nn.Linear(600, 3))
    term = MHE(net, hidden=1.0, output=0.0)
    with Launches() as launches:
        term().backward()
    assert launches.counts["bmm"] == 1, launches.counts
    monkeypatch.setattr(weight_term, "LARGEST_STACK_ON_GPU", 3 * 600 * 600)
    assert [len(group) for _, _, group in MHE(net, hidden=1.0, output=0.0)._groups] == [3, 1]
    alone = sum(hyperspherical_energy(layer.weight) for layer in net[:4])
    torch.testing.assert_close(term(), alone)
