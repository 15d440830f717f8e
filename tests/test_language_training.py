"""Language models use the same engine: the state continues, the test split is read once, resuming is bit-equal."""

import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from support import texts
from torch import nn

from hyperzoo import data
from hyperzoo.analysis import evaluate, plots, sweep_table
from hyperzoo.data import load
from hyperzoo.errors import InputError, NonFiniteError, RecipeError
from hyperzoo.experiments import build, sweep, train
from hyperzoo.regularizers import projected_error
from hyperzoo.training import checkpoint
from hyperzoo.training.log import read_log, read_result
from hyperzoo.training.progress import Progress
from hyperzoo.training.recipe import load_recipe
from hyperzoo.training.sweep_file import load_sweep
from hyperzoo.training.text_step import TextStep


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(texts.mirror(tmp_path / "mirror")))


def recipe(folder, *overrides):
    path = folder / "small.yaml"
    path.write_text(texts.RECIPE)
    return load_recipe(path, overrides)


def network(**args):
    torch.manual_seed(0)
    return timm.create_model("lstm200", width=8, **{"num_classes": 10, "drop_rate": 0.0, **args})


def pieces(batch_size=4, length=5):
    text = data.load_text("ptb", "train")
    return text, list(data.TextBatches(text, batch_size=batch_size, length=length).epoch(1))


def test_the_state_goes_on_from_piece_to_piece_and_not_from_epoch_to_epoch(mirror):
    text, batches = pieces()
    model = network(num_classes=len(text.vocabulary))
    step = TextStep(model, nn.CrossEntropyLoss())
    columns = text.tokens[: len(text) // 4 * 4].view(4, -1)
    with torch.no_grad():
        logits = model(columns[:, :-1])  # all at once: no piece, no state
    for epoch in (1, 2):
        step.begin_epoch(epoch)
        for n, batch in enumerate(batches):
            result = step(batch.tokens, batch.targets)
            part = logits[:, 5 * n : 5 * n + batch.tokens.shape[1]]
            expected = F.cross_entropy(part.flatten(0, 1), batch.targets.flatten())
            torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)
            assert int(result.correct) == int((part.argmax(2) == batch.targets).sum())
            result.loss.backward()  # through this piece only: those before it are freed, and nothing complains
    assert all(p.grad is not None for p in model.parameters())


def test_a_batch_in_parts_is_the_whole_batch(mirror, tmp_path):
    whole, parts = (
        train.run(recipe(tmp_path, f"train.accumulate={n}", "model.args={width: 8, drop_rate: 0.0}"), tmp_path / str(n))
        for n in (1, 2)
    )
    assert whole.values["metrics"]["nll"] == pytest.approx(parts.values["metrics"]["nll"], rel=1e-5)


def slow_perplexity(model, text):
    """Word by word from zeros."""
    state, losses = None, []
    with torch.no_grad():
        for token, target in zip(text.tokens[:-1].tolist(), text.tokens[1:].tolist(), strict=True):
            logits, state = model.eval().run(torch.tensor([[token]]), state)
            losses.append(-float(torch.log_softmax(logits[0, 0], 0)[target]))
    return math.exp(sum(losses) / len(losses))


def test_a_whole_run_and_its_folder(mirror, tmp_path, capsys, monkeypatch):
    asked = []
    read = data.load_text
    monkeypatch.setattr(load, "load_text", lambda name, split, *rest: asked.append(split) or read(name, split, *rest))
    result = train.run(recipe(tmp_path), tmp_path / "out").values
    assert asked == ["train", "validation", "test"] and result["split"] == "test"  # each once, the test split last
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    test, validation = read("ptb", "test"), read("ptb", "validation")
    assert result["metrics"]["perplexity"] == pytest.approx(slow_perplexity(model, test), rel=1e-5)
    assert result["metrics"]["total"] == len(test) - 1 and result["train_tokens"] == 240
    assert result["metrics"]["fingerprint"] == test.fingerprint
    rows = [json.loads(row) for row in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["perplexity"] == pytest.approx(slow_perplexity(model, validation), rel=1e-5)
    assert {"loss", "train_accuracy", "tokens_per_s", "nll"} <= rows[0].keys() and "size_px" not in rows[0]
    said = capsys.readouterr().out
    assert "small: 240 tokens, 12 updates an epoch, fp32" in said and "validation perplexity" in said
    assert f"test: perplexity {result['metrics']['perplexity']:.2f}" in said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_classes"] == 9 and "label_names" not in config
    assert (tmp_path / "out" / "vocab.txt").read_text().splitlines() == list(test.vocabulary)


def test_a_run_for_a_choice_never_reads_the_test_split(mirror, tmp_path, monkeypatch):
    read = data.load_text

    def not_test(name, split, *rest):
        assert split != "test"
        return read(name, split, *rest)

    monkeypatch.setattr(load, "load_text", not_test)
    result = train.run(recipe(tmp_path, "data.choice=true", "train.epochs=1"), tmp_path / "out").values
    assert result["split"] == "validation" and result["metrics"]["total"] == len(read("ptb", "validation")) - 1


def test_training_learns_the_text(mirror, tmp_path):
    rule = "optim.optimizer=adam", "optim.lr=0.02", "train.epochs=12", "model.args={width: 16, drop_rate: 0.0}"
    train.run(recipe(tmp_path, *rule), tmp_path / "out")
    rows = read_log(tmp_path / "out" / "metrics.jsonl")
    assert rows[0]["train_accuracy"] < 60 and rows[-1]["train_accuracy"] > 90 and rows[-1]["loss"] < 0.3


def test_the_log_counts_every_token_once(mirror, tmp_path):
    still = "optim.lr=1e-12", "train.epochs=1", "model.args={width: 8, drop_rate: 0.0}"
    train.run(recipe(tmp_path, *still), tmp_path / "out")
    model, text = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True), data.load_text("ptb", "train")
    columns = text.tokens[: len(text) // 4 * 4].view(4, -1)
    with torch.no_grad():
        logits, targets = model.eval()(columns[:, :-1]).flatten(0, 1), columns[:, 1:].flatten()
    (row,) = read_log(tmp_path / "out" / "metrics.jsonl")
    assert row["loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(100 * float((logits.argmax(1) == targets).float().mean()), rel=1e-5)


METHODS = [
    {},
    {"method.per": "{strength: 0.1, layers: 'type:LSTM', slices: 8}"},
    {"method.activation_norm": "{strength: 0.01, p: 2, layers: 'type:LSTM'}", "train.ema": "0.9"},
    {"model.args.batch_norm": "true", "train.accumulate": "2"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: next(iter(method), "plain"))
def test_resuming_at_an_epoch_end_changes_no_bit(mirror, tmp_path, monkeypatch, method):
    plan = recipe(tmp_path, *(f"{key}={value}" for key, value in method.items()), "train.epochs=3")
    train.run(plan, tmp_path / "straight")
    with monkeypatch.context() as patch:
        done = Progress.epoch_done

        def stop(self, row):
            done(self, row)
            if row["epoch"] == 1:
                raise KeyboardInterrupt

        patch.setattr(Progress, "epoch_done", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(plan, tmp_path / "broken")
    assert checkpoint.newest(tmp_path / "broken" / "checkpoints").epoch == 1
    train.run(plan, tmp_path / "broken")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "broken"))
    assert one == two


def test_per_sees_every_hidden_state_of_every_layer_and_its_gradient_arrives(mirror, tmp_path):
    plan = recipe(tmp_path, "method.per={strength: 0.5, layers: 'type:LSTM', slices: null}")
    text, (batch, *_) = pieces()
    model = network(num_classes=len(text.vocabulary))
    step = build.step(plan, model).train()
    step.begin_epoch(1)
    result = step(batch.tokens, batch.targets)
    states, x = [], model.embedding(batch.tokens)
    for layer in model.layers:
        x = layer(x)[0]
        states.append(x)
    expected = sum(projected_error(h.flatten(0, 1), slices=None) for h in states)
    torch.testing.assert_close(result.terms["per"], 0.5 * expected.detach())
    term = step.terms["per"]
    assert [key for key in term.report() if key.endswith("/mean")] == ["layers.0/mean", "layers.1/mean"]
    (result.loss - F.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten())).backward()
    for name, p in model.layers.named_parameters():  # what remains is the gradient of the term
        assert float(p.grad.abs().max()) > 1e-7, name


def test_an_activation_that_is_not_a_number_is_named_by_its_layer(mirror, tmp_path):
    plan = recipe(tmp_path, "method.per={strength: 0.5, layers: 'type:LSTM', slices: null}")
    network_of = build.model

    def poisoned(*args):
        model = network_of(*args)
        model.layers[1].weight_hh_l0.data[0, 0] = math.nan
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "model", poisoned)
        with pytest.raises(NonFiniteError) as caught:
            train.run(plan, tmp_path / "out")
    message = str(caught.value)
    assert "samples: [0, 60, 120, 180]; in per: layers.1/error nan, layers.1/mean nan" in message
    assert "layers.0" not in message and message.startswith("epoch 1, step 1: loss terms: task nan, per nan")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.hold_out=5", "data.hold_out is for images, not for ptb"),
        ("data.resize_px={1: 8}", "data.resize_px is for images"),
        ("method.mixup={alpha: 1.0}", "method.mixup is for images"),
        ("method.angular={margin: 4}", "method.angular is for images"),
        ("data.name=c10", "lstm200 cannot be trained on c10; texts, for lstm*: ptb, wt2"),
        ("model.arch=resnet20_cifar", "resnet20_cifar cannot be trained on ptb"),
        ("expect.n=1", "expect needs an accuracy, or for a text a perplexity, and not both"),
        ("expect.accuracy=-1", "expect.accuracy: should be greater"),
        ("data.length=0", "data.length"),
    ],
)
def test_a_recipe_says_nothing_that_a_text_has_not(tmp_path, override, expected):
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, override)
    assert expected in str(caught.value)


SWEEP = """\
base: small.yaml
set: {data.choice: true, train.epochs: 1}
rows:
  few: {model.args: {width: 4, drop_rate: 0.0}}
columns:
  deep: {model.args.depth: 3}
  flat: {}
published: {few: {flat: 100.5}}
source: a made one
"""


def test_a_sweep_of_texts_has_perplexities_and_no_accuracies(mirror, tmp_path):
    (tmp_path / "small.yaml").write_text(texts.RECIPE)
    (tmp_path / "some.yaml").write_text(SWEEP)
    runs = load_sweep(tmp_path / "some.yaml")[1]
    assert [run.recipe.model.args.get("depth") for run in runs] == [3, None]  # no column reaches into another
    file, lines = sweep.run(tmp_path / "some.yaml", tmp_path / "out")
    head, deep, flat = sweep_table.table(lines)
    found = json.loads((tmp_path / "out" / "few-flat" / "0" / "result.json").read_text())["metrics"]["perplexity"]
    told = dict(zip(head, flat, strict=True))
    assert (told["perplexity"], told["published"], told["measured on"]) == (f"{found:.2f}", "100.50", "validation")
    assert "accuracy (%)" not in head and deep[0] == "few-deep"
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, picture: drawn.append(figure) or picture)
        plots.curves(file, tmp_path / "x.png")
        plots.learning_curve(tmp_path / "out" / "few-flat" / "0" / "metrics.jsonl", tmp_path / "y.png", title="y")
    assert drawn[0].axes[1].lines[1].get_ydata()[-1] == pytest.approx(found)
    train_line, held_line = drawn[1].axes[1].lines
    (row,) = read_log(tmp_path / "out" / "few-flat" / "0" / "metrics.jsonl")
    assert train_line.get_ydata()[0] == pytest.approx(math.exp(row["loss"])) and held_line.get_ydata()[0] == found


def test_too_many_columns_are_refused(mirror, tmp_path):
    with pytest.raises(InputError, match="240 tokens cannot be read as 200 columns"):
        train.run(recipe(tmp_path, "data.batch_size=200"), tmp_path / "out")


def test_the_embedding_is_reached_in_its_first_piece_whatever_the_mode(mirror):
    """Evaluation reads a text in pieces with the state carried, and gives the model its mode back."""
    text, model = data.load_text("ptb", "validation"), network(drop_rate=0.5).train()
    metrics = evaluate.measure(model, text)
    assert model.training and model.layers[0].training
    assert metrics.perplexity == pytest.approx(slow_perplexity(model, text), rel=1e-5)
    assert metrics.nll == pytest.approx(math.log(metrics.perplexity))
    with torch.no_grad():
        said = model.eval()(text.tokens[None, :-1])[0].argmax(1)
    assert metrics.correct == int((said == text.tokens[1:]).sum())


class Diverged(nn.Module):
    """A language model that gives the next word a logit of -2000."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def run(self, tokens, state):
        return F.one_hot((tokens + 1) % 3, 3) * -2000.0, state


@pytest.mark.fault("diverged language model", 2)
def test_the_perplexity_of_a_diverged_model_is_infinite(tmp_path):
    text = data.TextSet("ptb", "test", torch.arange(100) % 3, ("a", "b", "c"), 0, "made")
    found = evaluate.measure(Diverged(), text)
    assert found.perplexity == math.inf and found.nll == pytest.approx(2000 + math.log(2)) and found.correct == 0
    row = {"epoch": 1, "loss": 800.0, "train_accuracy": 1.0, "nll": found.nll, "perplexity": found.perplexity}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert plots.learning_curve(tmp_path / "metrics.jsonl", tmp_path / "x.png", title="x").exists()
    result = {"metrics": found.as_dict()}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read_result(tmp_path) == result
