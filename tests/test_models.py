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
from hyperzoo.export import export_model
from hyperzoo.layers import SphereConv2d

ARCHS = hyperzoo.list_models("image-classification")
SMALL = [arch for arch in ARCHS if "20" in arch]  # one of each kind, for what is slow and does not depend on depth
DEPTHS = {20: 3, 32: 5, 44: 7, 56: 9, 110: 18}


def make(arch, **args):
    torch.manual_seed(0)
    return timm.create_model(arch, **args).eval()


def images(batch=2, channels=3, size=16):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_the_networks_of_the_issue_are_registered():
    assert set(ARCHS) == {f"resnet{d}_cifar" for d in DEPTHS} | {
        f"spherenet{d}{s}" for d in DEPTHS for s in ("", "_linear", "_sigmoid")
    }


def residual_parameters(blocks, widths=(16, 32, 64), classes=10):
    """Counted from the definition: stem, three stages of two-convolution blocks, projections where the width grows."""
    count, channels = 3 * 9 * widths[0] + 2 * widths[0], widths[0]
    for width in widths:
        for _ in range(blocks):
            count += 9 * channels * width + 9 * width * width + 4 * width
            count += (channels * width + 2 * width) if channels != width else 0
            channels = width
    return count + widths[-1] * classes + classes


@pytest.mark.parametrize("arch", ARCHS)
def test_parameter_count_and_kind_of_convolutions(arch):
    model = timm.create_model(arch, device="meta")
    depth = int(re.search(r"\d+", arch)[0])
    assert sum(p.numel() for p in model.parameters()) == residual_parameters(DEPTHS[depth])
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    main = [m for m in convolutions if m.kernel_size == (3, 3)]
    assert len(main) == depth - 1 and len(convolutions) == depth + 1
    operator = {"": "cosine", "_linear": "linear", "_sigmoid": "sigmoid"}
    if arch.startswith("spherenet"):
        assert {m.operator for m in main} == {operator[arch[len(f"spherenet{depth}") :]]}
        assert {type(m) for m in convolutions if m not in main} == {nn.Conv2d}
        twin = timm.create_model(f"resnet{depth}_cifar", device="meta").state_dict()
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in twin.items()}
    else:
        assert not any(isinstance(m, SphereConv2d) for m in convolutions)


@pytest.mark.parametrize("arch", ARCHS)
def test_forward_backward_and_heads(arch):
    model = make(arch, num_classes=42).train()
    out = model(images())
    assert out.shape == (2, 42) and out.dtype == torch.float32
    out.mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without
    model.eval()
    features = model.forward_features(images())
    assert features.shape == (2, model.num_features, 4, 4)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(images()))
    model.reset_classifier(5)
    assert model.num_classes == 5 and model(images()).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features) and isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(0, "")
    assert model(images()).shape == (2, model.num_features, 4, 4)


@pytest.mark.parametrize("arch", SMALL)
def test_the_size_of_the_map_is_that_of_the_description(arch):
    model = make(arch)
    size = model.pretrained_cfg["input_size"][1:]
    assert model.forward_features(images(1, size=size[0])).shape[2:] == model.pretrained_cfg["pool_size"]


@pytest.mark.parametrize("arch", SMALL)
def test_constructor_takes_what_reset_classifier_takes(arch):
    assert make(arch, num_classes=0)(images()).shape == (2, 64)
    assert make(arch, num_classes=0, global_pool="")(images()).shape == (2, 64, 4, 4)
    assert make(arch, num_classes=3, global_pool="catavgmax").head_hidden_size == 128
    assert make(arch, in_chans=1)(images(channels=1)).shape == (2, 10)
    assert make(arch, in_chans=6).conv1.weight.shape == (16, 6, 3, 3)


@pytest.mark.parametrize("arch", ARCHS)
def test_features_only_and_intermediates(arch):
    backbone = make(arch, features_only=True)
    maps = backbone(images())
    assert backbone.feature_info.channels() == [16, 32, 64] and backbone.feature_info.reduction() == [1, 2, 4]
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    model = make(arch)
    last, intermediates = model.forward_intermediates(images())
    for a, b in zip(maps, intermediates, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(last, model.forward_features(images()))
    only = model.forward_intermediates(images(), indices=[1], stop_early=True, intermediates_only=True)
    assert [m.shape[1] for m in only] == [32]


@pytest.mark.parametrize("arch", SMALL)
def test_pruned_and_getter_features(arch):
    model = make(arch)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert not any(name.startswith(("layer3", "fc")) for name, _ in model.named_parameters())
    getter = make(arch, features_only=True, feature_cls="getter", out_indices=(2,))
    assert [m.shape[1] for m in getter(images())] == [64]
    with pytest.raises(InputError, match="'NLC'"):
        make(arch).forward_intermediates(images(), output_fmt="NLC")


@pytest.mark.parametrize("arch", SMALL)
def test_parameter_groups_cover_everything_once(arch):
    model = make(arch)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        names = [name for members in groups.values() for name in members]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("arch", SMALL)
def test_gradient_checkpointing_changes_nothing(arch):
    plain, saving = make(arch), make(arch)  # eval mode: batch statistics would be updated twice by the recomputation
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(images()).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("arch", SMALL)
def test_sizes_batches_dtypes_and_devices(arch):
    model = make(arch)
    for size in (8, 32, 48):
        assert model(images(size=size)).shape == (2, 10)
    one = model(images(batch=2))[:1]
    torch.testing.assert_close(
        model(images(batch=2)[:1]), one, rtol=1e-4, atol=1e-5
    )  # convolutions may sum in other orders
    assert model(images(batch=0)).shape == (0, 10)
    assert make(arch, dtype=torch.bfloat16)(images().bfloat16()).dtype == torch.bfloat16
    assert timm.create_model(arch, device="meta")(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    channels_last = model.to(memory_format=torch.channels_last)
    features = channels_last.forward_features(images().contiguous(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 32, 32), torch.zeros(2, 1, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)]
)
def test_wrong_input_is_refused_with_the_shape_that_is_expected(arch, bad):
    expected = rf"\(batch, 3, height, width\); got {str(bad.dtype)[6:]} {re.escape(str(tuple(bad.shape)))}"
    with pytest.raises(InputError, match=expected):
        timm.create_model(arch, device="meta")(bad.to("meta"))


def test_wrong_depth_is_refused():
    with pytest.raises(InputError, match="6n \\+ 2 .* got 21"):
        hyperzoo.models.resnet_cifar.ResNetCifar(depth=21)


@pytest.mark.parametrize("arch", SMALL)
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


@pytest.mark.parametrize("arch", ARCHS)
def test_names_and_storage_of_tensors(arch):
    model = timm.create_model(arch)
    state = model.state_dict()
    assert not {part for name in state for part in name.split(".")} & {"module", "model", "state_dict", "_orig_mod"}
    assert len({value.data_ptr() for value in state.values()}) == len(state)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_description_agrees_with_its_model(arch):
    model = timm.create_model(arch, device="meta")
    for name in [arch, *timm.list_pretrained(f"{arch}.*")]:
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.classifier in {n.rpartition(".")[0] for n, _ in model.named_parameters()}
        assert model.get_submodule(cfg.first_conv).weight.shape[1] == cfg.input_size[0] == len(cfg.mean) == len(cfg.std)
        assert model.num_classes == cfg.num_classes and cfg.license


@pytest.mark.parametrize("arch", SMALL)
def test_an_exported_folder_loads_through_timm_with_equal_logits(arch, tmp_path):
    model = make(arch, num_classes=4, in_chans=1)
    export_model(model, tmp_path, classes=("a", "b", "c", "d"))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images(channels=1)), model(images(channels=1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    first = (tmp_path / "model.safetensors").read_bytes()
    export_model(again, tmp_path, classes=("a", "b", "c", "d"))
    assert (tmp_path / "model.safetensors").read_bytes() == first
