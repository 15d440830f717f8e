"""torch.hub sees one documented entry point per architecture, and `load`."""

import inspect
from pathlib import Path

import pytest
import torch
from published import ARCH, MHE, PLAIN, publish, withdraw

import hyperzoo

ROOT = str(Path(__file__).parent.parent)


def hub(entry, *args, **kwargs):
    return torch.hub.load(ROOT, entry, *args, source="local", **kwargs)


@pytest.fixture
def entries(monkeypatch):
    """What torch.hub sees; its `list` and `help` know no local source, so the download is replaced by this folder."""
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *args, **kwargs: ROOT)
    return torch.hub.list("owner/hyperzoo:v1", trust_repo=True)


def test_one_entry_per_architecture_and_load(entries):
    assert sorted(entries) == sorted([*hyperzoo.list_models(), "load"])


def test_every_entry_has_a_help_text(entries):
    for name in entries:
        text = torch.hub.help("owner/hyperzoo:v1", name, trust_repo=True)
        assert text and inspect.cleandoc(text)
        for weight in hyperzoo.list_weights(name) if name != "load" else []:
            info = hyperzoo.weight_info(weight)
            line = next(line for line in text.splitlines() if line.strip().startswith(info.tag))
            for part in (f"{info.metrics.accuracy.mean:.2f}", f"n = {info.metrics.accuracy.n}", info.dataset.id):
                assert part in line
            assert info.license in line


def test_every_architecture_builds_from_the_local_repository():
    for name in hyperzoo.list_models():
        assert type(hub(name, num_classes=5, device="meta")).__module__.startswith("hyperzoo.models."), name


def test_weights_load_and_are_described(tmp_path, monkeypatch):
    zoo = publish(tmp_path, monkeypatch)
    try:
        plain, mhe = hub(ARCH, pretrained=True), hub(ARCH, pretrained=True, tag="mhe_c10", num_classes=7)
        assert torch.equal(plain.fc.weight, zoo.tensors[PLAIN]["fc.weight"])
        assert torch.equal(mhe.conv1.weight, zoo.tensors[MHE]["conv1.weight"]) and mhe.num_classes == 7
        assert hub("load", PLAIN).vocabulary[3] == "class 3"
        monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *args, **kwargs: ROOT)
        text = torch.hub.help("owner/hyperzoo:v1", ARCH, trust_repo=True)
        line = "plain_c10 (default): accuracy 91.25 % (n = 1) on uoft-cs/cifar10, licence mit"
        assert line in text and "mhe_c10: accuracy" in text
    finally:
        withdraw(monkeypatch)


@pytest.mark.parametrize("name", hyperzoo.list_weights())
def test_each_weight_of_the_package_loads(name):
    arch, _, tag = name.partition(".")
    state = hub(arch, pretrained=True, tag=tag).state_dict()
    expected = hyperzoo.load(name).model.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
