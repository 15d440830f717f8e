"""Mixup mixes rows and labels by the formula, at one layer once, on any model and in any mode, or says why not."""

import copy
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.mixup import CutMix, ManifoldMixup, Mixup
from hyperzoo.mixup.rows import Draw, mix
from hyperzoo.models.mlp import BottleneckMLP
from hyperzoo.models.preact_resnet import PreActResNet
from hyperzoo.models.resnet_cifar import ResNetCifar

ORACLES = {case["id"]: case for case in json.loads((Path(__file__).parent / "assets/mixup_oracles.json").read_text())}
K = 5


def oracle(name):
    case = ORACLES[name]
    return case["inputs"], case["expected"], case["tolerance"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(layer, lam, partner, dtype=torch.float64):
    partner = torch.tensor(partner)
    return Draw(layer, torch.tensor(lam, dtype=dtype), partner, partner.argsort())


def fixed(mixup, layer, lam, partner, dtype=torch.float64):
    """The same object with a draw that is known."""
    mixup._draw = lambda *_: draw(layer, lam, partner, dtype)
    return mixup


def by_loop(rows, d):
    """The formula, row by row, in float64."""
    lam = d.lam.double()
    return torch.stack([lam * rows[i].double() + (1 - lam) * rows[j].double() for i, j in enumerate(d.partner)])


def close(got, expected, tolerance=1e-12):
    atol = tolerance * max(1.0, got.detach().abs().max().item())
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=0, atol=atol)


def traces(model):
    return [(len(module._forward_hooks), sorted(vars(module)), module.training) for module in model.modules()]


# The formula


def test_rule_of_the_sheet():
    inputs, expected, tolerance = oracle("mix_rule_permutation")
    mixup = fixed(Mixup(inputs["num_classes"]), "input", inputs["lam"], inputs["perm"])
    x, targets = mixup(torch.tensor(inputs["x"], dtype=torch.float64), torch.tensor(inputs["labels"]))
    close(x, expected["x"], tolerance)
    close(targets, expected["targets"], tolerance)


def test_smoothing_comes_before_mixing():
    inputs, expected, tolerance = oracle("mix_timm_flip_smoothing")
    mixup = fixed(
        Mixup(inputs["num_classes"], smoothing=inputs["smoothing"]), "input", inputs["lam"], [3, 2, 1, 0]
    )  # timm's partner
    x, targets = mixup(torch.tensor(inputs["x"], dtype=torch.float64), torch.tensor(inputs["labels"]))
    close(x, expected["x"], tolerance)
    close(targets, expected["targets"], tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_multi_label_targets_are_mixed_as_they_are(dtype):
    inputs, expected, _ = oracle("mix_multilabel_targets")
    mixup = fixed(Mixup(3), "input", inputs["lam"], [1, 0])
    _, targets = mixup(torch.zeros(2, 4, dtype=torch.float64), torch.tensor(inputs["targets"]).to(dtype))
    assert targets.dtype == torch.float64
    close(targets, expected)


def test_lambda_of_zero_one_and_half_and_fixed_points_are_exact():
    inputs, expected, _ = oracle("mix_degenerate_lambda")
    x = torch.tensor(inputs["x"], dtype=torch.float64)
    for lam in inputs["lam"]:
        got = mix(x, draw("input", lam, inputs["perm_identity_check"]))
        assert got.tolist() == expected[f"lam{lam:g}_x"]
    mixup = fixed(Mixup(3), "input", 0.5, inputs["perm_identity_check"])
    assert mixup(x, torch.tensor(inputs["labels"]))[1].tolist() == expected["lam0.5_targets"]
    x = torch.randn(3, 1000, generator=generator()) * 1e3
    for lam in (0.3, 0.7, 1e-3):
        assert torch.equal(mix(x, draw("input", lam, [0, 2, 1]))[0], x[0])
    assert torch.equal(mix(x, draw("input", 1.0, [1, 2, 0])), x)
    assert torch.equal(mix(x, draw("input", 0.0, [1, 2, 0])), x[[1, 2, 0]])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-15), (torch.float32, 2e-7), (torch.bfloat16, 2e-2)])
def test_loop_dtype_memory_format_and_no_change_in_place(dtype, tolerance):
    d = draw("input", 0.3, [2, 4, 1, 0, 3], torch.float32)
    for like in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(5, 3, 6, 6, generator=generator()).to(dtype).contiguous(memory_format=like)
        before = x.clone()
        got = mix(x, d)
        assert got.dtype == dtype and got.is_contiguous(memory_format=like) and torch.equal(x, before)
        torch.testing.assert_close(got.double(), by_loop(x, d), rtol=0, atol=tolerance * 5)


def test_gradients_first_and_second():
    d = draw("input", 0.3, [2, 0, 1, 3])
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mix(x, d).sin(), x)
    assert torch.autograd.gradgradcheck(lambda x: mix(x, d).sin(), x)


# The draws


def test_moments_of_lambda():
    inputs, expected, _ = oracle("mix_beta_moments")
    for i, alpha in enumerate(inputs["alpha"]):
        mixup = Mixup(2, alpha=alpha, generator=generator(i))
        lam = torch.stack([mixup._draw(torch.zeros(2, 1), ("input",)).lam for _ in range(3000)])
        assert abs(lam.mean() - expected["mean"][i]) < 0.025
        assert abs(lam.var() - expected["variance"][i]) < 0.01
        assert abs(lam.maximum(1 - lam).mean() - expected["E_max_lam_1_minus_lam"][i]) < 0.015


def test_partners_are_permutations_and_layers_are_uniform():
    mixup = Mixup(2, generator=generator())
    counts, partners = {"input": 0, "a": 0, "b": 0}, torch.zeros(5, 5)
    for _ in range(900):
        d = mixup._draw(torch.zeros(5, 1), tuple(counts))
        counts[d.layer] += 1
        partners[torch.arange(5), d.partner] += 1
        assert sorted(d.partner.tolist()) == [0, 1, 2, 3, 4] and d.inverse[d.partner].tolist() == [0, 1, 2, 3, 4]
    assert all(abs(count - 300) < 60 for count in counts.values())  # four deviations
    assert (partners - 180).abs().max() < 55


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_draws_come_from_the_own_generator(kind):
    x, y = torch.randn(6, 3, 8, 8, generator=generator()), torch.arange(6) % K
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = kind(K), kind(K, generator=generator(3))
    results = [first(x, y), second(x, y)]
    assert torch.equal(torch.get_rng_state(), state)  # the order of the data is what it was
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(first(x, y)[0], results[0][0])
    first.seed(3)
    assert torch.equal(first(x, y)[0], results[0][0])
    first.seed(4)  # another process, another epoch
    assert not torch.equal(first(x, y)[0], results[0][0])


def test_alpha_of_zero_mixes_nothing_and_one_row_is_its_own_partner():
    x, y = torch.randn(7, 3, 8, 8, generator=generator()), torch.arange(7) % K
    for mixup in (Mixup(K, alpha=0), CutMix(K, alpha=0)):
        got, targets = mixup(x, y)
        assert torch.equal(got, x) and torch.equal(targets, F.one_hot(y, K).float())
    for mixup in (Mixup(K), CutMix(K)):
        got, targets = mixup(x[:1], y[:1])
        assert torch.equal(got, x[:1])
        torch.testing.assert_close(targets, F.one_hot(y[:1], K).float())
        with mixup as same:
            assert same is mixup


def test_cutmix_labels_follow_the_area_that_was_pasted():
    y = torch.tensor([0, 1, 2, 3, 4])
    x = y.float()[:, None, None, None].expand(5, 1, 12, 10)
    mixup, shares = CutMix(K, generator=generator(1)), set()
    for _ in range(20):
        got, targets = mixup(x, y)
        for i in range(5):
            own = (got[i] == i).float().mean()
            assert set(got[i].unique().tolist()) <= {float(i), float((i - 1) % 5)}
            torch.testing.assert_close(targets[i], own * F.one_hot(y, K)[i] + (1 - own) * F.one_hot(y, K)[i - 1])
            shares.add(round(own.item(), 4))
    assert len(shares) > 5
    assert torch.allclose(CutMix(K, smoothing=0.1)(x, y)[1].sum(1), torch.ones(5))


# Hidden layers


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


def small(arch):
    torch.manual_seed(0)
    sizes = {
        "resnet18": dict(channels=(8, 8, 12, 16)),
        "convnext_atto": dict(dims=(8, 8, 12, 16), depths=(1, 2, 1, 1)),
        "vit_tiny_patch16_224": dict(embed_dim=12, depth=3, num_heads=2, img_size=64),
        "swin_tiny_patch4_window7_224": dict(
            embed_dim=8, depths=(2, 1, 1, 1), num_heads=(1, 1, 1, 1), img_size=64, window_size=2
        ),
        "preact_resnet18": dict(widths=(8, 8, 12, 16), stem_width=8),
        "wrn16_4": dict(widths=(8, 8, 12)),
    }
    return timm.create_model(arch, num_classes=K, **sizes.get(arch, {}))


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


def batch(rows=3, size=64):
    return torch.randn(rows, 3, size, size, generator=generator(1)), torch.arange(rows) % K


def without_random_layers(model):
    """Stochastic depth and dropout draw anew in every pass; two passes are compared here."""
    for module in model.modules():
        for name in ("drop_prob", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


@contextmanager
def mixed_by_hand(module, d):
    """The formula in a hook of its own, on the last member of a stage that gradient checkpointing takes apart."""
    calls = []

    def hook(_, __, output):
        calls.append(output.shape)
        return by_loop(output, d).to(output.dtype)

    handle = module.register_forward_hook(hook)
    yield calls
    handle.remove()


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
        model.load_state_dict(state)  # batch norm counts
        if layer == "input":
            expected, calls = model(by_loop(x, d).float()), [1]
        else:
            with mixed_by_hand(model.get_submodule(layer), d) as calls:
                expected = model(x)
            torch.testing.assert_close(images, x)
        assert len(calls) == 1
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(targets.double(), by_loop(F.one_hot(y, K), d))
        model.load_state_dict(state)
    plain = model(x)
    assert not torch.allclose(plain, got, atol=1e-3)  # mixing does change these logits
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
        reason = f"{layer!r} lies inside a residual branch: the skip connection .* unmixed .* stage: "
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
    with pytest.raises(InputError, match="gives .* rows for a batch of 2"), mixup:
        mixup(x, y)
    model = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: model[1](model[0](x)[None])[0][0]
    for layer, message in (("1", "'1' gives a tuple"), ("unused", "'unused' is not called")):
        mixup = ManifoldMixup(model, 2, layers=layer)
        with pytest.raises(InputError, match=message), mixup:
            mixup(torch.zeros(3, 2), torch.tensor([0, 1, 0]))


def test_a_module_with_two_places_is_mixed_at_the_first():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(2, 2)).double()
    x, d = torch.randn(2, 2, dtype=torch.float64), draw("0", 0.3, [1, 0])
    mixup = fixed(ManifoldMixup(model, 2, layers=["0"]), "0", 0.3, [1, 0])
    with mixup:
        got = model(mixup(x, torch.tensor([0, 1]))[0])
    close(got, model[1:](by_loop(shared(x), d)))


def test_the_bottleneck_of_a_perceptron():
    model = BottleneckMLP(4, 3, before=(8,), bottleneck=2, after=(8,)).double()
    x, y, d = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]), draw("", 0.6, [4, 3, 2, 1, 0])
    mixup = fixed(ManifoldMixup(model, 3, layers="bottleneck"), "bottleneck", 0.6, [4, 3, 2, 1, 0])
    with mixup:
        got = model(mixup(x, y)[0])
    close(got, model.fc(model.after(model.act(by_loop(model.bottleneck(model.before(x)), d)))))


# Modes


def tiny(**args):
    torch.manual_seed(0)
    return ResNetCifar(depth=8, widths=(4, 6, 8), num_classes=K, **args)


def a_seed_for_each(layers):
    seeds = {}
    for seed in range(100):
        seeds.setdefault(Mixup(2, generator=generator(seed))._draw(torch.zeros(2, 1), layers).layer, seed)
    assert seeds.keys() == set(layers)
    return seeds.values()


def gradients(model, mixup, x, y, seed, inside=False, runs=None):
    """Gradients of one step; the backward pass after the `with`, as in the engine, or inside it."""
    model.zero_grad()
    mixup.seed(seed)
    with mixup:
        images, targets = mixup(x, y)
        loss = F.cross_entropy((model if runs is None else runs)(images).float(), targets)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("make", [tiny, lambda: PreActResNet(widths=(4, 4, 6, 8), stem_width=4, num_classes=K)])
def test_gradient_checkpointing_mixes_again_what_it_runs_again(make, inside):
    plain = make().train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    before, (x, y) = traces(saving), batch(5, 16)
    layers = ("input", "layer1", "layer2", "layer1.0")
    for seed in a_seed_for_each(layers):
        mixups = [ManifoldMixup(model, K, layers=layers) for model in (plain, saving)]
        expected = gradients(plain, mixups[0], x, y, seed)
        got = gradients(saving, mixups[1], x, y, seed, inside)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert traces(saving) == before


def test_a_vision_transformer_checkpointed_by_blocks():
    plain = small("vit_tiny_patch16_224").train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for seed in a_seed_for_each(("blocks.0", "blocks.1", "blocks.2")):
        both = [gradients(m, ManifoldMixup(m, K, layers="blocks.*"), *batch(), seed) for m in (plain, saving)]
        torch.testing.assert_close(both[1], both[0], rtol=1e-4, atol=1e-5)


def test_reentrant_checkpointing_is_refused():
    model = nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, K))
    model.forward = lambda x: model[2](checkpoint(model[1], model[0](x), use_reentrant=True))
    mixup = ManifoldMixup(model, K, layers="1")
    with pytest.raises(InputError, match="use_reentrant=False"), mixup:
        model(mixup(torch.randn(3, 2), torch.tensor([0, 1, 2]))[0])
    assert not any(hooks for hooks, *_ in traces(model))


def test_autocast_and_half_precision_layers():
    model, (x, y) = tiny().train(), batch(5, 16)
    d = draw("layer2", 0.3, [4, 3, 2, 0, 1])
    mixup = fixed(ManifoldMixup(model, K, layers="layer2"), "layer2", 0.3, [4, 3, 2, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        with mixup:
            images, targets = mixup(x, y)
            got = model(images)
        with mixed_by_hand(model.layer2, d):
            expected = model(x)
    assert targets.dtype == torch.float32 and images.dtype == torch.float32
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=0.1)


class Counting:
    """A backend that counts what it compiles."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


# Dynamo asks each tensor that a compiled frame receives for its `.grad`, and hides the warning by not showing it. Where
# warnings are errors it escapes, with every hook that uses the output of a compiled model.
hidden_by_dynamo = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@hidden_by_dynamo
@pytest.mark.parametrize("in_place", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_compiled_model_has_one_graph_for_each_layer(in_place):
    torch.compiler.reset()
    plain, backend = tiny().train(), Counting()
    model = copy.deepcopy(plain)
    layers, (x, y) = ("input", "layer1", "layer2"), batch(4, 8)
    if in_place:
        model.compile(backend=backend, fullgraph=True, dynamic=False)
        runs = model
    else:
        runs = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
    plain(x), runs(x)  # a pass without mixing comes first, and is no trap
    twin, mixup = ManifoldMixup(plain, K, layers=layers), ManifoldMixup(runs, K, layers=layers)
    assert mixup.layers == layers
    for epoch in range(3):
        for seed in a_seed_for_each(layers):
            expected = gradients(plain, twin, x, y, seed)
            torch.testing.assert_close(gradients(model, mixup, x, y, seed, runs=runs), expected, rtol=1e-4, atol=1e-5)
        model.eval()
        torch.testing.assert_close(runs(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
        model.train(), plain.train()
        if not epoch:
            first = backend.graphs
    assert first == backend.graphs == 2 + len(layers)  # without mixing in training and in evaluation, and one a layer
    assert not any(hooks for net in (plain, model) for hooks, *_ in traces(net))


@hidden_by_dynamo
def test_a_compiled_model_without_a_draw_or_run_twice():
    torch.compiler.reset()
    model, (x, y) = tiny().train(), batch(4, 8)
    runs = torch.compile(model, backend="eager", dynamic=False)
    mixup = ManifoldMixup(runs, K, layers=["layer1"])
    with pytest.raises(InputError, match="without a draw"), mixup:
        runs(x)
    with pytest.raises(InputError, match="ran twice"), mixup:
        runs(mixup(x, y)[0])
        runs(x)
    with mixup:
        runs(mixup(x, y)[0])


def test_data_parallel_wrapper_and_a_draw_of_its_own_for_every_process(tmp_path):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain, (x, y) = tiny().train(), batch(5, 16)
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        twin, mixup = ManifoldMixup(plain, K, layers=["layer1"]), ManifoldMixup(wrapped, K, layers=["layer1"])
        got = gradients(wrapped, mixup, x, y, 3)
        torch.testing.assert_close(got, gradients(plain, twin, x, y, 3))
        assert not torch.equal(got[0], gradients(wrapped, mixup, x, y, 4)[0])
    finally:
        torch.distributed.destroy_process_group()


def test_evaluation_is_silent():
    model, (x, y) = tiny().train(), batch(4, 16)
    mixup = ManifoldMixup(model, K, layers=["layer1"], smoothing=0.1)
    model.eval()
    plain = model(x)
    with mixup:
        images, targets = mixup(x, y)
        assert images is x and torch.equal(targets, F.one_hot(y, K).float())
        assert torch.equal(model(images), plain)
        model.train()
        images, targets = mixup(x, y)
        model.eval()
        assert torch.equal(model(x), plain)  # between a draw and its training pass
        model.train()
        model(images)
    assert torch.allclose(targets.sum(1), torch.ones(4))


def test_a_copy_made_inside_is_not_mixed():
    model, (x, y) = tiny().train(), batch(4, 16)
    plain, mixup = model(x), ManifoldMixup(model, K, layers=["layer1"])
    with mixup:
        images, _ = mixup(x, y)
        averaged = copy.deepcopy(model)
        model(images)
        torch.testing.assert_close(averaged(x), plain)
        assert averaged.state_dict().keys() == model.state_dict().keys()


def test_parts_of_a_batch_have_a_draw_each():
    model, (x, y) = tiny().train(), batch(5, 16)
    mixup = ManifoldMixup(model, K, layers=["layer1", "input"], generator=generator())
    loss = 0
    with mixup:
        for images, labels in zip(x.split(2), y.split(2), strict=True):  # 2, 2 and 1
            images, targets = mixup(images, labels)
            loss = loss + F.cross_entropy(model(images), targets)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# Bad input


@pytest.mark.parametrize(
    "args, message",
    [
        (dict(num_classes=1), "num_classes .* at least 2; got 1"),
        (dict(num_classes=2.0), "got 2.0"),
        (dict(num_classes=3, alpha=-0.1), "alpha must be a number of at least 0.*got -0.1"),
        (dict(num_classes=3, alpha=float("nan")), "got nan"),
        (dict(num_classes=3, alpha="1"), "got '1'"),
        (dict(num_classes=3, smoothing=1.5), "smoothing must be .* got 1.5"),
    ],
)
@pytest.mark.parametrize("kind", [Mixup, CutMix, lambda **args: ManifoldMixup(tiny(), layers="layer1", **args)])
def test_wrong_arguments(kind, args, message):
    with pytest.raises(InputError, match=message):
        kind(**args)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 5]), "labels must lie in 0 to 4; got 0 to 5"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([-1, 2]), "got -1 to 2"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 1.0]), r"integers; got float32 \(2,\)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([True, False]), "integers; got bool"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64), "an empty batch"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1, 2]), r"the B = 2 of x; got int64 \(3,\)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor(1), r"got int64 \(\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), r"targets must be \(B, 5\).* got float32 \(2, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 5), 1.5), "targets must lie in 0 to 1; got 1.5"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 5), torch.nan), "got nan"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), r"floating-point .* uint8 \(2, 3, 4, 4\)"),
        (torch.zeros(2), torch.tensor([0, 1]), r"got float32 \(2,\)"),
    ],
)
def test_wrong_batches(x, y, message):
    model = tiny().train()
    before = traces(model)
    for mixup in (Mixup(K), CutMix(K), ManifoldMixup(model, K, layers="layer1")):
        with pytest.raises(InputError, match=message), mixup:
            mixup(x, y)
    assert traces(model) == before


def test_smoothing_of_shares_and_cutmix_of_rows():
    with pytest.raises(InputError, match="smoothing is for class numbers"):
        Mixup(K, smoothing=0.1)(torch.zeros(2, 3), torch.zeros(2, K))
    with pytest.raises(InputError, match=r"\(B, C, H, W\); got float32 \(2, 3\)"):
        CutMix(K)(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_wrong_layers():
    with pytest.raises(UnknownNameError, match="no layer 'layer9'. Closest: layer3, layer2, layer1"):
        ManifoldMixup(tiny(), K, layers=["input", "layer9"])
    with pytest.raises(InputError, match=r"got \[\]"):
        ManifoldMixup(tiny(), K, layers=[])
    with pytest.raises(InputError, match="Sequential has no feature_info with stages; name layers"):
        ManifoldMixup(nn.Sequential(nn.Linear(2, 2)), K)


def test_wrong_order_of_calls():
    model, (x, y) = tiny().train(), batch(4, 16)
    before, mixup = traces(model), ManifoldMixup(model, K, layers=["layer1"])
    with pytest.raises(InputError, match="draws inside a `with`"):
        mixup(x, y)
    with pytest.raises(InputError, match="without a draw"), mixup:
        model(x)
    with pytest.raises(InputError, match="ran twice after one draw"), mixup:
        images, _ = mixup(x, y)
        model(images)
        model(images)
    with pytest.raises(InputError, match="'layer1' was drawn, and no training forward pass"), mixup:
        mixup(x, y)
    with pytest.raises(InputError, match="4 rows were drawn, and 2 came"), mixup:
        model(mixup(x, y)[0][:2])
    with pytest.raises(InputError, match="entered already"), mixup, mixup:
        pass
    assert traces(model) == before
    with pytest.raises(ZeroDivisionError), mixup:
        model(mixup(x, y)[0])
        1 / 0  # noqa: B018
    assert traces(model) == before
    with mixup:  # and all is well again
        model(mixup(x, y)[0])
    model(x)
