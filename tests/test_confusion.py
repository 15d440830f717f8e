"""The confusion matrix and its rows equal counts by plain loops."""

import json

import pytest
import torch
from matplotlib import font_manager

import hyperzoo
from hyperzoo import data
from hyperzoo.analysis import confusion, evaluate, plots
from hyperzoo.data import ImageSet
from hyperzoo.errors import InputError

CLASSES = ("cat", "dog", "owl", "fox")
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])  # no fox
PREDICTED = torch.tensor([0, 1, 1, 2, 1, 1, 2, 0, 0])  # no fox either


def test_the_matrix_counts_pairs():
    counts = confusion.matrix(PREDICTED, LABELS, 4)
    for row in range(4):
        for column in range(4):
            pairs = zip(LABELS.tolist(), PREDICTED.tolist(), strict=True)
            assert counts[row, column] == sum(pair == (row, column) for pair in pairs)


def test_rows_have_recall_precision_and_the_most_frequent_confusion():
    cat, dog, owl, fox = confusion.class_rows(confusion.matrix(PREDICTED, LABELS, 4), CLASSES)
    assert (cat.images, cat.recall, cat.confused_with, cat.confused) == (4, 25.0, "dog", 2)
    assert cat.precision == pytest.approx(100 / 3)
    assert (dog.recall, dog.precision, dog.confused_with, dog.confused) == (100.0, 50.0, None, 0)
    assert (owl.confused_with, owl.confused) == ("cat", 2)
    assert (fox.images, fox.recall, fox.precision) == (0, None, None)
    assert cat.shown() == ("cat", "4", "25.0", "33.3", "dog (2)")
    assert fox.shown() == ("fox", "0", "-", "-", "-")


def test_vectors_of_different_length_are_refused():
    with pytest.raises(InputError, match=r"two vectors of one length; got \(9,\) and \(8,\)"):
        confusion.matrix(PREDICTED, LABELS[1:], 4)


@pytest.mark.parametrize("count", [4, 100])
def test_a_picture_of_few_or_many_classes(tmp_path, count):
    counts = confusion.matrix(PREDICTED, LABELS, count)
    names = CLASSES if count == 4 else tuple(map(str, range(count)))
    assert confusion.draw(counts, names, tmp_path / "confusion.png", title="made").stat().st_size > 5000


@pytest.mark.fault("class name that is no formula")
def test_a_dollar_in_a_name_begins_no_formula(tmp_path):
    counts = confusion.matrix(PREDICTED, LABELS, 4)
    names = ("$\\frac{$", "$1$", "a_b", "<b>")
    assert confusion.draw(counts, names, tmp_path / "confusion.png", title="$\\nothing$").is_file()
    images = ImageSet("own", "test", torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.arange(4), names, "")
    assert plots.grid(images, torch.eye(4), tmp_path / "grid.png", title="made").is_file()


@pytest.mark.fault("class name that no font has")
def test_characters_without_a_font_are_boxes_and_one_warning_lists_them(tmp_path, caplog):
    counts = confusion.matrix(PREDICTED, LABELS, 4)
    picture = confusion.draw(counts, ("猫", "Hund", "猫頭鷹", "лиса"), tmp_path / "confusion.png", title="made")
    fonts = set(font_manager.get_font_names())
    expected = 0 if fonts & set(plots.WIDE_FONTS) else 1
    assert picture.is_file() and len(caplog.messages) == expected
    assert not expected or "shows boxes for 猫頭鷹: install a font such as Noto Sans CJK SC" in caplog.text


WORDS = ("spherenet20.sphere_c10", "--data", "c10", "--limit", 60)


def test_the_command_agrees_with_a_loop_over_the_images(data_mirror, tmp_path, command, monkeypatch):
    """With the metrics of `eval`, and with one pass over the images."""
    passes, compute = [], evaluate.logits
    monkeypatch.setattr(evaluate, "logits", lambda *given, **options: passes.append(1) or compute(*given, **options))
    picture = tmp_path / "confusion.png"
    code, out, err = command("eval", *WORDS, "--confusion", picture, "--json")
    found = json.loads(out)
    assert (code, err, len(passes)) == (0, "", 1) and found["picture"] == str(picture) and picture.is_file()
    plain = json.loads(command("eval", *WORDS, "--json")[1])
    assert {key: found[key] for key in plain} == plain

    drawn = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:60].sort().values
    images = data.load_images("c10", "test", data_mirror).take(drawn)
    loaded, transform = hyperzoo.load("spherenet20"), hyperzoo.preprocess("spherenet20")
    counts = [[0] * 10 for _ in range(10)]
    with torch.inference_mode():
        for pixels, label in zip(transform(images.images), images.labels.tolist(), strict=True):
            counts[label][int(loaded.model(pixels[None]).argmax())] += 1
    assert found["confusion"] == counts and sum(map(sum, counts)) == 60
    cat = found["classes"][3]
    assert (cat["name"], cat["images"]) == ("cat", sum(counts[3]))
    assert cat["recall"] == pytest.approx(100 * counts[3][3] / sum(counts[3]))
    assert cat["precision"] == pytest.approx(100 * counts[3][3] / sum(row[3] for row in counts))

    code, out, err = command("eval", *WORDS, "--confusion", picture)
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and header == list(confusion.COLUMNS) and [row[0] for row in rows] == list(images.classes)
    assert f"{plain['accuracy']:.2f} % ({plain['correct']} of 60)" in err and str(picture) in err


@pytest.mark.parametrize(
    "words, code, text",
    [
        ((*WORDS, "--confusion", "x.jpg"), 2, "x.jpg must end in .png"),
        ((*WORDS, "--confusion", "x.png", "--robustness"), 2, "leave out --tta and --confusion"),
    ],
)
def test_wrong_options_are_named(data_mirror, command, words, code, text):
    found, out, err = command("eval", *words)
    assert (found, out) == (code, "") and text in err


def test_a_text_has_no_confusion_matrix():
    text = data.TextSet("ptb", "test", torch.arange(3), ("a", "b", "c"), 0, "made")
    with pytest.raises(InputError, match="ptb is a text; leave out --confusion"):
        confusion.measure(torch.nn.Identity(), text)
