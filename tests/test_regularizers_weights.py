"""Terms that read weights compute their formulas, on the right axes of the right layers of any model."""

import copy
import doctest
import importlib
import itertools
import json
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.layers import SphereConv2d, SphereLinear
from hyperzoo.regularizers import (
    MHE,
    MinimumAngle,
    Orthogonality,
    hyperspherical_energy,
    label_energy,
    minimum_angle,
    nearest_angle,
    orthogonality_penalty,
    pair_energy,
)
from hyperzoo.regularizers.neurons import select

ORACLES = {case["id"]: case for case in json.loads((Path(__file__).parent / "assets/mhe_oracles.json").read_text())}
VARIANTS = list(itertools.product((0, 1, 2), (False, True), (False, True)))
EACH_VARIANT = pytest.mark.parametrize("power, half_space, angular", VARIANTS)
EACH_BLOCK = pytest.mark.parametrize("block", [512, 3])


def repulsion(z: float, power: int) -> float:
    return -math.log(z) if power == 0 else z**-power


def unit(row: list[float], eps: float) -> list[float]:
    norm = math.sqrt(sum(a * a for a in row) + eps)
    return [a / norm for a in row]


def distance(u: list[float], v: list[float], angular: bool) -> float:
    c = sum(a * b for a, b in zip(u, v, strict=True))
    return math.acos(max(-1.0, min(1.0, c))) if angular else math.sqrt(2 - 2 * c)


def slow_energy(rows, power=2, half_space=False, angular=False, eps=1e-4) -> float:
    """Loops over pairs; half space by the 2N vectors themselves, a vector and its own negative at f(2) or f(pi)."""
    units = [unit(row, eps) for row in rows.tolist()]
    count = len(units)
    if half_space:
        units += [[-a for a in u] for u in units]
    values = [
        repulsion(math.pi if angular else 2, power)
        if half_space and j == i + count
        else repulsion(distance(units[i], units[j], angular), power)
        for i, j in itertools.combinations(range(len(units)), 2)
    ]
    return sum(values) / len(values) if values else 0.0


def close(got, expected, tolerance):
    """The rule of the oracles: within `tolerance`, relative above 1."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == expected.shape
    assert ((got.detach().double() - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all(), (got, expected)


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def named(key: str) -> dict:
    """'half_ang_s1' or 'euc_s0' as arguments."""
    return dict(power=int(key[-1]), angular="ang" in key, half_space="half" in key)


# The energy against loops


@EACH_BLOCK
@EACH_VARIANT
def test_energy_equals_the_loops(power, half_space, angular, block, monkeypatch):
    monkeypatch.setattr(pair_energy, "BLOCK", block)
    settings = dict(power=power, half_space=half_space, angular=angular)
    for seed, (count, size, eps) in enumerate([(7, 4, 1e-4), (2, 9, 0.0), (8, 1, 0.3), (1, 3, 1e-4), (9, 2, 0.05)]):
        w = normal(count, size, seed=seed)
        expected = slow_energy(w, **settings, eps=eps)
        close(hyperspherical_energy(w, **settings, eps=eps), expected, 1e-10)  # rounding only
        got = hyperspherical_energy(w.float(), **settings, eps=eps)
        assert got.dtype == torch.float32
        close(got, slow_energy(w.float(), **settings, eps=eps), 1e-3)  # the nearest pairs magnify roundings of c


@EACH_BLOCK
@EACH_VARIANT
def test_gradient_equals_difference_quotients(power, half_space, angular, block, monkeypatch):
    monkeypatch.setattr(pair_energy, "BLOCK", block)
    w = normal(7, 4, seed=3).requires_grad_()
    labels = torch.tensor([2, 0, 2, 6, 5])
    settings = dict(power=power, angular=angular, eps=0.01)
    assert torch.autograd.gradcheck(lambda w: hyperspherical_energy(w, half_space=half_space, **settings), w)
    assert torch.autograd.gradcheck(lambda w: label_energy(w, labels, **settings), w)


@pytest.mark.parametrize("angular, half_space", list(itertools.product((False, True), repeat=2)))
def test_authors_code_has_gradients(angular, half_space):
    w = normal(4, 3).requires_grad_()
    for power in (0, 1, 2):
        settings = dict(power=power, angular=angular, half_space=half_space, eps=0, authors_code=True)
        assert torch.autograd.gradcheck(lambda w: hyperspherical_energy(w, **settings), w)  # noqa: B023


def test_strengths_convert_from_the_authors_convention():
    def gradient(w, **settings):
        leaf = w.clone().requires_grad_()
        hyperspherical_energy(leaf, **settings).backward()
        return leaf.grad

    for power, factor in ((0, 2), (1, 1), (2, 1)):
        w = normal(6, 4)
        theirs, ours = gradient(w, power=power, authors_code=True), gradient(w, power=power)
        torch.testing.assert_close(theirs, factor * ours, rtol=1e-10, atol=1e-12)
    # t / pi + 1e-4 for the angle t of a pair: the derivatives have the ratio (t / (t + 1e-4 pi))^(s + 1)
    for power, factor in ((0, 1), (1, math.pi), (2, math.pi**2)):
        for seed in range(5):
            w = normal(2, 4, seed=seed)
            t = distance(*(unit(row, 1e-4) for row in w.tolist()), True)
            ratio = (t / (t + 1e-4 * math.pi)) ** (power + 1)
            assert 0.99 < ratio < 1
            theirs = gradient(w, power=power, angular=True, authors_code=True)
            ours = gradient(w, power=power, angular=True)
            torch.testing.assert_close(theirs, factor * ratio * ours, rtol=1e-10, atol=1e-12)


# The energy against the oracles


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_energies(dtype):
    tolerance_of = "tolerance" if dtype == torch.float64 else "tolerance_float32"
    seen = 0
    for name, case in ORACLES.items():
        if case["method"] != "mhe.energy" or case[tolerance_of] is None:
            continue
        given, expected, tolerance = case["inputs"], case["expected"], case[tolerance_of]
        eps = given["eps"]
        if isinstance(expected, float):
            expected = {f"{'half' if given['half_space'] else 'full'}_{given['distance'][:3]}_s{given['s']}": expected}
        if name == "mhe_regular_ngon":
            for n, *values in zip(given["n"], expected["s0"], expected["s2"], strict=True):
                angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
                points = torch.stack([angle.cos(), angle.sin()], 1).to(dtype)
                for power, value in zip((0, 2), values, strict=True):
                    close(hyperspherical_energy(points, power=power, eps=eps), value, tolerance)
                    seen += 1
            continue
        if name.startswith("mhe_simplex"):
            n = given["n"]
            w = (torch.eye(n, dtype=torch.float64) - 1 / n).to(dtype)
        else:
            w = torch.tensor(given["W"], dtype=dtype)
        if given.get("layout") == "IOHW":
            layer = nn.ConvTranspose2d(2, 3, 2)
            layer.weight = nn.Parameter(w)
            w = select(layer).hidden[0].rows()
        if name == "mhe_two_opposite_rows_half":
            expected = {f"half_{key}": value for key, value in expected["self_pair_constant"].items()}
        flat = {}
        for key, value in expected.items():
            flat |= {f"{key}_{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
        for key, value in flat.items():
            close(hyperspherical_energy(w.flatten(1), eps=eps, **named(key)), value, tolerance)
            seen += 1
    assert seen >= 90


def test_published_values_of_the_authors_code():
    case = ORACLES["mhe_authors_code_values"]
    w = torch.tensor(case["inputs"]["W"], dtype=torch.float64)
    for space, values in case["expected"].items():
        for key, value in values.items():
            settings = dict(power=int(key[-1]), angular=key[0] == "a", half_space=space == "half")
            close(hyperspherical_energy(w, authors_code=True, **settings), value, case["tolerance"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_gradients(dtype):
    cases = [(ORACLES["mhe_gradient"], key, value) for key, value in ORACLES["mhe_gradient"]["expected"].items()]
    case = ORACLES["mhe_gradient_two_orthogonal"]
    cases += [(case, f"{key}_euc_s2", value) for key, value in case["expected"].items()]
    for case, key, value in cases:
        w = torch.tensor(case["inputs"]["W"], dtype=dtype, requires_grad=True)
        hyperspherical_energy(w, eps=0, **named(key)).backward()
        close(w.grad, value, case["tolerance" if dtype == torch.float64 else "tolerance_float32"])


def test_published_minibatch_and_total():
    case = ORACLES["mhe_minibatch_output"]
    w = torch.tensor(case["inputs"]["W"], dtype=torch.float64)  # 0.2 in float32 would be off by 3e-9
    labels = torch.tensor(case["inputs"]["labels"])
    for key, value in case["expected"].items():
        close(label_energy(w, labels, power=int(key[-1]), eps=0), value, case["tolerance"])
    case = ORACLES["mhe_total_regulariser"]
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(3, 4), nn.Linear(2, 3)).double()
    for layer, name in zip(net, ("hidden_conv_OIHW", "hidden_linear", "output"), strict=True):
        layer.weight = nn.Parameter(torch.tensor(case["inputs"][name], dtype=torch.float64))
    strengths = dict(hidden=case["inputs"]["hidden_weight"], output=case["inputs"]["output_weight"])
    close(MHE(net, **strengths, half_space=True, eps=0)(), case["expected"], case["tolerance"])


# Special points


@EACH_VARIANT
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_special_rows_have_finite_values_and_gradients(power, half_space, angular, dtype):
    rows = [[3.0, 4.0], [3.0, 4.0], [-6.0, -8.0], [0.0, 0.0], [1e15, 0.0], [1e15, 1.0], [0.0, 1e-12], [-1e6, 0.0]]
    for eps in (1e-4, 0.0):
        w = torch.tensor(rows, dtype=dtype, requires_grad=True)
        energy = hyperspherical_energy(w, power=power, half_space=half_space, angular=angular, eps=eps)
        energy.backward()
        assert energy.isfinite() and w.grad.isfinite().all()
        by_label = label_energy(w, torch.tensor([0, 4, 4]), power=power, angular=angular, eps=eps)
        by_label.backward()
        assert by_label.isfinite() and w.grad.isfinite().all()


def test_equal_rows_push_each_other_apart_and_clamped_ones_do_not():
    for scale, pushes in ((1.0, True), (1e3, False)):  # eps / |w|^2: 1e-4, and 1e-10, inside the margin
        w = torch.tensor([[1.0, 0.0], [1.0, 1e-3]], dtype=torch.float64).mul(scale).requires_grad_()
        hyperspherical_energy(w).backward()
        if pushes:
            assert w.grad[0, 1] > 0 > w.grad[1, 1]
        else:
            assert w.grad.count_nonzero() == 0
    case = ORACLES["mhe_two_equal_rows_clamped"]
    w = torch.tensor(case["inputs"]["W"])
    assert hyperspherical_energy(w).item() == pytest.approx(case["expected"]["euc_s2"], rel=0.1)  # float32 near 1


def test_a_single_row_has_no_gradient():
    for power, half_space, angular in VARIANTS:
        w = torch.tensor([[0.3, -2.0, 1.0]], requires_grad=True)
        hyperspherical_energy(w, power=power, half_space=half_space, angular=angular).backward()
        assert w.grad.count_nonzero() == 0
    w = torch.tensor([[0.3, -2.0]], requires_grad=True)
    assert label_energy(w, torch.tensor([0])).item() == 0


def test_a_zero_row_is_orthogonal_to_all():
    for eps in (0.0, 1e-4):
        close(hyperspherical_energy(torch.tensor([[0.0, 0.0], [5.0, 1.0]]), eps=eps), 0.5, 1e-6)  # float32


@EACH_VARIANT
def test_the_gradient_is_orthogonal_to_every_row_and_the_norm_does_not_matter(power, half_space, angular):
    settings = dict(power=power, half_space=half_space, angular=angular, eps=0)
    w = normal(6, 5).requires_grad_()
    energy = hyperspherical_energy(w, **settings)
    energy.backward()
    assert (w.grad * w).sum(1).abs().max() < 1e-12  # rounding
    scaled = w.detach() * torch.tensor([1.0, 2.0, 0.1, 30.0, 1.0, 7.0], dtype=torch.float64)[:, None]
    close(hyperspherical_energy(scaled, **settings), energy.detach(), 1e-12)


def test_a_second_derivative_is_refused_not_wrong():
    w = normal(3, 2).requires_grad_()
    for energy in (lambda: hyperspherical_energy(w), lambda: label_energy(w, torch.tensor([0, 2]))):
        for value in (energy(), energy().square()):  # with a constant gradient from above, and with one that is not
            with pytest.raises(InputError, match="once, not twice"):
                torch.autograd.grad(value, w, create_graph=True)
    compiled = torch.compile(lambda: hyperspherical_energy(w), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="double backward"):
        (first,) = torch.autograd.grad(compiled(), w, create_graph=True)
        first.sum().backward()


# Large layers


def slow_label_energy(rows, labels, power, angular, eps):
    units = [unit(row, eps) for row in rows.tolist()]
    pairs = [(y, j) for y in labels for j in range(len(units)) if j != y]
    return sum(repulsion(distance(units[y], units[j], angular), power) for y, j in pairs) / len(pairs)


@EACH_BLOCK
@pytest.mark.parametrize("power, angular", list(itertools.product((0, 1, 2), (False, True))))
def test_label_energy_equals_the_loops(power, angular, block, monkeypatch):
    monkeypatch.setattr(pair_energy, "BLOCK", block)
    w, labels = normal(8, 3, seed=5), [7, 0, 7, 3, 7]
    got = label_energy(w, torch.tensor(labels), power=power, angular=angular)
    close(got, slow_label_energy(w, labels, power, angular, 1e-4), 1e-10)
    each = label_energy(w, torch.arange(8), power=power, angular=angular)
    close(each, slow_energy(w, power, False, angular), 1e-10)


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_memory_grows_with_the_rows_not_with_their_square():
    w = normal(1500, 8, dtype=torch.float32).requires_grad_()
    for energy in (
        lambda: hyperspherical_energy(w, half_space=True),
        lambda: label_energy(w, torch.arange(100)),
        lambda: nearest_angle(w),
        lambda: orthogonality_penalty(w),
    ):
        with LargestTensor() as largest:
            energy().backward()
        assert 1500 * 8 <= largest.numel <= 512 * 1500  # the matrix of cosines has 1500 * 1500


@pytest.mark.parametrize("half_space", [False, True])
def test_a_random_subset_is_unbiased_and_leaves_other_random_numbers_alone(half_space):
    net = nn.Sequential(nn.Linear(3, 9), nn.Linear(9, 4)).double()
    net[0].weight = nn.Parameter(normal(9, 3))
    settings = dict(hidden=2.0, output=0, half_space=half_space, power=1)
    exact = 2 * slow_energy(net[0].weight.detach(), 1, half_space)
    term = MHE(net, neurons=4, **settings)
    state = torch.get_rng_state()
    draws = torch.stack([term().detach() for _ in range(600)])
    assert torch.equal(state, torch.get_rng_state())
    assert draws.unique().numel() > 20
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - exact) < 4 * error < 0.1 * abs(exact)  # seeded; 4 standard errors
    term.seed(7)
    again = [term().item() for _ in range(3)]
    term.seed(7)
    assert again == [term().item() for _ in range(3)]
    assert term.report() == MHE(net, **settings).report()
    close(MHE(net, neurons=9, **settings)(), exact, 1e-10)


def test_output_by_labels():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)).double()
    labels = torch.tensor([5, 1, 1])
    term = MHE(net, hidden=1.0, output=10.0, half_space=True, output_by_labels=True)
    assert not term.once_per_update and MHE(net, hidden=1.0, output=1.0).once_per_update
    hidden, output = (layer.weight.detach() for layer in net)
    expected = slow_energy(hidden, half_space=True) + 10 * slow_label_energy(output, labels.tolist(), 2, False, 1e-4)
    close(term(labels), expected, 1e-10)
    with pytest.raises(InputError, match=r"term\(labels\)"):
        term()
    with pytest.raises(InputError, match=r"0 \.\. 5; got 1 \.\. 6"):
        term(torch.tensor([1, 6]))


# Models


def test_rows_of_every_kind_of_layer():
    torch.manual_seed(0)
    net = nn.ModuleDict(
        dict(
            conv1=nn.Conv1d(2, 4, 3),
            conv2=nn.Conv2d(4, 6, (2, 3), groups=2),
            last=nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last),
            conv3=nn.Conv3d(2, 3, 2),
            up=nn.ConvTranspose2d(4, 6, 2, groups=2),
            up1=nn.ConvTranspose1d(3, 4, 2),
            sphere=SphereConv2d(3, 4, 3),
            row=SphereLinear(5, 4),
            lstm=nn.LSTM(3, 2, num_layers=2, proj_size=1, bidirectional=True),
            gru=nn.GRU(3, 2),
            rnn=nn.RNN(3, 2),
            cell=nn.LSTMCell(3, 2),
            attention=nn.MultiheadAttention(4, 2),
            apart=nn.MultiheadAttention(4, 2, kdim=3, vdim=2),
            table=nn.Embedding(7, 3),
            depthwise=nn.Conv2d(4, 4, 3, groups=4),
            head=nn.Linear(4, 3),
        )
    ).double()
    named_too = [name for name, _ in net.named_children() if name != "head"]
    report = MHE(net, hidden=1.0, output=1.0, layers=named_too).report()
    expected = {f"{n}": net[n].weight.flatten(1) for n in ("conv1", "conv2", "last", "conv3", "sphere", "row", "head")}
    expected |= {"table": net["table"].weight, "depthwise": net["depthwise"].weight.flatten(1)}
    expected["up1"] = net["up1"].weight.movedim(1, 0).flatten(1)
    up = net["up"].weight  # (4, 3, 2, 2): output channel 3 g + o of group g reads input channels 2 g and 2 g + 1
    expected["up"] = torch.stack([up[2 * g : 2 * g + 2, o].flatten() for g in range(2) for o in range(3)])
    for name, letters in (("lstm", "ifgo"), ("gru", "rzn"), ("rnn", ""), ("cell", "ifgo")):
        for key, weight in net[name].named_parameters():
            if key.startswith("weight_hr") or (not letters and key.startswith("weight")):
                expected[f"{name}.{key}"] = weight
            elif key.startswith("weight"):
                parts = zip(letters, weight.unflatten(0, (len(letters), 2)), strict=True)
                expected |= {f"{name}.{key}.{letter}": part for letter, part in parts}
    attention = net["attention"].in_proj_weight
    expected |= {f"attention.in_proj_weight.{c}": attention[4 * i : 4 * i + 4] for i, c in enumerate("qkv")}
    expected |= {f"apart.{c}_proj_weight": getattr(net["apart"], f"{c}_proj_weight") for c in "qkv"}
    expected |= {f"{name}.out_proj": net[name].out_proj.weight for name in ("attention", "apart")}
    assert report.keys() == expected.keys()
    for name, rows in expected.items():
        assert report[name] == pytest.approx(slow_energy(rows.detach()), rel=1e-10), name
    term = MHE(net, hidden=1.0, output=1.0)
    assert term.report().keys() == expected.keys() - {"table", "depthwise"}
    assert term.skipped.keys() == {"table", "depthwise"}
    assert "embedding" in term.skipped["table"] and "depthwise" in term.skipped["depthwise"]
    term().backward()
    assert all(net.get_parameter(f"{n}.weight").grad is not None for n in ("conv1", "up", "head"))
    assert net["table"].weight.grad is None


def test_layers_of_one_shape_are_taken_together_and_large_ones_alone():
    torch.manual_seed(0)
    sizes = [(6, 6), (6, 6), (600, 500), (6, 6), (6, 6), (6, 6), (6, 4)]
    net = nn.Sequential(*(nn.Linear(*size) for size in sizes)).double()
    term = MHE(net, hidden=0.5, output=3.0, half_space=True)
    value, report = term(), term.report()
    assert list(report) == [*"012345", "6"]
    assert len(term._groups) == 3
    for name in "0146":
        rows = net[int(name)].weight.detach()
        assert report[name] == pytest.approx(slow_energy(rows, half_space=name != "6"), rel=1e-10)
    close(value, 0.5 * sum(report[name] for name in "012345") + 3 * report["6"], 1e-10)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body, self.distilled = nn.Linear(4, 3), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))

    def get_classifier(self):
        return self.head, self.distilled


def test_the_output_layer_is_found():
    def outputs(model, **settings):
        return [layer.name for layer in select(model, **settings).output]

    assert outputs(timm.create_model("resnet20_cifar")) == ["fc"]
    assert outputs(timm.create_model("resnet20_cifar", num_classes=0)) == []
    assert outputs(TwoHeads()) == ["head", "distilled.0"]
    plain = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(3, 2, 1))
    assert outputs(plain) == ["0"]
    assert outputs(plain, output_layer="1") == ["1"]
    assert [layer.name for layer in select(plain, output_layer="1").hidden] == ["0"]
    assert outputs(nn.Linear(4, 3)) == ["weight"]
    assert outputs(torch.compile(plain)) == ["0"]
    tied = nn.ModuleDict(dict(table=nn.Embedding(5, 3), decoder=nn.Linear(3, 5)))
    tied["decoder"].weight = tied["table"].weight
    assert outputs(tied) == ["decoder"]
    assert select(tied).skipped == {"table": "the same tensor as decoder"}


def test_layers_are_chosen_by_words():
    model = timm.create_model("spherenet20")
    everything = [layer.name for layer in select(model).hidden]
    assert len(everything) == 19 + 2 and len(select(model).output) == 1  # shortcuts are convolutions too
    block = [layer.name for layer in select(model, layers="layer2").hidden]
    assert block == [name for name in everything if name.startswith("layer2.")]
    spheres = [layer.name for layer in select(model, layers="type:SphereConv2d").hidden]
    assert len(spheres) == 19  # all but the two shortcuts
    rest = [layer.name for layer in select(model, exclude=["layer2", "conv1"]).hidden]
    assert rest == [name for name in everything if not name.startswith("layer2.") and name != "conv1"]
    with pytest.raises(UnknownNameError, match="layer9"):
        MHE(model, hidden=1.0, output=1.0, layers="layer9")


def test_frozen_layers_are_left_out_and_it_is_said():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].weight.requires_grad_(False)
    term = MHE(net, hidden=1.0, output=1.0)
    assert term.skipped == {"0": "frozen"}
    assert "0: left out, frozen" in repr(term) and "1: 1" in repr(term)
    assert list(term.report()) == ["1", "2"]
    net[1].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"no hidden layer.*0 \(frozen\), 1 \(frozen\)"):
        MHE(net, hidden=1.0, output=1.0)
    assert list(MHE(net, hidden=0, output=1.0).report()) == ["2"]


class Quantized(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)
        del self.weight
        self.register_buffer("weight", torch.ones(4, 3, dtype=torch.int8))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(power=3), "0, 1, 2; got 3"),
        (dict(power="2"), "0, 1, 2; got '2'"),
        (dict(power=True), "0, 1, 2; got True"),
        (dict(eps=-1.0), "at least 0; got -1.0"),
        (dict(hidden=-1), "hidden layers must be a number of at least 0; got -1"),
        (dict(output=float("nan")), "output layers must be a number of at least 0; got nan"),
        (dict(hidden="1"), "got '1'"),
        (dict(hidden=0, output=0), "nothing to regularise"),
        (dict(layers="1"), "no hidden layer"),
        (dict(output_layer="1"), "has no neurons"),
        (dict(neurons=1), "above 1; got 1"),
        (dict(neurons=2.5), "above 1; got 2.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=message):
        MHE(net, **(dict(hidden=1.0, output=1.0) | arguments))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    "layer, message",
    [
        (lambda: nn.LazyLinear(4), "0 is lazy"),
        (Quantized, "0 holds torch.int8"),
        (lambda: nn.Linear(3, 4).requires_grad_(False), "no hidden layer"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("kind", [MHE, MinimumAngle])
def test_unfit_weights_are_refused(layer, message, kind):
    net = nn.Sequential(layer(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=message):
        kind(net, hidden=1.0, output=1.0)


def test_unsound_tensors_are_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].weight.data[1, 2] = math.nan
    with pytest.raises(InputError, match="0 holds NaN"):
        MHE(net, hidden=1.0, output=1.0)
    assert list(MHE(net, hidden=0, output=1.0, exclude="0").report()) == ["1"]
    for wrong, message in [
        (net[0].weight, "rows 1 hold NaN"),
        (torch.ones(3), r"got \(3,\)"),
        (torch.ones(2, 3, 3), r"got \(2, 3, 3\)"),
        (torch.ones(0, 3), r"got \(0, 3\)"),
        (torch.ones(2, 3, dtype=torch.int64), "got torch.int64"),
        (torch.full((2, 3), 1e30), "overflow"),
    ]:
        with pytest.raises(InputError, match=message):
            hyperspherical_energy(wrong)
    for labels in (
        torch.tensor([0, 3]),
        torch.tensor([-1]),
        torch.tensor([]),
        torch.tensor([0.0]),
        torch.tensor([[0]]),
    ):
        with pytest.raises(InputError, match="labels"):
            label_energy(torch.eye(3), labels)
    for function in (orthogonality_penalty, nearest_angle):
        for wrong in (torch.ones(3), torch.ones(2, 3, dtype=torch.int64)):
            with pytest.raises(InputError, match="expected"):
                function(wrong)


# Modes


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(6, 5))


def gradients(net, value):
    net.zero_grad()
    value.backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


TERMS = [
    lambda net: MHE(net, hidden=1.0, output=10.0, half_space=True),
    lambda net: MHE(net, hidden=1.0, output=1.0, power=0, angular=True),
    lambda net: Orthogonality(net, strength=0.1, output=0.2),
    lambda net: MinimumAngle(net, hidden=0.07, output=0.07),
]


@pytest.mark.parametrize("make", TERMS)
def test_a_term_compiles_whole_and_gives_the_same(make):
    net = small()
    term = make(net)
    compiled = torch.compile(lambda: term(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), term())
    for got, expected in zip(gradients(net, compiled()), gradients(net, term()), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("make", TERMS)
def test_a_term_is_float32_in_autocast_and_for_half_precision_weights(make):
    net = small()
    expected = make(net)()
    with torch.autocast("cpu", torch.bfloat16):
        got = make(net)()
    grads = gradients(net, got)  # outside: torch rounds the backward pass of any product inside autocast to bfloat16
    assert got.dtype == torch.float32 and torch.equal(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, gradients(net, make(net)()), strict=True))
    assert make(copy.deepcopy(net).double())().dtype == torch.float64
    half = copy.deepcopy(net).to(torch.bfloat16)
    value = make(half)()
    assert value.dtype == torch.float32
    exact = make(copy.deepcopy(half).double())()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)  # only the weights are rounded
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients(half, value))


@pytest.mark.parametrize("make", TERMS)
def test_a_term_owns_nothing_and_leaves_nothing_behind(make):
    net = small()
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    term = make(net)
    with pytest.raises(ZeroDivisionError), term as entered:
        assert entered is term
        _ = 1 / 0
    assert list(term.parameters()) == []
    assert before == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert {p.grad is None for p in net.parameters()} == {True}
    # gradients reach weights, not biases; and nothing else
    term().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {f"{i}.weight" for i in (0, 1, 2, 4)}


def test_channels_last_weights_give_the_same_and_keep_their_format():
    net = small()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for make in TERMS:
        torch.testing.assert_close(make(last)(), make(net)())
        for got, expected in zip(gradients(last, make(last)()), gradients(net, make(net)()), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # sums in another order
        assert last[1].weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_weight_normalized_layers_are_followed():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 3))
    term = MHE(net, hidden=1.0, output=0)
    close(term(), slow_energy(net[0].weight.detach()), 1e-5)  # float32
    term().backward()
    assert net[0].parametrizations.weight.original1.grad.abs().sum() > 0


def test_in_ddp_the_gradient_is_that_of_one_process_and_sharded_weights_are_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net, x = small(), normal(2, 3, 7, 7, dtype=torch.float32)
        expected = gradients(net, net(x).square().mean() + MHE(net, hidden=1.0, output=10.0)())
        expected = [g.clone() for g in expected]
        wrapped = nn.parallel.DistributedDataParallel(net)
        term = MHE(wrapped, hidden=1.0, output=10.0)
        assert list(term.report()) == ["0", "1", "2", "4"]
        for got, one in zip(gradients(net, wrapped(x).square().mean() + term()), expected, strict=True):
            torch.testing.assert_close(got, one)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (1,))
        net[1].weight = nn.Parameter(distribute_tensor(net[1].weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(InputError, match="1 is sharded.*Use DDP"):
            term()
        with pytest.raises(InputError, match="1 is sharded"):
            MHE(net, hidden=1.0, output=1.0)
        with pytest.raises(InputError, match="sharded"):
            hyperspherical_energy(net[1].weight.flatten(1))
    finally:
        dist.destroy_process_group()


# Rivals


def slow_orthogonality(rows) -> float:
    rows = rows.tolist()
    return 0.5 * sum(
        (sum(a * b for a, b in zip(u, v, strict=True)) - (i == j)) ** 2
        for (i, u), (j, v) in itertools.product(enumerate(rows), repeat=2)
    )


def test_orthogonality_equals_the_loops():
    case = ORACLES["sc_orth_penalty"]
    w = torch.tensor(case["inputs"]["W"], dtype=torch.float64)
    close(case["inputs"]["coefficient"] * orthogonality_penalty(w), case["expected"], case["tolerance"])
    for count, size in ((3, 7), (7, 3), (4, 4), (1, 2), (3, 1)):
        w = normal(count, size)
        close(orthogonality_penalty(w), slow_orthogonality(w), 1e-10)
        units = torch.tensor([unit(row, 1e-4) for row in w.tolist()], dtype=torch.float64)
        close(orthogonality_penalty(w, unit_rows=True), slow_orthogonality(units), 1e-10)
        for unit_rows in (False, True):
            assert torch.autograd.gradcheck(
                lambda w: orthogonality_penalty(w, unit_rows=unit_rows),  # noqa: B023
                w.clone().requires_grad_(),
            )
    stacked = normal(2, 5, 3)
    close(orthogonality_penalty(stacked), [slow_orthogonality(rows) for rows in stacked], 1e-10)


def test_orthogonality_has_its_floor():
    case = ORACLES["sc_orth_floor"]
    for shape, floor in zip(case["inputs"]["cases"], case["expected"], strict=True):
        basis, _ = torch.linalg.qr(normal(shape["n"], shape["fan_in"]))  # columns orthonormal: a tight frame of rows
        close(2e-4 * orthogonality_penalty(basis), floor, case["tolerance"])
        assert orthogonality_penalty(basis + 0.01 * normal(*basis.shape, seed=1)) > orthogonality_penalty(basis)


def test_orthogonality_of_a_model():
    net = small().double()
    value = Orthogonality(net, strength=2e-4)()
    close(value, 2e-4 * sum(slow_orthogonality(net[i].weight.detach().flatten(1)) for i in (0, 1, 2)), 1e-10)
    both = Orthogonality(net, strength=2e-4, output=1.0)()
    close(both - value, slow_orthogonality(net[4].weight.detach()), 1e-10)
    chosen = Orthogonality(net, strength=2e-4, layers="1", unit_rows=True).report()
    units = torch.tensor([unit(row, 1e-4) for row in net[1].weight.flatten(1).tolist()], dtype=torch.float64)
    assert chosen == {"1": pytest.approx(slow_orthogonality(units), rel=1e-10)}


@EACH_BLOCK
def test_nearest_angle_equals_the_loops(block, monkeypatch):
    monkeypatch.setattr(minimum_angle, "BLOCK", block)
    for count, size in ((8, 3), (2, 5), (10, 2)):
        w = normal(count, size)
        units = [unit(row, 1e-4) for row in w.tolist()]
        nearest = [min(distance(u, v, True) for j, v in enumerate(units) if j != i) for i, u in enumerate(units)]
        close(nearest_angle(w), sum(nearest) / count, 1e-10)
        assert torch.autograd.gradcheck(nearest_angle, w.requires_grad_())
    close(nearest_angle(normal(2, 6, 3)), [nearest_angle(rows).item() for rows in normal(2, 6, 3)], 1e-10)
    w = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    nearest_angle(w).backward()
    assert w.grad.isfinite().all()
    assert nearest_angle(torch.ones(1, 3)).item() == pytest.approx(math.pi)


def test_minimum_angle_of_a_model_grows_in_training():
    net = small().double()
    term = MinimumAngle(net, hidden=0.07, output=0.03)
    angles = {str(i): nearest_angle(net[i].weight.detach().flatten(1)).item() for i in (0, 1, 2, 4)}
    assert term.report() == {name: pytest.approx(-angle) for name, angle in angles.items()}
    close(term(), -0.07 * (angles["0"] + angles["1"] + angles["2"]) - 0.03 * angles["4"], 1e-10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        term().backward()
        optimizer.step()
    assert nearest_angle(net[1].weight.detach().flatten(1)) > angles["1"]


def test_two_neurons_on_the_circle_end_opposite_and_in_half_space_orthogonal():
    for half_space, angle in ((False, math.pi), (True, math.pi / 2)):
        w = torch.tensor([[1.0, 0.0], [0.9, 0.3]], dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            (grad,) = torch.autograd.grad(hyperspherical_energy(w, half_space=half_space), w)
            w.data -= 0.1 * grad.clamp(-1, 1)
        assert distance(*(unit(row, 0) for row in w.tolist()), True) == pytest.approx(angle, abs=0.05)


@pytest.mark.parametrize("name", ["mhe", "minimum_angle", "neurons", "orthogonality", "pair_energy", "weight_term"])
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(f"hyperzoo.regularizers.{name}")).failed == 0
