"""MHE adds the energies of hidden layers and output layer, optionally over drawn rows or the labels of a batch."""

import math

import pytest
import torch
from support import oracles
from support.oracles import close, normal
from support.slow_energy import slow_energy, slow_label_energy
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.regularizers import MHE, mhe


def test_published_total():
    case = oracles.load("mhe")["mhe_total_regulariser"]
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(3, 4), nn.Linear(2, 3)).double()
    for layer, name in zip(net, ("hidden_conv_OIHW", "hidden_linear", "output"), strict=True):
        layer.weight = nn.Parameter(torch.tensor(case["inputs"][name], dtype=torch.float64))
    strengths = dict(hidden=case["inputs"]["hidden_weight"], output=case["inputs"]["output_weight"])
    close(MHE(net, **strengths, half_space=True, eps=0)(), case["expected"], case["tolerance"])


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


@pytest.mark.parametrize("half_space", [False, True])
def test_by_default_only_layers_of_more_than_1024_rows_are_sampled(half_space, monkeypatch):
    assert mhe.WIDE == 1024  # wider than every layer of the published recipes, which train with all rows
    monkeypatch.setattr(mhe, "WIDE", 5)
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 8), nn.Linear(8, 2)).double()
    settings = dict(hidden=1.0, output=0, half_space=half_space)
    narrow, wide = net[0].weight.detach(), net[1].weight.detach()
    close(MHE(net, layers="0", **settings)(), slow_energy(narrow, half_space=half_space), 1e-10)
    close(MHE(net, layers="1", neurons=8, **settings)(), slow_energy(wide, half_space=half_space), 1e-10)
    drawn = torch.randperm(8, generator=torch.Generator().manual_seed(0))[:5]
    expected = slow_energy(wide[drawn], half_space=half_space)
    if half_space:  # from 10 vectors to 16: the pairs of a row and its negative, of energy 1 / 4, weigh less
        expected = (7 * (9 * expected - 0.25) / 4 + 0.25) / 15
    close(MHE(net, layers="1", **settings)(), expected, 1e-10)


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
    with pytest.raises(InputError, match=r"0 to 5; got 1 to 6"):
        term(torch.tensor([1, 6]))


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


def test_weight_normalized_layers_are_followed():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 3))
    term = MHE(net, hidden=1.0, output=0)
    close(term(), slow_energy(net[0].weight.detach()), 1e-5)  # float32
    term().backward()
    assert net[0].parametrizations.weight.original1.grad.abs().sum() > 0
