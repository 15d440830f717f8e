"""The networks of the PER and MHE papers have the layers, parameters and initial weights of their papers."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.models.cnn_cifar import ACTIVATIONS, CNN11, SECOND_MOMENT
from hyperzoo.models.fixup_resnet import FixupResNet

ELEVEN = [f"cnn11_{act}{suffix}" for act in ("relu", "leaky_relu", "elu") for suffix in ("", "_bn")]
SHALLOW = {"fixup_resnet56_cifar": dict(depth=20), "resnet56_pad_cifar": dict(depth=20)}
MORE = ("cnn11_leaky_relu_bn", "resnet56_pad_cifar", "cnn9_w16")
SMALL = ["cnn11_elu", "fixup_resnet56_cifar", *(pytest.param(arch, marks=pytest.mark.full) for arch in MORE)]


def make(arch, **args):
    torch.manual_seed(0)
    return timm.create_model(arch, **SHALLOW.get(arch, {}) | args).eval()


def images(batch=2, channels=3, size=32):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_eleven_layers():
    """Table 3.2 of the fact sheet, layer by layer."""
    model = timm.create_model("cnn11_elu", device="meta")
    stages = [getattr(model, f"stage{i}") for i in range(1, 7)]
    convolutions = [[parameters(unit) for unit in stage] for stage in stages]
    expected = [[14592], [37056, 414960], [57840, 249860], [67860, 291480], [78680, 336300], [90300]]
    assert convolutions == expected and parameters(model.fc) == 3010
    assert parameters(model) == 1_641_938
    assert parameters(timm.create_model("cnn11_elu", num_classes=100, device="meta")) == 1_669_028


@pytest.mark.parametrize("arch", ELEVEN)
def test_kind_of_the_eleven_layer_networks(arch):
    model = timm.create_model(arch, device="meta")
    act = arch.removeprefix("cnn11_").removesuffix("_bn")
    kinds = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU}
    counted = [module for module in model.modules() if isinstance(module, tuple(kinds.values()))]
    assert len(counted) == 10 and {type(module) for module in counted} == {kinds[act]}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == (10 if arch.endswith("_bn") else 0) and {norm.eps for norm in norms} <= {1e-3}
    # gamma and beta of 2,544 channels; ten scalar biases where the activation is not ELU
    assert parameters(model) == 1_641_938 + 2 * 2544 * bool(norms) + 10 * (act != "elu")
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.0, 0.1, 0.2, 0.3, 0.4] and model.drop_rate == 0.5


def by_hand(model, x):
    """The table in functional form; even kernels pad one more pixel on the right and at the bottom."""
    act = {"relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.01), "elu": F.elu}[model.activation]
    for i, stage in enumerate([model.stage1, model.stage2, model.stage3, model.stage4, model.stage5, model.stage6]):
        for unit in stage:
            size = unit.conv.kernel_size[0]
            left, right = (size - 1) // 2, size // 2
            x = F.conv2d(F.pad(x, (left, right, left, right)), unit.conv.weight, unit.conv.bias)
            if hasattr(unit, "bn"):
                x = unit.bn(x)
            x = act(x)
            if hasattr(unit, "shift"):
                x = x + unit.shift.bias
        if i < 5:
            x = F.max_pool2d(x, 2)
    return x[:, :, 0, 0] @ model.fc.weight.T + model.fc.bias


@pytest.mark.parametrize("arch", ["cnn11_elu", "cnn11_relu", "cnn11_leaky_relu_bn"])
def test_the_eleven_layers_compute_the_table(arch):
    model = make(arch)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(p.numel()))
        torch.testing.assert_close(model(images()), by_hand(model, images()), rtol=1e-4, atol=1e-5)


def test_the_number_of_activations_is_that_of_vcl_in_the_paper():
    """'VCL adds about 350K parameters': one per activation, which determines the width factor 1."""
    model, count = make("cnn11_elu"), []
    for module in model.modules():
        if isinstance(module, nn.ELU):
            module.register_forward_hook(lambda _, __, out: count.append(out[0].numel()))
    with torch.no_grad():
        model(images(1))
    assert sum(count) == 350_460


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_initial_weights_preserve_the_second_moment(activation):
    z = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0))
    moment = ACTIVATIONS[activation]()(z).square().mean()
    assert float(moment) == pytest.approx(SECOND_MOMENT[activation], rel=3e-3)  # of 4 million draws
    torch.manual_seed(0)
    model = CNN11(activation)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            std = (SECOND_MOMENT[activation] * module.weight[0].numel()) ** -0.5
            assert float(module.weight.std()) == pytest.approx(std, rel=0.02) and not module.bias.any()


@pytest.mark.parametrize(
    "arch, classes, expected",
    [
        ("cnn9_w64", 100, 2_995_520),
        ("cnn9_w64", 10, 2_972_480),
        ("cnn9_w16", 100, 408_656),
        ("cnn9_w32", 100, 1_031_328),
        ("cnn9_w128", 100, 9_799_296),
        ("cnn9_w256", 100, 34_908_416),
        ("cnn6_w64", 100, 2_220_480),
        ("cnn15_w64", 100, 4_545_600),
    ],
)
def test_parameters_of_the_networks_of_the_mhe_paper(arch, classes, expected):
    model = timm.create_model(arch, num_classes=classes, device="meta")
    assert parameters(model) == expected
    assert not any(isinstance(module, nn.Conv2d) and module.bias is not None for module in model.modules())
    assert model.fc.bias is None and [type(module) for module in model.fc6][1:] == [nn.Conv2d, nn.Identity, nn.Identity]


@pytest.mark.parametrize("depth, parts", [(56, (41_517, 161_325, 645_165)), (110, (83_034, 327_258, 1_308_762))])
def test_parameters_of_fixup_networks_and_their_baselines(depth, parts):
    """Table 3.1 of the fact sheet."""
    model = timm.create_model(f"fixup_resnet{depth}_cifar", device="meta")
    assert parameters(model.conv1) + parameters(model.norm1) == 433
    assert tuple(parameters(layer) for layer in (model.layer1, model.layer2, model.layer3)) == parts
    assert parameters(model.bias2) + parameters(model.fc) == 651
    assert parameters(model) == {56: 849_091, 110: 1_720_138}[depth]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    baseline = timm.create_model(f"resnet{depth}_pad_cifar", device="meta")
    assert parameters(baseline) == {56: 853_018, 110: 1_727_962}[depth]


def test_fixup_starts_with_empty_branches():
    model = make("fixup_resnet56_cifar", depth=56)
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            assert not block.conv2.weight.any()
            std = math.sqrt(2 / (9 * block.conv1.out_channels)) * 27**-0.5
            assert float(block.conv1.weight.std()) == pytest.approx(std, rel=0.05)
            biases = (block.bias1a, block.bias1b, block.bias2a, block.bias2b)
            assert all(not bias.bias.any() for bias in biases) and block.scale.scale.item() == 1
    assert not model.fc.weight.any() and not model.fc.bias.any()
    x = F.relu(model.conv1(images()))
    features = model.forward_features(images())
    torch.testing.assert_close(features[:, :16], x[:, :, ::4, ::4])  # only the shortcuts
    assert not features[:, 16:].any()


@pytest.mark.parametrize("arch", ["fixup_resnet56_cifar", "resnet56_pad_cifar"])
def test_residual_blocks_compute_their_formula(arch):
    model = make(arch)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(p.numel()))
        x = images(size=8)
        y = F.conv2d(x, model.conv1.weight, padding=1)
        y = F.relu(y + model.norm1.bias if "fixup" in arch else model.norm1(y))
        for stage, stride in ((model.layer1, 1), (model.layer2, 2), (model.layer3, 2)):
            for i, block in enumerate(stage):
                step = stride if i == 0 else 1
                if "fixup" in arch:
                    shifted = y + block.bias1a.bias
                    out = F.relu(F.conv2d(shifted, block.conv1.weight, stride=step, padding=1) + block.bias1b.bias)
                    out = F.conv2d(out + block.bias2a.bias, block.conv2.weight, padding=1)
                    out = out * block.scale.scale + block.bias2b.bias
                else:
                    shifted = y
                    out = F.relu(block.bn1(F.conv2d(y, block.conv1.weight, stride=step, padding=1)))
                    out = block.bn2(F.conv2d(out, block.conv2.weight, padding=1))
                if step == 2:  # a 1 x 1 average pool of stride 2, and zeros
                    half = F.avg_pool2d(shifted, 1, 2)
                    y = torch.cat([half, torch.zeros_like(half)], 1)
                y = F.relu(out + y)
        pooled = y.mean((2, 3))
        logits = F.linear(pooled + model.bias2.bias if "fixup" in arch else pooled, model.fc.weight, model.fc.bias)
        torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", SMALL)
def test_sizes_heads_features_and_training(arch):
    model = make(arch, num_classes=4)
    for size in (8, 20):
        assert model(images(size=size)).shape == (2, 4)
    assert model(images(0)).shape == (0, 4)
    model.train()
    model(images(4, size=16)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    backbone = make(arch, features_only=True)
    maps = backbone(images())
    assert [m.shape[1] for m in maps] == backbone.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == backbone.feature_info.reduction()
    last, intermediates = make(arch).forward_intermediates(images())
    for a, b in zip(maps, intermediates, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(last, make(arch).forward_features(images()))
    assert last.shape[2:] == make(arch).pretrained_cfg["pool_size"]
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="relu, leaky_relu, elu; got 'gelu'"):
        CNN11("gelu")
    with pytest.raises(InputError, match=r"five numbers; got \(0.1,\)"):
        CNN11(stage_drop_rates=(0.1,))
    with pytest.raises(InputError, match="6n \\+ 2 .* got 57"):
        FixupResNet(57)
    with pytest.raises(InputError, match=r"got \(16, 8, 64\)"):
        FixupResNet(20, widths=(16, 8, 64))
    for arch in ("cnn11_elu", "fixup_resnet56_cifar", *MORE):
        with pytest.raises(InputError, match=r"\(batch, 3, height, width\)"):
            timm.create_model(arch, device="meta")(torch.zeros(2, 1, 32, 32, device="meta"))
