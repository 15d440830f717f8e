"""Distribution of the activations of each layer, compared with N(0, I), the target of PER."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hyperzoo import data, names, zoo
from hyperzoo.analysis import evaluate, plots
from hyperzoo.analysis.training_data import as_trained_on, data_named, data_of
from hyperzoo.errors import InputError, RunError, UnknownNameError
from hyperzoo.layers import hooks
from hyperzoo.regularizers import sliced_wasserstein
from hyperzoo.regularizers.activation_term import known_axis, refuse_channels_last
from hyperzoo.regularizers.projections import axes_of, check_choices
from hyperzoo.training.log import read_log

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
COLUMNS = ("layer", "shape", "mean", "variance", *(f"{100 * level:g} %" for level in LEVELS), "W1 to N(0, I)")
NONLINEARITIES = "ReLU LeakyReLU PReLU ELU GELU GELUTanh SiLU Hardswish ReLU6 SReLU LSTM BatchNormLSTM".split()
VECTORS, ENTRIES = 4096, 1_000_000  # largest samples per layer: for the distance, and for the quantiles
COLUMNS_OF_TEXT, LENGTH = 20, 35  # largest batch of a text, in columns and words


@dataclass(frozen=True)
class LayerActivations:
    """Statistics of the outputs of one layer over a batch.

    Attributes:
        shape: of the output.
        mean, variance, quantiles: over all entries of all units; the quantiles are at `LEVELS`.
        distance: sliced W1 distance of the vectors (positions of a feature map, or steps of a text) to N(0, I); about
            0.8 for zeros.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    variance: float
    quantiles: tuple[float, ...]
    distance: float

    def shown(self) -> tuple[str, ...]:
        """The table row of the layer, in the order of `COLUMNS`."""
        numbers = (self.mean, self.variance, *self.quantiles, self.distance)
        return self.name, " x ".join(map(str, self.shape)), *(f"{number:.3f}" for number in numbers)


def layer_activations(
    model: nn.Module, inputs: Tensor, layers: str | Sequence[str] | None = None, *, axis: int | None = None
) -> list[LayerActivations]:
    """Run a batch through a network in evaluation mode and compute statistics of the outputs of its layers.

    Args:
        inputs: images (B, C, H, W) or tokens (B, T).
        layers: see `hooks.select` [default: all nonlinearities and LSTM layers; the stages if there are none].
        axis: the axis whose entries form one vector, for all layers; only the distance depends on it [default: see
            `PER`].
    Raises:
        InputError, UnknownNameError: no such layer, none was called, a bad axis, or a network of timm with maps
            (B, H, W, C) and no `axis`. And what the model raises.
    """
    check_choices(None, "mean", "location", axis)
    if axis is None:
        refuse_channels_last(model)
    selected = _selected(model, layers)
    found: list[LayerActivations] = []

    def measure(name: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        found.append(_described(name, output, axis or known_axis(selected[name])))

    with hooks.evaluating(model), torch.inference_mode(), hooks.attached(selected, measure):
        model(inputs)
    if not found:
        raise InputError("the forward pass called none of the selected layers")
    return found


def _selected(model: nn.Module, layers: str | Sequence[str] | None) -> dict[str, nn.Module]:
    if layers is not None:
        return hooks.select(model, layers)
    chosen: dict[str, nn.Module] = {}
    for kind in NONLINEARITIES:
        with suppress(UnknownNameError):
            chosen |= hooks.select(model, f"type:{kind}")
    return chosen or hooks.select(model, "stages")


def _described(name: str, output: Tensor, axis: int | None) -> LayerActivations:
    """Statistics of an output; taken at once, because later code may overwrite it in place."""
    (axis,) = axes_of(output, "location", axis)
    vectors = output.movedim(axis, -1).reshape(-1, output.shape[axis]).float()
    entries = vectors.flatten()
    quantiles = torch.quantile(_some(entries, ENTRIES), torch.tensor(LEVELS, device=entries.device))
    return LayerActivations(
        name=name,
        shape=tuple(output.shape),
        mean=float(entries.mean(dtype=torch.float64)),
        variance=float(entries.double().var(correction=0)),
        quantiles=tuple(quantiles.tolist()),
        distance=float(sliced_wasserstein(_some(vectors, VECTORS), generator=torch.Generator().manual_seed(0))),
    )


def _some(rows: Tensor, count: int) -> Tensor:
    """At most `count` rows, drawn with a fixed seed; even spacing could pick a single column of every image."""
    if len(rows) <= count:
        return rows
    drawn = torch.randint(len(rows), (count,), generator=torch.Generator().manual_seed(0), device="cpu")
    return rows[drawn.to(rows.device)]


def load_model_and_batch(
    what: str, *, dataset: str | None = None, pretrained: bool = False, batch_size: int = 128
) -> tuple[nn.Module, Tensor, str]:
    """Load a network and a batch for it; returns both and a description of the batch.

    The batch is the start of the test split (for texts: 20 columns of 35 words of the validation split), at the image
    size of the training if the network is a run. Without a known data set it is Gaussian noise of the input size.

    Args:
        what: any name for `zoo.any_network`, such as a run folder.
        dataset: code of a data set, or a folder; see `data_named` [default: that of the weight or run].
        pretrained: load timm's weight, for a model of timm.
        batch_size: number of images, 1 or more.
    Raises:
        InputError, UnknownNameError, DataError, ...: see `zoo.any_network` and `data.load_images`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more; got {batch_size}")
    folder = zoo.local_folder(what)
    where: str | data.OwnImages | None = data_named(what, dataset, "test") if dataset else None
    if folder and (folder / "result.json").is_file():
        model, where = zoo.any_network(what), where or data_of(what)
    else:
        model = zoo.any_network(what, pretrained=pretrained)
        with suppress(ValueError):  # not a hyperzoo weight
            where = where or data_of(what)
    if where is None:
        size = timm.data.resolve_model_data_config(model)["input_size"]
        noise = torch.randn(batch_size, *size, generator=torch.Generator().manual_seed(0), device="cpu")
        return model, noise, f"{batch_size} images of Gaussian noise; pass a data set with --data"
    is_text = isinstance(where, str) and where in names.TEXTS
    samples = data.load_split(where, "validation" if is_text else "test")
    if isinstance(samples, data.TextSet):
        piece = next(data.TextBatches(samples, batch_size=COLUMNS_OF_TEXT, length=LENGTH).epoch(1))
        columns, length = piece.tokens.shape
        return model, piece.tokens, f"{columns} columns of {length} words of {samples.origin}"
    first = as_trained_on(what, samples.take(torch.arange(min(batch_size, len(samples)))))
    assert not isinstance(first, data.TextSet)
    batch = next(evaluate.batches(model, first, batch_size=batch_size))
    return model, batch.images, f"the first {len(batch.images)} images of {samples.origin}"


def draw(rows: Iterable[LayerActivations], picture: Path, *, title: str) -> Path:
    """Draw quantiles, variance and distance of each layer, compared with N(0, 1); returns the path.

    Args:
        picture: output PNG, in an existing folder.
    Raises:
        InputError: no rows.
    """
    rows = list(rows)
    if not rows:
        raise InputError("no layers to draw; measure a model with layer_activations first")
    places = range(len(rows))
    figure, (left, middle, right) = plots.figure(1, 3, (12.0, 1.8 + 0.2 * len(rows)), sharey=True)
    for low, high, width in ((0, 4, 1.5), (1, 3, 5)):
        ends = [row.quantiles[low] for row in rows], [row.quantiles[high] for row in rows]
        label = f"{100 * LEVELS[low]:g} to {100 * LEVELS[high]:g} %"
        left.hlines(places, *ends, color=plots.BLUE, linewidth=width, label=label)
        for quantile in torch.special.ndtri(torch.tensor([LEVELS[low], LEVELS[high]])).tolist():
            left.axvline(quantile, color="#888888", linestyle=":", linewidth=1)
    left.plot([row.mean for row in rows], places, "x", color=plots.ORANGE, label="mean")
    left.set_xlabel("activations (dotted: quantiles of N(0, 1))")
    left.legend(frameon=False, fontsize=8)
    middle.plot([max(row.variance, 1e-12) for row in rows], places, "o", color=plots.BLUE)
    middle.set_xscale("log")
    middle.set_xlabel("variance")
    middle.axvline(1, color="#888888", linestyle=":", linewidth=1)
    right.barh(places, [row.distance for row in rows], color="#56b4e9")
    right.set_xlabel("sliced W1 to N(0, I)")
    left.set_yticks(places, [row.name for row in rows], fontsize=7)
    left.invert_yaxis()
    figure.suptitle(title)
    return plots.save(figure, picture)


def has_reports(run: Path, term: str = "per") -> bool:
    """Whether a run folder has logged the reports of a term about the activations."""
    log = run / "metrics.jsonl"
    return log.is_file() and all(term in row.get("reports", {}) for row in read_log(log))


def draw_training(runs: Mapping[str, Path], picture: Path, *, term: str = "per") -> Path:
    """Draw mean and variance of every layer over the training, one row of panels per run; returns the path.

    Args:
        runs: run folders by title.
        term: the term that reports 'layer/mean' and 'layer/variance'; PER with strength 0 only reports.
    Raises:
        RunError: no log, or a log without these reports.
    """
    figure, axes = plots.figure(len(runs), 2, (9.0, 1.0 + 2.4 * len(runs)), sharey="col")
    named: dict[str, Any] = {}
    for (title, folder), panels in zip(runs.items(), axes.reshape(len(runs), 2), strict=True):
        if not has_reports(folder, term):
            raise RunError(f"{folder} has no reports of {term}; train with method.{term} (strength 0 only reports)")
        log = read_log(folder / "metrics.jsonl")
        epochs, reports = [row["epoch"] for row in log], [row["reports"][term] for row in log]
        layers = [key.removesuffix("/mean") for key in reports[0] if key.endswith("/mean")]
        for panel, kind in zip(panels, ("mean", "variance"), strict=True):
            for layer, color in zip(layers, plots.shades(len(layers)), strict=True):
                values = [report[f"{layer}/{kind}"] for report in reports]
                (named[layer],) = panel.plot(epochs, values, color=color)
            panel.axhline(float(kind == "variance"), color="#888888", linestyle=":", linewidth=1)
            panel.set_title(title, fontsize=9)
            plots.by_epoch(panel, f"{kind} of activations")
    title = "layers, from the first (dark) to the last (light)"
    figure.legend(named.values(), named, frameon=False, fontsize=8, title=title, loc="outside lower center", ncols=5)
    return plots.save(figure, picture)
