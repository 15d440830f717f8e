"""`torch.func` over losses, energies and mixups equals autograd; second derivatives are right or refused."""

import pytest
import torch
from torch.func import grad, jacrev, vmap

from hyperzoo import losses, mixup, regularizers
from hyperzoo.errors import InputError
from hyperzoo.layers.decorrelated_bn import InverseRoot
from hyperzoo.mixup.mix import mix

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # some in-place operations under vmap

DRAW = mixup.Mixup(3, generator=torch.Generator().manual_seed(0))._draw(torch.zeros(5, 1), ("input",))
LABELS = torch.tensor([0, 2, 1, 1, 0])
ROWS = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
SHARES = torch.softmax(ROWS[:, :5].T.contiguous(), 1)
WAVES = torch.arange(30, dtype=torch.float64).sin().reshape(5, 6)

TWICE = {  # (5, 6) float64 -> (): each has second derivatives
    "mixup": lambda x: (mix(x, DRAW) * WAVES).sin().sum(),
    "cross-entropy": lambda x: losses.SoftTarget()(x @ ROWS.T, SHARES),
    "bce": lambda x: losses.SoftTarget("bce")(x @ ROWS.T, SHARES),
    "W-Softmax": lambda x: losses.AngularSoftmax("sigmoid")(x, ROWS, LABELS),
    "A-Softmax": lambda x: losses.AngularSoftmax("cosine", 4, annealing=None)(x, ROWS, LABELS),
    "A-Softmax, rows": lambda x: losses.AngularSoftmax("linear", 2, annealing=None)(ROWS, x, LABELS[:3]),
    "smoothed": lambda x: losses.AngularSoftmax("linear", 2, label_smoothing=0.1)(x, ROWS, LABELS),
    "orthogonality": lambda x: regularizers.orthogonality_penalty(x),
    "smallest angle": lambda x: regularizers.nearest_angle(x),
    "VCL": lambda x: regularizers.variance_constancy(x[:4], WAVES[0] + 2, group=2),
    "L1": lambda x: regularizers.lp_penalty(x),
}
ONCE = {
    **{
        f"energy {power} {half} {angular}": lambda x, p=power, h=half, a=angular: regularizers.hyperspherical_energy(
            x, power=p, half_space=h, angular=a
        )
        for power in (0, 1, 2)
        for half in (False, True)
        for angular in (False, True)
    },
    "energy of labels": lambda x: regularizers.label_energy(x, LABELS),
    "PER": lambda x: regularizers.projected_error(x, slices=8, generator=torch.Generator().manual_seed(0)),
    "PER of all directions": lambda x: regularizers.projected_error(x, slices=None, view="flatten"),
    "inverse root": lambda x: (InverseRoot.apply(x @ x.mT + torch.eye(5, dtype=x.dtype), 0.5)[0] * WAVES[:, :5]).sum(),
}
EACH = pytest.mark.parametrize("name", [*TWICE, *ONCE])


def function(name):
    return {**TWICE, **ONCE}[name]


def batch(count=3):
    return torch.randn(count, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_autograd(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


@EACH
@pytest.mark.fault("transform of torch.func")
def test_gradient(name):
    f, x = function(name), batch()[0]
    torch.testing.assert_close(grad(f)(x), by_autograd(f, x), rtol=1e-12, atol=1e-12)


@EACH
@pytest.mark.fault("transform of torch.func")
def test_values_and_gradients_of_many_at_once(name):
    f, xs = function(name), batch()
    got, values = vmap(torch.func.grad_and_value(f), randomness="same")(xs)
    for i, x in enumerate(xs):
        torch.testing.assert_close(values[i], f(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[i], by_autograd(f, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        grad(lambda every: vmap(f, randomness="same")(every).sum())(xs), got, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.fault("transform of torch.func")
def test_second_derivative(name):
    f, x = function(name), batch()[0]
    got = grad(lambda y: (grad(f)(y) * WAVES).sum())(x)
    y = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(y), y, create_graph=True)
    expected = torch.zeros_like(y)
    if first.requires_grad:  # the derivative of |x| is constant
        (expected,) = torch.autograd.grad((first * WAVES).sum(), y)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.fault("transform of torch.func")
def test_second_derivative_is_refused_and_never_0(name):
    f, x = function(name), batch()[0]
    with pytest.raises(InputError, match="no second derivatives"):
        grad(lambda y: (grad(f)(y) * WAVES).sum())(x)
    outside = x.clone().requires_grad_()
    with pytest.raises(InputError, match="no second derivatives"):
        grad(f)(outside).sum().backward()
    y = x.clone().requires_grad_()
    with pytest.raises(InputError, match="no second derivatives"):
        torch.autograd.grad(f(y), y, create_graph=True)


@pytest.mark.fault("transform of torch.func")
def test_gradients_of_each_image_through_mixup_and_network():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3).double()
    params = dict(model.named_parameters())

    def loss(params, x):
        mixing = mixup.Mixup(3, generator=torch.Generator().manual_seed(4))
        x, targets = mixing(x, LABELS)
        return losses.SoftTarget()(torch.func.functional_call(model, params, (x,)), targets)

    got = vmap(grad(loss), (None, 0), randomness="same")(params, batch())
    for i, x in enumerate(batch()):
        expected = torch.autograd.grad(loss(params, x), list(params.values()))
        for name, value in zip(params, expected, strict=True):
            torch.testing.assert_close(got[name][i], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(jacrev(lambda x: loss(params, x))(batch()[0]), grad(loss, 1)(params, batch()[0]))


class Regularized(torch.nn.Module):
    """A network and its term, so that `functional_call` swaps the weights for both."""

    def __init__(self, net, term):
        super().__init__()
        self.net, self.term = net, term

    def forward(self, x):
        return self.net(x).square().mean() + self.term()


WEIGHT_TERMS = {
    "MHE": lambda net: regularizers.MHE(net, hidden=1.0, output=1.0),
    "Orthogonality": lambda net: regularizers.Orthogonality(net, strength=1.0, output=1.0),
    "MinimumAngle": lambda net: regularizers.MinimumAngle(net, hidden=1.0, output=1.0),
}


@pytest.mark.parametrize("kind", WEIGHT_TERMS)
@pytest.mark.fault("transform of torch.func")
def test_a_weight_term_has_a_gradient_in_a_transform_or_is_refused(kind):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)).double()
    term, x = WEIGHT_TERMS[kind](net), batch()[0]
    both = Regularized(net, term)
    params = dict(both.named_parameters())
    got = grad(lambda params: torch.func.functional_call(both, params, (x,)))(params)
    expected = torch.autograd.grad(both(x), list(params.values()))
    for name, value in zip(params, expected, strict=True):
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12)

    def apart(params, x):  # the term reads the weights of `net`, not `params`
        return torch.func.functional_call(net, params, (x,)).square().mean() + term()

    params = dict(net.named_parameters())
    for transformed in (grad(apart), vmap(grad(apart), (None, 0))):
        with pytest.raises(InputError, match="has no gradient inside this transform.*functional_call"):
            transformed(params, x)
    # vmap alone keeps the gradient of autograd
    values = vmap(apart, (None, 0))(params, x)
    torch.testing.assert_close(values.mean(), both(x))
    assert torch.autograd.grad(values.mean() - net(x).square().mean(), net[0].weight)[0].any()
