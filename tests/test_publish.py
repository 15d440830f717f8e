"""Publishing writes files that agree with each other and with the run, or refuses and changes nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import finished
from support.finished import NAME, another_seed, contents
from support.hub_double import TOKEN, Double, talk_to

from hyperzoo import errors
from hyperzoo.cli import main
from hyperzoo.files import sha256
from hyperzoo.publishing import cards, publish, verify
from hyperzoo.zoo.manifest import Manifest

REPO = f"hyperzoo/{NAME}"
# The warning is raised inside the Hub client, which passes an open file when it uploads a large one.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A checkout, the mirror of its run, and the run folder."""
    root = tmp_path_factory.mktemp("trained")
    checkout = finished.new_checkout(root / "checkout")
    data = finished.mirror(root / "data", slice(10, 18), slice(20, 36))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERZOO_DATA", str(data))
        return checkout, data, finished.run(checkout, root / "run")


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """Copies of the checkout and the run folder for one test."""
    checkout, data, run = trained
    monkeypatch.setenv("HYPERZOO_DATA", str(data))
    shutil.copytree(checkout.root, tmp_path / "checkout")
    return type(checkout)(tmp_path / "checkout"), shutil.copytree(run, tmp_path / "run")


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="session")
def published(trained, tmp_path_factory):
    """The checkout after one publication; tests must not change it."""
    checkout, data, run = trained
    copy = type(checkout)(shutil.copytree(checkout.root, tmp_path_factory.mktemp("published") / "checkout"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERZOO_DATA", str(data))
        info = publish.publish(NAME, [run], checkout=copy)
    return copy, run, info


def test_a_data_set_without_an_embedded_sample(trained, tmp_path, monkeypatch):
    checkout, data, run = trained
    copy = type(checkout)(shutil.copytree(checkout.root, tmp_path / "checkout"))
    shutil.rmtree(copy.mirror)
    monkeypatch.setenv("HYPERZOO_DATA", str(data))
    info = publish.publish(NAME, [run], checkout=copy)
    assert info.metrics.this_file.sample is None and Manifest(copy.package).info(NAME) == info
    assert verify._sample(info, None) == (None, "no sample of uoft-cs/cifar10 is embedded")


def test_the_published_files_agree_with_the_run(published):
    checkout, run, info = published
    manifest = Manifest(checkout.package)
    assert manifest.info(NAME) == info and manifest.default("resnet20_cifar") == NAME
    result = json.loads((run / "result.json").read_text())
    assert info.metrics.accuracy.values == (result["metrics"]["accuracy"],)
    assert (info.metrics.accuracy.n, info.metrics.accuracy.sd, info.metrics.accuracy.seeds) == (1, None, (0,))
    assert info.metrics.this_file.correct == result["metrics"]["correct"] and info.metrics.this_file.total == 16
    assert info.metrics.this_file.sample.total == 12
    assert info.metrics.this_file.ece == pytest.approx(result["metrics"]["ece"], abs=1e-4)  # both in percent
    assert info.paper == ("1512.03385",) and info.license == "mit" and info.recipe == f"resnet_cifar/{NAME}.yaml"
    weight = manifest.folder(NAME) / "model.safetensors"
    config = json.loads((manifest.folder(NAME) / "config.json").read_text())
    assert config["pretrained_cfg"]["paper_ids"] == ["arXiv:1512.03385"]
    trained = load_file(run / "model.safetensors")
    assert all(torch.equal(value, trained[key]) for key, value in load_file(weight).items())
    assert info.parameters == sum(v.numel() for k, v in trained.items() if k.endswith(("weight", "bias")))


def test_no_path_of_a_machine_is_published(published):
    checkout, run, _ = published
    for path, content in contents(checkout.root).items():
        if path.endswith((".json", ".jsonl", ".md")):
            assert str(run.parent.parent).encode() not in content, path
            assert str(finished.ROOT).encode() not in content, path


def test_the_golden_input_follows_its_formula(published):
    golden = load_file(published[0].golden(NAME))
    assert golden.keys() == {"input", "features", "pre_logits", "output"} and golden["input"].shape == (4, 3, 32, 32)
    flat = golden["input"].flatten().tolist()
    for i in (0, 1, 1000, 12287):
        assert flat[i] == pytest.approx(4 * (7919 * i % 2003) / 2003 - 2, abs=1e-6)  # rounding to float32
    assert golden["features"].mean((2, 3)) == pytest.approx(golden["pre_logits"], abs=1e-5)  # order of summation


def test_texts_and_figures_are_written(published):
    checkout, run, info = published
    assert cards.check(Manifest(checkout.package), checkout) == []
    assert NAME in checkout.readme.read_text() and checkout.readme.read_text().startswith("before\n")
    assert checkout.card(NAME, ".metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    for suffix in (".png", ".energy.png"):
        picture = checkout.card(NAME, suffix).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 100_000
    notes = json.loads((checkout.package / "checkpoints" / NAME / "config.json").read_text())["hyperzoo"]
    assert notes["name"] == NAME and notes["recipe_sha256"] == info.recipe_sha256 and "sha256" not in notes


def test_a_second_publication_writes_the_same_bytes(published, work):
    checkout, run = work
    publish.publish(NAME, [run], checkout=checkout)
    first = contents(published[0].root)
    assert contents(checkout.root) == first
    publish.publish(NAME, [run], checkout=checkout)
    assert contents(checkout.root) == first


def test_the_median_of_three_runs_is_published(work):
    checkout, run = work
    stated = json.loads((run / "result.json").read_text())["metrics"]
    best, worst = ({**stated, "accuracy": stated["accuracy"] + delta} for delta in (2.0, -1.0))
    runs = [another_seed(run, 5, metrics=worst), another_seed(run, 3, metrics=best), run]
    info = publish.publish(NAME, runs, checkout=checkout)
    accuracy = info.metrics.accuracy
    assert accuracy.seeds == (0, 3, 5) and accuracy.n == 3
    assert accuracy.mean == pytest.approx(stated["accuracy"] + 1 / 3, abs=1e-4)  # rounded to four digits
    assert accuracy.sd == pytest.approx((7 / 3) ** 0.5, abs=1e-4)  # of the deviations 5/3, -4/3, -1/3
    assert info.metrics.this_file.accuracy == stated["accuracy"]
    assert "over 3 seeds" in checkout.card(NAME).read_text()


def nan(checkout, run):
    state = load_file(run / "model.safetensors")
    state["fc.bias"][3] = float("nan")
    save_file(state, run / "model.safetensors")


def drop_a_tensor(checkout, run):
    state = load_file(run / "model.safetensors")
    del state["layer2.0.conv1.weight"]
    save_file(state, run / "model.safetensors")


def other_weights(checkout, run):
    state = load_file(run / "model.safetensors")
    state["fc.weight"].neg_()
    state["fc.bias"].neg_()
    save_file(state, run / "model.safetensors")
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    change(run, "result.json", metrics={**metrics, "correct": 16})


def embedded_sample(checkout, run):
    shutil.rmtree(checkout.mirror)
    finished.mirror(checkout.mirror, slice(10, 18), slice(0, 12))  # the training images of the run


def other_recipe(checkout, run):
    file = checkout.recipes / "resnet_cifar" / f"{NAME}.yaml"
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.02"))


def path_in_the_config(checkout, run):
    change(run, "config.json", label_names=[f"/home/someone/class{i}" for i in range(10)])


FAULTS = {
    "NaN": (nan, "NaN or infinity in fc.bias"),
    "missing tensor": (drop_a_tensor, "missing: layer2.0.conv1.weight"),
    "another network than measured": (other_weights, "16 correct answers, but its file gives"),
    "embedded sample": (embedded_sample, "embedded sample"),
    "other recipe": (other_recipe, f"its recipe differs from {NAME}.yaml"),
    "unfinished": (lambda checkout, run: (run / "result.json").unlink(), "result.json is missing"),
    "damaged result": (lambda checkout, run: (run / "result.json").write_text("{"), "result.json is damaged"),
    "held out": (
        lambda checkout, run: change(run, "result.json", split="held-out part of train"),
        "not on the test split",
    ),
    "unknown commit": (
        lambda checkout, run: change(run, "result.json", environment={"commit": None}),
        "commit is unknown",
    ),
    "path": (path_in_the_config, "path of this machine"),
    "README without marks": (lambda checkout, run: checkout.readme.write_text("nothing"), "lacks the line"),
    "no recipe": (lambda checkout, run: shutil.rmtree(checkout.recipes), "needs exactly one recipe"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_changes_nothing(work, fault):
    checkout, run = work
    spoil, message = FAULTS[fault]
    spoil(checkout, run)
    before = contents(checkout.root)
    with pytest.raises((errors.PublishError, errors.WeightFileError), match=message):
        publish.publish(NAME, [run], checkout=checkout)
    assert contents(checkout.root) == before


def test_runs_that_do_not_match_are_refused(work):
    checkout, run = work
    with pytest.raises(errors.PublishError, match="same seed: 0, 0"):
        publish.publish(NAME, [run, run], checkout=checkout)
    with pytest.raises(errors.PublishError, match="its train data differ from those of"):
        publish.publish(NAME, [run, another_seed(run, 1, train_fingerprint="0" * 64)], checkout=checkout)
    with pytest.raises(errors.PublishError, match="pass at least one run folder"):
        publish.publish(NAME, [], checkout=checkout)


def test_a_failed_write_changes_nothing(work):
    checkout, run = work
    before = contents(checkout.root)
    (checkout.root / "tests" / "golden").write_text("a file where a folder should be")
    with pytest.raises(errors.PublishError, match="cannot write the published files"):
        publish.publish(NAME, [run], checkout=checkout)
    assert contents(checkout.root) == {**before, "tests/golden": b"a file where a folder should be"}


# The Hub


@pytest.fixture
def double(tmp_path, monkeypatch):
    running = Double()
    talk_to(running, tmp_path / "home", monkeypatch)
    yield running
    running.stop()


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
        assert on_hub[path] == sha256(checkout.root / file), path
    for link in (f"({NAME}.png)", f"({NAME}.energy.png)", f"({NAME}.metrics.jsonl)"):
        assert link in (checkout.root / sent["README.md"]).read_text()  # the links of the card resolve on the Hub
    assert not [path for path, content in contents(checkout.root).items() if TOKEN.encode() in content]

    after = contents(checkout.root)
    assert publish.publish(NAME, [run], checkout=checkout, push=True).commit == info.commit
    assert double.commits(REPO) == [info.commit] and contents(checkout.root) == after
    assert (
        publish.publish(NAME, [run], checkout=checkout).commit == info.commit
    )  # these bytes stay pinned without a push
    change(run, "config.json", label_names=[f"class {i}" for i in range(10)])
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
    monkeypatch.setattr(publish, "BUNDLED_BYTES", 1_000_000)
    before = contents(checkout.root)
    with pytest.raises(errors.PublishError, match="above 1000000 bytes come from the Hub: pass --push"):
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
