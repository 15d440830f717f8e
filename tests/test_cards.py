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
from support.published import MHE, MIXUP, PLAIN

import hyperzoo
from hyperzoo import errors, names
from hyperzoo.analysis import plots
from hyperzoo.data import ImageSet
from hyperzoo.publishing import baselines, cards, publication, weight_table
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.training.recipe import load_recipe
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest

CHECKOUT = find_checkout()
TEMPLATES = {"accuracy": CHECKOUT.card_template, "perplexity": CHECKOUT.text_card_template}


def text(name, *, robustness=None):
    """The card of a weight; MHE is compared with PLAIN."""
    info = weight_files.MANIFEST.info(name)
    template = TEMPLATES[info.metric].read_text(encoding="utf-8")
    recipe = load_recipe(CHECKOUT.recipes / info.recipe)
    compared = {MHE: weight_files.MANIFEST.info(PLAIN)}
    weights = weight_files.MANIFEST.weights
    return cards.card(info, weights, template, recipe=recipe, baselines=compared, robustness=robustness)


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


def run_the_usage_block(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    Image.linear_gradient("L").save(folder / "photo.jpg")
    code = re.search(r"```python\n(.*?)```", text(name), re.DOTALL)[1]
    assert code.startswith("import hyperzoo") and ("model.eval()" in code or "hyperzoo.load" in code)
    space = {}
    exec(compile(code, f"{name}.md", "exec"), space)
    assert space["probabilities"].sum().item() == pytest.approx(1, abs=1e-5)  # float32 rounding of ten terms


def test_the_card_of_a_made_weight(zoo, tmp_path, monkeypatch):
    card = card_that_agrees_with_the_manifest(PLAIN)
    assert "Single run (n = 1)" in card.text
    run_the_usage_block(PLAIN, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", hyperzoo.list_weights())
def test_the_card_of_a_published_weight(name, tmp_path, monkeypatch):
    card = card_that_agrees_with_the_manifest(name)
    assert "At most 0.2 points" in card.text or not name.endswith("_c10")
    shown, folded = card.text.split("<details>")
    info = hyperzoo.weight_info(name)
    for value in (*info.files.values(), info.code_commit[:12], info.dataset.test_fingerprint, info.versions["torch"]):
        assert value in folded and value not in shown
    run_the_usage_block(name, tmp_path, monkeypatch)


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


def test_baselines_have_the_budget_of_their_weight(tmp_path):
    found = baselines.baselines(weight_files.MANIFEST, CHECKOUT)
    recipes = {name: load_recipe(name) for name in hyperzoo.list_weights()}
    for name, recipe in recipes.items():
        assert (name in found) == (names.parse(name).method != "plain"), name
        if base := found.get(name):
            assert base.training.epochs == recipe.train.epochs and recipes[base.name].data == recipe.data
    assert found["spherenet20.sphere_c10"].name == "resnet20_cifar.plain_c10"  # 66 epochs, both
    with pytest.raises(errors.RecipeError, match="cannot read the recipe"):
        baselines.baselines(weight_files.MANIFEST, Checkout(tmp_path))


def test_a_weight_without_a_baseline_of_its_budget_says_so(tmp_path):
    checkout = Checkout(tmp_path)
    shutil.copytree(CHECKOUT.recipes, checkout.recipes)
    recipe = checkout.recipes / hyperzoo.weight_info("spherenet20.sphere_c10").recipe
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("epochs: 66", "epochs: 67"))
    found = baselines.baselines(weight_files.MANIFEST, checkout)
    assert [name for name, base in found.items() if base is None] == ["spherenet20.sphere_c10"]
    table = weight_table.table(weight_files.MANIFEST.weights, found)
    assert table.count("| no baseline of the same budget |") == 1


def test_a_weight_and_its_baseline_link_to_each_other(zoo):
    for name, other in ((MHE, PLAIN), (PLAIN, MHE)):
        rows = [line for line in text(name).splitlines() if line.startswith(("| `", "| [`"))]
        assert [row.split(" | ")[0] for row in rows] == [f"| `{name}`", f"| [`{other}`]({other}.md)"]
    assert "mixup" not in text(MHE)


def test_the_table_has_a_line_for_each_weight_by_data_set_and_metric(zoo):
    compared = {MHE: None, MIXUP: weight_files.MANIFEST.info(PLAIN)}
    lines = weight_table.table(weight_files.MANIFEST.weights, compared).splitlines()
    assert len(lines) == 2 + 3
    size = f"{zoo.file(PLAIN).stat().st_size / 1e6:.2f} MB"
    cells = "CIFAR-10 | 91.25 % (n = 1) | 30"
    retrain = "40 (2 CPU cores, bf16)"
    assert f"| [`{PLAIN}`](model_cards/{PLAIN}.md) | {cells} | no method | {retrain} | {size} |" in lines
    assert (
        f"| [`{MHE}`](model_cards/{MHE}.md) | {cells} | no baseline of the same budget | {retrain} | {size} |" in lines
    )
    link = f"[`{PLAIN}`](model_cards/{PLAIN}.md): 91.25 %"
    assert f"| [`{MIXUP}`](model_cards/{MIXUP}.md) | {cells} | {link} | {retrain} | {size}, from the Hub |" in lines
    listed = [(weight_table.dataset_title(info), -weight_table.rank(info)) for info in weight_table.listed(published())]
    assert listed == sorted(listed) and listed[-1] == ("Penn Treebank", max(p for t, p in listed if t[0] == "P"))


def published():
    return Manifest(CHECKOUT.package).weights


@pytest.mark.parametrize(
    ("settings", "caption"),
    [
        ([], ""),
        (
            ["data.resize_px={1: 16, 3: 32}"],
            "The curves jump where the size of the training images changes (32 px from epoch 3).\n",
        ),
        (
            ["data.resize_px={3: 16, 6: 32}"],
            "The curves jump where the size of the training images changes (16 px from epoch 3, 32 px from epoch 6).\n",
        ),
        (
            ["optim.cycles=2", "optim.warmup_epochs=2"],  # 1 + 2 + (10 - 2) / 2
            "The curves jump where the learning rate restarts (epoch 7).\n",
        ),
        (["method.mixup.alpha=1"], "Loss and accuracy in training are those of the mixed images.\n"),
        (["method.label_smoothing=0.1"], "The training loss is that of the smoothed labels.\n"),
    ],
)
def test_the_caption_explains_the_learning_curve(settings, caption):
    recipe = load_recipe(CHECKOUT.recipes / "demo.yaml", ["data.resize_px={}", "train.epochs=10", *settings])
    assert cards._caption(recipe) == caption


def test_measured_robustness_is_shown_beside_the_baseline(zoo):
    assert f"Not measured. `hyperzoo eval {MHE} --robustness`" in text(MHE)
    measured = {name: dict.fromkeys(cards.CONDITIONS, value) | {"images": "100"} for name, value in VALUES.items()}
    section = text(MHE, robustness=measured).partition("## Robustness")[2].partition("## ")[0]
    assert [line.count(" 50.00 ") + line.count(" 40.00 ") for line in section.splitlines() if line[:3] == "| `"] == [
        8,
        8,
    ]
    assert "on 100 test images" in section and "at most 5.0 points" in section  # sqrt(0.25 / 100)
    assert f"`hyperzoo eval {MHE} --robustness --limit 100`" in section


VALUES = {MHE: "50.00", PLAIN: "40.00"}


def test_the_robustness_of_another_file_is_not_shown(zoo, tmp_path):
    checkout = Checkout(tmp_path / "clone")
    file = checkout.root / "results" / "robustness.tsv"
    file.parent.mkdir(parents=True)
    digest = weight_files.MANIFEST.info(PLAIN).files["model.safetensors"]
    file.write_text(f"weight\tsha256\timages\tclean\n{PLAIN}\t{digest}\t500\t90.00\n{MHE}\t{'0' * 64}\t500\t80.00\n")
    assert {name: line["clean"] for name, line in cards._measured(weight_files.MANIFEST, checkout).items()} == {
        PLAIN: "90.00"
    }


def test_the_measured_robustness_fits_the_test_accuracy():
    lines = cards._measured(Manifest(CHECKOUT.package), CHECKOUT)
    for name, line in lines.items():
        share, count = hyperzoo.weight_info(name).metrics.this_file.accuracy / 100, int(line["images"])
        sd = math.sqrt(share * (1 - share) / count)  # of a random part of the test set
        assert line["weight"] == name and abs(float(line["clean"]) / 100 - share) < 4 * sd
    assert set(cards.CONDITIONS) <= set(next(iter(lines.values())))


def test_links_of_a_card_lead_somewhere_on_the_hub():
    before = (
        "[`a.plain_c10`](a.plain_c10.md), [x](../results/x.json), ![c](a.plain_c10.png), [p](https://arxiv.org/abs/1)"
    )
    after = (
        "[`a.plain_c10`](https://huggingface.co/us/a.plain_c10), x, ![c](a.plain_c10.png), [p](https://arxiv.org/abs/1)"
    )
    assert cards.for_hub(before, "us") == after


def test_an_unknown_placeholder_is_reported(zoo):
    with pytest.raises(errors.PublishError, match="wrong_word"):
        cards.card(weight_files.MANIFEST.info(PLAIN), {}, "$wrong_word", recipe=load_recipe(PLAIN), baselines={})


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
    assert cards.without_weight(weight_files.MANIFEST, checkout) == [strange]
    assert cards.write(weight_files.MANIFEST, checkout) == sorted([checkout.card(PLAIN), checkout.card(MHE)])
    assert strange.read_text() == "no weight"  # a card that somebody wrote is not deleted
    checkout.card(PLAIN).unlink()
    checkout.card(PLAIN).mkdir()
    with pytest.raises(errors.PublishError, match="cannot write the generated texts"):
        cards.write(weight_files.MANIFEST, checkout)


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


@pytest.mark.parametrize(
    "name, settings",
    [
        ("fast_cnn8.plain_c10", "cutout of 8 px, `method: {label_smoothing: 0.2}`."),
        ("resnet20_cifar.mhe_c100", "`method: {mhe: {hidden: 1.0, output: 10.0, half_space: true}}`."),
        ("lstm200.plain_ptb", "momentum, learning rate 20 (cosine), weight decay 0, batch 20, 35 tokens per piece."),
    ],
)
def test_a_card_names_the_settings(name, settings):
    assert settings in find_checkout().card(name).read_text(encoding="utf-8")
