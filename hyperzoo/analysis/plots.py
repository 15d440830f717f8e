"""Learning curves of runs and sweeps, grids of predictions, and the style that all figures share."""

import logging
import re
import statistics
import warnings
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hyperzoo.analysis.results import reading
from hyperzoo.data import ImageSet
from hyperzoo.errors import InputError, RunError
from hyperzoo.training.log import perplexity, read_log, task_loss

BLUE, ORANGE, GREEN, RED = "#0072b2", "#d55e00", "#00734f", "#b3002d"  # a palette for color-blind readers
STYLES = [(c, s) for s in ("-", "--", ":") for c in (BLUE, ORANGE, GREEN, "#cc79a7", "#000000", "#e69f00")]
WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Unifont")
WORDS = {  # identifiers in the labels of sweeps -> what a reader knows
    "no_relu": "without ReLU",
    **{f"{margin}_softmax": f"{margin.upper()}-Softmax" for margin in ("w", "a", "ga")},
    "bn": "batch norm",
    "vanilla": "no regularization",
    "spherenet": "SphereNet",
    **{name.lower(): name for name in ("MHE", "PER", "VCL", "LSTM", "CNN", "ReLU", "ELU")},
}
COLUMNS = 6
LEGEND_WIDTH, LEGEND_HANDLE = 110, 9  # in characters: a line of the legend of a sweep, and the sample of a curve in it
_GLYPH = re.compile(r"Glyph (\d+) ")  # the start of matplotlib's warning of a character that no font has
_logger = logging.getLogger(__name__)


def learning_curve(metrics: Path, picture: Path, *, title: str) -> Path:
    """Draw loss and accuracy (or perplexity) per epoch, for training and any held-out data; returns the path.

    The training loss is the task loss, without added terms.

    Args:
        metrics: the `metrics.jsonl` of a run, one object per line.
        picture: output PNG, in an existing folder.
    Raises:
        RunError: no such file, or no finished epoch in it.
    """
    log = _with_task(read_log(metrics))
    second = ("train_accuracy", "accuracy", "accuracy (%)")
    if "perplexity" in log[-1]:
        second = ("train_perplexity", "perplexity", "perplexity")
        log = [row | {"train_perplexity": perplexity(row["task"])} for row in log]
    drawn, (left, right) = figure(1, 2, (8.0, 3.2))
    marker = "o" if len(log) < 3 else None
    for axes, key, held, unit in (
        (left, "task", "nll", "loss (nats)"),
        (right, *second),
    ):
        for name, label, color, style in ((key, "training", BLUE, "-"), (held, "held-out", ORANGE, "--")):
            points = [(row["epoch"], row[name]) for row in log if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=color, label=label, marker=marker)
        by_epoch(axes, unit)
        axes.legend(frameon=False)
    drawn.suptitle(title)
    return save(drawn, picture)


def curves(results: Path, picture: Path) -> Path:
    """Draw the learning curves of all runs of a sweep, one color per label; returns the path.

    Left: training loss of the task, without added terms, so that terms of different strength can be compared. Right:
    accuracy on validation images, or validation perplexity for texts; training accuracy if neither was measured. Losses
    and perplexities above ten times the median of all points (diverged runs) are cut off.

    Args:
        results: the `sweep.json` of a sweep, or a file in results/ with all epochs.
        picture: output PNG, in an existing folder.
    Raises:
        RunError: no such file, not the results of a sweep, or not all epochs.
    """
    with reading(results) as values:
        runs = [(run["label"], _with_task(run["log"])) for run in values["runs"]]
        whole = all(len(run["log"]) == run["epochs"] for run in values["runs"])
    if not whole:
        raise RunError(f"{results} has only the last epoch of each run; pass the sweep.json of the run folders instead")
    styles = {label: STYLES[i % len(STYLES)] for i, label in enumerate(dict.fromkeys(label for label, _ in runs))}
    columns = max(1, min(4, len(styles), LEGEND_WIDTH // (LEGEND_HANDLE + 1 + max(map(len, styles)))))
    drawn, (left, right) = figure(1, 2, (9.0, 3.4 + 0.2 * -(-len(styles) // columns)))
    kinds = (
        ("perplexity", "validation perplexity"),
        ("accuracy", "validation accuracy (%)"),
        ("train_accuracy", "training accuracy (%)"),
    )
    second = next(kind for kind in kinds if all(kind[0] in log[-1] for _, log in runs))
    named = set()
    for axes, key, unit in ((left, "task", "training loss (nats)"), (right, *second)):
        for label, log in runs:
            color, style = styles[label]
            points = [(row["epoch"], row[key]) for row in log if key in row]  # not every epoch is validated
            name = None if label in named else _readable(label)
            axes.plot(*zip(*points, strict=True), style, color=color, label=name)
            named.add(label)
        if key in ("task", "perplexity"):
            every = [row[key] for _, log in runs for row in log if key in row]
            if max(every) > (most := 10 * statistics.median(every)):
                kept = [value for value in every if value <= most]
                axes.set_ylim(0.95 * min(kept), 1.05 * max(kept))
        by_epoch(axes, unit)
    drawn.legend(frameon=False, loc="outside lower center", ncols=columns)
    drawn.suptitle(_readable(values["sweep"]))
    return save(drawn, picture)


def _readable(label: str) -> str:
    """A label of a sweep, <row>-<column>, in words instead of identifiers."""
    words = "|".join(WORDS)
    label = re.sub(rf"(?<![a-z0-9])({words})(?![a-z0-9])", lambda match: WORDS[match[1]], label.replace("-", ", "))
    return label.replace("_", " ")


def by_epoch(axes: Any, unit: str) -> None:
    """Label the axes of a panel with epochs on the x-axis."""
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def _with_task(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the task loss, without added terms, to every epoch as 'task'."""
    return [row | {"task": task_loss(row)} for row in log]


def grid(images: ImageSet, logits: Tensor | None, picture: Path, *, title: str, count: int = 24) -> Path:
    """Draw the first images with predicted class, its probability and the verdict; returns the path.

    Shapes:
        logits: (N, K), one row per image; None draws each image with its class.
    Args:
        count: largest number of images; the first ones are drawn, none is hand-picked.
    Raises:
        InputError: no image, or another number of logits than of images.
    """
    expected = (len(images), len(images.classes))
    if not len(images) or (logits is not None and logits.shape != expected):
        got = "no image" if logits is None else tuple(logits.shape)
        raise InputError(f"expected logits {expected} for at least one image; got {got}")
    shown = min(count, len(images))
    rows = -(-shown // COLUMNS)
    drawn, axes = figure(rows, COLUMNS, (1.6 * COLUMNS, 1.75 * rows + 0.5))
    probabilities = None if logits is None else logits.float().softmax(1)
    for panel in axes.flat:
        panel.axis("off")
    for i, panel in zip(range(shown), axes.flat, strict=False):
        true = images.classes[int(images.labels[i])]
        gray = images.images.shape[1] == 1
        pixels = images.images[i, 0] if gray else images.images[i].permute(1, 2, 0)
        panel.imshow(pixels.numpy(), cmap="gray" if gray else None, vmin=0, vmax=255)
        if probabilities is None:
            panel.set_title(true, fontsize=9)
            continue
        predicted = images.classes[int(probabilities[i].argmax())]
        text = f"{predicted} {100 * probabilities[i].max():.0f} %\n"
        text += "right" if predicted == true else f"wrong: {true}"
        panel.set_title(text, fontsize=9, color=GREEN if predicted == true else RED)
    drawn.suptitle(title)
    return save(drawn, picture)


def figure(
    rows: int, columns: int, size: tuple[float, float], *, sharey: bool | Literal["col"] = False
) -> tuple[Any, Any]:
    """A figure and its axes, without a display and without touching pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a slow import, part of [train]
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, drawn.subplots(rows, columns, sharey=sharey)


def shades(count: int) -> list[Any]:
    """Colors from dark to light for ordered items, such as layers."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(count - 1, 1)) for i in range(count)]


def save(drawn: Any, picture: Path) -> Path:
    """Write a figure as PNG; returns its path. A dollar sign in a text is drawn, and starts no formula.

    Names outside the Latin, Greek and Cyrillic scripts are drawn in a font of `WIDE_FONTS` if one is installed;
    otherwise a warning lists the characters that became boxes.
    """
    from matplotlib import font_manager, text  # slow imports, part of [train]

    installed = set(font_manager.get_font_names())
    for one in drawn.findobj(text.Text):
        if "$" in one.get_text() and "\\mathdefault" not in one.get_text():  # that is in ticks of a logarithmic axis
            one.set_parse_math(False)
        if not one.get_text().isascii():
            one.set_fontfamily(["sans-serif", *(font for font in WIDE_FONTS if font in installed)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # no version number, so that equal figures have equal bytes
        drawn.savefig(picture, dpi=100, metadata={"Software": None})
    boxes = []
    for warning in caught:
        if match := _GLYPH.match(str(warning.message)):
            boxes.append(chr(int(match[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if boxes:
        _logger.warning(
            "%s shows boxes for %s: install a font such as %s", picture, "".join(dict.fromkeys(boxes)), WIDE_FONTS[0]
        )
    return picture
