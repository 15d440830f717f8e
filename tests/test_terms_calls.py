"""Terms of activations count the samples of packed sequences, and each call of a module; reports show what they add."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from hyperzoo.regularizers import PER, VCL, ActivationNorm, projected_error, variance_constancy

LENGTHS = (2, 5, 3)  # of the sequences of a batch


@pytest.mark.parametrize("reduce, size", [("mean", 10), ("batch", 3), ("sum", 1)])
@pytest.mark.parametrize("slices", [None, 4096])
@pytest.mark.parametrize("view", ["location", "flatten"])
def test_the_batch_of_a_packed_sequence_is_its_sequences(reduce, size, slices, view):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(3, 4))
    sequences = [torch.randn(length, 3) for length in LENGTHS]
    term = PER(model, strength=1.0, layers="0", slices=slices, reduce=reduce, view=view)
    with term:
        model(pack_sequence(sequences, enforce_sorted=False))
        value = term()
    alone = [model[0](sequence[:, None])[0] for sequence in sequences]
    expected = sum(projected_error(h) for states in alone for h in states) / size
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("p", [1, 2])
def test_the_batch_of_a_packed_sequence_in_an_activation_norm(p):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(3, 4))
    sequences = [torch.randn(length, 3) for length in LENGTHS]
    term = ActivationNorm(model, strength=1.0, p=p, layers="0")
    with term:
        model(pack_sequence(sequences, enforce_sorted=False))
        value = term()
    alone = [model[0](sequence[:, None])[0] for sequence in sequences]
    expected = sum(float((states.abs() ** p).sum()) for states in alone) / 3
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert term.report() == pytest.approx({"0": expected}, rel=1e-5)


class Steps(nn.Module):
    """An LSTM as one call of a cell per step, as `nn.LSTM(3, 4)`."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x):
        states = [self.cell(x[0])]
        for step in x[1:]:
            states.append(self.cell(step, states[-1]))
        return torch.stack([h for h, _ in states])


@pytest.mark.parametrize("reduce, share", [("mean", 7), ("batch", 1), ("sum", 1)])
def test_a_cell_counts_as_a_layer_per_step_and_the_report_shows_what_is_added(reduce, share):
    torch.manual_seed(0)
    steps, whole, x = Steps(), nn.Sequential(nn.LSTM(3, 4)), torch.randn(7, 5, 3)
    whole.load_state_dict({f"0.{key.removeprefix('cell.')}_l0": value for key, value in steps.state_dict().items()})
    values, reports = [], []
    for model, layer in ((steps, "cell"), (whole, "0")):
        term = PER(model, strength=1.0, layers=layer, reduce=reduce)
        with term:
            model(x)
            values.append(term())
        reports.append(term.report())
    torch.testing.assert_close(values[0], share * values[1])
    assert reports[0]["cell/error"] == pytest.approx(7 * reports[1]["0/error"], rel=1e-5)
    if reduce == "mean":
        assert reports[0]["cell/error"] == pytest.approx(float(values[0]), rel=1e-6)
    for what in ("mean", "variance"):
        assert reports[0][f"cell/{what}"] == pytest.approx(reports[1][f"0/{what}"], rel=1e-4)
    norms = [ActivationNorm(model, strength=1.0, layers=layer) for model, layer in ((steps, "cell"), (whole, "0"))]
    for norm, model in zip(norms, (steps, whole), strict=True):
        with norm:
            model(x)
            values.append(norm())
        assert sum(norm.report().values()) == pytest.approx(float(values[-1]), rel=1e-6)
    torch.testing.assert_close(values[2], values[3])


def test_entries_of_calls_of_different_size_have_equal_weight_in_the_report():
    layer = nn.Identity()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.weight = layer, nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.layer(x[:2] * self.weight).sum() + self.layer(x[2:] * self.weight).sum()

    model, x = Twice(), torch.arange(24.0).reshape(8, 3)
    term = PER(model, strength=1.0, layers="layer")
    with term:
        model(x)
        value = term()
    assert term.report() == pytest.approx(
        {"layer/error": float(value), "layer/mean": 11.5, "layer/variance": float(x.var(correction=0))}, rel=1e-5
    )


def test_vcl_of_a_shared_module_adds_its_calls():
    torch.manual_seed(0)
    shared = nn.Linear(3, 3)
    model, x = nn.Sequential(shared, nn.Tanh(), shared), torch.randn(10, 3)
    term = VCL(model, layers="0", strength=1.0, input_size=(3,))
    with term:
        model(x)
        value = term()
    first = shared(x)
    one, two = (variance_constancy(y, torch.ones(3)) for y in (first, shared(first.tanh())))
    torch.testing.assert_close(value, one + two)
    assert term.report() == pytest.approx({"0": float(one + two)}, rel=1e-5)
