"""Every key of a recipe's method becomes the object of that name, with its values, and takes part in the loss."""

from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from support import tiny

from hyperzoo import losses, mixup, regularizers
from hyperzoo.data import ImageSet
from hyperzoo.errors import RecipeError
from hyperzoo.experiments import build, image_sizes
from hyperzoo.experiments.model_args import model_args
from hyperzoo.layers import SphereLinear, whitening_filters
from hyperzoo.training import seeding
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.recipe_methods import Method
from hyperzoo.training.schedule import make_optimizer

TERMS = {
    "mhe": (dict(hidden=1.0, output=10.0, power=0, half_space=True), regularizers.MHE),
    "orthogonality": (dict(strength=2e-4, layers="type:Conv2d"), regularizers.Orthogonality),
    "minimum_angle": (dict(hidden=0.1, output=0.1), regularizers.MinimumAngle),
    "per": (dict(strength=0.1, slices=8), regularizers.PER),
    "vcl": (dict(layers=["bn1"]), regularizers.VCL),
    "activation_norm": (dict(strength=0.1, p=2), regularizers.ActivationNorm),
}


def recipe(arch="resnet20_cifar", data="c10", train=None, **method):
    return Recipe.model_validate(
        dict(
            name="some",
            model=dict(arch=arch),
            data=dict(name=data, length=35) if data == "ptb" else dict(name=data),
            optim=dict(lr=0.1),
            train=dict(epochs=1, **(train or {})),
            method=method,
        )
    )


def step_of(**method):
    torch.manual_seed(0)
    plan = recipe(**method)
    return build.step(plan, build.model(plan, 10, 3))


@pytest.mark.parametrize("processes, batch_size, accumulate", [(2, 4, 4), (2, 50, 10), (3, 8, 1)])
def test_a_batch_divides_by_processes_and_parts(processes, batch_size, accumulate):
    plan = recipe()
    parts = {
        "data": plan.data.model_copy(update={"batch_size": batch_size}),
        "train": plan.train.model_copy(update={"accumulate": accumulate}),
    }
    engine = SimpleNamespace(num_processes=processes, process_index=0, device=torch.device("cpu"))
    text = f"data.batch_size {batch_size} must be a multiple of {processes * accumulate}: {processes} process"
    with pytest.raises(RecipeError, match=text):
        build.batches(plan.model_copy(update=parts), None, None, engine)


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_is_not_that_of_the_gpu(monkeypatch):
    assert Accelerator().device.type == "cpu"
    expected = build.precision(recipe()), seeding.environment()["device"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: expected[0] == "fp32")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    assert (build.precision(recipe()), seeding.environment()["device"]) == expected


def batch():
    return torch.randn(12, 3, 32, 32), torch.arange(12) % 10


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_built_with_its_values_and_added(name):
    values, kind = TERMS[name]
    step = step_of(**{name: values})
    assert list(step.terms) == [name] and type(step.terms[name]) is kind
    result = step(*batch())
    assert result.terms.keys() == {"task", name} and torch.isfinite(result.loss) and result.terms[name] != 0
    torch.testing.assert_close(result.loss, result.terms["task"] + result.terms[name])
    result.loss.backward()
    assert not [module for module in step.model.modules() if module._forward_hooks]


def test_images_are_judged_at_the_size_at_which_the_training_ends(data_mirror):
    half = {**recipe().settings()["data"], "hold_out": 50, "size_px": 16}
    plan = recipe().model_dump() | {"data": half}
    train, held = build.images(Recipe.model_validate(plan))
    assert train.images.shape[1:] == held.images.shape[1:] == (3, 16, 16) and len(held) == 50
    plan["data"] = {**half, "resize_px": {1: 8, 3: 16}}
    plan["train"]["epochs"] = 3
    assert build.images(Recipe.model_validate(plan))[1].fingerprint == held.fingerprint
    assert Recipe.model_validate(plan).shortened(1).data.resize_px == {1: 16}
    plan["data"] = {**half, "size_px": None, "resize_px": {1: 8, 3: 16}}
    with pytest.raises(RecipeError, match="ends at 16 px, but c10 is evaluated at 32; end it at 32"):
        build.images(Recipe.model_validate(plan))


def test_the_tables_agree():
    blocks = {name for name in Method.model_fields} - {"label_smoothing", "soft_target", "angular", "mixup"}
    assert blocks - {"manifold_mixup"} == set(build.TERMS) == set(TERMS)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (dict(mixup={"alpha": 0.5}), mixup.Mixup),
        (dict(mixup={"cutmix": True}), mixup.CutMix),
        (dict(manifold_mixup={"alpha": 0.5}), mixup.ManifoldMixup),
        (dict(manifold_mixup={"layers": ["layer2"]}, label_smoothing=0.1), mixup.ManifoldMixup),
    ],
    ids=str,
)
def test_a_mixing_is_built_with_its_values(method, kind):
    step = step_of(**method, soft_target="bce")
    assert type(step.mixing) is kind and step.mixing.smoothing == method.get("label_smoothing", 0.0)
    assert step.mixing.alpha == next(iter(method.values())).get("alpha", 2.0 if kind is mixup.ManifoldMixup else 1.0)
    assert isinstance(step.criterion, losses.SoftTarget) and step.criterion.kind == "bce"
    x, y = batch()
    step.begin_epoch(3)
    one = step(x, y).loss
    step.begin_epoch(3)
    again, other = step(x, y).loss, step(x, y).loss
    assert one == again != other
    one.backward()


@pytest.mark.parametrize("operator", ["linear", "learnable"])
def test_an_angular_loss_brings_its_classifier(operator):
    step = step_of(angular=dict(operator=operator, margin=4), label_smoothing=0.01)
    assert isinstance(step.model.fc, SphereLinear) and step.model.fc.operator == operator
    assert (step.criterion.margin, step.criterion.label_smoothing) == (4, 0.01)
    step(*batch()).loss.backward()
    assert step.model.fc.weight.grad.abs().sum() > 0 and step.model.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("angular", [True, False])
def test_networks_are_built_with_the_classifier_of_an_angular_loss(angular):
    plan = recipe("spherenet20", **(dict(angular=dict(operator="learnable", k=0.7)) if angular else {}))
    expected = {"head_operator": "learnable", "head_k": 0.7} if angular else {}
    assert model_args(plan) == expected
    network = build.model(plan, 5, 3)
    assert isinstance(network.get_classifier(), SphereLinear) == bool(expected)
    assert isinstance(timm.create_model("spherenet20", num_classes=0, head_operator="cosine").fc, torch.nn.Identity)


def test_a_term_is_made_of_the_classifier_that_an_angular_loss_brings():
    step = step_of(angular=dict(margin=4), mhe=dict(hidden=0, output=10.0))
    ((_, _, (layer,)),) = step.terms["mhe"]._groups
    assert layer.module is step.model.get_classifier() and layer.name == "fc"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_description_of_a_network_follows_the_images(channels):
    """Also its mean and standard deviation, where they are for another number of channels."""
    network, pixels = build.model(recipe(), 10, channels), tiny.image_set(20, size=6).images[:, :channels].contiguous()
    own = {key: network.pretrained_cfg[key] for key in ("mean", "std")}
    image_sizes.describe_images(
        network, ImageSet("c10", "train", pixels, torch.arange(20) % 10, tuple("abcdefghij"), "made")
    )
    config = timm.data.resolve_model_data_config(network)
    if channels == 1:
        own = {
            "mean": (round((pixels / 255).mean().item(), 4),),
            "std": (round((pixels / 255.0).double().std(correction=0).item(), 4),),
        }
    assert config["input_size"] == (channels, 6, 6) and {key: config[key] for key in own} == own


def test_without_a_method_there_is_cross_entropy_alone():
    step = step_of(label_smoothing=0.1)
    assert step.terms == {} and step.mixing is None and step.criterion.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (dict(mixup={}, manifold_mixup={}), "a batch is mixed once"),
        (dict(mixup={}, angular={}), "no mixing"),
        (dict(mhe={"hidden": 1.0}), "output"),
        (dict(per={"strength": -1.0}), "strength"),
    ],
    ids=str,
)
def test_contradictions_are_refused(method, expected):
    with pytest.raises(ValueError, match=expected):
        recipe(**method)


@pytest.mark.parametrize(
    ("arch", "wish", "precision", "updates", "device", "compiled", "reason"),
    [
        ("spherenet20", "auto", "fp32", 2000, "cpu", True, "compiling the model"),
        ("spherenet20", "auto", "fp32", 1999, "cpu", False, "1999 updates are too few"),
        ("spherenet20", "off", "fp32", 9999, "cpu", False, "as the recipe says"),
        ("resnet20_cifar", "auto", "fp32", 9999, "cpu", False, "without sphere layers"),
        ("resnet20_cifar", "auto", "bf16", 9999, "cpu", True, "compiling the model"),
        ("resnet20_cifar", "auto", "fp32", 9999, "cuda", True, "compiling the model"),
        ("resnet20_cifar", "on", "fp32", 1, "cpu", True, "as the recipe says"),
        ("lstm200", "auto", "fp32", 9999, "cpu", False, "needs no compilation"),
    ],
)
def test_what_is_compiled(arch, wish, precision, updates, device, compiled, reason):
    plan = recipe(arch, "ptb" if arch == "lstm200" else "c10", dict(compile=wish, precision=precision))
    network = torch.nn.Identity() if arch == "lstm200" else build.model(plan, 10, 3)
    got, said = build.compiles(plan, network, updates, torch.device(device))
    assert got is compiled and reason in said


def test_nothing_is_compiled_without_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    got, said = build.compiles(recipe("spherenet20"), torch.nn.Identity(), 9999, torch.device("cpu"))
    assert not got and "no C++ compiler" in said


def test_whitening_takes_the_first_convolution_and_leaves_it_out_of_training(data_mirror):
    plan = recipe("fast_cnn8").model_dump()
    plan["model"]["init"] = "whiten"
    plan = Recipe.model_validate(plan)
    train = build.images(plan)[0]
    network = build.model(plan, 10, 3)
    build.initialize(plan, network, train)
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    expected = whitening_filters((train.images.float() / 255 - mean) / std, (2, 2))
    torch.testing.assert_close(network.whiten.weight.detach(), torch.cat([expected, -expected]), rtol=1e-3, atol=1e-4)
    optimizer = make_optimizer(build.step(plan, network), plan.optim)
    assert not {id(network.whiten.weight)} & {id(p) for group in optimizer.param_groups for p in group["params"]}
    before = network.stage1.conv1.weight.clone()
    build.initialize(recipe("fast_cnn8"), network, train)  # no init: nothing happens
    assert torch.equal(before, network.stage1.conv1.weight)


def test_a_cutout_of_the_recipe_reaches_the_batches(data_mirror):
    plan = recipe("resnet20_cifar").model_dump()
    plan["data"] |= dict(cutout_px=64, batch_size=10)
    plan = Recipe.model_validate(plan)
    train, network = build.images(plan)[0], build.model(plan, 10, 3)
    images, _, _ = next(build.batches(plan, train, network, Accelerator()).epoch(1))
    assert not images[..., 15:17, 15:17].any()  # a square of twice the size covers the middle, wherever its center is


@pytest.mark.fault("argument of a model that it does not take")
@pytest.mark.parametrize(
    "arch, args, fault",
    [
        ("resnet20_cifar", {"widht": 8}, "unexpected keyword argument 'widht'"),
        ("resnet20_cifar", {"": 8}, "unexpected keyword argument ''"),
        ("resnet18", {"drop_rat": 0.1}, "unexpected keyword argument 'drop_rat'"),
        ("resnet18", {"output_stride": 7}, "AssertionError"),
        ("resnet18", {"block_args": 3}, "TypeError: "),
    ],
)
def test_arguments_that_do_not_fit_are_a_fault_of_the_recipe(arch, args, fault):
    plan = recipe(arch)
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"args": args})})
    with pytest.raises(RecipeError) as caught:
        build.model(plan, 10, 3)
    assert f"model.args of {arch}: {args} do not fit (" in str(caught.value) and fault in str(caught.value)
