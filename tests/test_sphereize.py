"""sphereize converts any torch or timm model in place: every convolution, or it reports why not; nothing else."""

import copy
import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.layers import Conv2dSame, ConvNormAct, StdConv2d
from timm.models.efficientnet import _gen_efficientnet
from timm.models.inception_v3 import InceptionA, InceptionB, InceptionC
from timm.models.vgg import VGG
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d, SphereLinear, sphereize

SPHERE = (SphereConv2d, SphereLinear)


def inception():
    """A small Inception: parallel branches, factorized 1 x 7 and 7 x 1 convolutions, strided ones."""
    conv = partial(ConvNormAct, padding=0, act_kwargs=dict(inplace=True))  # as the whole network sets it
    blocks = [InceptionA(3, 8, conv), InceptionB(232, conv), InceptionC(232 + 384 + 96, 8, conv)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 5))


NETS = {
    "resnet18": lambda: timm.create_model("resnet18", channels=(64, 8, 12, 16), num_classes=5),
    "vgg11": lambda: VGG([8, "M", 12, "M", 16, 16, "M", 16, "M"], num_classes=5, mlp_ratio=1 / 256),
    "inception_v3": inception,
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_100", num_classes=5),
    "convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=5),
    "efficientnet": lambda: _gen_efficientnet("efficientnet_b0", 0.25, 0.4, num_classes=5),  # narrow and half as deep
    "regnet": lambda: timm.create_model("regnetx_002", num_classes=5),
}


def build(net):
    torch.manual_seed(0)
    return NETS[net]()


def images(batch=2, size=32, channels=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def kinds(model):
    """The state that an error must not change."""
    modules = [(name, type(m), m.training, getattr(m, "inplace", None)) for name, m in model.named_modules()]
    return modules, [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]


def cosine(layer, x):
    """The definition, patch by patch, in float64."""
    x, w = x.double(), layer.weight.double()
    if layer.tf_same:
        ends = []
        for size, kernel, stride in zip(x.shape[:1:-1], layer.kernel_size[::-1], layer.stride[::-1], strict=True):
            zeros = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            ends += [zeros // 2, zeros - zeros // 2]
        x = F.pad(x, ends)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    patches = patches.reshape(len(x), layer.groups, w[0].numel(), -1)
    rows = w.reshape(layer.groups, w.size(0) // layer.groups, -1)
    product = torch.einsum("gof,bgfl->bgol", rows, patches)
    norms = (patches.square().sum(2, keepdim=True) + 1e-4).sqrt() * (rows.square().sum(2) + 1e-4).sqrt()[..., None]
    return (product / norms).flatten(1, 2)


@pytest.mark.parametrize(
    "net", [net if net in ("resnet18", "convnext") else pytest.param(net, marks=pytest.mark.full) for net in NETS]
)
def test_forward_backward_save_and_load_of_real_networks(net, tmp_path):
    model = build(net)
    before = {name: p for name, p in model.named_parameters()}
    convolutions = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    report = sphereize(model)
    assert set(report.changed) == convolutions and not convolutions & set(report.left)
    assert {name for name, m in model.named_modules() if isinstance(m, SphereConv2d)} == convolutions
    assert all(p is before[name] for name, p in model.named_parameters()) and len(before) == len([*model.parameters()])

    seen = []

    def compare(layer, inputs, out):
        expected = cosine(layer, inputs[0]) + (0 if layer.bias is None else layer.bias.double()[:, None])
        seen.append(layer)
        # float32 cosine: 1e-6 unless the patch is tiny
        torch.testing.assert_close(out.flatten(2).double(), expected, atol=2e-5, rtol=0)

    hooks = [m.register_forward_hook(compare) for m in model.modules() if isinstance(m, SphereConv2d)]
    with torch.no_grad():
        expected = model.eval()(images())
    assert set(seen) == {m for m in model.modules() if isinstance(m, SphereConv2d)}
    for hook in hooks:
        hook.remove()

    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = NETS[net]()
    sphereize(again)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again.eval()(images()), expected)

    model.train()(images()).square().sum().backward()
    bad = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not bad


@pytest.mark.parametrize("operator", ["linear", "sigmoid", "learnable"])
def test_other_operators(operator, tmp_path):
    model = build("convnext")
    report = sphereize(model, operator, k=0.7, eps=1e-3, linear=True)
    layers = [m for m in model.modules() if isinstance(m, SPHERE)]
    assert {(m.operator, m.k, m.eps) for m in layers} == {(operator, 0.7, 1e-3)} and report.out_of_place == ()
    assert report.left == {"head.fc": "the classifier: include takes it"} and len(layers) == len(report.changed) == 16
    model.train()(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    learned = [name for name in model.state_dict() if name.endswith("raw_k")]
    assert len(learned) == (16 if operator == "learnable" else 0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = NETS["convnext"]()
    sphereize(again, operator, k=0.7, eps=1e-3, linear=True)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again.eval()(images()), model.eval()(images()))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_paddings_in_words_and_numbers():
    """padding='same' with an odd number of zeros puts the odd one last, as in torch."""
    x = images(1, 9)
    for padding, kernel, dilation in (("same", 4, 1), ("same", (2, 3), 1), ("same", 3, 2), ("valid", 3, 1), (2, 3, 2)):
        net = nn.Sequential(nn.Conv2d(3, 4, kernel, padding=padding, dilation=dilation, bias=False))
        product = net(x)
        sphereize(net)
        assert net(x).shape == product.shape
        ones = F.conv2d(  # the norm of each patch, by an equivalent convolution
            x.square().sum(1, keepdim=True), torch.ones(1, 1, *net[0].kernel_size), None, 1, padding, dilation
        )
        rows = (net[0].weight.square().sum((1, 2, 3)) + 1e-4).sqrt()
        expected = product / ((ones + 1e-4).sqrt() * rows[:, None, None])
        torch.testing.assert_close(net(x), expected, atol=2e-6, rtol=0)  # roundings of values below 1


def test_the_conv2d_same_of_timm_keeps_its_padding():
    x = images(1, 9)
    net = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, (2, 5), stride=(2, 3), groups=4, bias=False))
    shapes = net[0](x).shape, net(x).shape
    sphereize(net)
    first, second = net[0](x), net(x)
    assert (first.shape, second.shape) == shapes and net[0].tf_same and net[1].tf_same
    expected = cosine(net[0], x) + net[0].bias[:, None]
    torch.testing.assert_close(first.flatten(2).double(), expected, atol=2e-6, rtol=0)  # roundings of values below 1
    torch.testing.assert_close(second.flatten(2).double(), cosine(net[1], first), atol=2e-6, rtol=0)


def test_what_stays_and_why():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    class Same(nn.Conv2d):
        """A subclass that only changes the name."""

    hooked = nn.Conv2d(4, 4, 1)
    hooked.register_forward_hook(lambda *_: None)
    net = nn.ModuleDict(
        {
            "taken": Same(3, 4, 3),
            "own": Own(4, 4, 1),
            "std": StdConv2d(4, 4, 3),
            "hooked": hooked,
            "normed": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
            "reflect": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            "one": nn.Conv2d(4, 4, 1, groups=4),
            "up": nn.ConvTranspose2d(4, 4, 2),
            "text": nn.Conv1d(4, 4, 3),
            "complex": nn.Conv2d(4, 4, 1, dtype=torch.complex64),
            "attention": nn.MultiheadAttention(4, 1),
            "fc": nn.Linear(4, 2),
        }
    )
    report = sphereize(net, linear=True)
    assert report.changed == ("taken", "fc")
    assert report.left == {
        "own": "Own has its own forward",
        "std": "StdConv2d has its own forward",
        "hooked": "it has hooks",
        "normed": "its weight is parametrized",
        "reflect": "padding_mode=reflect",
        "one": "each filter sees a single number, whose angle is only a sign",
        "up": "ConvTranspose2d has no sphere form",
        "text": "Conv1d has no sphere form",
        "complex": "its weight is complex",
        "attention.out_proj": "a torch attention layer reads the weight without calling the layer",
    }
    assert len(hooked._forward_hooks) == 1


def test_include_and_exclude():
    def changed(**args):
        return set(sphereize(build("resnet18"), **args).changed)

    assert changed(include=["layer1.*"]) == {f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)}
    assert changed(include=["layer1.*", "conv1"], exclude=["*.conv2"]) == {"conv1", "layer1.0.conv1", "layer1.1.conv1"}
    assert not [name for name in changed(exclude=["*.downsample.*"]) if "downsample" in name]
    assert "fc" not in changed(linear=True)
    assert changed(linear=True, include=["fc"]) == {"fc"}
    report = sphereize(build("resnet18"), include=["conv1"], exclude=["layer1.*"])
    assert report.left["layer1.0.conv1"] == "in exclude" and report.left["layer2.0.conv1"] == "not in include"


def test_device_dtype_format_mode_and_gradients_are_kept():
    model = build("regnet").to(torch.bfloat16).to(memory_format=torch.channels_last).eval()
    model.stem.conv.weight.requires_grad_(False)
    model.s1.train()
    before = {name: (m.training, type(m)) for name, m in model.named_modules()}
    weights = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = torch.get_rng_state()
    sphereize(model, "learnable")
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: m.training for name, m in model.named_modules()} == {name: was[0] for name, was in before.items()}
    now = dict(model.named_parameters())
    assert all(now[name] is p for name, p in weights.items())
    assert now["stem.conv.raw_k"].requires_grad is False and now["s1.b1.conv1.conv.raw_k"].requires_grad
    assert {p.dtype for p in now.values()} == {torch.bfloat16}
    assert now["s1.b1.conv2.conv.weight"].is_contiguous(memory_format=torch.channels_last)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for name, p in now.items() if not name.endswith("raw_k")}
    meta = nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"))
    sphereize(meta, "learnable")
    assert meta(torch.empty(1, 3, 8, 8, device="meta")).shape == (1, 4, 6, 6) and meta[0].raw_k.is_meta


def test_a_second_call_changes_nothing():
    model = build("resnet18")
    first = sphereize(model, "linear", exclude=["layer4.*"])
    was = kinds(model)
    again = sphereize(model, "cosine", exclude=["layer4.*"])
    assert kinds(model) == was and again.changed == again.out_of_place == ()
    assert set(again.left) == {*first.changed, *first.left}
    assert again.left["conv1"] == "a sphere layer already (operator=linear)"
    rest = sphereize(model, "linear")
    assert rest.changed and all(name.startswith("layer4.") for name in rest.changed)


def test_shared_modules_are_converted_once_and_stay_shared():
    shared, block = nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 1))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Sequential(shared), block, block)
    tied = nn.Conv2d(4, 4, 3)
    tied.weight = shared.weight
    net.append(tied)
    report = sphereize(net)
    assert report.changed == ("0", "1", "2.0", "3.0", "4.0", "5")
    assert net[1] is net[2][0] and isinstance(net[1], SphereConv2d) and net[1] is not shared
    assert net[3] is net[4] and isinstance(net[3][0], SphereConv2d)
    assert net[5].weight is net[1].weight
    again = nn.Sequential(shared, nn.Sequential(shared), nn.Conv2d(4, 4, 1))
    report = sphereize(again, exclude=["1.*"])  # excluded under one name is enough
    assert again[0] is again[1][0] is shared and report.left == {"0": "in exclude", "1.0": "in exclude"}


def test_activation_in_place_right_behind_a_cosine():
    def net(bias=False):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, bias=bias), nn.ReLU(inplace=True), nn.Dropout(0.0, inplace=True)]
        return nn.Sequential(*layers, nn.Conv2d(4, 2, 3, bias=bias), nn.Hardswish(inplace=True), nn.Flatten())

    model = net()
    assert sphereize(model).out_of_place == ("1", "2", "4")
    assert not any(m.inplace for m in (model[1], model[2], model[4]))
    x = images(2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(model.double(), (x,), fast_mode=True)
    for operator, bias in (("linear", False), ("sigmoid", False), ("learnable", False), ("cosine", True)):
        model = net(bias)
        assert sphereize(model, operator).out_of_place == () and model[1].inplace
        # in-place operations directly after these do not modify saved tensors
        assert torch.autograd.gradcheck(model.double(), (x,), atol=1e-4, fast_mode=True)


def test_the_report_can_be_read():
    text = str(sphereize(build("resnet18"), exclude=["*.downsample.*"]))
    assert text.splitlines() == [
        "sphereize: 17 changed to operator=cosine, 4 left",
        "  changed: conv1, layer1.0.conv1, layer1.0.conv2, layer1.1.conv1, layer1.1.conv2 and 12 more",
        "  left, in exclude: layer2.0.downsample.0, layer3.0.downsample.0, layer4.0.downsample.0",
        "  left, linear=True converts it: fc",
        "  inplace=False, because cosine layers need their outputs: "
        "act1, layer1.0.act1, layer1.0.act2, layer1.1.act1, layer1.1.act2 and 12 more",
    ]


def quantized():
    convolution = nn.Conv2d(4, 4, 1)
    convolution.weight = nn.Parameter(torch.ones(4, 4, 1, 1, dtype=torch.int8), requires_grad=False)
    return convolution


@pytest.mark.parametrize(
    "change, arguments, message",
    [
        (None, dict(operator="sine"), "got 'sine'"),
        (None, dict(operator="sigmoid", k=0), "above 0; got 0"),
        (None, dict(eps=-1), "at least 0; got -1"),
        (None, dict(include="layer1.*"), r"include must be a list of patterns, such as \['layer1.\*'\]; got 'layer1"),
        (None, dict(exclude=[3]), r"exclude must be a list of patterns.*got \[3\]"),
        (None, dict(include=["conv2"]), "include: 'conv2' matches no convolution .* Names: 0, 1, 4.0"),
        (None, dict(exclude=["4"]), "exclude: '4' matches no"),
        (nn.LazyConv2d(4, 1), {}, "^5 is a LazyConv2d without weights; run the model on one batch"),
        (nn.LazyLinear(4), dict(linear=True), "^5 is a LazyLinear without weights"),
        (quantized(), {}, r"^5 \(Conv2d\) is quantized"),
    ],
)
def test_bad_arguments_and_models_are_refused_and_nothing_is_changed(change, arguments, message):
    block = nn.Sequential(nn.Linear(4, 4))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), block)
    if change is not None:
        net.append(copy.deepcopy(change))
    was = kinds(net)
    with pytest.raises(InputError, match=message):
        sphereize(net, **arguments)
    assert kinds(net) == was


def test_lazy_and_quantized_layers_that_are_not_asked_for_are_left():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 1), quantized(), nn.LazyLinear(4))
    assert sphereize(net, exclude=["1", "2"]).changed == ("0",)


@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated
def test_quantized_modules_of_torch_are_seen():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), torch.ao.nn.quantized.Conv2d(4, 4, 1))
    with pytest.raises(InputError, match=r"^1 \(Conv2d\) is quantized"):
        sphereize(net)


def test_a_model_of_which_no_layer_can_be_converted_is_refused():
    """A script would train the plain network under the name of a sphere network."""
    with torch.device("meta"):
        net = timm.create_model("resnetv2_50x1_bit")
    was = kinds(net)
    with pytest.raises(InputError) as caught:
        sphereize(net)
    assert str(caught.value) == (
        "sphereize converts no layer of ResNetV2 (StdConv2d has its own forward: stem.conv, stages.0.blocks.0"
        ".downsample.conv, stages.0.blocks.0.conv1, stages.0.blocks.0.conv2, stages.0.blocks.0.conv3 and 48 more). "
        "Replace these by plain nn.Conv2d first, or choose another network"
    )
    assert kinds(net) == was
    assert sphereize(net, exclude=["*"]).changed == ()  # as asked


def test_models_without_convolutions_are_refused():
    with pytest.raises(InputError, match="^ReLU has no convolution to convert$"):
        sphereize(nn.ReLU())
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(InputError, match="Sequential has no convolution to convert; linear=True"):
        sphereize(net)
    assert sphereize(net, linear=True).changed == ("0",) and isinstance(net[0], SphereLinear)
    with pytest.raises(InputError, match="the model itself is a Conv2d"):
        sphereize(nn.Conv2d(3, 4, 3))


def test_a_sphereized_model_compiles_in_one_graph():
    torch.compiler.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, groups=4))
    sphereize(net, "learnable")
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images(2, 9)), net(images(2, 9)), atol=5e-6, rtol=0)
    compiled(images(2, 9)).sum().backward()
    assert net[0].raw_k.grad.isfinite().all()


def test_the_classifier_of_a_wrapped_model_is_left():
    net = nn.DataParallel(build("resnet18"))
    report = sphereize(net, linear=True)
    assert report.left == {"module.fc": "the classifier: include takes it"} and type(net.module.fc) is nn.Linear


def test_the_head_of_a_model_without_get_classifier_is_converted_unless_excluded():
    def net():
        return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 21, 1))

    assert sphereize(net()).changed == ("0", "2")
    assert sphereize(net(), exclude=["2"]).changed == ("0",)
