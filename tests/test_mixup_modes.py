"""Manifold Mixup agrees under checkpointing, autocast, compilation and several processes; off in evaluation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.mixing import (
    K,
    a_seed_for_each,
    batch,
    draw,
    fixed,
    generator,
    gradients,
    mixed_by_hand,
    small,
    tiny,
    traces,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from hyperzoo.errors import InputError
from hyperzoo.mixup import ManifoldMixup
from hyperzoo.models.preact_resnet import PreActResNet


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("make", [tiny, lambda: PreActResNet(widths=(8, 8, 12, 16), stem_width=8, num_classes=K)])
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
    """A backend that counts compiled graphs."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


# Dynamo reads `.grad` of each tensor that enters a compiled frame and hides the warning. With warnings as errors, any
# hook that uses the output of a compiled model raises it.
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
    plain(x), runs(x)  # a first pass without mixing must not be cached for all
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
    assert first == backend.graphs == 2 + len(layers)  # unmixed training, evaluation, one per layer
    assert not any(hooks for net in (plain, model) for hooks, *_ in traces(net))


@hidden_by_dynamo
def test_a_compiled_model_without_a_draw_or_run_twice():
    torch.compiler.reset()
    model, (x, y) = tiny().train(), batch(4, 8)
    runs = torch.compile(model, backend="eager", dynamic=False)
    mixup = ManifoldMixup(runs, K, layers=["layer1"])
    with pytest.raises(InputError, match="without a draw"), mixup:
        runs(x)
    with pytest.raises(InputError, match="second forward pass"), mixup:
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


class Features(nn.Module):
    """The smallest model with timm's interface and gradient checkpointing."""

    def __init__(self, checkpointing=False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.act, self.fc, self.checkpointing = nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, K), checkpointing

    def forward_features(self, x):
        return self.act(checkpoint(self.body, x, use_reentrant=False) if self.checkpointing else self.body(x))

    def forward(self, x):
        return self.fc(self.forward_features(x))


@pytest.mark.parametrize("drawn", ["input", "body", "act"])
def test_forward_features_is_a_forward_pass(drawn):
    model, x, y = Features(), torch.randn(3, 2, generator=generator()), torch.tensor([0, 1, 2])
    mixup = fixed(ManifoldMixup(model, K, layers=["input", "body", "act"]), drawn, 0.3, [1, 2, 0])
    with mixup:
        expected = model(mixup(x, y)[0])
        torch.testing.assert_close(model.fc(model.forward_features(mixup(x, y)[0])), expected)
    with pytest.raises(InputError, match="second forward pass after one draw"), mixup:
        images, _ = mixup(x, y)
        model.forward_features(images)
        model.forward_features(images)
    with pytest.raises(InputError, match="second forward pass after one draw"), mixup:
        images, _ = mixup(x, y)
        model(images)
        model.forward_features(images[:2])
    with pytest.raises(InputError, match="without a draw"), mixup:
        model.forward_features(x)


def test_a_checkpointed_pass_is_repeated_in_whichever_draw_is_current():
    """The backward pass repeats the layers of an earlier pass, which must leave the draw of the next one alone."""
    x, y = torch.randn(3, 2, generator=generator()), torch.tensor([0, 1, 2])
    grads = []
    for model in (Features(), Features(checkpointing=True)):
        mixup = ManifoldMixup(model, K, layers="body", generator=generator(1))
        with mixup:
            first = model.fc(model.forward_features(mixup(x, y)[0])).square().sum()
            images, _ = mixup(x, y)
            first.backward()
            second = model(images).square().sum()
        with mixup:
            second.backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("layer", ["input", "body"])
def test_functional_gradients_equal_those_of_autograd(layer):
    model, x, y = Features(), torch.randn(3, 2, generator=generator()), torch.tensor([0, 1, 2])
    mixup = ManifoldMixup(model, K, layers=layer)

    def loss(weights):
        mixup.seed(1)
        with mixup:
            images, targets = mixup(x, y)
            return F.cross_entropy(torch.func.functional_call(model, weights, (images,)), targets)

    weights = dict(model.named_parameters())
    got = torch.func.grad(loss)({name: weight.detach() for name, weight in weights.items()})
    expected = torch.autograd.grad(loss(weights), list(weights.values()))
    torch.testing.assert_close([*got.values()], [*expected])


def test_wrong_order_of_calls():
    model, (x, y) = tiny().train(), batch(4, 16)
    before, mixup = traces(model), ManifoldMixup(model, K, layers=["layer1"])
    with pytest.raises(InputError, match="inside its `with`"):
        mixup(x, y)
    with pytest.raises(InputError, match="without a draw"), mixup:
        model(x)
    with pytest.raises(InputError, match="second forward pass after one draw"), mixup:
        images, _ = mixup(x, y)
        model(images)
        model(images)
    with pytest.raises(InputError, match="no training forward pass reached the drawn layer 'layer1'"), mixup:
        mixup(x, y)
    with pytest.raises(InputError, match="got 2 rows for a draw of 4"), mixup:
        model(mixup(x, y)[0][:2])
    with pytest.raises(InputError, match="already active"), mixup, mixup:
        pass
    assert traces(model) == before
    with pytest.raises(ZeroDivisionError), mixup:
        model(mixup(x, y)[0])
        1 / 0  # noqa: B018
    assert traces(model) == before
    with mixup:  # works again
        model(mixup(x, y)[0])
    model(x)
