"""L1 and L2 penalties of activations equal their formula and act on each layer."""

import pytest
import torch
from torch import nn

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.regularizers import ActivationNorm, lp_penalty


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def vectors(batch=6):
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (3, 2, 2, 3)])
def test_equals_the_loop(shape, p):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = sum(abs(entry) ** p for entry in x.flatten().tolist()) / shape[0]
    assert float(lp_penalty(x, p=p)) == pytest.approx(expected, rel=1e-12)  # rounding
    assert torch.autograd.gradcheck(lambda x: lp_penalty(x, p=p), x.requires_grad_())
    zeros = torch.zeros(shape).requires_grad_()
    lp_penalty(zeros, p=p).backward()
    assert zeros.grad.count_nonzero() == 0
    half = torch.full(shape, 300.0, dtype=torch.float16)  # its square overflows float16
    assert lp_penalty(half, p=p).dtype == torch.float32 and lp_penalty(half, p=p).isfinite()


@pytest.mark.parametrize("p", [1, 2])
def test_the_term_is_the_formula_on_each_layer(p):
    model, x = net(), vectors()
    term = ActivationNorm(model, strength=0.3, p=p, layers=["1", "3"])
    assert list(term.parameters()) == []
    with term:
        model(x)
        value = term()
    first = model[0](x).relu()
    second = model[2](first).tanh()
    expected = 0.3 * (first.abs() ** p).sum() / 6 + 0.3 * (second.abs() ** p).sum() / 6
    torch.testing.assert_close(value, expected)
    tensors = list(model[:4].parameters())
    wanted = torch.autograd.grad(expected, tensors)
    for got, grad in zip(torch.autograd.grad(value, tensors), wanted, strict=True):
        torch.testing.assert_close(got, grad)
        assert got.abs().sum() > 0
    assert term.report() == pytest.approx({"1": float((first**p).sum() / 6), "3": float((second.abs() ** p).sum() / 6)})


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_batch_of_an_lstm_is_the_batch(batch_first):
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=batch_first))
    x = torch.randn(2, 7, 3)
    term = ActivationNorm(model, strength=1.0, p=2, layers="type:LSTM")
    with term:
        out, _ = model(x if batch_first else x.transpose(0, 1))
        torch.testing.assert_close(term(), out.square().sum() / 2)


def test_nothing_in_evaluation_and_nothing_behind():
    model = net().eval()
    term = ActivationNorm(model, strength=1.0, layers="1")
    with term:
        model(vectors())
        assert term() == 0
    assert not model[1]._forward_hooks and model[1].inplace


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (dict(strength=-1), InputError, "got -1"),
        (dict(p=3), InputError, "p must be 1 or 2; got 3"),
        (dict(layers="type:GELU"), UnknownNameError, "type:GELU"),
        (dict(layers=()), InputError, r"got \(\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ActivationNorm(net(), **{"strength": 1.0, "layers": "1", **arguments})


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match=r"not empty; got float32 \(0, 3\)"):
        lp_penalty(torch.zeros(0, 3))
