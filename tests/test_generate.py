"""Sampling follows the distribution of a slow implementation; a warning lists unknown words."""

import math

import pytest
import timm
import torch
from support import texts

from hyperzoo import zoo
from hyperzoo.analysis import generate
from hyperzoo.analysis.generate import Generated, probabilities
from hyperzoo.cli.main import _exit_code
from hyperzoo.errors import InputError, UnknownNameError, WeightUnavailableError
from hyperzoo.experiments import train
from hyperzoo.training.recipe import load_recipe
from hyperzoo.zoo.model_folder import save_model


def slow(logits, temperature, top_k, top_p):
    """Go from the likeliest word down; keep each word while fewer than top_k words and less than top_p precede it."""
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    total, kept, before = sum(weights[i] for i in order), {}, 0.0
    for i in order:
        if before < (1.0 if top_p is None else top_p):
            kept[i] = weights[i] / total
        before += weights[i] / total
    return [kept.get(i, 0.0) / sum(kept.values()) for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (3, None), (None, 0.6), (4, 0.5), (1, None), (99, 1e-9)])
def test_probabilities_agree_with_a_slow_implementation(temperature, top_k, top_p):
    logits = torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(found, torch.tensor(slow(logits.tolist(), temperature, top_k, top_p)).double())
    assert float(found.sum()) == pytest.approx(1)


def test_temperature_zero_is_deterministic_and_ties_keep_the_first_word():
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0])
    assert probabilities(logits, temperature=0).tolist() == [0, 1, 0, 0]
    assert probabilities(logits, top_k=1).tolist() == [0, 1, 0, 0]
    assert probabilities(logits, temperature=1e-3)[0] == 0


@pytest.mark.parametrize(
    "bad",
    [dict(temperature=-1), dict(temperature=math.nan), dict(temperature=math.inf), dict(top_k=0), dict(top_p=0.0),
     dict(top_p=1.5), dict(tokens=0)],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused_before_loading(bad):
    with pytest.raises(InputError, match="must be|above 0"):
        generate.run("lstm200.no_such_weight", **bad)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    (root / "small.yaml").write_text(texts.RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERZOO_DATA", str(texts.mirror(root / "mirror")))
        return train.run(load_recipe(root / "small.yaml", ["train.epochs=4"]), root / "run").folder


def test_a_run_folder_generates_text(folder):
    name = f"local-dir:{folder}"
    words = set(zoo.class_names(folder))
    one, same, other = (generate.run(name, "a b\nquark a", tokens=30, seed=seed) for seed in (1, 1, 2))
    assert one == same != other and len(one.words) == 30 and set(one.words) <= words
    assert one.prompt == ("a", "b", "<eos>", "<unk>", "a") and one.unknown == ("quark",)
    assert generate.run(name, tokens=1).prompt == ()


def test_greedy_words_are_the_likeliest_given_the_whole_prefix(tmp_path):
    torch.manual_seed(0)
    model, vocabulary = timm.create_model("lstm200", num_classes=9, width=8).eval(), (*"abcdefg", "<eos>", "<unk>")
    for p in model.parameters():
        torch.nn.init.normal_(p)  # strongly nonlinear, so that early words matter
    save_model(model, tmp_path, classes=vocabulary, args={"width": 8})
    found = generate.run(f"local-dir:{tmp_path}", "a b", tokens=20, temperature=0)
    said = ["a", "b"]
    for word in found.words:
        logits = model(torch.tensor([[vocabulary.index(one) for one in said]]))[0, -1]
        assert word == vocabulary[int(logits.argmax())]
        said.append(word)


def test_sampled_words_have_the_probabilities_of_the_model(folder):
    model, vocabulary = zoo.any_network(f"local-dir:{folder}"), zoo.class_names(folder)
    chances = model(torch.tensor([[vocabulary.index("a")]]))[0, -1].softmax(0)
    best = int(chances.argmax())
    first = [generate.run(f"local-dir:{folder}", "a", tokens=1, seed=seed).words[0] for seed in range(60)]
    share, expected = first.count(vocabulary[best]) / 60, float(chances[best])
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 60)


def test_ends_of_lines_are_line_breaks():
    assert Generated(("a",), ("b", "<eos>", "c", "<eos>"), ()).text == "a b\nc"
    assert Generated((), ("<eos>", "x"), ()).text == "x"


def test_the_command_lists_unknown_words(folder, capsys):
    words = [
        "generate",
        f"local-dir:{folder}",
        "--prompt",
        "a quark",
        "--tokens",
        "3",
        "--top-k",
        "2",
        "--top-p",
        "0.9",
    ]
    assert _exit_code(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("a <unk>") and "not in the vocabulary, read as <unk>: quark" in err


def test_other_models_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="spherenet20 is not a language model. Language models: "):
        generate.run("spherenet20", "a")
    with pytest.raises(UnknownNameError):
        generate.run("lstm20", "a")
    with pytest.raises(InputError, match="lstm200 reads token ids, not images"):
        zoo.preprocess("lstm200")
    with pytest.raises(WeightUnavailableError, match="has no config.json, so it is not a saved model"):
        zoo.class_names(tmp_path)
