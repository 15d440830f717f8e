"""Sphere layers: values and gradients of the paper's formula; test_layers_modes.py has compile, script and so on."""

import copy
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from support import oracles
from support.oracles import EACH_OPERATOR, close, normal

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d, SphereLinear
from hyperzoo.layers.operators import steepness

ORACLES = oracles.load("sphere")
CLAMP = 1 - 1e-6  # of the cosine, for linear and sigmoid
CONVOLUTIONS = [
    key
    for key, case in ORACLES.items()
    if key.startswith(("sc_3x3", "sc_stride2", "sc_fc")) and case["method"] == "spherenet.sphereconv"
]


def g(theta: float, operator: str, k: float) -> float:
    """The three operators in the paper's form, as functions of the angle."""
    if operator == "cosine":
        return math.cos(theta)
    if operator == "linear":
        return 1 - 2 * theta / math.pi
    e = math.exp(-math.pi / (2 * k))
    u = math.exp(theta / k - math.pi / (2 * k))
    return (1 + e) / (1 - e) * (1 - u) / (1 + u)


def slow_output(patch: list[float], row: list[float], operator: str, k: float, eps: float) -> float:
    dot = sum(a * b for a, b in zip(patch, row, strict=True))
    norms = math.sqrt(sum(a * a for a in patch) + eps) * math.sqrt(sum(b * b for b in row) + eps)
    return g(math.acos(max(-1.0, min(1.0, dot / norms))), operator, k)


def slow_conv(x, w, stride, padding, dilation, groups, operator, k, eps):
    """One output at a time from the definition; zero padding is part of the patch."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    (batch, channels, height, width), (filters, depth, kh, kw) = x.shape, w.shape
    rows = (height - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = torch.empty(batch, filters, rows, columns, dtype=torch.float64)
    for b, o, i, j in itertools.product(range(batch), range(filters), range(rows), range(columns)):
        first = o // (filters // groups) * (channels // groups)
        patch = [
            x[b, first + c, i * stride[0] + m * dilation[0], j * stride[1] + n * dilation[1]].item()
            for c, m, n in itertools.product(range(depth), range(kh), range(kw))
        ]
        out[b, o, i, j] = slow_output(patch, w[o].flatten().tolist(), operator, k, eps)
    return out


def conv(x, w, operator="cosine", k=0.3, eps=1e-4, stride=1, padding=0, dilation=1, groups=1):
    """The layer with the weight `w`, applied to `x`."""
    layer = SphereConv2d(
        w.size(1) * groups, w.size(0), tuple(w.shape[2:]), stride, padding, dilation, groups,
        operator=operator, k=k, eps=eps, dtype=w.dtype,
    )  # fmt: skip
    layer.weight = torch.nn.Parameter(w.detach())
    return layer(x), layer.weight


@EACH_OPERATOR
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_loops(operator, k, seed):
    pick = random.Random(seed)
    groups = pick.choice([1, 1, 2, 3])
    kernel = (pick.randint(1, 3), pick.choice([1, 2, 3, 5]))
    stride, dilation = (pick.randint(1, 3), pick.randint(1, 3)), (pick.randint(1, 2), pick.randint(1, 2))
    padding = (pick.randint(0, 2), pick.randint(0, 3))
    x = normal(2, 2 * groups, 8, 11, seed=seed)
    w = normal(3 * groups, 2, *kernel, seed=seed + 1)
    eps = pick.choice([1e-4, 0.3])
    got, _ = conv(x, w, operator, k, eps, stride, padding, dilation, groups)
    close(got, slow_conv(x, w, stride, padding, dilation, groups, operator, k, eps), 1e-10)  # rounding only
    got, _ = conv(x.float(), w.float(), operator, k, eps, stride, padding, dilation, groups)
    # float32: cosine accurate to 3e-7, slope at most 5
    close(
        got,
        slow_conv(x.float().double(), w.float().double(), stride, padding, dilation, groups, operator, k, eps),
        5e-6,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_published_maps(name, dtype):
    case = ORACLES[name]
    given = case["inputs"]
    operator, _, k = name.rpartition("_")[2].partition("k")
    operator, k = given.get("operator", "sigmoid" if k else operator), given.get("k", float(k or 0.3))
    top, bottom, left, right = given["padding"]
    x = F.pad(torch.tensor(given["x"], dtype=dtype).unsqueeze(0), (0, right - left, 0, bottom - top))
    got, _ = conv(x, torch.tensor(given["w"], dtype=dtype), operator, k, given["eps"], given["stride"], (top, left))
    close(got[0], case["expected"], case["tolerance" if dtype is torch.float64 else "tolerance_float32"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "name, key", [(name, key) for name in ("sc_zero_patch", "sc_gradients_1x1") for key in ORACLES[name]["expected"]]
)
def test_published_gradients(name, key, dtype):
    case = ORACLES[name]
    operator, _, k = key.partition("_k")
    x = torch.tensor(case["inputs"]["x"], dtype=dtype, requires_grad=True)
    got, weight = conv(
        x, torch.tensor(case["inputs"]["w"], dtype=dtype), operator, float(k or 0.3), case["inputs"]["eps"]
    )
    got.sum().backward()
    tolerance = case["tolerance" if dtype is torch.float64 else "tolerance_float32"]
    expected = case["expected"][key]
    close(got.flatten(), [expected["value"]], tolerance)
    close(x.grad.flatten(), expected["grad_x"], tolerance)
    close(weight.grad.flatten(), expected["grad_w"], tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("key", ["cosine", "linear", "sigmoid_k0.1", "sigmoid_k0.3", "sigmoid_k0.7"])
def test_published_angles(key, dtype):
    operator, _, k = key.partition("_k")
    k = float(k or 0.3)
    table = ORACLES["sc_angle_table"]
    theta = torch.tensor(table["inputs"]["angle_degrees"], dtype=torch.float64).deg2rad()
    x = torch.stack([theta.cos(), theta.sin()], 1).to(dtype)
    row = torch.tensor([[[[1.0]], [[0.0]]]], dtype=dtype)
    got = conv(x[:, :, None, None], row, operator, k, eps=0)[0].flatten()
    expected = torch.tensor(table["expected"][key], dtype=torch.float64)
    if operator != "cosine":  # the clamp changes both ends by up to 9.1e-4
        expected[[0, -1]] *= g(math.acos(CLAMP), operator, k)
    close(got, expected, 1e-9 if dtype is torch.float64 else 1e-5)  # the nearest float32 to 1 - 1e-6 is 1 - 1.013e-6

    case = ORACLES["sc_opposite_and_orthogonal"]
    x, w = (torch.tensor(case["inputs"][name], dtype=dtype) for name in "xw")
    close(conv(x, w, operator, k)[0].flatten(), case["expected"][key], 1e-9 if dtype is torch.float64 else 1e-4)

    if operator != "cosine":
        case = ORACLES["sc_cosine_to_output"]
        c = torch.tensor(case["inputs"]["c"], dtype=torch.float64)
        x = torch.stack([c, (1 - c * c).sqrt()], 1).to(dtype)
        close(
            conv(x[:, :, None, None], row, operator, k, eps=0)[0].flatten(),
            case["expected"][key],
            1e-9 if dtype is torch.float64 else 1e-5,
        )

    x = torch.tensor([[[0.0]], [[1.0]]], dtype=dtype, requires_grad=True)  # at 90 degrees, d theta = -d x0
    conv(x, row, operator, k, eps=0)[0].sum().backward()
    slope = ORACLES["sc_slope_at_right_angle"]["expected"]["dg_dtheta"][key]
    close(x.grad[0, 0, 0], -slope, 1e-9 if dtype is torch.float64 else 1e-5)


def test_input_scale_and_eps():
    case = ORACLES["sc_input_scale_eps"]
    x, w = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in "xw")
    for scale in case["inputs"]["scales"]:
        close(
            conv(x * scale, w)[0].flatten(), [case["expected"][f"x_times_{scale:g}".replace("1e+04", "10000")]], 1e-10
        )
    aligned = torch.ones(1, 1, 1, dtype=torch.float64)
    close(conv(aligned * 0.05, aligned[None] * 1e6)[0].flatten(), [0.980581], 1e-6)  # 0.05 / sqrt(0.0026)


@EACH_OPERATOR
def test_scale_of_input_and_filter_does_not_matter_without_eps(operator, k):
    x, w = normal(2, 3, 5, 5), normal(4, 3, 3, 3, seed=1)
    once, _ = conv(x, w, operator, k, eps=0)
    close(conv(x * 7.5, w * 0.02, operator, k, eps=0)[0], once, 1e-12)  # rounding
    assert once.abs().max() <= 1
    close(conv(x, -w, operator, k, eps=0)[0], -once, 1e-12)  # g is odd in the cosine


@EACH_OPERATOR
def test_zero_patches_give_exactly_zero(operator, k):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        got, _ = conv(torch.zeros(1, 2, 4, 4, dtype=dtype), normal(3, 2, 3, 3, dtype=dtype), operator, k, padding=1)
        assert got.count_nonzero() == 0
        assert got.dtype == dtype


@EACH_OPERATOR
def test_gradients_and_second_gradients(operator, k):
    x, w = normal(2, 2, 3, 2), normal(2, 1, 3, 2, seed=1)
    x[0] = 0  # patches all zero,
    x[1, 0], x[1, 1] = w[0] * 2, w[1] * -3  # at 0 and 180 degrees, and ordinary ones at the border
    layer = SphereConv2d(2, 2, (3, 2), (1, 2), (1, 0), (1, 1), 2, operator=operator, k=k, eps=0.01, dtype=torch.float64)

    def f(x, w):
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    inputs = (x.requires_grad_(), w.requires_grad_())
    # difference quotients exceed the default 1e-5 where k = 0.1 bends sharply
    assert torch.autograd.gradcheck(f, inputs, atol=1e-4)
    assert torch.autograd.gradgradcheck(f, inputs, atol=1e-3, rtol=1e-3, fast_mode=True)


@EACH_OPERATOR
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parallel_vectors_have_a_finite_gradient(operator, k, dtype):
    x = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1e4, 0.0], [0.0, 1e-6]], dtype=dtype, requires_grad=True)
    for eps in (0.0, 1e-4):
        layer = SphereLinear(2, 3, operator=operator, k=k, eps=eps, dtype=dtype)
        layer.weight.data = torch.tensor([[3.0, 4.0], [1e4, 0.0], [0.0, -2.0]], dtype=dtype)
        layer(x).sum().backward()
        assert x.grad.isfinite().all() and layer.weight.grad.isfinite().all()


def test_linear_of_parallel_vectors_is_0_9991():
    layer = SphereLinear(2, 1, operator="linear", eps=0)
    x = layer.weight.detach() * 3
    torch.testing.assert_close(layer(x).item(), 1 - 2 * math.acos(CLAMP) / math.pi, atol=2e-5, rtol=0)  # float32 near 1


@EACH_OPERATOR
@pytest.mark.parametrize("scaled", [False, True])
def test_linear_layer_equals_the_loops(operator, k, scaled):
    layer = SphereLinear(5, 4, operator=operator, k=k, eps=0.01, scale_by_norm=scaled, dtype=torch.float64)
    x = normal(2, 3, 5)
    x[0, 0] = 0
    expected = torch.tensor(
        [
            [
                slow_output(v, row, operator, k, 0.01) * (math.sqrt(sum(a * a for a in v) + 0.01) if scaled else 1)
                for row in layer.weight.tolist()
            ]
            for v in x.reshape(-1, 5).tolist()
        ],
        dtype=torch.float64,
    ).reshape(2, 3, 4)
    close(layer(x), expected, 1e-10)
    close(layer(x[0, 1]), expected[0, 1], 1e-10)  # a single vector
    assert layer(x[:0]).shape == (0, 3, 4)
    close(copy.deepcopy(layer).float()(x.float()), expected, 5e-6)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(),), atol=1e-4)
    assert torch.autograd.gradgradcheck(layer, (x,), atol=1e-3, rtol=1e-3, fast_mode=True)


def test_scaled_cosine_is_the_product_with_the_unit_row():
    layer = SphereLinear(4, 2, scale_by_norm=True, dtype=torch.float64)
    x = normal(3, 4)
    rows = layer.weight.detach()
    close(layer(x), x @ (rows / (rows.square().sum(1, keepdim=True) + 1e-4).sqrt()).T, 1e-12)  # rounding


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(operator="sine"), "cosine, linear, sigmoid, learnable; got 'sine'"),
        (dict(k=0), "above 0; got 0"),
        (dict(k=float("nan")), "above 0; got nan"),
        (dict(k="0.3"), "above 0; got '0.3'"),
        (dict(eps=-1e-4), "at least 0; got -0.0001"),
        (dict(eps=float("inf")), "at least 0; got inf"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SphereConv2d(3, 8, 3, **arguments)
    with pytest.raises(InputError, match=message):
        SphereLinear(3, 8, **arguments)


def test_padding_words_are_refused():
    with pytest.raises(InputError, match="or 'tf_same'; got 'same'"):
        SphereConv2d(3, 8, 3, padding="same")


def learnable(layer, raw_k):
    """The layer with these `raw_k`, one per filter, some negative."""
    layer.raw_k.data = torch.as_tensor(raw_k, dtype=layer.raw_k.dtype)
    return layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_learnable_sigmoid(dtype):
    case = ORACLES["sc_learnable_sigmoid"]
    given, expected = case["inputs"], case["expected"]
    layer = learnable(SphereConv2d(3, 3, 1, operator="learnable", eps=given["eps"], dtype=dtype), given["raw_k"])
    layer.weight.data = torch.tensor(given["w"], dtype=dtype)
    out = layer(torch.tensor(given["x"], dtype=dtype)).flatten()
    out.sum().backward()
    tolerance = case["tolerance" if dtype is torch.float64 else "tolerance_float32"]
    close(steepness(layer.raw_k), expected["effective_k"], tolerance)
    close(out, expected["output"], tolerance)
    close(layer.raw_k.grad, expected["grad_raw"], tolerance)


@pytest.mark.parametrize("seed", range(4))
def test_learnable_sigmoid_equals_the_loops(seed):
    pick = random.Random(seed)
    groups, stride, padding, dilation = pick.choice([1, 2]), (1, 2), (pick.randint(0, 2), 1), (pick.randint(1, 2), 1)
    raw = [pick.uniform(-1, 1) for _ in range(2 * groups)]
    layer = SphereConv2d(
        2 * groups, 2 * groups, (2, 3), stride, padding, dilation, groups, bias=True, operator="learnable",
        dtype=torch.float64,
    )  # fmt: skip
    learnable(layer, raw)
    x = normal(2, 2 * groups, 6, 7, seed=seed)
    expected = [  # each filter alone, with the k of its raw value
        slow_conv(x, layer.weight, stride, padding, dilation, groups, "sigmoid", abs(r) + 0.05, 1e-4)[:, o]
        + layer.bias[o].item()
        for o, r in enumerate(raw)
    ]
    close(layer(x), torch.stack(expected, 1), 1e-10)
    close(copy.deepcopy(layer).float()(x.float()), torch.stack(expected, 1), 1e-5)  # the steepest slope is 10

    linear = learnable(SphereLinear(5, 3, bias=True, operator="learnable", dtype=torch.float64), [0.0, -0.4, 2.0])
    v = normal(4, 5, seed=seed)
    expected = [
        [
            slow_output(a, row, "sigmoid", k, 1e-4) + b
            for row, k, b in zip(linear.weight.tolist(), [0.05, 0.45, 2.05], linear.bias.tolist(), strict=True)
        ]
        for a in v.tolist()
    ]
    close(linear(v), expected, 1e-10)


def test_learnable_sigmoid_starts_at_three_quarters():
    for layer in (SphereConv2d(3, 4, 3, operator="learnable", k=9.0), SphereLinear(3, 4, operator="learnable")):
        assert layer.raw_k.shape == (4,) and layer.raw_k.requires_grad
        close(steepness(layer.raw_k), [0.75] * 4, 1e-7)


def test_gradients_of_the_learnable_sigmoid():
    x, w = normal(2, 2, 3, 2), normal(2, 1, 3, 2, seed=1)
    x[0] = 0
    x[1, 0], x[1, 1] = w[0] * 2, w[1] * -3  # patches at 0 and 180 degrees
    raw = torch.tensor([0.7, -0.2], dtype=torch.float64)
    layer = SphereConv2d(
        2, 2, (3, 2), (1, 2), (1, 0), (1, 1), 2, True, operator="learnable", eps=0.01, dtype=torch.float64
    )
    linear = SphereLinear(6, 2, operator="learnable", eps=0.01, scale_by_norm=True, dtype=torch.float64)

    def f(x, w, raw, bias):
        image = torch.func.functional_call(layer, {"weight": w, "raw_k": raw, "bias": bias}, (x,))
        vector = torch.func.functional_call(linear, {"weight": w.flatten(1), "raw_k": raw}, (x[:, 0].flatten(1),))
        return image, vector

    inputs = [t.requires_grad_() for t in (x, w, raw, normal(2, seed=2))]
    assert torch.autograd.gradcheck(f, inputs, atol=1e-4)
    assert torch.autograd.gradgradcheck(f, inputs, atol=1e-3, rtol=1e-3, fast_mode=True)


@EACH_OPERATOR
def test_a_bias_is_added_to_the_angle(operator, k):
    x = normal(2, 3, 5, 5)
    layer = SphereConv2d(3, 4, 3, bias=True, operator=operator, k=k, dtype=torch.float64)
    close(layer(x), conv(x, layer.weight, operator, k)[0] + layer.bias[:, None, None], 1e-12)
    layer(x).relu_().sum().backward()  # in place on a sum, which the cosine does not save
    assert layer.bias.grad.shape == (4,)
    linear = SphereLinear(3, 4, bias=True, operator=operator, k=k, scale_by_norm=True, dtype=torch.float64)
    without = SphereLinear(3, 4, operator=operator, k=k, scale_by_norm=True, dtype=torch.float64)
    without.weight = linear.weight
    close(linear(x[0, 0, :, :3]), without(x[0, 0, :, :3]) + linear.bias, 1e-12)


@pytest.mark.parametrize("size, kernel, stride, dilation", [(8, 3, 2, 1), (7, 3, 2, 1), (9, 2, 1, 2), (5, 4, 3, 1)])
def test_tf_same_padding(size, kernel, stride, dilation):
    """ceil(size / stride) rows; zeros on both sides, an odd one last."""
    x, w = normal(1, 2, size, size + 1), normal(2, 2, kernel, kernel, seed=1)
    got, _ = conv(x, w, "linear", stride=stride, padding="tf_same", dilation=dilation)
    ends = []
    for length in (size + 1, size):
        zeros = (math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length
        ends += [max(zeros, 0) // 2, max(zeros, 0) - max(zeros, 0) // 2]
    expected = slow_conv(F.pad(x, ends), w, (stride,) * 2, (0, 0), (dilation,) * 2, 1, "linear", 0.3, 1e-4)
    assert expected.shape[2:] == (math.ceil(size / stride), math.ceil((size + 1) / stride))
    close(got, expected, 1e-10)


def test_tf_same_padding_gives_the_published_map():
    case = ORACLES["sc_stride2_tfsame_linear"]
    x, w = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in "xw")
    got, _ = conv(x[None], w, "linear", stride=2, padding="tf_same")
    close(got[0], case["expected"], case["tolerance"])


@pytest.mark.parametrize("operator", ["cosine", "learnable"])
def test_a_layer_that_runs_twice_has_one_first_gradient(operator):
    """With create_graph the backward pass runs the layer again, and its input depends on its own filters."""
    torch.manual_seed(0)
    layer, x = SphereConv2d(2, 2, 1, operator=operator).double(), torch.randn(2, 2, 3, 3).double()
    wanted = list(layer.parameters())
    plain = torch.autograd.grad(layer(layer(x)).square().sum(), wanted)
    with_graph = torch.autograd.grad(layer(layer(x)).square().sum(), wanted, create_graph=True)
    for one, other in zip(with_graph, plain, strict=True):
        torch.testing.assert_close(one, other)
