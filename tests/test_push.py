"""A user's run on the Hub: what is sent loads as the run does, holds no path of this machine, and is read back."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from support.hub_double import TOKEN

import hyperzoo
from hyperzoo import errors
from hyperzoo.analysis import predict
from hyperzoo.experiments import train
from hyperzoo.files import sha256
from hyperzoo.publishing import push
from hyperzoo.publishing.finished_run import FinishedRun
from hyperzoo.training.recipe import Recipe, load_recipe

REPO = "some-one/first-try"
# The warning is raised inside the Hub client, which passes an open file when it uploads a large one.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on the embedded images."""
    words = ["train.epochs=1", "optim.warmup_epochs=0", "model.arch=resnet20_cifar"]
    with pytest.MonkeyPatch.context() as patch:
        root = Path(__file__).parent
        patch.setenv("HYPERZOO_DATA", str(root / "assets" / "mirror"))
        return train.run(
            load_recipe(root.parent / "recipes" / "demo.yaml", words), tmp_path_factory.mktemp("run")
        ).folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "home" / "run")


def downloaded(pushed):
    """The files of a commit by name."""
    return {part: push.hub.fetch(pushed.repo, pushed.commit, part).read_bytes() for part in pushed.files}


def test_the_pushed_run_loads_by_timm_and_hyperzoo(run, double, tmp_path):
    pushed = push.push(run, REPO)
    assert double.commits(REPO) == [pushed.commit] and double.files(REPO, pushed.commit).keys() == {*pushed.files}
    files = {"README.md", "model.safetensors", "config.json", "recipe.yaml", "result.json", "metrics.jsonl"}
    assert {*pushed.files} == files | {"learning_curve.png"}
    own, x = hyperzoo.load(str(run)), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = own.model(x)
        assert torch.equal(timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(x), expected)
        loaded = hyperzoo.load(f"hf-hub:{REPO}")
        assert torch.equal(loaded.model(x), expected) and loaded.classes == own.classes and loaded.info is None
    Image.new("RGB", (40, 50), (200, 30, 30)).save(tmp_path / "red.png")
    assert predict.run(f"hf-hub:{REPO}", tmp_path / "red.png") == predict.run(str(run), tmp_path / "red.png")


def test_the_recipe_and_the_result_are_those_of_the_run(run, double, tmp_path):
    sent = downloaded(push.push(run, REPO))
    (tmp_path / "recipe.yaml").write_bytes(sent["recipe.yaml"])
    here = json.loads((run / "result.json").read_text())
    assert load_recipe(tmp_path / "recipe.yaml").digest() == Recipe.stored(here["recipe"]).digest()
    there = json.loads(sent["result.json"])
    assert {**there, "files": 0} == {**here, "files": 0}
    for part, digest in there["files"].items():
        (tmp_path / part).write_bytes(sent[part])
        assert sha256(tmp_path / part) == digest


def test_the_code_of_the_card_runs_and_its_numbers_are_those_of_the_run(run, double, monkeypatch, capsys):
    card = downloaded(push.push(run, REPO))["README.md"].decode()
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert f"Accuracy {metrics['accuracy']:.2f} % ({metrics['correct']} of 500 images, test)" in card
    for name, accuracy in metrics["class_accuracy"].items():
        assert f"| {name} | {accuracy:.1f} |" in card
    assert "`uoft-cs/cifar10` on the Hub" in card and metrics["fingerprint"] in card
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        exec(compile(code, "README.md", "exec"), {})
    classes = hyperzoo.load(str(run)).classes
    first, second = capsys.readouterr().out.splitlines()
    assert first in classes and second == str(classes)
    for link in re.findall(r"\]\(([^)]+)\)", card):
        assert link in ("recipe.yaml", "metrics.jsonl", "result.json", "learning_curve.png")


def test_the_code_of_the_card_of_a_gray_network_takes_a_gray_image(run, double):
    config = json.loads((run / "config.json").read_text())
    config["pretrained_cfg"]["input_size"][0] = 1
    values = json.loads((run / "result.json").read_text())
    recipe = Recipe.stored(values["recipe"])
    card = push._card(FinishedRun(run, values), config, recipe, REPO, ("a", "b"), 10)
    assert """image = Image.new("L", (64, 64))  # your image, in gray: .convert('L')""" in card
    assert (
        """image = Image.new("RGB", (64, 64))  # your image\n"""
        in downloaded(push.push(run, REPO))["README.md"].decode()
    )


@pytest.mark.fault("path of this machine in a run", 3)
def test_no_path_of_this_machine_is_sent(run, double, tmp_path):
    values = json.loads((run / "result.json").read_text())
    values["recipe"]["data"]["source"] = {"folder": str(tmp_path / "home" / "bird photos")}
    values["started_from"] = {"name": f"local-dir:{tmp_path / 'home' / 'earlier'}/", "sha256": None}
    config = json.loads((run / "config.json").read_text())
    config["hyperzoo"] = {"origin": "C:\\Users\\me\\photos"}
    config["label_names"][0] = "/m/01g317"  # a class of Open Images
    (run / "config.json").write_text(json.dumps(config))
    values["files"]["config.json"] = sha256(run / "config.json")
    (run / "result.json").write_text(json.dumps(values))
    sent = downloaded(push.push(run, REPO))
    for part, content in sent.items():
        assert str(tmp_path).encode() not in content and b"Users" not in content, part
    there, config = json.loads(sent["result.json"]), json.loads(sent["config.json"])
    assert there["recipe"]["data"]["source"]["folder"] == "bird photos"
    assert there["started_from"]["name"] == "earlier" and b"Fine-tuned from `earlier`" in sent["README.md"]
    assert config["hyperzoo"] == {"origin": "photos"} and config["label_names"][0] == "/m/01g317"
    assert b"Own images, `bird photos`" in sent["README.md"]


@pytest.mark.parametrize("code, hub_id", [("mnist", "ylecun/mnist"), ("imagenet", "ILSVRC/imagenet-1k")])
def test_the_card_names_every_data_set_of_the_table(run, double, code, hub_id):
    values = json.loads((run / "result.json").read_text())
    values["recipe"]["data"]["name"] = code
    (run / "result.json").write_text(json.dumps(values))
    card = downloaded(push.push(run, REPO))["README.md"].decode()
    assert f"`{hub_id}` on the Hub" in card and f'- "{hub_id}"' in card and "Own images" not in card


@pytest.mark.fault("path of this machine in a run")
def test_files_of_one_name_keep_the_folders_that_tell_them_apart(run, double, tmp_path):
    files = {split: [str(tmp_path / split / "0.parquet")] for split in ("train", "test")}
    values = json.loads((run / "result.json").read_text())
    values["recipe"]["data"]["source"] = {"parquet": files}
    (run / "result.json").write_text(json.dumps(values))
    sent = downloaded(push.push(run, REPO))
    cut = {"train": ["train/0.parquet"], "test": ["test/0.parquet"]}
    assert json.loads(sent["result.json"])["recipe"]["data"]["source"]["parquet"] == cut
    assert all(str(tmp_path).encode() not in content for content in sent.values())


def test_a_language_model_keeps_its_words(run, double):
    source = Path(hyperzoo.__file__).parent / "checkpoints" / "lstm200.plain_ptb"
    values = json.loads((run / "result.json").read_text())
    values["recipe"] = load_recipe("lstm200.plain_ptb").model_dump(mode="json")
    values["metrics"] = {"perplexity": 88.03, "nll": math.log(88.03), "correct": 3, "total": 9, "fingerprint": "f"}
    for part in ("model.safetensors", "config.json", "vocab.txt"):
        shutil.copy(source / part, run)
        values["files"][part] = sha256(run / part)
    (run / "result.json").write_text(json.dumps(values))
    pushed = push.push(run, REPO)
    assert "vocab.txt" in pushed.files
    loaded = hyperzoo.load(f"hf-hub:{REPO}")
    assert loaded.classes == hyperzoo.load("lstm200.plain_ptb").classes
    card = downloaded(pushed)["README.md"].decode()
    assert "Perplexity 88.03 on the test split" in card and "pipeline_tag: text-generation" in card
    assert "A language model with 10,000 words, architecture `lstm200`" in card and "hyperzoo predict" not in card


@pytest.mark.fault("markup in the name of a class")
def test_names_of_classes_stay_text_in_the_card(run, double):
    values = json.loads((run / "result.json").read_text())
    values["metrics"]["class_accuracy"] = {"a|b": 0.0, "<script>": 50.0, "`*_[x](y)": 100.0, "Ä\nB": 100.0}
    (run / "result.json").write_text(json.dumps(values))
    card = downloaded(push.push(run, REPO))["README.md"].decode()
    for row in ("| a\\|b | 0.0 |", "| &lt;script&gt; | 50.0 |", "| \\`\\*\\_\\[x\\](y) | 100.0 |", "| Ä B | 100.0 |"):
        assert row in card


def test_a_private_run_never_reaches_a_public_repository(run, double):
    double.commit(REPO, {"README.md": b"theirs"})
    commits = double.commits(REPO)
    with pytest.raises(errors.PublishError, match=f"{REPO} exists and is public; make it private"):
        push.push(run, REPO, private=True)
    assert double.commits(REPO) == commits
    pushed = push.push(run, "some-one/secret", private=True)
    assert push.push(run, "some-one/secret", private=True).commit == pushed.commit
    assert push.hub.HfApi().model_info("some-one/secret").private
    assert double.commits(REPO) == commits


@pytest.mark.fault("name that is no repository of one's own")
@pytest.mark.parametrize(
    "repo, text",
    [
        ("name", "write <owner>/<name>"),
        ("a/b/c", "write <owner>/<name>"),
        ("../b", "write <owner>/<name>"),
        ("a/b@main", "write <owner>/<name>"),
        ("me/spherenet20.sphere_c10", "is a published weight of hyperzoo"),
    ],
)
def test_the_name_is_checked_before_anything_is_read(repo, text, tmp_path):
    with pytest.raises(errors.InvalidNameError, match=text):
        push.push(tmp_path / "nowhere", repo)


@pytest.mark.fault("damaged run, or a push that fails")
@pytest.mark.parametrize("kind", ["unfinished", "changed", "401", "flip", "no token"])
def test_a_failed_push_says_why_and_leaves_the_run_alone(run, double, monkeypatch, kind):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    text = {"401": "answered 401", "flip": "differ", "no token": "set HF_TOKEN"}.get(kind)
    if kind == "unfinished":
        (run / "result.json").unlink()
        text = "is not a finished run: result.json is missing"
    elif kind == "changed":
        (run / "metrics.jsonl").write_text("{}\n")
        text = "metrics.jsonl has changed since the run ended"
    elif kind == "no token":
        monkeypatch.delenv("HF_TOKEN")
    else:
        double.fault(kind, "create" if kind == "401" else "GET /lfs")
    with pytest.raises(errors.PublishError, match=text) as caught:
        push.push(run, REPO)
    assert TOKEN not in str(caught.value)
    if kind not in ("unfinished", "changed"):
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_the_command(run, double, command):
    code, out, _ = command("push", run, REPO)
    (commit,) = double.commits(REPO)
    assert (code, out) == (0, f'{REPO}@{commit}\tload it: hyperzoo.load("hf-hub:{REPO}")\n')
    code, out, err = command("push", f"local-dir:{run}", REPO, "--private", "--json")
    assert (code, out) == (1, "") and "is public" in err
    found = json.loads(command("push", run, REPO, "--json")[1])
    assert (found["repo"], found["commit"]) == (REPO, commit) and "README.md" in found["files"]


def test_an_installed_package_needs_no_checkout():
    """The template is a file of the package, and nothing asks for a checkout."""
    code = "import hyperzoo.publishing.push, sys; sys.exit('hyperzoo.publishing.checkout' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert (Path(push.__file__).parent / push.CARD).is_file()
