"""Manifold Mixup mixes the output of one layer once, for any model and stage, but never inside a residual branch."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from support.mixing import K, batch, by_loop, close, draw, fixed, generator, mixed_by_hand, oracle, small, tiny, traces
from torch import nn

from hyperzoo.analysis.figures.mlp import BottleneckMLP
from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.mixup import ManifoldMixup


class TwoLayers(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.hidden, self.relu, self.out = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)
        self.double()
        for layer, i in ((self.hidden, 1), (self.out, 2)):
            layer.weight.data = torch.tensor(inputs[f"W{i}"], dtype=torch.float64)
            layer.bias.data = torch.tensor(inputs[f"b{i}"], dtype=torch.float64)

    def forward(self, x):
        return self.out(self.relu(self.hidden(x)))


@pytest.mark.parametrize("layer, key", [("input", "k0"), ("relu", "k1"), ("out", "k2")])
def test_two_layers_of_the_sheet(layer, key):
    inputs, expected, tolerance = oracle("mix_manifold_two_layer")
    model, x, y = TwoLayers(inputs), torch.tensor(inputs["x"], dtype=torch.float64), torch.tensor([0, 1])
    close(model(x), expected["no_mixing"], tolerance)
    mixup = fixed(ManifoldMixup(model, 2, layers=["input", "relu", "out"]), layer, inputs["lam"], inputs["perm"])
    with mixup:
        mixed, targets = mixup(x, y)
        close(model(mixed), expected[key], tolerance)
    close(targets, [[0.4, 0.6], [0.6, 0.4]])
    close(model(x), expected["no_mixing"], tolerance)


FIRST_TWO = {
    "resnet18": ("layer1", "layer2"),
    "convnext_atto": ("stages.0", "stages.1"),
    "vit_tiny_patch16_224": ("blocks.0", "blocks.1"),
    "swin_tiny_patch4_window7_224": ("layers.0", "layers.1"),
    "mobilenetv3_small_050": ("blocks.0", "blocks.1"),
    "efficientnet_lite0": ("blocks.0", "blocks.1"),
    "regnetx_002": ("s1", "s2"),
    "resnet20_cifar": ("layer1", "layer2"),
    "spherenet20": ("layer1", "layer2"),
    "preact_resnet18": ("layer1", "layer2"),
    "wrn16_4": ("layer1", "layer2"),
}


def without_random_layers(model):
    """Turn off stochastic depth and dropout, which differ between the two passes compared here."""
    for module in model.modules():
        for name in ("drop_prob", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


IN_DEFAULT_TIER = ("resnet20_cifar", "vit_tiny_patch16_224")


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[] if arch in IN_DEFAULT_TIER else pytest.mark.full) for arch in FIRST_TWO]
)
def test_every_family_is_mixed_once_at_a_stage(arch):
    model = without_random_layers(small(arch))
    mixup = ManifoldMixup(model, K, generator=generator())
    assert mixup.layers == ("input", *FIRST_TWO[arch])
    before, (x, y) = traces(model), batch()
    state = copy.deepcopy(model.state_dict())
    for layer in mixup.layers:
        d = draw(layer, 0.3, [2, 0, 1])
        with fixed(mixup, layer, 0.3, [2, 0, 1]):
            images, targets = mixup(x, y)
            got = model(images)
        model.load_state_dict(state)  # batch norm updates its statistics
        if layer == "input":
            expected, calls = model(by_loop(x, d).float()), [1]
        else:
            with mixed_by_hand(model.get_submodule(layer), d) as calls:
                expected = model(x)
            torch.testing.assert_close(images, x)
        assert len(calls) == 1
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)  # two threads change the order of sums
        torch.testing.assert_close(targets.double(), by_loop(F.one_hot(y, K), d))
        model.load_state_dict(state)
    plain = model(x)
    assert not torch.allclose(plain, got, atol=1e-3)  # mixing changes these logits
    assert traces(model) == before and model.state_dict().keys() == state.keys()


INSIDE = {
    "resnet18": (["layer1.0.conv1", "layer1.0.bn2", "layer2.0.downsample"], ["layer1.0", "conv1", "maxpool", "layer4"]),
    "convnext_atto": (["stages.1.blocks.0.mlp"], ["stages.1.downsample", "stages.1.blocks.0", "stem"]),
    "vit_tiny_patch16_224": (["blocks.0.attn", "blocks.2.mlp.fc1"], ["blocks.2", "patch_embed", "norm"]),
    "efficientnet_lite0": (["blocks.1.1.conv_pw"], ["blocks.1.0", "blocks.1.0.conv_pw", "conv_stem"]),
    "preact_resnet18": (["layer1.0.conv2", "layer2.0.shortcut"], ["layer2.1", "conv1"]),
    "regnetx_002": (["s2.b1.conv1", "s3.b2.conv2"], ["s2.b1", "s3.b2", "stem"]),
}


@pytest.mark.parametrize("arch", INSIDE)
def test_residual_branches_are_refused_with_the_reason(arch):
    model = small(arch).train()
    next(model.children()).eval()  # a frozen stem stays frozen
    inside, on_the_stream = INSIDE[arch]
    before, state, (x, y) = traces(model), copy.deepcopy(model.state_dict()), batch()
    for layer in inside:
        mixup = ManifoldMixup(model, K, layers=["input", layer])
        reason = f"{layer!r} is inside a residual branch, so the skip connection .* stage instead: "
        with pytest.raises(InputError, match=reason + ", ".join(FIRST_TWO[arch])), mixup:
            mixup(x, y)
    for layer in on_the_stream:
        mixup = ManifoldMixup(model, K, layers=layer)
        with mixup:
            mixup._check_layers(x)
    assert traces(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_layers_that_cannot_be_mixed_are_refused():
    swin, (x, y) = small("swin_tiny_patch4_window7_224"), batch()
    mixup = ManifoldMixup(swin, K, layers="layers.0.blocks.0.attn.qkv")
    with pytest.raises(InputError, match="returns 128 rows for a batch of 2"), mixup:
        mixup(x, y)
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[1](model[0](x)[None])[0][0]
    for layer, message in (("1", "'1' returns a tuple"), ("unused", "'unused' is not called")):
        mixup = ManifoldMixup(model, 2, layers=layer)
        with pytest.raises(InputError, match=message), mixup:
            mixup(torch.zeros(3, 2), torch.tensor([0, 1, 0]))


class Returning(nn.Module):
    """A model whose output is made from the logits and an earlier feature by a function."""

    def __init__(self, output):
        super().__init__()
        self.stem, self.hidden, self.fc, self.output = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3), output

    def forward(self, x):
        x = self.stem(x)
        return self.output(self.fc(self.hidden(x)), x)


@pytest.mark.parametrize(
    "output",
    [
        lambda logits, _: {"out": logits},
        lambda logits, _: OrderedDict(loss=None, logits=logits, states=(logits.sin(), [logits.cos()])),
        lambda logits, _: (logits, None),
        lambda logits, _: (logits, (logits.sin(), logits.cos())),
    ],
)
def test_outputs_of_every_structure(output):
    model = Returning(output)
    mixup = ManifoldMixup(model, 3, layers="hidden")
    with mixup:
        model(mixup(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))[0])


@pytest.mark.parametrize(
    "output", [lambda logits, x: {"out": logits, "early": [x]}, lambda logits, x: (logits, (None, x))]
)
def test_every_tensor_of_an_output_is_checked(output):
    mixup = ManifoldMixup(Returning(output), 3, layers="hidden")
    message = "'hidden' does not lead to every output of the model, .* on all paths"
    with pytest.raises(InputError, match=message), mixup:
        mixup(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))


def test_a_module_with_two_places_is_mixed_at_the_first():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(2, 2)).double()
    x, d = torch.randn(2, 2, dtype=torch.float64), draw("0", 0.3, [1, 0])
    mixup = fixed(ManifoldMixup(model, 2, layers=["0"]), "0", 0.3, [1, 0])
    with mixup:
        got = model(mixup(x, torch.tensor([0, 1]))[0])
    close(got, model[1:](by_loop(shared(x), d)))


@pytest.mark.parametrize("layer", ["input", "layer1"])
def test_a_batch_of_one_row_is_its_own_partner(layer):
    model, (x, y) = tiny().train(), batch(1, 16)
    state = copy.deepcopy(model.state_dict())
    plain = model(x)
    model.load_state_dict(state)  # batch norm updates its statistics
    with ManifoldMixup(model, K, layers=[layer]) as mixup:
        images, targets = mixup(x, y)
        assert torch.equal(model(images), plain)
    assert torch.equal(targets, F.one_hot(y, K).float())


def test_the_bottleneck_of_a_perceptron():
    model = BottleneckMLP(4, 3, before=(8,), bottleneck=2, after=(8,)).double()
    x, y, d = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]), draw("", 0.6, [4, 3, 2, 1, 0])
    mixup = fixed(ManifoldMixup(model, 3, layers="bottleneck"), "bottleneck", 0.6, [4, 3, 2, 1, 0])
    with mixup:
        got = model(mixup(x, y)[0])
    close(got, model.fc(model.after(model.act(by_loop(model.bottleneck(model.before(x)), d)))))


def test_wrong_layers():
    with pytest.raises(UnknownNameError, match="no layer 'layer9'. Closest: layer3, layer2, layer1"):
        ManifoldMixup(tiny(), K, layers=["input", "layer9"])
    with pytest.raises(InputError, match=r"got \[\]"):
        ManifoldMixup(tiny(), K, layers=[])
    with pytest.raises(InputError, match="Sequential has no feature_info with stages; pass layers"):
        ManifoldMixup(nn.Sequential(nn.Linear(2, 2)), K)
