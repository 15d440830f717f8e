"""Any architecture of timm with sphere convolutions, or trained with an angular loss: a run that opens everywhere."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from test_own_images import COLORS, fill, own_cache, recipe  # noqa: F401

import hyperzoo
from hyperzoo.analysis import predict
from hyperzoo.errors import InputError, UnknownNameError, WeightFileError
from hyperzoo.experiments import build, train
from hyperzoo.experiments.model_args import model_args
from hyperzoo.experiments.pretrained import finetuning_recipe
from hyperzoo.layers import SphereConv2d, SphereLinear
from hyperzoo.publishing import export, push
from hyperzoo.training.recipe import Recipe

ANGULAR = {"angular": dict(operator="learnable", margin=4)}
KINDS = {  # operator of the convolutions, of the classifier
    "cosine": ("cosine", None),
    "learnable": ("learnable", None),
    "angular": (None, "learnable"),
    "both": ("linear", "sigmoid"),
}


def plan(folder, sphereize=None, method=None, arch="test_resnet", **model) -> Recipe:
    base = recipe(folder, model=dict(arch=arch, sphereize=sphereize, **model), size_px=32)
    return Recipe.model_validate(base.model_dump() | {"method": method or {}})


def images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_word_replaces_the_convolutions_and_keeps_their_weights(tmp_path):
    torch.manual_seed(0)
    plain = build.model(plan(tmp_path), 3, 3)
    torch.manual_seed(0)
    sphere = build.model(plan(tmp_path, "cosine"), 3, 3)
    convolutions = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert convolutions == {name for name, module in sphere.named_modules() if isinstance(module, SphereConv2d)}
    tensors = sphere.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in plain.state_dict().items())
    stem, x = sphere.get_submodule(sphere.pretrained_cfg["first_conv"]), images()
    place = dict(stride=stem.stride, padding=stem.padding)
    length = (
        F.conv2d(x.square(), torch.ones_like(stem.weight), **place).sqrt()
        * stem.weight.flatten(1).norm(dim=1)[:, None, None]
    )
    assert torch.allclose(stem(x), F.conv2d(x, stem.weight, **place) / length, atol=1e-3)  # cos of the angle


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_opens_by_every_route(tmp_path, kind):
    folder, (convolutions, classifier) = fill(tmp_path / "set"), KINDS[kind]
    method = {"angular": dict(operator=classifier, margin=2)} if classifier else {}
    run = train.run(plan(folder, convolutions, method), tmp_path / "run").folder
    loaded = hyperzoo.load(f"local-dir:{run}")
    assert loaded.classes == tuple(COLORS)
    assert {type(m) for m in loaded.model.modules() if isinstance(m, torch.nn.Conv2d)} == (
        {SphereConv2d} if convolutions else {torch.nn.Conv2d}
    )
    assert getattr(loaded.model.get_classifier(), "operator", None) == classifier
    with torch.inference_mode():
        expected = loaded.model(images())
        assert torch.equal(timm.create_model(f"local-dir:{run}", pretrained=True).eval()(images()), expected)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # as in test_push.py
def test_the_run_is_predicted_exported_and_pushed(tmp_path, double):
    folder = fill(tmp_path / "set")
    run = train.run(plan(folder, "linear", {"angular": dict(operator="sigmoid", margin=2)}), tmp_path / "run").folder
    assert len(predict.run(str(run), folder).files) == 15
    assert export.export(str(run), tmp_path / "net.pt2").difference < 1e-4
    pushed = push.push(run, "some-one/first-try")
    card = push.hub.fetch(pushed.repo, pushed.commit, "README.md").read_text()
    assert "import hyperzoo  # registers the architecture" in card and "`sphereized` (of `test_resnet`)" in card
    with torch.inference_mode():
        there, here = (hyperzoo.load(name).model(images()) for name in ("hf-hub:some-one/first-try", str(run)))
    assert torch.equal(there, here)


def test_another_run_starts_from_a_sphereized_one(tmp_path):
    folder = fill(tmp_path / "set")
    first = train.run(plan(folder, "cosine"), tmp_path / "first").folder
    other = hyperzoo.load(str(first), num_classes=7, in_chans=1).model
    assert other(images()[:, :1]).shape == (2, 7)
    again = finetuning_recipe(str(first), folder, ["data.size_px=32", "train.epochs=2", "train.precision=fp32"])
    assert again.model.arch == "sphereized"
    assert model_args(again).items() >= {"base": "test_resnet", "sphereize": "cosine"}.items()
    second = train.run(again, tmp_path / "second")
    assert second.values["started_from"]["name"] == str(first)
    assert isinstance(hyperzoo.load(str(second.folder)).model.conv1[0], SphereConv2d)


def test_a_classifier_with_a_learnable_operator_is_renewed_for_other_classes(tmp_path):
    first = train.run(plan(fill(tmp_path / "set"), None, ANGULAR), tmp_path / "first").folder
    other = hyperzoo.load(str(first), num_classes=7).model
    assert other(images()).shape == (2, 7) and other.get_classifier().raw_k.shape == (7,)
    folder = fill(tmp_path / "two", classes=dict(list(COLORS.items())[:2]))
    second = finetuning_recipe(str(first), folder, ["data.size_px=32", "train.epochs=2", "train.precision=fp32"])
    loaded = hyperzoo.load(str(train.run(second, tmp_path / "second").folder))
    assert loaded.model.get_classifier().raw_k.shape == (2,)


@pytest.mark.fault("weight of another operator")
def test_a_run_with_another_operator_is_refused_in_a_short_sentence(tmp_path):
    folder = fill(tmp_path / "set")
    first = train.run(plan(folder, "learnable", arch="resnet20_cifar"), tmp_path / "first").folder  # 19 convolutions
    second = finetuning_recipe(str(first), folder, ["data.size_px=32", "model.sphereize=cosine"])
    with pytest.raises(WeightFileError, match=r"does not fit .*unexpected: \S+raw_k") as caught:
        train.run(second, tmp_path / "second")
    assert len(str(caught.value)) < 300 + 80 + len(str(first))


def test_an_architecture_of_hyperzoo_is_sphereized_too(tmp_path):
    folder = fill(tmp_path / "set")
    run = train.run(plan(folder, "cosine", ANGULAR, arch="resnet20_cifar"), tmp_path / "run").folder
    saved = json.loads((run / "config.json").read_text())
    assert saved["architecture"] == "sphereized" and saved["model_args"]["base"] == "resnet20_cifar"
    loaded = hyperzoo.load(str(run)).model
    assert isinstance(loaded.conv1, SphereConv2d) and isinstance(loaded.fc, SphereLinear)


def test_the_angular_loss_of_a_network_of_timm_is_that_of_its_features(tmp_path):
    step = build.step(made := plan(tmp_path, None, ANGULAR), build.model(made, 3, 3)).eval()
    x, labels = images(4), torch.tensor([0, 1, 2, 1])
    features = step.model.forward_head(step.model.forward_features(x), pre_logits=True)
    head = step.model.get_classifier()
    expected = step.criterion(features, head.weight, labels, head.raw_k)
    assert torch.allclose(step(x, labels).loss, expected)
    assert model_args(plan(tmp_path)) == {}


@pytest.mark.parametrize(
    "arch, sphereize, method, message",
    [
        ("spherenet20", "cosine", {}, "its convolutions are sphere layers.*leave sphereize out"),
        ("test_vit", "cosine", {}, "its only one is patch_embed.proj"),
        (
            "test_nfnet",
            "cosine",
            {},
            r"test_nfnet would stay mostly plain: sphereize converts \d+ of \d+ convolutions, \d+% of their weights "
            r"\(ScaledStdConv2d has its own forward\).*leave sphereize out",
        ),
        (
            "nf_resnet26",
            "cosine",
            {},
            r"nf_resnet26: sphereize converts no layer of NormFreeNet \(Sc.* has its own forward: .*Or leave",
        ),
        ("deit_tiny_distilled_patch16_224", None, ANGULAR, "one linear classifier"),
    ],
)
@pytest.mark.fault("network that cannot be sphereized")
def test_a_network_without_such_layers_is_refused_before_the_training(tmp_path, arch, sphereize, method, message):
    folder = fill(tmp_path / "set", count=2)
    with pytest.raises(InputError, match=message):
        train.run(plan(folder, sphereize, method, arch=arch), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "run.pid"}


@pytest.mark.fault("base that a config.json must not name", 3)
def test_a_config_names_an_architecture_and_no_place_as_its_base(tmp_path):
    run = train.run(plan(fill(tmp_path / "set"), "cosine"), tmp_path / "run").folder
    config = json.loads((run / "config.json").read_text())
    for base in ("hf-hub:some-one/else", f"local-dir:{run}", "resnet_of_nobody"):
        config["model_args"]["base"] = base
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightFileError, match="no architecture"):
            hyperzoo.load(str(run))
        with pytest.raises(UnknownNameError):
            timm.create_model("sphereized", base=base)


def test_timm_alone_refuses_the_folder_with_one_error(tmp_path):
    run = train.run(plan(fill(tmp_path / "set"), "cosine"), tmp_path / "run").folder
    code = f"import timm; timm.create_model('local-dir:{run}', pretrained=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("RuntimeError: Unknown model (sphereized)")
