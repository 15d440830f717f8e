"""Robustness metrics agree with a slow computation, count each image once, and do not change the model."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from support import tiny

from hyperzoo.analysis import evaluate, robustness
from hyperzoo.analysis.deform import DEFORMATIONS, deform
from hyperzoo.cli.main import _exit_code
from hyperzoo.data import ImageSet, TextSet
from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.zoo.model_folder import save_model

NAME = "resnet20_cifar.plain_c10"


def made(count=12):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[0], images[1] = 0, 255
    return ImageSet("c10", "test", images, torch.arange(count) % 10, tuple("abcdefghij"), "made")


def small():
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar", widths=(8, 8, 16)).eval()


def test_every_condition_agrees_with_a_slow_computation():
    model, images = small(), made()
    found = robustness.measure(model, images, seed=4)
    assert [one.name for one in found.conditions] == [
        "clean",
        "rotation ±20°",
        "rotation ±40°",
        "rotation ±60°",
        "rotation ±80°",
        "shear ±28.6°",
        "shear ±57.3°",
        "shear ±114.6°",
        "shear ±143.2°",
        "shear ±171.9°",
        *[f"zoom to {part} %" for part in (20, 40, 60, 80, 120, 140, 160, 180)],
        "FGSM 4/255",
        "FGSM 8/255",
        "PGD-20 8/255",
    ]
    got = {one.name: one for one in found.conditions}
    clean = evaluate.measure(model, images)
    assert (got["clean"].accuracy, found.origin) == (clean.accuracy, "made")
    assert got["clean"].nll == pytest.approx(clean.nll, rel=1e-5) and found.ece == pytest.approx(clean.ece, rel=1e-4)

    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels, labels = images.images / 255, images.labels
    generator = torch.Generator().manual_seed(4)
    draws = {kind: 2 * torch.rand(12, generator=generator) - 1 for kind in DEFORMATIONS}
    expected = {
        "rotation ±40°": deform(pixels, "rotation", 40.0, draws["rotation"]),
        "shear ±171.9°": deform(pixels, "shear", 171.9, draws["shear"]),
        "zoom to 60 %": deform(pixels, "zoom", 0.6, draws["zoom"]),
    }
    at = pixels.clone().requires_grad_()
    F.cross_entropy(model((at - mean) / std), labels).backward()
    expected["FGSM 8/255"] = (pixels + 8 / 255 * at.grad.sign()).clamp(0, 1)
    for name, changed in expected.items():
        with torch.no_grad():
            logits = model((changed - mean) / std)
        assert got[name].nll == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4), name
        assert got[name].accuracy == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean())), name
    assert got["PGD-20 8/255"].nll > got["FGSM 8/255"].nll > got["FGSM 4/255"].nll > got["clean"].nll


def test_results_depend_on_the_seed_but_not_on_the_batch_size():
    model, images = small(), made()
    whole, parts, other = (
        robustness.measure(model, images, batch_size=size, seed=seed) for size, seed in ((12, 0), (5, 0), (12, 1))
    )
    for one, two in zip(whole.conditions, parts.conditions, strict=True):
        assert one.nll == pytest.approx(two.nll, rel=1e-4), one.name
    assert whole == robustness.measure(model, images, batch_size=12, seed=0)
    changed = {a.name for a, b in zip(whole.conditions, other.conditions, strict=True) if a.nll != b.nll}
    assert {name.split()[0] for name in changed} == {"rotation", "shear", "PGD-20"}


def test_the_model_is_restored():
    model, images = small().train(), made(4)
    model.bn1.eval()  # partly frozen
    model.conv1.weight.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    state = copy.deepcopy(model.state_dict())
    before = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    robustness.measure(model, images)
    assert before == [(module.training, len(module._forward_hooks)) for module in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(bool((p.grad == 2).all()) for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model.fc.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN or infinite"):
        robustness.measure(model, images)
    assert model.training and not model.bn1.training


def test_a_gpu_computes_in_float32_too():
    model, seen = small(), []
    model.conv1.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    robustness.measure(model, made(), only=["clean"])
    assert seen and not any(seen) and torch.backends.cudnn.allow_tf32


def test_the_evaluation_takes_no_tf32_for_float32():
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    model.num_classes, model.pretrained_cfg = 10, {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    model[1].register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    evaluate.logits(model, tiny.image_set(20))
    assert seen == [False] and torch.backends.cudnn.allow_tf32 is before


def test_some_conditions_alone_give_the_numbers_of_all():
    model, images = small(), made()
    whole = {one.name: one for one in robustness.measure(model, images).conditions}
    some = robustness.measure(model, images, only=["FGSM 4/255"]).conditions
    assert some == (whole["clean"], whole["FGSM 4/255"])
    with pytest.raises(InputError, match="no condition 'FGSM 5/255'; conditions: clean, "):
        robustness.measure(model, images, only=["FGSM 5/255"])


def test_a_text_is_refused():
    text = TextSet("ptb", "test", torch.tensor([0, 1]), ("a", "b"), 0, "made")
    with pytest.raises(InputError, match="ptb is a text"):
        robustness.measure(small(), text)


def test_the_command_on_a_weight(data_mirror, tmp_path, capsys):
    picture = tmp_path / "robust.png"
    assert _exit_code(["eval", NAME, "--robustness", "--limit", "10", "--out", str(picture)]) == 0
    out, err = capsys.readouterr()
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert header == list(robustness.COLUMNS)
    accuracy = {row[0]: float(row[1]) for row in rows}
    assert len(accuracy) == 21 and accuracy["clean"] >= 70
    assert accuracy["PGD-20 8/255"] == 0 <= accuracy["FGSM 8/255"] < accuracy["clean"]  # an undefended network
    calibration, seed, remark = re.match(r"calibration error (\S+ %); seed (\d+); (.*)$", err, re.DOTALL).groups()
    assert remark.endswith(f", 10 of 500 images\n{picture}\n") and seed == "0"
    assert picture.read_bytes().startswith(b"\x89PNG")
    model, images = evaluate.load_model_and_samples(NAME, limit=10)
    _, again = evaluate.load_model_and_samples(NAME, limit=10)
    _, whole = evaluate.load_model_and_samples(NAME)
    assert torch.equal(images.images, again.images) and len(images) == 10
    assert not torch.equal(images.images, whole.images[:10])  # random, because some data sets are sorted by class
    assert calibration == f"{evaluate.measure(model, images).ece:.2f} %"


def test_the_command_on_a_folder_and_on_models_of_timm(data_mirror, tmp_path, capsys):
    save_model(small(), tmp_path / "run", classes=tuple("abcdefghij"), args=dict(widths=(8, 8, 16)))
    name = f"local-dir:{tmp_path / 'run'}"
    assert _exit_code(["eval", name, "--data", "c10", "--limit", "20"]) == 0
    found = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert found["total"] == "20" and found["data"].endswith(", 20 of 500 images")
    assert evaluate.run(name, dataset="c10", limit=20).accuracy == float(found["accuracy"])
    assert evaluate.run(name, dataset="c10", limit=10**6).total == 500
    for words, message in (
        ([name], "is not a hyperzoo weight or a run folder; pass the data set with --data, one of c10, c100, mnist"),
        (["resnet18"], "resnet18 is not a hyperzoo weight"),
        (["resnet18", "--data", "c10"], "has 3 input channels and 1000 classes, but c10 has 3 channels and 10 classes"),
        ([NAME, "--data", "c11"], "no image data set 'c11'"),
    ):
        assert _exit_code(["eval", *words]) == 1
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(InputError, match="limit must be 1 or more; got 0"):
        evaluate.load_model_and_samples(NAME, limit=0)
    with pytest.raises(UnknownNameError, match="resnet20_cifar.mhe_c10"):
        evaluate.load_model_and_samples("resnet20_cifar.mhe_c10")
