"""Terms, losses and mixups can be copied, and sent to a spawned process, as Lightning does with their owner."""

import copy
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from hyperzoo import losses, mixup, regularizers


class Owner(nn.Module):
    """Like a Lightning module: holds the network and what it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


TERMS = {
    "MHE": lambda net: regularizers.MHE(net, hidden=1.0, output=2.0, half_space=True),
    "MHE of some neurons": lambda net: regularizers.MHE(net, hidden=1.0, output=2.0, neurons=4),
    "Orthogonality": lambda net: regularizers.Orthogonality(net, strength=1.0, output=1.0),
    "Orthogonality of directions": lambda net: regularizers.Orthogonality(net, strength=1.0, unit_rows=True),
    "MinimumAngle": lambda net: regularizers.MinimumAngle(net, hidden=1.0, output=1.0),
    "PER": lambda net: regularizers.PER(net, strength=1.0, layers="1", slices=8),
    "PER of all directions": lambda net: regularizers.PER(net, strength=1.0, layers="1", slices=None),
    "VCL": lambda net: regularizers.VCL(net, layers="0", input_size=(4,)),
    "ActivationNorm": lambda net: regularizers.ActivationNorm(net, strength=1.0, layers="1"),
}
WAYS = ("spawned process", "deepcopy")


@pytest.fixture(scope="module")
def process():
    """A spawned process that works for this module."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def value_and_gradient(owner):
    owner.net.zero_grad()
    with owner.term as term:
        owner.net(torch.linspace(-1, 2, 40).square().reshape(10, 4))
        value = term()
    value.backward()
    return value.tolist(), owner.net[0].weight.grad.tolist()


def measured(owner):
    """Value and gradient of the term, and its value after the weights of the first layer became 0."""
    found = value_and_gradient(owner)
    with torch.no_grad():
        owner.net[0].weight.zero_()
    return *found, value_and_gradient(owner)[0]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.fault("copied or sent term")
def test_copy_of_a_term_acts_on_the_copied_network(term, how, process):
    owner = Owner()
    owner.term = TERMS[term](owner.net)
    other = copy.deepcopy(owner)
    expected, gradient = value_and_gradient(owner)
    value, its_gradient, changed = measured(other) if how == "deepcopy" else process.submit(measured, other).result()
    assert (value, its_gradient) == (expected, gradient)
    assert changed != expected


def states(parts):
    """The states of the generators of mixups."""
    return [part.generator.get_state().tolist() for part in parts if isinstance(part, mixup.Mixup)]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.fault("copied or sent term", 5)
def test_copies_of_losses_and_mixups(how, process):
    net = Owner().net
    parts = [
        losses.AngularSoftmax("linear", 4),
        losses.SoftTarget("bce"),
        mixup.Mixup(3),
        mixup.CutMix(3),
        mixup.ManifoldMixup(net, 3, layers=("input", "1")),
    ]
    other = states(copy.deepcopy(parts)) if how == "deepcopy" else process.submit(states, parts).result()
    assert other == states(parts) and len(other) == 3
