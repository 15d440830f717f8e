"""Pre-activation and wide ResNets equal the fact sheet's forward pass and keep timm's contract; bottleneck MLPs."""

import re
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn

from hyperzoo.analysis.figures.mlp import BottleneckMLP, mlp_spiral
from hyperzoo.errors import InputError
from hyperzoo.models.preact_resnet import PreActResNet

COUNTS = {  # classes: parameters, of the sheet
    "preact_resnet18": {10: 11_171_146, 100: 11_217_316, 200: 11_268_616},
    "preact_resnet34": {10: 21_279_306, 100: 21_325_476},
    "preact_resnet50": {10: 23_509_066, 100: 23_693_476},
    "wrn28_10": {10: 36_489_290, 100: 36_546_980},
}
NARROW = {
    "preact_resnet18": dict(widths=(4, 6, 8, 12), stem_width=4),
    "preact_resnet34": dict(widths=(4, 6, 8, 12), stem_width=4),
    "preact_resnet50": dict(widths=(8, 12, 16, 24), stem_width=4),
    "wrn16_4": dict(widths=(4, 6, 8)),
    "wrn28_10": dict(widths=(4, 6, 8)),
}
SMALL = ["preact_resnet18", *(pytest.param(arch, marks=pytest.mark.full) for arch in ("preact_resnet50", "wrn16_4"))]


def make(arch, **args):
    torch.manual_seed(0)
    model = timm.create_model(arch, **NARROW[arch] | args).eval()
    for norm in model.modules():  # running statistics as after training
        if isinstance(norm, nn.BatchNorm2d) and not norm.weight.is_meta:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return model


def images(batch=2, channels=3, size=16):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def layer_parameters(model, part):
    return sum(p.numel() for p in model.get_submodule(part).parameters())


@pytest.mark.parametrize("arch", COUNTS)
def test_parameter_counts_of_the_sheet(arch):
    for classes, count in COUNTS[arch].items():
        model = timm.create_model(arch, num_classes=classes, device="meta")
        assert sum(p.numel() for p in model.parameters()) == count


def test_parts_of_preact_resnet18_and_wide_nets_without_biases():
    model = timm.create_model("preact_resnet18", device="meta")
    parts = {"conv1": 1728, "layer1": 147_968, "layer2": 525_184, "layer3": 2_098_944, "layer4": 8_392_192, "fc": 5130}
    assert {part: layer_parameters(model, part) for part in parts} == parts
    for classes, count in ((10, 36_479_194), (100, 36_536_884)):
        bare = timm.create_model("wrn28_10", conv_bias=False, num_classes=classes, device="meta")
        assert sum(p.numel() for p in bare.parameters()) == count
    count, channels = 3 * 16 * 9 + 16, 16  # WRN-16-4 from the definition: two blocks a stage, biases, last norm, head
    for width in (64, 128, 256):
        for _ in range(2):
            count += 2 * channels + 9 * channels * width + width + 2 * width + 9 * width * width + width
            count += channels * width + width if channels != width else 0
            channels = width
    model = timm.create_model("wrn16_4", device="meta")
    assert sum(p.numel() for p in model.parameters()) == count + 2 * 256 + 2570
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [2, 2, 2, 0]


def reference(model, x, wide):
    """The forward pass of the fact sheet, section 3.1, with the tensors of a model."""
    state = model.state_dict()

    def norm_relu(x, name):
        args = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *args))

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    x = conv(x, "conv1")
    blocks = dict.fromkeys(match[0] for name in state if (match := re.match(r"layer\d\.\d", name)))
    for block in blocks:
        stride = 2 if block[5] > "1" and block.endswith(".0") else 1
        last = 3 if f"{block}.conv3.weight" in state else 2
        strided = 2 if wide or last == 3 else 1  # the convolution that has the stride
        out, skip = x, x
        for i in range(1, last + 1):
            out = norm_relu(out, f"{block}.bn{i}")
            if i == 1 and f"{block}.shortcut.weight" in state:
                skip = conv(x if wide else out, f"{block}.shortcut", stride)
            out = conv(out, f"{block}.conv{i}", stride if i == strided else 1)
        x = out + skip
    if wide:
        x = norm_relu(x, "norm")
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("arch", SMALL)
def test_forward_pass_of_the_sheet(arch):
    model = make(arch).double()
    torch.testing.assert_close(model(images().double()), reference(model, images().double(), arch.startswith("wrn")))


def test_a_stem_for_larger_images():
    model = make("preact_resnet18", stem_stride=2)
    assert model(images(size=64)).shape == (2, 10)
    assert model.forward_features(images(size=64)).shape[2:] == (4, 4)
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]


@pytest.mark.parametrize("arch", SMALL)
def test_heads_gradients_and_features(arch):
    model = make(arch, num_classes=7).train()
    model(images()).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    model.eval()
    features = model.forward_features(images())
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(images()))
    model.reset_classifier(5)
    assert model(images()).shape == (2, 5)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images()), features)
    model, backbone = make(arch), make(arch, features_only=True)
    last, intermediates = model.forward_intermediates(images())
    torch.testing.assert_close(last, model.forward_features(images()))
    for a, b in zip(backbone(images()), intermediates, strict=True):
        torch.testing.assert_close(a, b)
    assert [x.shape[1] for x in intermediates] == backbone.feature_info.channels() == list(NARROW[arch]["widths"])
    assert [16 // x.shape[2] for x in intermediates] == backbone.feature_info.reduction()
    size = timm.get_pretrained_cfg(arch).pool_size
    assert model.forward_features(images(1, size=32)).shape[2:] == size


@pytest.mark.parametrize("arch", SMALL)
def test_pruning_groups_and_checkpointing(arch):
    model = make(arch)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert not any(name.startswith(("layer3", "layer4", "norm", "fc")) for name, _ in model.named_parameters())
    torch.testing.assert_close(model(images()), make(arch).forward_intermediates(images())[1][1])
    model = make(arch)
    model.prune_intermediate_layers(1, prune_norm=True)
    torch.testing.assert_close(model(images()), make(arch).forward_intermediates(images())[1][-1])
    plain, saving = make(arch), make(arch)
    names = sorted(name for name, _ in plain.named_parameters())
    for coarse in (False, True):
        groups = group_parameters(plain, plain.group_matcher(coarse))
        assert sorted(name for members in groups.values() for name in members) == names
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(images()).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(*(model.forward_intermediates(images())[1] for model in (plain, saving)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("arch", SMALL)
def test_script_trace_meta_dtypes_and_formats(arch):
    model = make(arch)
    expected = model(images())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        warnings.filterwarnings("ignore", "The TorchScript type system", UserWarning)
        versions = [torch.fx.symbolic_trace(model), torch.jit.script(model)]
        versions.append(torch.jit.script(versions[0]))
    for version in versions:
        torch.testing.assert_close(version(images()), expected, rtol=1e-4, atol=1e-5)
    assert make(arch, dtype=torch.bfloat16)(images().bfloat16()).dtype == torch.bfloat16
    assert make(arch, device="meta")(images().to("meta")).shape == (2, 10)
    assert make(arch, in_chans=1, drop_rate=0.5)(images(channels=1)).shape == (2, 10)
    assert model(images(0)).shape == (0, 10)
    x = images().contiguous(memory_format=torch.channels_last)
    features = model.to(memory_format=torch.channels_last).forward_features(x)
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "args, message",
    [
        (dict(block="big"), "block must be one of basic, bottleneck, wide; got 'big'"),
        (dict(depths=(1, 1)), r"same length, 3 or 4; got \(1, 1\)"),
        (dict(depths=(1, 0, 1, 1)), r"got \(1, 0, 1, 1\)"),
        (dict(widths=(1, 1, 1)), r"and \(1, 1, 1\)"),
    ],
)
def test_wrong_arguments(args, message):
    with pytest.raises(InputError, match=message):
        PreActResNet(**args)


@pytest.mark.parametrize("bad", [torch.zeros(3, 32, 32), torch.zeros(2, 1, 32, 32), torch.zeros(2, 3, 8, 8).byte()])
def test_wrong_images(bad):
    with pytest.raises(InputError, match=r"\(batch, 3, height, width\)"):
        make("wrn16_4")(bad)
    with pytest.raises(InputError, match="output_fmt must be 'NCHW'; got 'NLC'"):
        make("wrn16_4").forward_intermediates(images(), output_fmt="NLC")


def test_the_perceptron_of_the_paper():
    with torch.device("meta"):
        model = mlp_spiral()
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    assert widths == [128, 128, 128, 128, 2, 128, 128, 128, 2]
    assert model(torch.zeros(3, 2, device="meta")).shape == (3, 2)
    assert model.get_submodule(model.feature_info[0]["module"]).out_features == model.feature_info[0]["num_chs"]


def test_a_perceptron_by_hand_and_wrong_input():
    torch.manual_seed(0)
    model = BottleneckMLP(2, 3, before=(4, 5), bottleneck=2, after=(6,)).double()
    x = expected = torch.randn(7, 2, dtype=torch.float64)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for i, layer in enumerate(layers):
        expected = expected @ layer.weight.T + layer.bias
        if i + 1 < len(layers):
            expected = torch.where(expected > 0, expected, 0.01 * expected)
    torch.testing.assert_close(model(x), expected)
    for bad in (torch.zeros(7, 3), torch.zeros(2), torch.zeros(7, 2, dtype=torch.int64)):
        with pytest.raises(InputError, match="rows of 2 values; got"):
            model(bad)
    with pytest.raises(InputError, match=r"before=\(\)"):
        BottleneckMLP(2, 3, before=(), bottleneck=2, after=(6,))
