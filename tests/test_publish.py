"""Publishing writes files that agree with each other and with the run, or refuses and changes nothing."""

import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save
from support import finished
from support.finished import NAME, another_seed, change, contents, result

from hyperzoo import errors
from hyperzoo.analysis import evaluate, neuron_energy
from hyperzoo.files import sha256, write_whole
from hyperzoo.publishing import cards, marked_tables, publication, publish, verify
from hyperzoo.zoo.manifest import Manifest


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


def test_the_energies_of_a_card_are_drawn_as_they_were_measured(work, monkeypatch):
    checkout, run = work
    settings, draw = [], neuron_energy.draw
    monkeypatch.setattr(neuron_energy, "draw", lambda *a, **how: settings.append(how) or draw(*a, **how))
    publish.publish(NAME, [run], checkout=checkout)
    assert settings == [{"title": NAME, "half_space": True}]  # the card says half-space energy


def test_a_guide_gets_the_energies_of_the_weight_that_is_published(work):
    checkout, run = work
    guide = checkout.docs / "energies.md"
    guide.parent.mkdir(exist_ok=True)
    guide.write_text(f"<!-- energy: {NAME} -->\n<!-- end of energy -->\n")
    publish.publish(NAME, [run], checkout=checkout)  # the package has another weight of this name
    model = timm.create_model(f"local-dir:{run}", pretrained=True)
    rows = neuron_energy.comparison_table({NAME: neuron_energy.layer_energies(model, half_space=True)})
    assert marked_tables.markdown(rows) in guide.read_text()


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


def test_only_the_median_run_needs_its_weights(work):
    checkout, run = work
    stated = result(run)["metrics"]
    better = {**stated, "accuracy": stated["accuracy"] + 6.25, "correct": stated["correct"] + 1}
    other = another_seed(run, 3, metrics=better)
    (other / "model.safetensors").unlink()
    assert publish.publish(NAME, [run, other], checkout=checkout).metrics.accuracy.n == 2
    worse = {**stated, "accuracy": stated["accuracy"] - 6.25, "correct": stated["correct"] - 1}
    (other / "result.json").write_text(json.dumps({**result(other), "metrics": worse}))
    with pytest.raises(errors.PublishError, match="model.safetensors is missing"):
        publish.publish(NAME, [run, other], checkout=checkout)


def test_a_run_without_weights_must_still_be_whole(work):
    checkout, run = work
    stated = result(run)["metrics"]
    better = {**stated, "accuracy": stated["accuracy"] + 6.25, "correct": stated["correct"] + 1}
    other = another_seed(run, 3, metrics=better)
    log = other / "metrics.jsonl"
    for damage in (lambda: (other / "model.safetensors").write_bytes(b"changed"), lambda: log.write_text("{}\n")):
        before = {path: path.read_bytes() for path in other.iterdir() if path.is_file()}
        damage()
        with pytest.raises(errors.PublishError, match="changed since the run ended|metrics.jsonl"):
            publish.publish(NAME, [run, other], checkout=checkout)
        for path, content in before.items():
            path.write_bytes(content)


@pytest.mark.parametrize(("change", "dtype"), [(0.05, torch.float16), (-0.05, torch.float16), (0.06, torch.float32)])
def test_float16_may_change_a_twentieth_of_a_point(work, monkeypatch, change, dtype):
    checkout, run = work
    recipe, path = publish._recipe(NAME, checkout)
    done = publish.finished_run(run)
    model, classes = publication.model_and_classes(recipe, done)
    monkeypatch.setattr(evaluate, "test_metrics", lambda *_: SimpleNamespace(score=done.score + change))
    given = publication.Publication(recipe, path, (done,), done, model, classes)
    assert publication.in_half(given, above=0).dtype == dtype


def test_a_large_weight_is_stored_in_float16_if_its_accuracy_stays(work, monkeypatch):
    checkout, run = work
    trained = load_file(run / "model.safetensors")
    limit = 3 * sum(value.numel() for value in trained.values())  # between the sizes in float16 and float32
    monkeypatch.setattr(publish, "BUNDLED_BYTES", limit)
    monkeypatch.setattr(publish, "FULL_BYTES", limit)
    info = publish.publish(NAME, [run], checkout=checkout)
    assert info.bundled and info.bytes < limit
    stored = load_file(Manifest(checkout.package).folder(NAME) / "model.safetensors")
    for key, value in stored.items():
        assert value.dtype == (torch.float16 if trained[key].is_floating_point() else torch.int64), key
        assert torch.equal(value, trained[key].to(value.dtype)), key
    golden = load_file(checkout.golden(NAME))
    model = timm.create_model("resnet20_cifar", num_classes=10).eval()
    model.load_state_dict({key: value.float() for key, value in stored.items()})
    with torch.inference_mode():
        torch.testing.assert_close(model(golden["input"]), golden["output"], rtol=1e-4, atol=1e-5)
    assert "float16" in checkout.card(NAME).read_text()

    monkeypatch.setattr(publication, "SLACK", -1.0)  # no change is small enough
    with pytest.raises(errors.PublishError, match="come from the Hub"):
        publish.publish(NAME, [run], checkout=checkout)


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
    for dirty, text in ((True, " with uncommitted changes</li>"), (False, "</li>")):
        change(run, "result.json", environment={**result(run)["environment"], "dirty": dirty})
        info = publish.publish(NAME, [run], checkout=checkout)
        config = json.loads((checkout.package / "checkpoints" / NAME / "config.json").read_text())
        assert info.code_changed == config["hyperzoo"]["code_changed_since_commit"] == dirty
        assert f"code: commit <code>{info.code_commit[:12]}</code>{text}" in checkout.card(NAME).read_text()


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
