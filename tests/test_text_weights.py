"""Publishing a language model: perplexity, hashed vocabulary, golden outputs, and a card whose code runs."""

import dataclasses
import json
import re
import shutil

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support import texts

import hyperzoo
from hyperzoo import zoo
from hyperzoo.analysis import evaluate
from hyperzoo.cli.main import _exit_code
from hyperzoo.errors import InputError, WeightFileError, WeightHashError
from hyperzoo.experiments import reproduce, train
from hyperzoo.files import sha256
from hyperzoo.models import lstm_lm
from hyperzoo.models._create import register, weight_cfgs
from hyperzoo.publishing import cards, publish, verify
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.training.recipe import load_recipe
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest

NAME = "lstm200.plain_ptb"
RECIPE = texts.RECIPE.replace("width: 8, ", "").replace("epochs: 2", "epochs: 1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout with one published language model, the mirror, and the run."""
    root = tmp_path_factory.mktemp("published")
    checkout, data = Checkout(root / "checkout"), texts.mirror(root / "mirror")
    recipe = checkout.recipes / "lstm_lm" / f"{NAME}.yaml"
    for folder in (checkout.package, recipe.parent, checkout.card_template.parent):
        folder.mkdir(parents=True)
    recipe.write_text(RECIPE)
    (checkout.package / "weights.json").write_text(json.dumps({"format": 1, "namespace": "hyperzoo", "weights": {}}))
    for template in ("card_template", "text_card_template"):
        shutil.copy(getattr(find_checkout(), template), getattr(checkout, template))
    checkout.readme.write_text(f"before\n{cards.BEGIN}\n{cards.END}\nafter\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERZOO_DATA", str(data))
        run = train.run(load_recipe(recipe), root / "run")
        info = publish.publish(NAME, [run.folder], checkout=checkout)
    return checkout, data, run, info


@pytest.fixture
def published(made, monkeypatch, tmp_path):
    """The weight of a copy of that checkout replaces those of the package; a test may damage it."""
    checkout, data, run, info = made
    copy = Checkout(shutil.copytree(checkout.root, tmp_path / "checkout"))
    monkeypatch.setenv("HYPERZOO_DATA", str(data))
    monkeypatch.setattr(weight_files, "MANIFEST", Manifest(copy.package))
    monkeypatch.setattr(verify, "find_checkout", lambda: copy)
    monkeypatch.setitem(lstm_lm.default_cfgs, "lstm200", weight_cfgs({"lstm200": lstm_lm._cfg()})["lstm200"])
    register(lstm_lm.lstm200)
    yield copy, run, info
    monkeypatch.undo()
    register(lstm_lm.lstm200)


def test_the_manifest_entry_agrees_with_the_run(made):
    checkout, _, run, info = made
    metrics = run.values["metrics"]
    assert Manifest(checkout.package).info(NAME) == info and info.task == "text-generation"
    assert info.metrics.perplexity.values == (round(metrics["perplexity"], 4),) and info.score.sd is None
    this = info.metrics.this_file
    assert (this.correct, this.total) == (metrics["correct"], metrics["total"]) and this.total == 99
    assert set(info.files) == {"model.safetensors", "config.json", "vocab.txt"} and info.num_classes == 9
    assert info.files["vocab.txt"] == sha256(run.folder / "vocab.txt")
    assert (info.dataset.id, info.dataset.config) == ("ptb-text-only/ptb_text_only", "penn_treebank")
    assert "Penn Treebank" in info.dataset_terms and "2002.05366" in info.paper
    golden = load_file(checkout.golden(NAME))
    assert golden.keys() == {"input", "output"} and golden["output"].shape == (1, 8, 9)
    assert golden["input"].tolist() == [[7919 * i % 9 for i in range(8)]]


def test_network_and_words_can_be_loaded(published):
    copy, run, info = published
    loaded = hyperzoo.load("lstm200")
    assert loaded.info == info and not loaded.model.training
    assert loaded.classes == tuple((run.folder / "vocab.txt").read_text().splitlines())
    assert loaded.classes[:4] == ("a", "b", "c", "<eos>") and len(loaded.classes) == 9
    assert evaluate.run(NAME).perplexity == pytest.approx(run.values["metrics"]["perplexity"], rel=1e-6)
    direct = timm.create_model(NAME, pretrained=True).eval()
    tokens = torch.randint(9, (2, 5))
    assert torch.equal(direct(tokens), loaded.model(tokens))
    with pytest.raises(InputError, match=rf"{NAME} has a fixed vocabulary of 9 words; num_classes=5 needs pretrained"):
        timm.create_model(NAME, pretrained=True, num_classes=5)
    words = copy.package / "checkpoints" / NAME / "vocab.txt"
    words.write_text(words.read_text().replace("a", "A", 1))
    with pytest.raises(WeightHashError, match=r"vocab.txt has sha256 .* Reinstall"):
        hyperzoo.load(NAME)


def test_verification_recomputes_everything_but_a_sample(published):
    found = {check.what: (check.ok, check.detail) for check in verify.verify(NAME)}
    assert {what: ok for what, (ok, _) in found.items()} == {
        "hash": True,
        "tensors": True,
        "size": True,
        "golden": True,
        "sample": None,
        "test set": True,
    }
    assert "vocab.txt" in found["hash"][1] and "embedded" in found["sample"][1]
    info = weight_files.MANIFEST.info(NAME)
    wrong = dataclasses.replace(info.metrics.this_file, correct=info.metrics.this_file.correct + 3)
    info = dataclasses.replace(info, metrics=dataclasses.replace(info.metrics, this_file=wrong))
    assert verify._test_set(info, zoo.load(NAME).model)[0] is False


def test_the_card_agrees_and_its_code_runs(published, capsys):
    copy, run, info = published
    text = copy.card(NAME).read_text()
    card = ModelCard(text)
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["language"], data["license"]) == ("text-generation", "en", "mit")
    (result,) = [r for r in card.data.eval_results if r.metric_type == "perplexity"]
    assert result.metric_value == pytest.approx(run.values["metrics"]["perplexity"], abs=0.005)
    assert result.dataset_type == info.dataset.id and "$" not in card.text and "Single run (n = 1)" in card.text
    assert cards.check(weight_files.MANIFEST, copy) == []
    assert f"perplexity {info.score.mean:.2f}" in copy.readme.read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("the company said", "a b c")
    space = {}
    exec(compile(code, "card", "exec"), space)
    assert space["logits"].shape == (1, 3, 9) and capsys.readouterr().out.strip() in space["words"]


def test_commands(published, capsys):
    run = published[1]
    assert _exit_code(["list"]) == 0
    mean = f"{run.values['metrics']['perplexity']:.2f}"
    assert f"lstm200.plain_ptb\tptb-text-only/ptb_text_only\tperplexity {mean}\t1\t1\t" in capsys.readouterr().out
    assert _exit_code(["eval", "lstm200"]) == 0
    out, err = capsys.readouterr()
    assert "perplexity\t" in out and not err
    assert _exit_code(["eval", "lstm200", "--limit", "5"]) == 1
    assert "limit is for images" in capsys.readouterr().err
    assert _exit_code(["generate", "lstm200", "--prompt", "a", "--tokens", "2"]) == 0
    assert _exit_code(["info", NAME]) == 0
    assert "metrics.perplexity.mean" in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "agrees"), [(1.029, True), (0.971, True), (1.031, False)])
def test_a_rerun_is_within_three_percent_of_a_single_run(made, factor, agrees):
    info, values = made[3], made[2].values
    again = {**values, "metrics": {**values["metrics"], "perplexity": info.score.mean * factor}}
    report = reproduce._report(info, [again])
    assert report.agrees is agrees and report.metric == "perplexity" and "%" not in report.verdict.partition("(3 %")[0]
    assert (
        reproduce._report(
            dataclasses.replace(info, training=dataclasses.replace(info.training, epochs=9)), [again]
        ).agrees
        is None
    )


def test_metrics_of_another_task_are_refused(made, tmp_path):
    raw = json.loads((made[0].package / "weights.json").read_text())
    for change, message in (
        ({"task": "image-classification"}, "metrics of image-classification cannot be perplexity"),
        ({"files": {**raw["weights"][NAME]["files"], "vocab.txt": "x"}}, "64 hexadecimal"),
        ({"metrics": None}, "must be of type Metrics"),
    ):
        entry = {**raw["weights"][NAME], **change}
        (tmp_path / "weights.json").write_text(json.dumps({**raw, "weights": {NAME: entry}}))
        with pytest.raises(WeightFileError, match=message):
            Manifest(tmp_path)
