"""Sphere layers with gradients enabled under `torch.jit.trace`, the tracing ONNX exporter, and forward-mode AD."""

import io

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from hyperzoo.layers import SphereConv2d
from hyperzoo.layers.operators import OPERATORS

EACH_OPERATOR = pytest.mark.parametrize("operator", OPERATORS)
MODE = "mode of torch in which a sphere layer runs"
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:Constant folding:UserWarning",
)


def net(operator: str) -> nn.Sequential:
    torch.manual_seed(0)
    first = SphereConv2d(4, 6, 3, padding=1, operator=operator)
    return nn.Sequential(first, nn.ReLU(), SphereConv2d(6, 4, 3, stride=2, groups=2, operator=operator))


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 7, 7, generator=torch.Generator().manual_seed(1))


@EACH_OPERATOR
@pytest.mark.fault(MODE)
def test_trace_is_saved_and_trains(operator):
    model, x = net(operator), images()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for given in (x, torch.randn(3, 4, 9, 10)):
        torch.testing.assert_close(traced(given), model(given), atol=1e-6, rtol=0)  # the operations in another order
    for got, expected in zip(
        torch.autograd.grad(traced(x).square().sum(), list(traced.parameters())),
        torch.autograd.grad(model(x).square().sum(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.fault(MODE)
def test_traced_graph_has_the_convolutions_that_counters_of_operations_look_for():
    graph, _ = torch.jit._get_trace_graph(net("cosine"), (images(),))
    kinds = [node.kind() for node in graph.nodes()]
    assert (kinds.count("aten::_convolution"), kinds.count("prim::PythonOp")) == (2, 0)


@pytest.mark.fault(MODE)
def test_onnx_export_by_tracing():
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, file = net("cosine").eval(), images(), io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"])
    (got,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), atol=1e-5, rtol=0)


@EACH_OPERATOR
@pytest.mark.fault(MODE)
def test_forward_mode_derivative_of_images_and_of_weights(operator):
    model, x, h = net(operator).double(), images().double(), 1e-6
    weight, along = model[0].weight, torch.ones_like(model[0].weight)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        dual = {"0.weight": forward_ad.make_dual(weight, along)}
        got_weight = forward_ad.unpack_dual(torch.func.functional_call(model, dual, (x,))).tangent
    torch.testing.assert_close(got, (model(x + h) - model(x - h)) / (2 * h), atol=1e-8, rtol=1e-6)  # central difference
    shifted = [torch.func.functional_call(model, {"0.weight": weight + s * along}, (x,)) for s in (h, -h)]
    torch.testing.assert_close(got_weight, (shifted[0] - shifted[1]) / (2 * h), atol=1e-8, rtol=1e-6)


@pytest.mark.fault(MODE)
def test_jacobian_of_all_outputs_at_once():
    model, x = nn.Sequential(*list(net("cosine"))[:2]), images(1)
    got = torch.autograd.functional.jacobian(lambda image: model(image).sum((2, 3)), x, vectorize=True)
    torch.testing.assert_close(got, torch.autograd.functional.jacobian(lambda image: model(image).sum((2, 3)), x))
