"""Sphere layers agree in every mode: autocast, half precision, compile, script, fx, export, torch.func."""

import copy
import math

import pytest
import torch
import torch.nn as nn
from timm.optim import create_optimizer_v2

from hyperzoo.layers import SphereConv2d, SphereLinear, functional, precision
from hyperzoo.layers.operators import OPERATORS, FusedLearnable, angular

EACH_OPERATOR = pytest.mark.parametrize("operator", OPERATORS)
SCRIPT_IS_DEPRECATED = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:FutureWarning",
    "ignore:The TorchScript type system doesn't support instance-level annotations:UserWarning",
)


class Net(nn.Module):
    """Every kind of sphere layer, strided and grouped ones included."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.conv1 = SphereConv2d(3, 4, 3, padding=1, operator=operator)
        self.conv2 = SphereConv2d(4, 6, (3, 1), stride=2, padding=(2, 1), dilation=2, groups=2, operator=operator)
        self.fc = SphereLinear(6, 5, operator=operator, scale_by_norm=True)
        for layer in (self.conv1, self.conv2, self.fc) if operator == "learnable" else ():
            layer.raw_k.data = torch.linspace(0.2, 1, len(layer.raw_k)) * (1 - 2 * (torch.arange(len(layer.raw_k)) % 2))

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x).relu()).mean((-2, -1)))


def net(operator):
    torch.manual_seed(0)
    return Net(operator)


def images(batch=2, size=8):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def outputs_and_gradients(model, x):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    for p in model.parameters():
        p.grad = None
    out = model(x)
    (out.double() * torch.arange(1, out.numel() + 1).reshape(out.shape)).sum().backward()
    return [out, x.grad, *(p.grad for _, p in sorted(model.named_parameters()))]  # fx reorders operations


def assert_same(model, other, x, tolerance):
    for got, expected in zip(outputs_and_gradients(other, x), outputs_and_gradients(model, x), strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(got, expected, atol=tolerance * scale, rtol=0, check_dtype=True)


@EACH_OPERATOR
def test_float32_has_the_gradients_of_float64(operator):
    model, x = net(operator), images()
    exact = outputs_and_gradients(copy.deepcopy(model).double(), x.double())
    for got, expected in zip(outputs_and_gradients(model, x), exact, strict=True):
        # ten roundings of 6e-8, relative to the largest entry
        torch.testing.assert_close(got.double(), expected, atol=2e-6 * expected.abs().max().item(), rtol=0)


@EACH_OPERATOR
def test_channels_last_stays_channels_last(operator):
    model, x = net(operator), images()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    y = x.contiguous(memory_format=torch.channels_last)
    for layer, given in ((last.conv1, y), (last.conv2, last.conv1(y))):
        assert layer(given).is_contiguous(memory_format=torch.channels_last)
    # same sums in another order
    for got, expected in zip(outputs_and_gradients(last, y), outputs_and_gradients(model, x), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert outputs_and_gradients(last.conv1, y)[1].is_contiguous(memory_format=torch.channels_last)


@EACH_OPERATOR
def test_empty_batch_and_single_image(operator):
    model, x = net(operator), images()
    torch.testing.assert_close(
        model.conv1(x[0]), model.conv1(x)[0], atol=1e-6, rtol=0
    )  # a rounding of values in [-1, 1]
    torch.testing.assert_close(model.conv2(model.conv1(x[0])), model.conv2(model.conv1(x))[0], atol=1e-6, rtol=0)
    out, x_grad, *weights = outputs_and_gradients(model, x[:0])
    assert (out.shape, x_grad.shape) == ((0, 5), (0, 3, 8, 8))
    assert all(w.count_nonzero() == 0 for w in weights)
    single = outputs_and_gradients(model.conv1, x[0])[1]
    torch.testing.assert_close(single[None], outputs_and_gradients(model.conv1, x[:1])[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EACH_OPERATOR
def test_norms_are_float32_in_half_precision(operator, dtype):
    """Patches of norm 1e-3 (eps dominates) and of norm 900 (the square exceeds float16) agree with float64."""
    layer = SphereConv2d(64, 8, 3, operator=operator)
    torch.manual_seed(0)
    direction = torch.randn(1, 64, 3, 3)
    x = torch.cat([direction * (norm / direction.norm()) for norm in (1e-3, 1.0, 900.0)])
    layer.weight.data = direction / 3 + torch.randn(8, 64, 3, 3) / 3
    half = copy.deepcopy(layer).to(dtype)
    exact = copy.deepcopy(half).double()(x.to(dtype).double())
    # filter, product and result are rounded once each (times the slope of g, at most 2.5)
    tolerance = 5 * torch.finfo(dtype).eps
    out = half(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, atol=tolerance, rtol=0)
    with torch.autocast("cpu", dtype):
        out = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), copy.deepcopy(layer).double()(x.double()), atol=tolerance, rtol=0)
    linear = SphereLinear(64, 8, operator=operator)
    with torch.autocast("cpu", dtype):
        out = linear(x[:, :, 1, 1])
    assert out.dtype == dtype
    expected = copy.deepcopy(linear).double()(x[:, :, 1, 1].double())
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)


@EACH_OPERATOR
def test_autocast_gradients(operator):
    model, x = net(operator), images(4)
    exact = outputs_and_gradients(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = outputs_and_gradients(model, x)
    for got, expected in zip(rounded[1:], exact[1:], strict=True):
        assert got.dtype == torch.float32  # of the leaf
        # a dozen roundings of 2^-9, amplified near small norms, so only the direction is compared
        assert torch.cosine_similarity(got.flatten(), expected.flatten(), 0) > 0.999


@EACH_OPERATOR
def test_compile_without_graph_breaks(operator):
    torch.compiler.reset()
    model = net(operator)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(model, compiled, images(), 3e-6)  # dozens of roundings of 6e-8, and 2e-7 of the polynomial arcsine
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()), atol=2e-6, rtol=0)


@pytest.mark.full
@pytest.mark.parametrize("autocast", [False, True])
@EACH_OPERATOR
def test_compiled_code_equals_eager(operator, autocast):
    torch.compiler.reset()
    model, x = net(operator).to(memory_format=torch.channels_last), images(5, 9)
    x = x.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        # fused code keeps float32 where eager mode stores bfloat16
        assert_same(model, compiled, x, 0.03 if autocast else 2e-6)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x), atol=0.03 if autocast else 2e-6, rtol=0)


@SCRIPT_IS_DEPRECATED
@EACH_OPERATOR
def test_script(operator):
    model = net(operator)
    assert_same(model, torch.jit.script(model), images(), 1e-6)  # the same operations in another order


@SCRIPT_IS_DEPRECATED
@EACH_OPERATOR
def test_fx_trace_and_script_of_it(operator):
    model = net(operator)
    traced = torch.fx.symbolic_trace(model)
    assert [node.name for node in traced.graph.nodes if "sphere" in str(node.target)]
    assert_same(model, traced, images(), 0)  # it calls the same function
    assert_same(model, torch.jit.script(traced), images(), 1e-6)


@EACH_OPERATOR
def test_export_with_any_batch(operator):
    model = net(operator).eval()
    program = torch.export.export(model, (images(3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 5):
        # the same operations in another order
        torch.testing.assert_close(program.module()(images(batch)), model(images(batch)), atol=1e-6, rtol=0)


def test_export_of_other_sizes():
    model = net("sigmoid").eval()
    size = torch.export.Dim.AUTO
    program = torch.export.export(model, (images(3),), dynamic_shapes=({0: size, 2: size, 3: size},))
    torch.testing.assert_close(program.module()(images(2, 13)), model(images(2, 13)), atol=1e-6, rtol=0)


@EACH_OPERATOR
def test_function_transforms(operator):
    """Per-sample gradients by `torch.func` equal one backward per sample."""
    model, x = net(operator), images(3)
    params = dict(model.named_parameters())

    def loss(params, image):
        return torch.func.functional_call(model, params, (image[None],)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for i in range(3):
        expected = torch.autograd.grad(loss(params, x[i]), list(params.values()))
        for name, value in zip(params, expected, strict=True):
            torch.testing.assert_close(got[name][i], value, atol=1e-5, rtol=1e-4)  # sums in another order


def test_in_place_operation_on_the_result_is_an_error_not_a_wrong_gradient():
    out = SphereConv2d(3, 4, 3)(images())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.relu_().sum().backward()
    SphereConv2d(3, 4, 3)(images()).relu().sum().backward()


def test_second_gradient_under_autocast():
    layer, x = SphereConv2d(3, 4, 3), images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.bfloat16())  # as from a previous layer
    (rounded,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
    rounded.square().sum().backward()
    second = x.grad
    (exact,) = torch.autograd.grad(layer.double()(x.double()).square().sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(exact.square().sum(), x)
    assert torch.cosine_similarity(second.flatten(), expected.flatten(), 0) > 0.999  # roundings of 2^-9


@pytest.mark.parametrize("operator, k", [("linear", 0.3), ("sigmoid", 0.01), ("sigmoid", 0.1), ("sigmoid", 5.0)])
def test_fast_operators_of_compiled_code(operator, k):
    """Value and slope against float64 on [-1, 1], including both ends and both sides of each seam."""
    seams = torch.tensor([0.0, 1e-30, 1e-8, 0.5, 0.5 + 6e-8, 1 - 2e-6, 1 - 5e-7, 1.0])
    c = torch.cat([torch.linspace(-1, 1, 20001), seams, -seams])
    exact = c.double().requires_grad_()
    expected = angular(exact, operator, k)
    expected.sum().backward()
    c.requires_grad_()
    got = OPERATORS[operator].fused(c, k)
    got.sum().backward()
    top = 1 / math.tanh(math.pi / (4 * k))
    steepest = 2 / math.pi if operator == "linear" else top / (2 * k)  # in the angle
    inside = c.detach().abs() < 1 - 1.5e-6  # float32 and float64 clamp at slightly different cosines
    # two ulps of numbers up to pi / 2, seen through g, and of numbers up to 2 times coth(pi / 4k)
    torch.testing.assert_close(got[inside].double(), expected[inside], atol=2.4e-7 * (steepest + top), rtol=0)
    torch.testing.assert_close(got[~inside].double(), expected[~inside], atol=1e-5 * steepest, rtol=0)
    torch.testing.assert_close(c.grad[inside].double(), exact.grad[inside], atol=1e-6 * steepest, rtol=2e-5)
    assert c.grad[c.detach().abs() == 1].count_nonzero() == 0  # no slope beyond the clamp
    assert got[c.detach() == 0].count_nonzero() == 0
    assert OPERATORS[operator].fused(torch.tensor([math.nan]), k).isnan().all()


@pytest.mark.parametrize("operator, k", [("linear", 0.3), ("sigmoid", 0.1), ("sigmoid", 5.0)])
def test_fast_operators_keep_the_digits_of_small_cosines(operator, k):
    c = torch.logspace(-20, -0.1, 2001)
    got = OPERATORS[operator].fused(c, k)
    torch.testing.assert_close(got.double(), angular(c.double(), operator, k), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_learnable_operator_of_compiled_code(dtype):
    """Value and both slopes against torch functions in float64, for each k on [-1, 1]."""
    seams = torch.tensor([0.0, 1e-30, 1e-8, 0.5, 0.5 + 6e-8, 1 - 2e-6])
    c = torch.cat([torch.linspace(-1, 1, 2001), seams, -seams])[:, None].to(dtype).repeat(1, 5)
    k = torch.tensor([0.05, 0.1, 0.3, 0.75, 5.0], dtype=dtype)
    exact = [c.double().clone().requires_grad_(), k.double().repeat(len(c), 1).requires_grad_()]
    expected = angular(exact[0], "learnable", exact[1])
    expected.sum().backward()
    fast = [c.clone().requires_grad_(), k.repeat(len(c), 1).requires_grad_()]
    got = FusedLearnable.apply(*fast)
    got.sum().backward()
    steepest = 1 / torch.tanh(math.pi / 4 / k.double()) / (2 * k.double())  # in the angle
    inside = (c.abs() < 1 - 1.5e-6)[:, 0]  # float32 and float64 clamp at slightly different cosines
    # two ulps of numbers up to pi / 2, seen through g, and of numbers up to 2 coth(pi / 4k)
    assert ((got - expected).abs()[inside] <= 2.4e-7 * (2 * steepest + 13)).all()
    slope_error, k_error = ((a.grad - b.grad).abs()[inside] for a, b in zip(fast, exact, strict=True))
    assert (slope_error <= 2e-5 * exact[0].grad.abs()[inside] + 4e-6 * steepest).all()
    assert (k_error <= 1e-5 / k.double()).all()  # the derivative is below 1 / k
    assert got[c.expand_as(got) == 0].count_nonzero() == 0
    shared = k.clone().requires_grad_()  # a k shared by many values receives the sum
    FusedLearnable.apply(c, shared).mul(c).sum().backward()
    torch.testing.assert_close(shared.grad, (fast[1].grad * c).sum(0), atol=1e-4, rtol=1e-4)


def test_gradient_only_where_asked():
    layer, x = SphereConv2d(2, 3, 3), images()[:, :2].requires_grad_()
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer.weight.requires_grad_()
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert not layer(x).requires_grad


@EACH_OPERATOR
def test_only_the_weight_is_state_and_the_learned_k(operator):
    for layer in (SphereConv2d(3, 4, 3, operator=operator), SphereLinear(3, 4, operator=operator)):
        assert list(layer.state_dict()) == ["weight", "raw_k"][: 1 + (operator == "learnable")]
        twin = copy.deepcopy(layer)
        assert torch.equal(twin.weight, layer.weight) and twin.weight.data_ptr() != layer.weight.data_ptr()
        assert (twin.operator, twin.k, twin.eps) == (layer.operator, layer.k, layer.eps)


def test_repr():
    assert repr(SphereConv2d(3, 8, 3, stride=2, padding=1)) == (
        "SphereConv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), operator=cosine, eps=0.0001)"
    )
    assert repr(SphereLinear(4, 2, operator="sigmoid", k=0.7, scale_by_norm=True)) == (
        "SphereLinear(in_features=4, out_features=2, operator=sigmoid, k=0.7, eps=0.0001, scale_by_norm=True)"
    )
    assert repr(SphereConv2d(3, 8, 3, 2, "tf_same", bias=True, operator="learnable")) == (
        "SphereConv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=tf_same, bias=True, "
        "operator=learnable, eps=0.0001)"
    )


class Padded(nn.Module):
    """Options that `Net` lacks: TensorFlow's SAME padding, and biases."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.conv = SphereConv2d(3, 4, 3, 2, "tf_same", bias=True, operator=operator)
        self.fc = SphereLinear(4, 2, bias=True, operator=operator)

    def forward(self, x):
        return self.fc(self.conv(x).mean((-2, -1)))


@SCRIPT_IS_DEPRECATED
@EACH_OPERATOR
def test_padding_and_bias_in_every_mode(operator):
    torch.manual_seed(0)
    model, x = Padded(operator), images(3, 8)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(model, compiled, x, 5e-6)  # as above
    for other in (torch.jit.script(model), torch.fx.symbolic_trace(model)):
        assert_same(model, other, x, 1e-6)
    program = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x[:2]), model(x[:2]), atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.conv(x).dtype == model.fc(x[:, :, 0, :4].mean(1)).dtype == torch.bfloat16
    last = model.conv(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_learned_k_gets_no_weight_decay():
    model = net("learnable")
    groups = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.1).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert {id(p) for name, p in model.named_parameters() if not name.endswith("raw_k")} == decayed


def test_meta_device_and_dtype():
    layer = SphereConv2d(3, 8, 3, device="meta", dtype=torch.bfloat16)
    assert layer(torch.empty(2, 3, 8, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 8, 6, 6)


@pytest.mark.parametrize("groups", [1, 2])
def test_eager_training_in_bfloat16_is_a_few_roundings_away(groups):
    torch.manual_seed(0)
    layer = SphereConv2d(16, 24, 3, padding=1, groups=groups)
    x, grad = torch.randn(4, 16, 7, 7).relu().bfloat16(), torch.randn(4, 24, 7, 7).bfloat16()
    exact = copy.deepcopy(layer).double()
    wide = x.double().requires_grad_()
    exact(wide).backward(grad.double())
    half = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(half)
    out.backward(grad)
    for got, expected in ((out, exact(wide)), (half.grad, wide.grad), (layer.weight.grad, exact.weight.grad)):
        error = (got.double() - expected).norm() / expected.norm()
        assert error < 0.01  # filter, product, inverse norm and result are rounded by up to 2^-9 each


@EACH_OPERATOR
def test_eager_training_in_parts_has_the_gradients_of_the_definition_and_saves_two_activations(operator, monkeypatch):
    monkeypatch.setattr(precision, "_HELD", 700)  # parts of two images
    layer, x, saved = net(operator).conv1.double(), images(5).double(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x.requires_grad_())
    large = {t.data_ptr() for t in saved if t.numel() >= x.numel()}
    assert len(large) == 2 and x.data_ptr() in large  # the images and the cosines
    found = outputs_and_gradients(layer, x)
    monkeypatch.setattr(functional, "_in_eager_training", lambda *_: False)
    for got, expected in zip(found, outputs_and_gradients(layer, x), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
