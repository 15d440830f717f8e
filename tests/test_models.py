"""Every registered image model keeps timm's contract: heads, stems, features, tracing, sizes, gradients, refusals."""

import re
import warnings

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

import hyperzoo
from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d
from hyperzoo.zoo.model_folder import save_model

ARCHS = hyperzoo.list_models("image-classification")
# Narrower or shallower networks, where that saves time and the size does not matter.
THREE = dict(widths=(4, 6, 8))
NARROW = {part: THREE for part in ("_wide", "_cnn", "cnn6_w", "cnn9_w", "wrn")} | {
    "_imagenet": dict(channels=(8, 16, 24, 32)),
    "preact_": dict(widths=(8, 12, 16, 24)),
    "fixup_": dict(depth=20),
    "_pad_": dict(depth=20),
}
# Shallow networks of most kinds, for slow tests that do not depend on depth; the full tier has the other kinds.
SMALL = [arch for arch in ARCHS if "20" in arch] + [
    "plain_cnn3", "sphere_cnn3", "sphere_cnn9_learnable", "spherenet32_wide_linear", "resnet32_wide_cifar",
    "spherenet18_imagenet", "fixup_resnet56_cifar", "resnet56_pad_cifar",
]  # fmt: skip
BY_DEPTH = sorted(ARCHS, key=lambda arch: [int(number) for number in re.findall(r"\d+", arch)])
KINDS = {
    re.sub(r"\d+", "", arch): arch for arch in reversed(BY_DEPTH)
}  # the shallowest network of each name without its numbers
AS_PUBLISHED = [arch for arch in SMALL if not any(part in arch for part in ("_wide", "_imagenet"))]
OPERATORS = {"": "cosine", "_linear": "linear", "_sigmoid": "sigmoid", "_learnable": "learnable"}
BLOCKS = {20: 3, 32: 5, 44: 7, 56: 9, 110: 18}  # of two convolutions in each of three stages
CNN = (3, 9, 18, 45, 60, 69)  # convolutions in three stages


each_kind = pytest.mark.parametrize(
    "arch", [*SMALL, *(pytest.param(arch, marks=pytest.mark.full) for arch in KINDS.values() if arch not in SMALL)]
)


def depth(arch):
    return int(re.search(r"\d+|$", arch)[0] or 0)


def each(archs):
    """Parametrize by architecture; the deep and the wide ones belong to the full tier."""
    return pytest.mark.parametrize(
        "arch", [pytest.param(arch, marks=pytest.mark.full) if is_large(arch) else arch for arch in archs]
    )


def is_large(arch):
    if "depth" in narrowed(arch):
        return False
    return depth(arch) > 20 or re.search(r"_w(32|64|128|256)$", arch) is not None


def narrowed(arch):
    return {key: value for part, narrow in NARROW.items() if part in arch for key, value in narrow.items()}


def make(arch, **args):
    torch.manual_seed(0)
    return timm.create_model(arch, **narrowed(arch) | args).eval()


def images(batch=2, channels=3, size=16):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def last_map(model, size=16):
    """Height and width of the last feature map according to the pretrained_cfg."""
    cfg = model.pretrained_cfg
    return (max(1, size * cfg["pool_size"][0] // cfg["input_size"][1]),) * 2


def test_the_networks_of_the_papers_tables_have_names():
    """arXiv 1512.03385, Table 6; arXiv 1711.03189, Tables 1 to 4; arXiv 1805.09298, Tables 2 and 3."""
    assert set(ARCHS) >= {f"resnet{d}_cifar" for d in BLOCKS} | {f"plain_cnn{d}" for d in CNN}
    assert set(ARCHS) >= {f"sphere_cnn{d}{op}" for d in CNN for op in ("", "_linear", "_sigmoid") if d != 69}
    assert set(ARCHS) >= {f"spherenet{size}{op}" for size in (20, "32_wide") for op in ("", "_linear", "_sigmoid")}
    assert set(ARCHS) >= {f"cnn9_w{width}" for width in (16, 32, 64, 128, 256)} | {"cnn6_w64", "cnn15_w64"}


@pytest.mark.parametrize("arch", ["spherenet20", "sphere_cnn3", "spherenet18_imagenet", "fast_sphere_cnn8"])
def test_every_operator_is_an_argument(arch):
    for name in OPERATORS.values():
        model = timm.create_model(arch, operator=name, device="meta")
        assert {m.operator for m in model.modules() if isinstance(m, SphereConv2d)} == {name}


def test_a_published_weight_takes_no_other_operator():
    """The same tensors would compute another function."""
    assert timm.create_model("spherenet20", pretrained=True, operator="cosine").conv1.operator == "cosine"
    for arch, operator in (("spherenet20", "linear"), ("resnet20_cifar", "cosine")):
        with pytest.raises(InputError, match=rf"{arch}\.\w+ was trained without operator='{operator}'"):
            timm.create_model(arch, pretrained=True, operator=operator)


@pytest.mark.parametrize(
    "arch, argument",
    [
        ("fast_sphere_cnn8", {"plain_first": True}),
        ("fast_cnn8", {"head_operator": "cosine"}),
        ("spherenet20", {"k": 1}),
    ],
)
def test_a_published_weight_takes_no_argument_that_changes_its_function(arch, argument):
    with pytest.raises(InputError, match=f"was trained without {next(iter(argument))}="):
        timm.create_model(arch, pretrained=True, **argument)
    assert timm.create_model(arch, **argument) is not None
    neutral = timm.create_model(arch, pretrained=True, num_classes=3, drop_rate=0.1, global_pool="avg", device="cpu")
    assert neutral.num_classes == 3
    if "head_operator" in argument:  # on a new classifier
        timm.create_model(arch, pretrained=True, num_classes=3, **argument)


def test_a_folder_rebuilds_the_operator_it_was_trained_with(tmp_path):
    model = make("spherenet20", operator="linear")
    save_model(model, tmp_path, classes=tuple("abcdefghij"), args=dict(operator="linear"))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.conv1.operator == "linear" and torch.equal(again(images()), model(images()))


def residual_parameters(blocks, widths=(16, 32, 64), classes=10, bias=True):
    """Counted from the definition: stem, three stages of two-convolution blocks, projections where the width grows."""
    count, channels, filters = 3 * 9 * widths[0] + 2 * widths[0], widths[0], widths[0]
    for width in widths:
        for _ in range(blocks):
            count += 9 * channels * width + 9 * width * width + 4 * width
            count += (channels * width + 2 * width) if channels != width else 0
            channels, filters = width, filters + 2 * width
    return count + widths[-1] * classes + classes * bias, filters


def cnn_parameters(convolutions, widths=(128, 192, 256), classes=10):
    """Three stages of convolutions with batch norm, the 4 x 4 layer with batch norm, a classifier without bias."""
    count, channels, filters = 0, 3, widths[-1]
    for width in widths:
        for _ in range(convolutions // 3):
            count += 9 * channels * width + 2 * width
            channels, filters = width, filters + width
    return count + 16 * channels * channels + 2 * channels + classes * channels, filters


def expected_parameters(arch):
    """Parameters without a learned k, and the number of filters that can have one."""
    if "_cnn" in arch:
        return cnn_parameters(depth(arch))
    if "_imagenet" in arch:
        count = sum(p.numel() for p in timm.create_model("resnet18", device="meta").parameters())
        return count, 64 + 4 * 64 + 4 * (128 + 256 + 512)
    if "_wide" in arch:
        return residual_parameters(BLOCKS[depth(arch)], (96, 192, 384), bias=False)
    return residual_parameters(BLOCKS[depth(arch)])


OURS = [arch for arch in ARCHS if re.match(r"(resnet\d+(_wide)?_cifar|spherenet|sphere_cnn|plain_cnn)", arch)]


@pytest.mark.parametrize("arch", OURS)
def test_parameter_count_and_kind_of_convolutions(arch):
    model = timm.create_model(arch, device="meta")
    count, filters = expected_parameters(arch)
    if arch.endswith("_learnable"):
        count += filters
    assert sum(p.numel() for p in model.parameters()) == count
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    shortcuts = [m for m in convolutions if m.kernel_size == (1, 1)]
    main = [m for m in convolutions if m.kernel_size != (1, 1)]
    assert len(main) == depth(arch) + ("_cnn" in arch or -1)
    assert len(shortcuts) == (0 if "_cnn" in arch else 3 if "_imagenet" in arch else 2)
    assert {type(m) for m in shortcuts} <= {nn.Conv2d}
    sphere = re.fullmatch(r"(?:spherenet|sphere_cnn)(\d+(?:_wide|_imagenet)?)(_\w+)?", arch)
    if sphere is None:
        assert {type(m) for m in main} == {nn.Conv2d}
        return
    assert {m.operator for m in main} == {OPERATORS[sphere[2] or ""]}
    plain = {"_cnn": f"plain_cnn{sphere[1]}", "_imagenet": "resnet18"}
    baseline = next((name for part, name in plain.items() if part in arch), f"resnet{sphere[1]}_cifar")
    state = {key: v.shape for key, v in model.state_dict().items() if not key.endswith("raw_k")}
    assert state == {k: v.shape for k, v in timm.create_model(baseline, device="meta").state_dict().items()}


@each(ARCHS)
def test_forward_backward_and_heads(arch):
    model = make(arch, num_classes=42).train()
    out = model(images())
    assert out.shape == (2, 42) and out.dtype == torch.float32
    out.mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without
    model.eval()
    features = model.forward_features(images())
    assert features.shape == (2, model.num_features, *last_map(model))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(images()))
    model.reset_classifier(5)
    assert model.num_classes == 5 and model(images()).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features) and isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(0, "")
    assert model(images()).shape == (2, model.num_features, *last_map(model))


@each_kind
def test_the_last_map_has_the_pool_size_of_the_cfg(arch):
    model = make(arch)
    size = model.pretrained_cfg["input_size"][1:]
    assert model.forward_features(images(1, size=size[0])).shape[2:] == model.pretrained_cfg["pool_size"]


@each_kind
def test_constructor_takes_what_reset_classifier_takes(arch):
    model = make(arch, num_classes=0)
    assert model(images()).shape == (2, model.num_features)
    assert make(arch, num_classes=0, global_pool="")(images()).shape == (2, model.num_features, *last_map(model))
    both = make(arch, num_classes=3, global_pool="catavgmax")
    assert both.head_hidden_size == 2 * model.num_features and both(images()).shape == (2, 3)
    pooled = both.forward_head(both.forward_features(images()), pre_logits=True)
    both.reset_classifier(5)  # keeps the pooling
    assert torch.equal(both.forward_head(both.forward_features(images()), pre_logits=True), pooled)
    assert both(images()).shape == (2, 5)
    assert make(arch, in_chans=1, num_classes=10)(images(channels=1)).shape == (2, 10)
    assert make(arch, in_chans=6).get_submodule(model.pretrained_cfg["first_conv"]).weight.shape[1] == 6


@each(ARCHS)
def test_features_only_and_intermediates(arch):
    backbone, model = make(arch, features_only=True), make(arch)
    maps = backbone(images())
    channels, reductions = backbone.feature_info.channels(), backbone.feature_info.reduction()
    assert len(maps) >= 3 and channels == [info["num_chs"] for info in model.feature_info]
    # a 2 x 2 stem without padding leaves 15 of 16 pixels, which max pooling halves and rounds down
    sizes = [(16 - 1) // by if "fast_" in arch else -(-16 // by) for by in reductions]
    assert [tuple(m.shape[1:]) for m in maps] == [(n, s, s) for n, s in zip(channels, sizes, strict=True)]
    last, intermediates = model.forward_intermediates(images())
    for a, b in zip(maps, intermediates, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(last, model.forward_features(images()))
    only = model.forward_intermediates(images(), indices=[1], stop_early=True, intermediates_only=True)
    assert [m.shape[1] for m in only] == [channels[1]]


@each_kind
def test_pruned_and_getter_features(arch):
    model = make(arch)
    later = [info["module"] for info in model.feature_info[2:]]
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    gone = (*later, model.pretrained_cfg["classifier"])
    assert not any(name.startswith(gone) for name, _ in model.named_parameters())
    whole = make(arch)
    maps, last = whole.forward_intermediates(images(), intermediates_only=True), len(whole.feature_info) - 1
    headed = make(arch)
    headed.prune_intermediate_layers([last], prune_head=False)
    assert torch.equal(headed(images()), whole(images()))
    for i in range(last + 1):
        pruned = make(arch)
        pruned.prune_intermediate_layers([i], prune_norm=True)
        features = pruned.forward_features(images())
        if i < last:  # the features after the last stage are checked by `pool_size`
            torch.testing.assert_close(features, maps[i])
        (own,) = pruned.train().forward_intermediates(images(), indices=[i], intermediates_only=True)
        (own.sum() + pruned.forward_features(images()).sum()).backward()
        assert not [name for name, p in pruned.named_parameters() if p.grad is None]
    getter = make(arch, features_only=True, feature_cls="getter", out_indices=(2,))
    assert [m.shape[1] for m in getter(images())] == [model.feature_info[2]["num_chs"]]
    assert len(make(arch, features_only=True)(images())) > 1  # one caller's out_indices do not reach the next
    with pytest.raises((InputError, AssertionError), match="'NLC'|NCHW"):  # timm's own nets assert
        make(arch).forward_intermediates(images(), output_fmt="NLC")


@each_kind
def test_parameter_groups_cover_everything_once(arch):
    model = make(arch)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        names = [name for members in groups.values() for name in members]
        assert len(groups) > 1 and sorted(names) == sorted(name for name, _ in model.named_parameters())


@each_kind
def test_gradient_checkpointing_changes_nothing(arch):
    plain, saving = make(arch), make(arch)  # eval mode: batch statistics would be updated twice by the recomputation
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(images()).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    plain, saving = make(arch, features_only=True), make(arch, features_only=True)
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        sum(level.square().mean() for level in model(images())).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@each_kind
def test_sizes_batches_dtypes_and_devices(arch):
    model = make(arch)
    classes = model.num_classes
    for size in (16 if "fast_" in arch else 8, 32, 48):
        assert model(images(size=size)).shape == (2, classes)
    one = model(images(batch=2))[:1]
    torch.testing.assert_close(
        model(images(batch=2)[:1]), one, rtol=1e-4, atol=1e-5
    )  # convolutions may sum in other orders
    assert model(images(batch=0)).shape == (0, classes)
    assert make(arch, dtype=torch.bfloat16)(images().bfloat16()).dtype == torch.bfloat16
    assert timm.create_model(arch, device="meta")(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, classes)
    channels_last = model.to(memory_format=torch.channels_last)
    features = channels_last.forward_features(images().contiguous(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("arch", ARCHS)
def test_wrong_input_is_refused_and_the_expected_shape_is_named(arch):
    model = timm.create_model(arch, device="meta")
    for bad in (torch.zeros(3, 32, 32), torch.zeros(2, 1, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)):
        expected = rf"\(batch, 3, height, width\); got {str(bad.dtype)[6:]} {re.escape(str(tuple(bad.shape)))}"
        with pytest.raises(InputError, match=expected):
            model(bad.to("meta"))


def test_wrong_depth_is_refused():
    with pytest.raises(InputError, match="6n \\+ 2 .* got 21"):
        hyperzoo.models.resnet_cifar.ResNetCifar(depth=21)


@each_kind
def test_script_trace_and_script_of_the_trace(arch):
    model = make(arch)
    expected = model(images())
    traced = torch.fx.symbolic_trace(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)  # deprecated since torch 2.15
        warnings.filterwarnings("ignore", "The TorchScript type system", UserWarning)  # of modules of torch and timm
        scripted = [torch.jit.script(model), torch.jit.script(traced)]
    for version in (traced, *scripted):
        torch.testing.assert_close(version(images()), expected, rtol=1e-4, atol=1e-5)  # the plain against the fast form
    traced(images()).sum().backward()


@pytest.mark.parametrize("arch", ["spherenet20_sigmoid"])
def test_export_with_a_dynamic_batch(arch):
    model = make(arch)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images(5)), model(images(5)), rtol=1e-4, atol=1e-5)


@each(ARCHS)
def test_names_and_storage_of_tensors(arch):
    model = make(arch)
    state = model.state_dict()
    assert not {part for name in state for part in name.split(".")} & {"module", "model", "state_dict", "_orig_mod"}
    assert len({value.data_ptr() for value in state.values()}) == len(state)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_pretrained_cfg_agrees_with_its_model(arch):
    for name in [arch, *timm.list_pretrained(f"{arch}.*")]:
        model = timm.create_model(name, device="meta")  # a tag may have other classes
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.classifier in {n.rpartition(".")[0] for n, _ in model.named_parameters()}
        assert model.get_submodule(cfg.first_conv).weight.shape[1] == cfg.input_size[0] == len(cfg.mean) == len(cfg.std)
        assert model.num_classes == cfg.num_classes and cfg.license


@pytest.mark.parametrize("arch", ARCHS)
def test_the_factory_and_the_head_keep_device_dtype_and_mode(arch):
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model(arch, device="meta", not_an_argument=1)
    model = timm.create_model(arch, device="meta", dtype=torch.float64).train()
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    model.requires_grad_(False)
    for classes, pool in ((0, ""), (0, None)):
        model.reset_classifier(classes, pool)
        assert not any(p.requires_grad for p in model.parameters())
    model.reset_classifier(2)
    head = list(model.get_classifier().parameters())
    assert head and {(p.device.type, p.dtype) for p in head} == {("meta", torch.float64)}
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("arch", AS_PUBLISHED)
def test_an_exported_folder_loads_through_timm_with_equal_logits(arch, tmp_path):
    model = timm.create_model(arch, num_classes=4, in_chans=1).eval()
    save_model(model, tmp_path, classes=("a", "b", "c", "d"))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images(channels=1)), model(images(channels=1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    first = (tmp_path / "model.safetensors").read_bytes()
    save_model(again, tmp_path, classes=("a", "b", "c", "d"))
    assert (tmp_path / "model.safetensors").read_bytes() == first
