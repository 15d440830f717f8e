"""A publication that is pushed: one commit, read back and pinned, or nothing changed; a large weight by every route."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from support import finished
from support.finished import NAME, change, contents, result
from support.hub_double import TOKEN

from hyperzoo import errors
from hyperzoo.cli import main
from hyperzoo.publishing import publish
from hyperzoo.zoo.manifest import Manifest

REPO = f"hyperzoo/{NAME}"
# The warning is raised inside the Hub client, which passes an open file when it uploads a large one.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_push_is_one_commit_that_is_read_back_and_pinned(published, work, double):
    checkout, run = work
    info = publish.publish(NAME, [run], checkout=checkout, push=True)
    assert double.commits(REPO) == [info.commit]
    calls = double.calls()
    pushed, read = (next(i for i, call in enumerate(calls) if word in call) for word in ("/commit/", "/resolve/"))
    assert pushed < read and sum(call.startswith("HEAD ") for call in calls) == 8
    local, before = contents(checkout.root), contents(published[0].root)
    manifest = json.loads(local.pop("hyperzoo/weights.json"))
    expected = json.loads(before.pop("hyperzoo/weights.json"))
    expected["weights"][NAME]["commit"] = info.commit
    assert manifest == expected and local == before  # locally, a push changes the pinned commit only
    sent = {
        "model.safetensors": f"hyperzoo/checkpoints/{NAME}/model.safetensors",
        "config.json": f"hyperzoo/checkpoints/{NAME}/config.json",
        "README.md": f"model_cards/{NAME}.md",
        f"{NAME}.png": f"model_cards/{NAME}.png",
        f"{NAME}.energy.png": f"model_cards/{NAME}.energy.png",
        f"{NAME}.metrics.jsonl": f"model_cards/{NAME}.metrics.jsonl",
        "recipe.yaml": f"recipes/resnet_cifar/{NAME}.yaml",
        "test/rand_tensors.safetensors": f"tests/golden/{NAME}.safetensors",
    }
    on_hub = double.files(REPO, info.commit)
    assert on_hub.keys() == sent.keys()
    for path, file in sent.items():
        content = (checkout.root / file).read_bytes()
        here, there = f"(../recipes/resnet_cifar/{NAME}.yaml)".encode(), b"(recipe.yaml)"
        assert on_hub[path] == hashlib.sha256(content.replace(here, there)).hexdigest(), path
    for link in (f"({NAME}.png)", f"({NAME}.energy.png)", f"({NAME}.metrics.jsonl)"):
        assert link in (checkout.root / sent["README.md"]).read_text()  # the links of the card resolve on the Hub
    assert not [path for path, content in contents(checkout.root).items() if TOKEN.encode() in content]

    after = contents(checkout.root)
    assert publish.publish(NAME, [run], checkout=checkout, push=True).commit == info.commit
    assert double.commits(REPO) == [info.commit] and contents(checkout.root) == after
    assert (
        publish.publish(NAME, [run], checkout=checkout).commit == info.commit
    )  # these bytes stay pinned without a push
    change(run, "result.json", environment={**result(run)["environment"], "torch": "0.1"})  # stands in config.json
    assert publish.publish(NAME, [run], checkout=checkout).commit is None  # other bytes are not on the Hub


@pytest.mark.parametrize(
    "kind, on, message",
    [
        ("401", "create", "pushing to .* answered 401"),
        ("403", "commit/main", "pushing to .* answered 403"),
        ("flip", "GET /lfs", "the downloaded bytes of model.safetensors, .* differ.*nothing refers to that commit"),
        ("cut", "GET /lfs", "cannot be downloaded: .*RemoteProtocolError"),
        ("404", "HEAD ", "cannot be downloaded: .*404"),
    ],
)
def test_a_failed_push_changes_nothing_locally(work, double, monkeypatch, kind, on, message):
    checkout, run = work
    monkeypatch.setattr(publish, "_check_reproducible", lambda folder, model: None)  # slow, and tested elsewhere
    double.fault(kind, on)
    before = contents(checkout.root)
    with pytest.raises(errors.PublishError, match=message) as caught:
        publish.publish(NAME, [run], checkout=checkout, push=True)
    assert REPO in str(caught.value) and contents(checkout.root) == before
    double.fault("ok")
    info = publish.publish(NAME, [run], checkout=checkout, push=True)
    assert double.commits(REPO) == [info.commit]  # the second push reuses what the failed one uploaded


def test_a_weight_above_the_limit_comes_from_the_hub_by_every_route(work, double, monkeypatch, tmp_path):
    checkout, run = work
    monkeypatch.setattr(publish, "BUNDLED_BYTES", 500_000)
    before = contents(checkout.root)
    with pytest.raises(errors.PublishError, match="above 500000 bytes come from the Hub: pass --push"):
        publish.publish(NAME, [run], checkout=checkout)
    assert contents(checkout.root) == before
    info = publish.publish(NAME, [run], checkout=checkout, push=True)
    assert not info.bundled and not (checkout.package / "checkpoints").exists()
    assert "Hub |" in checkout.readme.read_text()
    assert publish.publish(NAME, [run], checkout=checkout).commit == info.commit

    fresh = tmp_path / "fresh"
    left_out = shutil.ignore_patterns("checkpoints", "__pycache__")
    shutil.copytree(finished.ROOT / "hyperzoo", fresh / "hyperzoo", ignore=left_out)
    shutil.copy(checkout.package / "weights.json", fresh / "hyperzoo")
    shutil.copy(finished.ROOT / "hubconf.py", fresh)
    env = {"HF_ENDPOINT": double.url, "HF_HOME": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(fresh)}
    command = [sys.executable, "-c", FRESH, NAME, str(info.commit), str(run / "model.safetensors")]
    done = subprocess.run(command, cwd=fresh, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"5 routes of {fresh / 'hyperzoo' / '__init__.py'}\n"


FRESH = """
import sys
import hyperzoo, timm, torch
from safetensors.torch import load_file
name, commit, file = sys.argv[1:]
trained, (arch, _, tag) = load_file(file), name.partition(".")
models = [
    timm.create_model(name, pretrained=True),
    timm.create_model(f"hf-hub:hyperzoo/{name}", pretrained=True),
    timm.create_model(f"hf-hub:hyperzoo/{name}@{commit}", pretrained=True),
    hyperzoo.load(arch).model,
    torch.hub.load(".", arch, source="local", pretrained=True, tag=tag),
]
for model in models:
    state = model.state_dict()
    assert state.keys() == trained.keys() and all(torch.equal(state[key], trained[key]) for key in state)
print(len(models), "routes of", hyperzoo.__file__)
"""


def test_all_weights_share_one_namespace(work, double, monkeypatch):
    checkout, run = work
    monkeypatch.setattr(publish, "_check_reproducible", lambda folder, model: None)
    before = contents(checkout.root)
    for bad in ("../x", "a/b", "", "-a", "a--b", "a b", "é", "a" * 97):
        with pytest.raises(errors.InvalidNameError, match="is not a namespace of the Hub"):
            publish.publish(NAME, [run], checkout=checkout, namespace=bad)
    assert contents(checkout.root) == before
    first = publish.publish(NAME, [run], checkout=checkout, push=True, namespace="some-one")
    assert Manifest(checkout.package).namespace == "some-one" and double.commits(f"some-one/{NAME}") == [first.commit]
    assert publish.publish(NAME, [run], checkout=checkout, namespace="somebody").commit is None  # not in that namespace
    raw = json.loads((checkout.package / "weights.json").read_text())
    raw["weights"]["resnet32_cifar.plain_c10"] = {**raw["weights"][NAME], "commit": "1" * 40}
    (checkout.package / "weights.json").write_text(json.dumps(raw))
    with pytest.raises(errors.PublishError, match=r"cannot become another: resnet32_cifar\.plain_c10 are in somebody"):
        publish.publish(NAME, [run], checkout=checkout, namespace="another")


def test_the_command_pushes_only_on_request(published, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(publish, "publish", lambda name, runs, **wishes: asked.append(wishes) or published[2])
    for words, said in ([], f"hyperzoo verify {NAME}\n"), (["--push", "--namespace", "me"], f"verify {NAME} --hub\n"):
        assert main._exit_code(["publish", NAME, "run", *words]) == 0
        assert capsys.readouterr().out.endswith(said)
    assert asked == [{"push": False, "namespace": None}, {"push": True, "namespace": "me"}]
