"""Publishing writes files that agree with each other and with the run, or refuses and changes nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file
from support import finished
from support.finished import NAME, another_seed, contents
from support.hub_double import TOKEN

from hyperzoo import errors
from hyperzoo.cli import main
from hyperzoo.files import sha256, write_whole
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
    """Change values of a JSON file of a run, as if the run had written them."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    stamp(folder)


def result(run):
    return json.loads((run / "result.json").read_text())


def stamp(run):
    """Let result.json describe the present files of a run."""
    values = result(run)
    values["files"] = {name: sha256(run / name) for name in values["files"]}
    (run / "result.json").write_text(json.dumps(values))


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
    stated = result(run)["metrics"]  # of 16 images
    best, worst = (
        {**stated, "accuracy": stated["accuracy"] + 6.25 * more, "correct": stated["correct"] + more}
        for more in (2, -1)
    )
    runs = [another_seed(run, 5, metrics=worst), another_seed(run, 3, metrics=best), run]
    info = publish.publish(NAME, runs, checkout=checkout)
    accuracy = info.metrics.accuracy
    assert accuracy.seeds == (0, 3, 5) and accuracy.n == 3
    assert accuracy.mean == pytest.approx(stated["accuracy"] + 6.25 / 3, abs=1e-4)  # rounded to four digits
    assert accuracy.sd == pytest.approx(6.25 * (7 / 3) ** 0.5, abs=1e-3)  # of 5/3, -4/3 and -1/3 images
    assert info.metrics.this_file.accuracy == stated["accuracy"]
    assert "over 3 seeds" in checkout.card(NAME).read_text()


def retensor(run, change):
    state = load_file(run / "model.safetensors")
    change(state)
    save_file(state, run / "model.safetensors")
    stamp(run)


def nan(checkout, run):
    retensor(run, lambda state: state["fc.bias"].fill_(float("nan")))


def drop_a_tensor(checkout, run):
    retensor(run, lambda state: state.pop("layer2.0.conv1.weight"))


def int8(checkout, run):
    retensor(run, lambda state: state.update({"fc.bias": state["fc.bias"].to(torch.int8)}))


def other_weights(checkout, run):
    retensor(run, lambda state: (state["fc.weight"].neg_(), state["fc.bias"].neg_()))
    change(run, "result.json", metrics={**result(run)["metrics"], "correct": 16, "accuracy": 100.0})


def weights_of_another_run(checkout, run):
    save_file({k: v * 1.01 for k, v in load_file(run / "model.safetensors").items()}, run / "model.safetensors")


def log_of_another_run(checkout, run):
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    (run / "metrics.jsonl").write_text(json.dumps({**row, "loss": 0.5}) + "\n")


def log_of_a_shorter_run(checkout, run):
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    (run / "metrics.jsonl").write_text(json.dumps({**row, "epoch": row["epoch"] + 1}) + "\n")
    stamp(run)


def metrics(**values):
    return lambda checkout, run: change(run, "result.json", metrics={**result(run)["metrics"], **values})


def label_names(count, **values):
    names = [f"class {i}" for i in range(count)]
    return lambda checkout, run: change(run, "config.json", label_names=names, **values)


def embedded_sample(checkout, run):
    shutil.rmtree(checkout.mirror)
    finished.mirror(checkout.mirror, slice(10, 18), slice(0, 12))  # the training images of the run


def other_recipe(checkout, run):
    file = checkout.recipes / "resnet_cifar" / f"{NAME}.yaml"
    file.write_text(file.read_text().replace("lr: 0.01", "lr: 0.02"))


def path_in_the_config(checkout, run):
    change(run, "result.json", environment={**result(run)["environment"], "torch": "/home/someone/torch"})


def reversed_names(checkout, run):
    names = json.loads((run / "config.json").read_text())["label_names"]
    change(run, "config.json", label_names=names[::-1])


FAULTS = {
    "NaN": (nan, r"NaN or infinity: fc\.bias"),
    "int8": (int8, r"other dtype: fc\.bias int8, not float32"),
    "9 names": (label_names(9), "must be a list of 10 names; got 9"),
    "11 names": (label_names(11), "must be a list of 10 names; got 11"),
    "9 classes": (label_names(9, num_classes=9), r"other shape: fc\.weight \(10, 64\), not \(9, 64\)"),
    "accuracy of another run": (metrics(accuracy=99.9), "accuracy 99.9 does not fit"),
    "accuracy NaN": (metrics(accuracy=float("nan")), "accuracy nan does not fit"),
    "more than all": (metrics(correct=17, accuracy=106.25), "17 correct answers of 16"),
    "NLL of another run": (metrics(nll=0.1), "reports an NLL of 0.1, but its file gives"),
    "no NLL": (metrics(nll=None), "metrics.nll is None"),
    "weights of another run": (weights_of_another_run, "model.safetensors has changed since the run ended"),
    "log of another run": (log_of_another_run, "metrics.jsonl has changed since the run ended"),
    "log of a shorter run": (log_of_a_shorter_run, r"metrics\.jsonl ends with epoch 2, but the result is of 1"),
    "result without a recipe": (lambda checkout, run: change(run, "result.json", recipe=None), "recipe is None"),
    "result without a seed": (lambda checkout, run: change(run, "result.json", seed="0"), "seed is '0'"),
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
        lambda checkout, run: change(run, "result.json", environment={**result(run)["environment"], "commit": None}),
        "commit is unknown",
    ),
    "changed recipe": (
        lambda checkout, run: change(run, "result.json", recipe_changes=[{"after_epoch": 1, "changed": {}}]),
        "its recipe was changed while it ran",
    ),
    "path": (path_in_the_config, "path of this machine"),
    "class names in another order": (reversed_names, "'truck' in the place of 'airplane'"),
    "README without marks": (lambda checkout, run: checkout.readme.write_text("nothing"), "lacks the line"),
    "no recipe": (lambda checkout, run: shutil.rmtree(checkout.recipes), "needs exactly one recipe"),
}


@pytest.mark.fault("run that must not be published")
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


def loads(root):
    """Whether the bundled files of a checkout are those of its manifest; None for an empty manifest."""
    manifest = Manifest(root / "hyperzoo")
    if NAME not in manifest.weights:
        return None
    return all(sha256(manifest.folder(NAME) / part) == digest for part, digest in manifest.info(NAME).files.items())


@pytest.mark.fault("kill -9 while publishing", 16)
def test_a_publication_killed_while_writing_leaves_a_zoo_that_loads(work, monkeypatch):
    checkout, run = work
    written = []
    monkeypatch.setattr(publish, "write_whole", lambda files: written.append(files) or write_whole(files))

    def after_each_kill():
        """`loads` after each rename of the last publication: `write_whole` renames in the given order."""
        copy = shutil.copytree(checkout.root, checkout.root.parent / f"killed-{len(written)}")
        publish.publish(NAME, [run], checkout=checkout)
        for path, content in [(None, b""), *written[-1].items()]:
            if path:
                target = copy / path.relative_to(checkout.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            yield loads(copy)

    *before, last = after_each_kill()
    assert set(before) == {None} and last
    change(run, "result.json", environment={**result(run)["environment"], "torch": "0.1"})  # stands in config.json
    *before, last = after_each_kill()
    assert last and len(before) >= 8 and before.count(False) == 1, "only between config.json and the manifest"


def test_a_publication_waits_for_another_and_keeps_its_weight(work):
    checkout, run = work
    file, other = checkout.package / "weights.json", "resnet32_cifar.plain_c10"
    done = []
    with checkout.locked():
        second = threading.Thread(target=lambda: done.append(publish.publish(NAME, [run], checkout=checkout)))
        second.start()
        second.join(1)
        assert second.is_alive() and not done
        entry = json.loads((finished.ROOT / "hyperzoo" / "weights.json").read_text())["weights"][NAME]
        recipe = checkout.recipes / "resnet_cifar" / f"{other}.yaml"
        recipe.write_text((recipe.parent / f"{NAME}.yaml").read_text().replace("resnet20", "resnet32"))
        entry["recipe"] = f"resnet_cifar/{other}.yaml"
        file.write_text(json.dumps({"format": 1, "namespace": "hyperzoo", "weights": {other: entry}}))
    second.join(120)
    assert [info.name for info in done] == [NAME] and Manifest(checkout.package).names() == [NAME, other]


def test_changed_code_stands_on_the_card(work):
    checkout, run = work
    for dirty, text in ((True, "` with uncommitted changes, "), (False, "`, ")):
        change(run, "result.json", environment={**result(run)["environment"], "dirty": dirty})
        info = publish.publish(NAME, [run], checkout=checkout)
        config = json.loads((checkout.package / "checkpoints" / NAME / "config.json").read_text())
        assert info.code_changed == config["hyperzoo"]["code_changed_since_commit"] == dirty
        assert f"code at commit `{info.code_commit[:12]}{text}" in checkout.card(NAME).read_text()


DAMAGED_GOLDEN = {
    "cut": lambda data, state: data[:-7],
    "empty": lambda data, state: b"",
    "no input": lambda data, state: save({key: value for key, value in state.items() if key != "input"}),
    "no output": lambda data, state: save({key: value for key, value in state.items() if key != "output"}),
    "other input": lambda data, state: save({**state, "input": state["input"] + 1}),
    "other shape": lambda data, state: save({**state, "output": state["output"][:, :3].contiguous()}),
    "int8": lambda data, state: save({**state, "output": state["output"].to(torch.int8)}),
    "NaN": lambda data, state: save({**state, "output": state["output"] * float("nan")}),
}


@pytest.mark.fault("damaged golden file")
@pytest.mark.parametrize("kind", DAMAGED_GOLDEN)
def test_a_damaged_golden_file_fails_the_verification(published, monkeypatch, tmp_path, kind):
    checkout = type(published[0])(shutil.copytree(published[0].root, tmp_path / "checkout"))
    monkeypatch.setattr(verify, "find_checkout", lambda: checkout)
    model = timm.create_model(f"local-dir:{checkout.package / 'checkpoints' / NAME}", pretrained=True).eval()
    assert verify._golden(published[2], model)[0] is True
    file = checkout.golden(NAME)
    file.write_bytes(DAMAGED_GOLDEN[kind](file.read_bytes(), load_file(file)))
    assert verify._golden(published[2], model)[0] is False


# The Hub


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
