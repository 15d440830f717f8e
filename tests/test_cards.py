"""Cards are valid for the Hub, agree with the manifest, and their code runs; figures show their data."""

import json
import math
import re
import shutil
import sys

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from support.published import MHE, PLAIN, publish, withdraw

import hyperzoo
from hyperzoo import errors, names
from hyperzoo.analysis import plots
from hyperzoo.data import ImageSet
from hyperzoo.publishing import cards, publication
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.zoo import weight_files

CHECKOUT = find_checkout()
TEMPLATES = {"accuracy": CHECKOUT.card_template, "perplexity": CHECKOUT.text_card_template}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    yield publish(tmp_path, monkeypatch)
    withdraw(monkeypatch)


def text(name):
    info = weight_files.MANIFEST.info(name)
    template = TEMPLATES[info.metric].read_text(encoding="utf-8")
    return cards.card(info, weight_files.MANIFEST.weights, template, baselines={MHE: PLAIN})


def card_that_agrees_with_the_manifest(name):
    info = hyperzoo.weight_info(name)
    block = text(name)
    assert block.startswith("---\n") and block.count("\n---\n") == 1
    card = ModelCard(block)
    card_data = card.data.to_dict()
    assert card_data["library_name"] == "hyperzoo" and card_data["license"] == info.license == "mit"
    assert card_data["pipeline_tag"] == info.task and card_data["datasets"] == [info.dataset.id]
    (result,) = [r for r in card.data.eval_results if r.metric_type == info.metric]
    stated = getattr(info.metrics.this_file, info.metric)
    assert result.metric_value == pytest.approx(stated, abs=0.005)  # two digits are printed
    assert (result.dataset_type, result.dataset_config) == (info.dataset.id, info.dataset.config)
    assert result.dataset_split == "test" and card.data.model_name == name
    body = card.text
    assert "$" not in body and info.dataset_terms in body and info.training.machine in body
    assert all(paper in body for paper in info.paper)
    assert f"n = {info.score.n}" in body and f"{info.metrics.this_file.total:,}" in body
    assert "timm" not in card_data.get("tags", [])  # for this tag the Hub shows a snippet without `import hyperzoo`
    return card


def run_the_usage_block(name):
    code = re.search(r"```python\n(.*?)```", text(name), re.DOTALL)[1]
    assert code.startswith("import hyperzoo") and ("model.eval()" in code or "hyperzoo.load" in code)
    space = {}
    exec(compile(code, f"{name}.md", "exec"), space)
    assert space["probabilities"].sum().item() == pytest.approx(1, abs=1e-5)  # float32 rounding of ten terms


def test_the_card_of_a_made_weight(zoo):
    card = card_that_agrees_with_the_manifest(PLAIN)
    assert "Single run (n = 1)" in card.text
    run_the_usage_block(PLAIN)


@pytest.mark.parametrize("name", hyperzoo.list_weights())
def test_the_card_of_a_published_weight(name):
    card = card_that_agrees_with_the_manifest(name)
    assert "At most 0.2 points" in card.text or not name.endswith("_c10")
    run_the_usage_block(name)


def test_papers_are_those_of_the_method_and_of_the_architecture():
    for name in hyperzoo.list_weights():
        assert publication.papers(names.parse(name)) == hyperzoo.weight_info(name).paper, name
    assert publication.papers(names.parse("spherenet20.mhe_c10")) == ("1805.09298", "1711.03189")
    assert publication.papers(names.parse("spherenet20.sphere_c10")) == ("1711.03189",)  # listed once
    assert publication.papers(names.parse("resnet18.mixup_c10")) == ("1710.09412",)  # a model file of timm


@pytest.mark.parametrize("arch", hyperzoo.list_models())
def test_the_model_file_cites_its_papers(arch):
    file = sys.modules[timm.model_entrypoint(arch).__module__]
    assert file.PAPERS and all(f"arXiv {paper}" in file.__doc__ for paper in file.PAPERS)


def test_baselines_are_those_that_the_recipes_state(tmp_path):
    stated = cards.baselines(weight_files.MANIFEST, CHECKOUT)
    assert stated["spherenet20.mhe_c10"] == "spherenet20.sphere_c10"  # sphere layers are the method of `sphere` alone
    assert stated["spherenet20_linear.sphere_c10"] == stated["resnet20_cifar.mixup_c10"] == "resnet20_cifar.plain_c10"
    for name in hyperzoo.list_weights():
        assert (name in stated) == (names.parse(name).method != "plain"), name
        assert stated.get(name, name) in hyperzoo.list_weights()
    with pytest.raises(errors.RecipeError, match="cannot read the recipe"):
        cards.baselines(weight_files.MANIFEST, Checkout(tmp_path))


def test_a_weight_and_its_baseline_show_each_other(zoo):
    for name, other in ((MHE, PLAIN), (PLAIN, MHE)):
        rows = [line for line in text(name).splitlines() if line.startswith("| `")]
        assert rows[0].startswith(f"| `{name}`") and any(row.startswith(f"| `{other}`") for row in rows[1:])
    assert "mixup" not in text(MHE)


def test_the_table_has_a_line_for_each_weight(zoo):
    lines = cards.table(weight_files.MANIFEST.weights).splitlines()
    assert len(lines) == 2 + 3
    assert next(line for line in lines if PLAIN in line) == (
        f"| [`{PLAIN}`](model_cards/{PLAIN}.md) | 91.25 % | 1 | uoft-cs/cifar10 | 0.27 M | "
        f"{zoo.file(PLAIN).stat().st_size / 1e6:.2f} MB, in the package |"
    )


def test_an_unknown_placeholder_is_reported(zoo):
    with pytest.raises(errors.PublishError, match="wrong_word"):
        cards.card(weight_files.MANIFEST.info(PLAIN), {}, "$wrong_word", baselines={})


def test_check_finds_a_changed_a_missing_and_an_orphaned_card(zoo):
    checkout = Checkout(zoo.root / "clone")
    checkout.card_template.parent.mkdir(parents=True)
    checkout.card_template.write_text(CHECKOUT.card_template.read_text(encoding="utf-8"))
    checkout.readme.write_text(f"{cards.BEGIN}\n{cards.END}\n")
    shutil.copytree(
        CHECKOUT.recipes / "resnet_cifar", checkout.recipes / "resnet_cifar"
    )  # the entries name one of these
    assert len(cards.write(weight_files.MANIFEST, checkout)) == 4
    assert cards.check(weight_files.MANIFEST, checkout) == []
    checkout.card(PLAIN).write_text(checkout.card(PLAIN).read_text().replace("91.25", "95.00"))
    checkout.card(MHE).unlink()
    strange = checkout.card("spherenet20.mhe_c10")
    strange.write_text("no weight")
    assert cards.check(weight_files.MANIFEST, checkout) == sorted([checkout.card(PLAIN), checkout.card(MHE), strange])


def log(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "metrics.jsonl"


@pytest.mark.parametrize("held", [{}, {"accuracy": 40.0, "nll": 1.5}])
def test_the_learning_curve_is_drawn(tmp_path, held, monkeypatch):
    rows = [{"epoch": i, "loss": math.exp(-i), "train_accuracy": 10.0 * i, **held} for i in range(1, 6)]
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, picture: drawn.append(figure) or picture)
    picture = plots.learning_curve(log(tmp_path, rows), tmp_path / "curve.png", title="a run")
    left, right = drawn[0].axes
    assert picture == tmp_path / "curve.png"
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("epoch", "loss (nats)", "accuracy (%)")
    assert left.lines[0].get_ydata() == pytest.approx([row["loss"] for row in rows])
    assert right.lines[0].get_ydata() == pytest.approx([row["train_accuracy"] for row in rows])
    assert len(right.lines) == len(left.lines) == (2 if held else 1)


def test_an_empty_or_missing_log_is_refused(tmp_path):
    for path, match in ((log(tmp_path, []), "no finished epoch"), (tmp_path / "none", "cannot read")):
        with pytest.raises(errors.RunError, match=match):
            plots.learning_curve(path, tmp_path / "curve.png", title="")


def test_the_grid_shows_class_probability_and_verdict(tmp_path, monkeypatch):
    images = ImageSet(
        "c10", "test", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("cat", "dog"), ""
    )
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(4.0), 0.0]])  # P(cat) = 3/4 and 4/5
    drawn = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, picture: drawn.append(figure) or save(figure, picture))
    picture = plots.grid(images, logits, tmp_path / "grid.png", title="two")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles == ["cat 75 %\nright", "cat 80 %\nwrong: dog"]
    plots.grid(images, None, picture, title="two")
    assert [axes.get_title() for axes in drawn[1].axes if axes.get_title()] == ["cat", "dog"]
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
    with pytest.raises(errors.InputError, match=r"expected logits \(2, 2\)"):
        plots.grid(images, logits[:1], tmp_path / "grid.png", title="two")
