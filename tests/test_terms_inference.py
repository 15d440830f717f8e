"""Terms of activations can be read where nothing is trained: in inference mode and under no_grad."""

import pytest
import torch
from torch import nn

from hyperzoo import regularizers

TERMS = {
    "PER": lambda net: regularizers.PER(net, strength=1.0, layers="1", slices=8),
    "PER of all directions": lambda net: regularizers.PER(net, strength=1.0, layers="1", slices=None),
    "VCL": lambda net: regularizers.VCL(net, layers="0", input_size=(4,)),
    "ActivationNorm": lambda net: regularizers.ActivationNorm(net, strength=1.0, layers="1"),
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.fault("term in inference mode")
def test_value_is_that_of_training(name, mode):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(10, 4)
    term = TERMS[name](net)
    with term:
        net(x)
        expected = term()
    if name == "PER":
        term.seed(0)
    with mode(), term:
        net(x)
        assert torch.equal(term(), expected.detach())
    assert term.report()
