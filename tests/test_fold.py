"""`fold`: the outputs of the model with filters that were normalized once."""

import copy

import pytest
import timm
import torch
from torch import nn

from hyperzoo.layers import SphereConv2d, SphereLinear, SphereNorm, fold, sphereize
from hyperzoo.layers.fold import FoldedConv2d, FoldedLinear
from hyperzoo.layers.operators import OPERATORS

EACH_OPERATOR = pytest.mark.parametrize("operator", OPERATORS)
GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0)),
    dict(kernel_size=3, padding=2),  # more padding than a pooling takes
    dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=3, groups=2),
    dict(kernel_size=4, stride=2, padding="tf_same"),
    dict(kernel_size=1),
]


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def varied(layer):
    """The layer with parameters that differ from filter to filter."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.2, 1.5) if parameter.dim() == 1 else nn.init.normal_(parameter)
    return layer


def response(cosine, operator, k):
    """g by its definition on the angle, in float64."""
    theta = torch.arccos(cosine.clamp(-1, 1))
    if operator == "cosine":
        return torch.cos(theta)
    if operator == "linear":
        return 1 - 2 * theta / torch.pi
    return torch.tanh((torch.pi / 2 - theta) / (2 * k)) / torch.tanh(torch.pi / (4 * k))


@EACH_OPERATOR
def test_a_folded_convolution_is_the_formula_in_loops(operator):
    layer = varied(SphereConv2d(4, 6, 3, stride=2, padding=1, groups=2, operator=operator, bias=True, k=0.4)).double()
    x = drawn(2, 4, 7, 6).double()
    found = fold(layer)(x)
    padded, w = nn.functional.pad(x, (1, 1, 1, 1)), layer.weight.detach()
    for b, o, i, j in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        first = 2 * (o // 3)
        patch, w_o = padded[b, first : first + 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], w[o]
        cosine = (patch * w_o).sum() / ((patch**2).sum() + 1e-4).sqrt() / ((w_o**2).sum() + 1e-4).sqrt()
        k = 0.4 if layer.raw_k is None else layer.raw_k[o].abs().item() + 0.05
        wanted = response(cosine, operator, torch.tensor(k, dtype=torch.float64)) + layer.bias[o]
        torch.testing.assert_close(found[b, o, i, j], wanted.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [SphereConv2d, SphereNorm])
def test_every_geometry_and_layout_has_the_outputs_of_the_layer(geometry, memory, kind):
    layer, x = varied(kind(4, 6, **geometry)), drawn(3, 4, 9, 8).contiguous(memory_format=memory)
    x[0] = 0
    with torch.no_grad():
        folded, wanted = fold(layer), layer(x)
        assert type(folded) is FoldedConv2d
        torch.testing.assert_close(folded(x), wanted, rtol=0, atol=2e-6)
        with torch.autocast("cpu", torch.bfloat16):
            assert folded(x).dtype == layer(x).dtype == torch.bfloat16
            torch.testing.assert_close(folded(x), layer(x), rtol=0.02, atol=0.02)


@EACH_OPERATOR
@pytest.mark.parametrize("scaled", [False, True])
def test_a_folded_linear_layer_has_the_outputs_of_the_layer(operator, scaled):
    layer = varied(SphereLinear(5, 3, operator=operator, scale_by_norm=scaled, bias=True)).double()
    folded, x = fold(layer), drawn(2, 4, 5).double()
    assert type(folded) is FoldedLinear
    torch.testing.assert_close(folded(x), layer(x).detach(), rtol=0, atol=1e-12)


class Own(SphereConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_model_is_copied_and_shared_hooked_and_derived_layers_keep_their_outputs():
    shared = SphereConv2d(4, 4, 3, padding=1)
    model = nn.Sequential(SphereNorm(3, 4, 3), shared, nn.BatchNorm2d(4), shared, Own(4, 4, 1), SphereConv2d(4, 2, 1))
    model[5].register_forward_hook(lambda module, inputs, output: -output)
    before, x = copy.deepcopy(model.state_dict()), drawn(2, 3, 8, 8)
    folded = fold(model)
    assert model.training and not folded.training and folded[1] is folded[3] and type(folded[1]) is FoldedConv2d
    assert type(folded[4]) is Own and type(folded[5]) is SphereConv2d
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=0, atol=1e-6)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(RuntimeError, match="filters"):
        model.load_state_dict(folded.state_dict())  # instead of filters that are normalized twice


def test_gradients_reach_the_images_and_nothing_trains():
    layer = varied(SphereConv2d(2, 3, 3, padding=1, operator="sigmoid")).double()
    folded, x = fold(layer), drawn(1, 2, 4, 4).double().requires_grad_()
    assert not list(folded.parameters()) and torch.autograd.gradcheck(folded, x)


@EACH_OPERATOR
def test_the_exported_program_has_no_work_for_weights_and_a_free_batch(operator):
    layer = varied(SphereConv2d(3, 4, 3, padding=1, operator=operator)).eval()
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(fold(layer), (drawn(2, 3, 8, 8),), dynamic_shapes=batch)
    plain = torch.export.export(layer, (drawn(2, 3, 8, 8),), dynamic_shapes=batch)
    calls = [sum(node.op == "call_function" for node in one.graph.nodes) for one in (program, plain)]
    assert calls[0] <= calls[1] - 15, calls
    for n in (1, 5):
        x = drawn(n, 3, 8, 8)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=1e-6)


def test_code_that_reads_weights_and_sizes_works_on_a_folded_model():
    model = timm.create_model("edgenext_xx_small", num_classes=10).eval()  # reads the device and dtype of a weight
    sphereize(model)
    x = drawn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(x), model(x), rtol=1e-4, atol=1e-4)
    conv, linear = fold(SphereConv2d(4, 6, (3, 2), groups=2)), fold(SphereLinear(5, 3))
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (4, 6, (3, 2))
    assert (linear.in_features, linear.out_features) == (5, 3)
    assert conv.weight is conv.filters and linear.weight is linear.filters
