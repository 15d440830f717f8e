"""The figure of the operators shows their formulas; every figure has a command."""

import math

import pytest

from hyperzoo.analysis import plots
from hyperzoo.analysis.figures import FIGURES, operators
from hyperzoo.cli.main import _exit_code
from hyperzoo.cli.runs import plot


def test_operators(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(operators.plots, "save", lambda figure, picture: drawn.append(figure) or picture)
    operators.draw(tmp_path / "x.png")
    values, slopes = ([line.get_xydata() for line in axes.lines] for axes in drawn[0].axes)
    assert len(values) == len(slopes) == len(operators.SHOWN)

    def sigmoid(k):
        top = 1 / math.tanh(math.pi / (4 * k))
        return lambda t: top * math.tanh((math.pi / 2 - t) / (2 * k))

    for curve, slope, g in zip(
        values,
        slopes,
        (math.cos, lambda t: 1 - 2 * t / math.pi, sigmoid(0.1), sigmoid(0.3), sigmoid(0.7)),
        strict=True,
    ):
        for i in range(0, len(curve), 17):
            degrees, value = curve[i]
            t = math.radians(degrees)
            assert value == pytest.approx(g(t), abs=1e-9)
            assert slope[i][1] == pytest.approx((g(t + 1e-6) - g(t - 1e-6)) / 2e-6, abs=1e-4)


def test_dollars_in_names_are_no_formulas_and_logarithmic_ticks_are(tmp_path):
    name = "price_$5_to_$9"  # as a formula, it cannot be parsed
    drawn, axes = plots.figure(1, 1, (3, 2))
    axes.plot([1, 10, 100], [1, 2, 3], label=name)
    axes.set(xscale="log", title=name)
    axes.legend()
    drawn.suptitle(name)
    assert plots.save(drawn, tmp_path / "x.png").is_file()
    texts = {text.get_text(): text.get_parse_math() for text in axes.get_xticklabels()}
    assert texts and all(texts.values())


def test_the_help_lists_every_figure():
    assert all(f"`{name}`" in plot.help for name in FIGURES)


def test_the_command_draws_a_figure(tmp_path, capsys):
    assert _exit_code(["plot", "operators", "--out", str(tmp_path / "g.png")]) == 0
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(tmp_path / "g.png")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("cosine_no_relu-batch_norm", "cosine without ReLU, batch norm"),
        ("ga_softmax", "GA-Softmax"),
        ("spherenet_evidence", "SphereNet evidence"),
        ("per_0.1", "PER 0.1"),
        ("per_class_10", "PER class 10"),
        ("half-w16", "half, w16"),
        ("vanilla", "no regularization"),
    ],
)
def test_labels_of_a_sweep_are_words(label, words):
    assert plots._readable(label) == words
