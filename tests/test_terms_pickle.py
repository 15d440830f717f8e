"""Terms, losses and mixups can be pickled and copied, as Lightning and spawned processes do with their owner."""

import copy
import pickle

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
COPIES = {
    "pickle": lambda owner: pickle.loads(pickle.dumps(owner)),  # noqa: S301
    "deepcopy": copy.deepcopy,
}


def value_and_gradient(owner):
    owner.net.zero_grad()
    with owner.term:
        owner.net(torch.linspace(-1, 2, 40).square().reshape(10, 4))
        value = owner.term()
    value.backward()
    return value.detach(), owner.net[0].weight.grad


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.fault("pickled or copied term")
def test_copy_of_a_term_acts_on_the_copied_network(term, how):
    owner = Owner()
    owner.term = TERMS[term](owner.net)
    other = COPIES[how](owner)
    expected = value_and_gradient(owner)
    for got, want in zip(value_and_gradient(other), expected, strict=True):
        assert torch.equal(got, want)
    with torch.no_grad():
        other.net[0].weight.zero_()
    assert not torch.equal(value_and_gradient(other)[0], expected[0])


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.fault("pickled or copied term", 5)
def test_copies_of_losses_and_mixups(how):
    net = Owner().net
    for made in (
        losses.AngularSoftmax("linear", 4),
        losses.SoftTarget("bce"),
        mixup.Mixup(3),
        mixup.CutMix(3),
        mixup.ManifoldMixup(net, 3, layers=("input", "1")),
    ):
        other = COPIES[how](made)
        if isinstance(made, mixup.Mixup):
            assert torch.equal(other.generator.get_state(), made.generator.get_state())
