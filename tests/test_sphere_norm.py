"""SphereNorm computes beta g(theta) + gamma per filter, in every mode and for each image independently."""

import copy

import pytest
import torch
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d, SphereNorm

EACH_OPERATOR = pytest.mark.parametrize("operator", ["cosine", "linear", "sigmoid", "learnable"])


def images(batch=3, dtype=torch.float64):
    return torch.randn(batch, 4, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def layer(operator="cosine", dtype=torch.float64, **args):
    torch.manual_seed(0)
    made = SphereNorm(4, 6, 3, (2, 1), (1, 0), (1, 2), 2, operator=operator, dtype=dtype, **args)
    if isinstance(made.beta, nn.Parameter):
        made.beta.data.uniform_(-2, 2)
        made.gamma.data.uniform_(-1, 1)
    return made


def angles(norm):
    """The sphere convolution with the same filters, which test_layers.py compares with loops."""
    plain = SphereConv2d(4, 6, 3, (2, 1), (1, 0), (1, 2), 2, operator=norm.operator, dtype=norm.weight.dtype)
    plain.weight, plain.raw_k = norm.weight, norm.raw_k
    return plain


@EACH_OPERATOR
def test_equals_the_formula_filter_by_filter(operator):
    norm, x = layer(operator), images()
    out, g = norm(x), angles(norm)(x)
    assert out.shape == (3, 6, 4, 2)
    for o in range(6):
        expected = norm.beta[o].item() * g[:, o] + norm.gamma[o].item()
        torch.testing.assert_close(out[:, o], expected, atol=1e-12, rtol=0)  # rounding
    torch.testing.assert_close(norm(x[0]), out[0], atol=1e-12, rtol=0)


@EACH_OPERATOR
def test_gradients(operator):
    norm = layer(operator)
    names = [name for name, _ in norm.named_parameters()]
    assert {"weight", "beta", "gamma"} <= set(names)

    def f(x, *values):
        return torch.func.functional_call(norm, dict(zip(names, values, strict=True)), (x,))

    inputs = (images(1)[:, :, :3, :5].requires_grad_(), *norm.parameters())
    assert torch.autograd.gradcheck(f, inputs, atol=1e-4, fast_mode=True)
    norm(images()).relu_().sum().backward()  # in place directly after it: the output is not the saved cosine


def test_fixed_values_are_state_and_not_trained():
    norm = layer(beta=2.5, gamma=-0.5, learnable=False)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    assert set(norm.state_dict()) == set(layer().state_dict()) == {"weight", "beta", "gamma"}
    torch.testing.assert_close(norm(images()), 2.5 * angles(norm)(images()) - 0.5, atol=1e-12, rtol=0)
    assert layer(operator="linear").extra_repr().endswith("operator=linear, eps=0.0001, affine=learnable")
    assert norm.extra_repr().endswith("affine=fixed")


def test_starts_as_the_sphere_convolution():
    torch.manual_seed(0)
    norm = SphereNorm(3, 4, 3)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(norm(x), SphereConv2d(3, 4, 3)(x))


def test_an_image_does_not_depend_on_its_batch():
    norm, x = layer().train(), images(4)
    torch.testing.assert_close(norm(x)[1], norm(x[1:2])[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(norm(x[:1] * 1e4), norm(x[:1] * 1e6), atol=1e-8, rtol=0)  # eps vanishes


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning", "ignore:The TorchScript type system:UserWarning")
@pytest.mark.parametrize("learnable", [True, False])
@EACH_OPERATOR
def test_every_mode_computes_the_same(operator, learnable):
    norm, x = layer(operator, torch.float32, learnable=learnable), images(dtype=torch.float32)
    expected = norm(x)
    torch.compiler.reset()
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    net = nn.Sequential(norm)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for other in (compiled, torch.jit.script(norm), torch.fx.symbolic_trace(net), program.module()):
        torch.testing.assert_close(other(x), expected, atol=5e-6, rtol=0)  # the polynomial arcsine, times 2
    with torch.autocast("cpu", torch.bfloat16):
        half = norm(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0)  # values up to 3, steepness 1.7, eps 2^-8
    last = copy.deepcopy(norm)(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(beta=float("nan")), "beta must be a finite number; got nan"),
        (dict(gamma="1"), "gamma must be a finite number; got '1'"),
        (dict(operator="sine"), "got 'sine'"),
        (dict(k=0), "above 0; got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SphereNorm(3, 4, 3, **arguments)
