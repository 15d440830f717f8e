"""The networks of the SphereNet paper: parameter counts, options, norms without batch statistics, the ImageNet form."""

import re

import pytest
import timm
import torch
from torch import nn

import hyperzoo.models.sphere_cnn
from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d, SphereNorm, sphereize
from hyperzoo.models.sphere_cnn import SphereCNN

NARROW = dict(widths=(4, 6, 8))
# As published for 10 and 100 classes, fc6 without batch norm.
CNN_PARAMETERS = {
    3: (1_719_296, 1_742_336),
    9: (3_859_712, 3_882_752),
    18: (7_070_336, 7_093_376),
    45: (16_702_208, 16_725_248),
    60: (22_053_248, 22_076_288),
}


def parameters(arch, **args):
    return sum(p.numel() for p in timm.create_model(arch, device="meta", **args).parameters())


def images(batch=2, size=16):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def train_step(model):
    """One backward pass; every parameter must receive a finite gradient."""
    model.train()(images()).square().sum().backward()
    bad = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not bad
    return model


@pytest.mark.parametrize("depth", CNN_PARAMETERS)
def test_published_parameter_counts_of_cnn_n(depth):
    for classes, count in zip((10, 100), CNN_PARAMETERS[depth], strict=True):
        for net in ("sphere_cnn", "plain_cnn"):
            assert parameters(f"{net}{depth}", num_classes=classes, fc6_norm=False) == count
            assert parameters(f"{net}{depth}", num_classes=classes) == count + 512
    filters = depth // 3 * (128 + 192 + 256) + 256
    assert parameters(f"sphere_cnn{depth}", operator="learnable", fc6_norm=False) == CNN_PARAMETERS[depth][0] + filters
    if depth == 9:
        assert filters == 1984  # published too


@pytest.mark.parametrize("arch", ["spherenet32_wide", "spherenet32_wide_linear", "resnet32_wide_cifar"])
def test_published_parameter_counts_of_the_wide_net(arch):
    assert parameters(arch) == 16_702_176
    assert parameters(arch, num_classes=100) == 16_736_736
    model = timm.create_model(arch, device="meta")
    stages = [sum(p.numel() for p in stage.parameters()) for stage in (model.layer1, model.layer2, model.layer3)]
    assert stages == [831_360, 517_248 + 4 * 664_320, 2_066_688 + 4 * 2_655_744]
    assert model.fc.bias is None and model.fc.weight.numel() == 3840
    model.reset_classifier(7)
    assert model.fc.bias is None and model.fc.weight.shape == (7, 384)


def test_shapes_of_cnn_9_are_those_of_the_table():
    model = timm.create_model("sphere_cnn9", device="meta").eval()
    maps = model.forward_intermediates(torch.empty(1, 3, 32, 32, device="meta"))[1]
    assert [tuple(m.shape[1:]) for m in maps] == [(128, 32, 32), (192, 16, 16), (256, 8, 8)]
    assert model.forward_features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 256, 1, 1)
    assert model.fc6.conv.kernel_size == (4, 4) and model.fc6.conv.padding == (0, 0)
    assert model.fc.bias is None
    activations = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    assert len(activations) == 9  # none after fc6


def test_cnn_equals_its_formula():
    """Layer by layer from the paper's table, with the layers of the model."""
    torch.manual_seed(0)
    model = SphereCNN(3, (4, 6, 8), operator="linear").eval()
    x = expected = images(size=32)
    for stage in (model.stage1, model.stage2, model.stage3):
        expected = torch.relu(stage[0].bn(stage[0].conv(expected)))
        expected = expected.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))
    expected = model.fc6.bn(model.fc6.conv(expected)).flatten(1) @ model.fc.weight.T
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_other_sizes_are_averaged_to_the_size_of_fc6():
    torch.manual_seed(0)
    model = SphereCNN(3, (4, 6, 8)).eval()
    x = images(size=48)
    features = model.pool3(model.stage3(model.pool2(model.stage2(model.pool1(model.stage1(x))))))
    assert features.shape[2:] == (6, 6)
    averaged = torch.nn.functional.adaptive_avg_pool2d(features, 4)
    torch.testing.assert_close(model.forward_features(x), model.fc6(averaged))


def test_initial_filters_have_the_standard_deviation_of_the_paper():
    torch.manual_seed(0)
    model = timm.create_model("sphere_cnn3")
    for module in (model.stage3[0].conv, model.fc6.conv, model.fc):
        fan_in = module.weight[0].numel()
        assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.06)  # 2,560 numbers or more


@pytest.mark.parametrize("operator", ["", "_linear", "_sigmoid", "_learnable"])
@pytest.mark.parametrize("norm", ["batch", "sphere", "sphere+batch", "none"])
def test_norms(norm, operator):
    for arch in (f"sphere_cnn9{operator}", f"spherenet20{operator}"):
        model = train_step(timm.create_model(arch, norm=norm, **NARROW))
        batch_norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        convolutions = [m for m in model.modules() if isinstance(m, SphereConv2d)]
        assert bool(batch_norms) == ("batch" in norm)
        assert {isinstance(m, SphereNorm) for m in convolutions} == {"sphere" in norm}
        plain = [m for m in model.modules() if isinstance(m, nn.Conv2d) and not isinstance(m, SphereConv2d)]
        assert len(plain) == (0 if "cnn" in arch or norm == "sphere" else 2)  # shortcuts


def test_without_batch_statistics_an_image_does_not_depend_on_its_batch():
    for arch in ("sphere_cnn9", "spherenet20_linear"):
        torch.manual_seed(0)
        model = timm.create_model(arch, norm="sphere", **NARROW).train()
        torch.testing.assert_close(model(images())[:1], model(images()[:1]), atol=1e-5, rtol=1e-4)


def test_networks_of_inner_products_refuse_sphere_norm_and_train_without_a_norm():
    for arch in ("plain_cnn3", "resnet20_cifar"):
        train_step(timm.create_model(arch, norm="none", **NARROW))
        with pytest.raises(InputError, match="norm='sphere' rescales angles"):
            timm.create_model(arch, norm="sphere", **NARROW)
        with pytest.raises(InputError, match=re.escape("batch, sphere, sphere+batch, none; got 'layer'")):
            timm.create_model(arch, norm="layer", **NARROW)


def test_networks_without_relu_are_nearly_linear():
    """No ReLU (Table 3 of the paper): with inner products, no norm and no max, only linear maps remain."""
    model = timm.create_model("plain_cnn3", relu=False, norm="none", **NARROW).eval()
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    for i in (1, 2, 3):
        setattr(model, f"pool{i}", nn.AvgPool2d(2))
    x = images(size=32)
    torch.testing.assert_close(model(2 * x[:1] + x[1:]), 2 * model(x[:1]) + model(x[1:]), atol=1e-4, rtol=1e-4)
    train_step(timm.create_model("sphere_cnn3", relu=False, **NARROW))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(depth=10), "multiple of 3 .* got 10"),
        (dict(depth=0), "got 0"),
        (dict(widths=(4, 8)), r"three numbers of channels; got \(4, 8\)"),
        (dict(operator="sine"), "got 'sine'"),
        (dict(operator="sigmoid", k=-1), "above 0; got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SphereCNN(**arguments)


def test_steepness_of_the_sigmoid_is_an_argument():
    assert timm.create_model("sphere_cnn3_sigmoid", k=0.1, device="meta").fc6.conv.k == 0.1
    assert timm.create_model("spherenet20_sigmoid", k=0.7, device="meta").conv1.k == 0.7
    assert timm.create_model("spherenet18_imagenet", operator="sigmoid", k=0.7, device="meta").conv1.k == 0.7


def test_each_architecture_is_the_function_of_its_name():
    for arch in timm.list_models("*_cnn*"):
        entry = timm.model_entrypoint(arch)
        if entry.__module__ == hyperzoo.models.sphere_cnn.__name__:
            assert getattr(hyperzoo.models.sphere_cnn, arch) is entry and entry.__doc__
            assert f"CNN-{re.search('[0-9]+', arch)[0]} " in entry.__doc__


@pytest.mark.parametrize("operator", ["cosine", "learnable"])
def test_the_imagenet_net_is_timms_resnet_with_other_convolutions(operator):
    torch.manual_seed(0)
    channels = dict(channels=(64, 6, 8, 10))  # 64 are in the stem
    model = timm.create_model("spherenet18_imagenet", operator=operator, **channels)
    plain = timm.create_model("resnet18", **channels)
    left = [m for m in model.modules() if type(m) is nn.Conv2d]
    assert {m.kernel_size for m in left} == {(1, 1)} and len(left) == 3
    assert {type(a) for a in model.modules()} - {type(b) for b in plain.modules()} == {type(model), SphereConv2d}
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.endswith("raw_k") for name in missing)
    train_step(model)


@pytest.mark.parametrize("operator", ["cosine", "linear", "sigmoid", "learnable"])
def test_a_sphereized_network_is_the_sphere_network(operator):
    pairs = (("plain_cnn3", "sphere_cnn3", None), ("resnet20_cifar", "spherenet20", ["*.shortcut.*"]))
    for plain, sphere, exclude in pairs:
        torch.manual_seed(0)
        model = timm.create_model(plain, **NARROW)
        sphereize(model, operator, exclude=exclude)
        other = timm.create_model(sphere, operator=operator, **NARROW)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.eval()(images()), model.eval()(images()))


def test_a_network_prints_its_class_name():
    printed = {"spherenet20": "SphereNet", "spherenet18_imagenet": "SphereResNet", "resnet20_cifar": "ResNetCifar"}
    for arch, name in printed.items():
        assert str(timm.create_model(arch, device="meta")).startswith(f"{name}(\n")


def test_the_function_of_spherenet20_has_not_changed():
    """Published weights depend on it: names of tensors, and the eps of batch norm."""
    sphere, plain = (timm.create_model(arch, device="meta") for arch in ("spherenet20", "resnet20_cifar"))
    for model in (sphere, plain):
        assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
        assert len(model.state_dict()) == 19 + 2 + 2 + 5 * 21
        expected = {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer3.2.bn2.bias"}
        expected |= {"layer2.0.shortcut.0.weight", "layer3.0.shortcut.1.num_batches_tracked", "fc.bias"}
        assert expected <= set(model.state_dict())
    assert {(m.operator, m.eps, m.tf_same) for m in sphere.modules() if isinstance(m, SphereConv2d)} == {
        ("cosine", 1e-4, False)
    }
