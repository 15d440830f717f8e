"""hooks.select finds the modules that a selector matches; hooks.attached leaves no hook, whatever happens inside."""

import copy
import io

import pytest
import timm
import torch
from torch import nn

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.layers import hooks


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 4))


def resnet(device="meta"):
    return timm.create_model("resnet20_cifar", device=device)


def traces(model):
    """Everything that attaching could leave: hooks, and attributes of modules."""
    return [(len(module._forward_hooks), sorted(vars(module))) for module in model.modules()]


STAGES = {
    "resnet20_cifar": ["layer1", "layer2", "layer3"],
    "resnet18": ["act1", "layer1", "layer2", "layer3", "layer4"],
    "convnext_atto": ["stages.0", "stages.1", "stages.2", "stages.3"],
    "vit_tiny_patch16_224": [f"blocks.{i}" for i in range(12)],
    "swin_tiny_patch4_window7_224": ["layers.0", "layers.1", "layers.2", "layers.3"],
    "efficientnet_b0": ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"],
    "regnetx_002": ["stem", "s1", "s2", "s3", "s4"],
}


@pytest.mark.parametrize("arch", STAGES)
def test_stages_are_the_modules_that_timm_names(arch):
    chosen = hooks.select(timm.create_model(arch, device="meta"), "stages")
    assert list(chosen) == STAGES[arch]


def test_stages_of_a_flattened_feature_extractor():
    model = timm.create_model("convnext_atto", features_only=True, device="meta")
    assert list(hooks.select(model, "stages")) == ["stages_0", "stages_1", "stages_2", "stages_3"]


def test_names_patterns_and_types():
    model = resnet()
    assert list(hooks.select(model, ["layer2", "layer1.0.conv1"])) == ["layer2", "layer1.0.conv1"]
    assert list(hooks.select(model, "layer?")) == ["layer1", "layer2", "layer3"]
    assert list(hooks.select(model, "layer[12].*.conv2")) == [f"layer{i}.{j}.conv2" for i in (1, 2) for j in (0, 1, 2)]
    assert list(hooks.select(model, "*")) == [name for name, _ in model.named_children()]  # a star does not cross a dot
    relu = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    assert list(hooks.select(model, "type:ReLU")) == relu and len(relu) == 19
    assert list(hooks.select(model, ["fc", "layer3", "stages"])) == ["fc", "layer3", "layer1", "layer2"]
    assert all(module is model.get_submodule(name) for name, module in hooks.select(model, "*.*").items())


def test_a_module_with_two_names_is_chosen_once_under_either():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert list(hooks.select(model, "type:Linear")) == ["0"] and list(hooks.select(model, "2")) == ["2"]


def test_wrappers_are_looked_through():
    model = resnet("cpu")
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert hooks.select(wrapped, "layer1")["layer1"] is model.layer1


@pytest.mark.parametrize(
    "layers, kind, message",
    [
        ("layr2", UnknownNameError, "ResNetCifar has no layer 'layr2'. Closest: layer2, layer3, layer1."),
        ("layer1.0.con1", UnknownNameError, "Closest: layer1.0.conv1"),
        (["layer1", "layer9"], UnknownNameError, "no layer 'layer9'. Closest: layer3, layer2, layer1"),
        ("block*", UnknownNameError, "no layer 'block*'"),
        ("type:Relu", UnknownNameError, "no layer of 'type:Relu'. Closest: ReLU"),
        ([], InputError, "a list of names; got []"),
        (["layer1", 2], InputError, "got ['layer1', 2]"),
        (3, InputError, "got 3"),
    ],
)
def test_a_wrong_choice_is_named_with_the_closest(layers, kind, message):
    with pytest.raises(kind) as caught:
        hooks.select(resnet(), layers)
    assert message in str(caught.value) and isinstance(caught.value, ValueError)


def test_a_model_without_stages_and_a_list_that_is_never_called():
    with pytest.raises(InputError, match="Sequential has no feature_info.*name layers: 0, 1, 2, 3"):
        hooks.select(net(), "stages")
    model = nn.Module()
    model.parts = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    with pytest.raises(InputError, match=r"'parts' of Module is a ModuleList.*'parts\.\*'"):
        hooks.select(model, "parts")
    for several in ("part?", "type:ModuleList"):  # a term on these would add nothing
        with pytest.raises(InputError, match=r"'parts' of Module is a ModuleList.*'parts\.\*'"):
            hooks.select(model, several)
    assert list(hooks.select(model, ["parts.*"])) == ["parts.0", "parts.1"]
    model.feature_info = [dict(module="gone")]
    with pytest.raises(UnknownNameError, match="lists 'gone'"):
        hooks.select(model, "stages")


def test_fn_sees_the_outputs_in_order_and_may_replace_them():
    model, x = net(), torch.randn(5, 2)
    expected, seen = model(x), []
    with hooks.attached(hooks.select(model, ["3", "0", "2"]), lambda name, output: seen.append((name, output))):
        torch.testing.assert_close(model(x), expected)
    assert [name for name, _ in seen] == ["0", "2", "3"]
    torch.testing.assert_close(seen[1][1], model[:3](x))
    doubled = model[3](2 * model[:3](x))
    with hooks.attached(hooks.select(model, "2"), lambda name, output: 2 * output):
        torch.testing.assert_close(model(x), doubled)
    torch.testing.assert_close(model(x), expected)


def test_nothing_is_left_behind():
    model = net()
    before = traces(model)
    modules = hooks.select(model, "type:ReLU")
    with hooks.attached(modules, lambda *_: None):
        assert traces(model) != before
        with hooks.attached(modules, lambda *_: None):  # a term and a mixup on the same modules
            model(torch.zeros(1, 2))
        assert sum(hooks for hooks, _ in traces(model)) == 2
    assert traces(model) == before
    with pytest.raises(ZeroDivisionError), hooks.attached(modules, lambda *_: 1 / 0):
        model(torch.zeros(1, 2))
    assert traces(model) == before
    with pytest.raises(AttributeError), hooks.attached({"1": model[1], "bad": None}, lambda *_: None):
        pass
    assert traces(model) == before


def test_a_copy_made_inside_is_not_tapped():
    model, fired = net(), []
    with hooks.attached(hooks.select(model, "0"), lambda name, _: fired.append(name)):
        twin = copy.deepcopy(model)
        torch.testing.assert_close(twin(torch.ones(1, 2)), nn.Sequential.forward(model, torch.ones(1, 2)))
        assert fired == ["0"]
        with torch.no_grad():
            twin[0].weight.zero_()
        assert not torch.equal(twin(torch.ones(1, 2)), model(torch.ones(1, 2)))
        assert twin.state_dict().keys() == net().state_dict().keys()
    assert fired == ["0", "0"]


def test_a_model_is_saved_inside_and_its_copies_too():
    model, x, fired = net(), torch.ones(1, 2), []
    with hooks.attached(hooks.select(model, ["0", "2"]), lambda name, _: fired.append(name)):
        average = copy.deepcopy(model)
        for saved in (model, average, copy.deepcopy(average)):
            torch.save(saved, io.BytesIO())
            assert torch.equal(copy.deepcopy(saved)(x), net()(x))  # rebuilt as a pickle is
        shallow = copy.copy(model[0])
        shallow(x)
    assert torch.equal(average(x), net()(x)) and fired == []
    torch.save(average, io.BytesIO())


@pytest.mark.parametrize("arch", ["resnet20_cifar", "resnet18", "efficientnet_lite0", "convnext_atto"])
def test_a_stage_is_seen_once_also_under_gradient_checkpointing(arch):
    model = timm.create_model(arch, device="meta").train()
    model.set_grad_checkpointing()
    fired = []
    chosen = hooks.select(model, "stages")
    with hooks.attached(chosen, lambda name, _: fired.append(name)):
        model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert fired == list(chosen)


def test_an_activation_that_serves_twice_does_not_stand_for_the_stage_that_it_ends():
    relu, fired = nn.ReLU(), []
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), relu), nn.Sequential(nn.Linear(2, 3), relu))
    with hooks.attached(hooks.select(model, "1"), lambda _, output: fired.append(tuple(output.shape))):
        model(torch.zeros(1, 2))
    assert fired == [(1, 3)]


def test_a_compiled_model_notices_hooks_that_come_and_go():
    torch.compiler.reset()
    model = net()
    frames = torch._dynamo.testing.CompileCounter()
    compiled, x = torch.compile(model, backend=frames, fullgraph=True), torch.randn(5, 2)
    expected = compiled(x)
    modules = hooks.select(model, ["0", "2"])
    for _ in range(3):
        with hooks.attached(modules, lambda name, output: 2 * output):
            torch.testing.assert_close(compiled(x), model(x))
            assert not torch.allclose(compiled(x), expected)
        torch.testing.assert_close(compiled(x), expected)
    assert frames.frame_count == 2  # without hooks, and with them


def test_a_module_that_runs_twice_is_not_taken_for_the_last():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    for chain in (nn.Sequential(a, b, a), nn.Sequential(a, a)):
        model, x, seen = nn.Sequential(chain, nn.ReLU()), torch.randn(2, 3), list[torch.Tensor]()
        with hooks.attached(hooks.select(model, "0"), lambda _, output, seen=seen: seen.append(output)):
            model(x)
        assert len(seen) == 1 and torch.equal(seen[0], chain(x))
