"""The confusion matrix and its rows equal counts by plain loops."""

import pytest
import torch

from hyperzoo.analysis import confusion
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
