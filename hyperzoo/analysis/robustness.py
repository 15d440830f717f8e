"""Accuracy, likelihood and calibration of an image model under deformations and attacks.

The evaluation of Manifold Mixup (arXiv 1806.05236, Tables 1, 4, 7 and 9).
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.analysis import evaluate, plots
from hyperzoo.analysis.attacks import fgsm, pgd
from hyperzoo.analysis.calibration import Bin, calibration_error, reliability
from hyperzoo.analysis.deform import DEFORMATIONS, deform
from hyperzoo.data import Batch, TextSet
from hyperzoo.data.load import Samples
from hyperzoo.errors import InputError
from hyperzoo.layers import hooks

COLUMNS = ("condition", "accuracy (%)", "NLL (nats)")
FGSM = (4, 8)  # epsilon, in units of 1/255
PGD, PGD_STEP, PGD_STEPS = 8, 2, 20  # epsilon and step in units of 1/255; the CIFAR-10 attack of arXiv 1706.06083


@dataclass(frozen=True)
class Condition:
    """Metrics under one condition: accuracy in percent, nll in nats per image."""

    name: str
    accuracy: float
    nll: float

    def shown(self) -> tuple[str, ...]:
        """The table row of the condition, in the order of `COLUMNS`."""
        return self.name, f"{self.accuracy:.2f}", f"{self.nll:.4f}"


@dataclass(frozen=True)
class Robustness:
    """Metrics under all conditions, and calibration on the clean images.

    Attributes:
        conditions: the clean images come first.
        ece: expected calibration error in percent.
        bins: reliability bins of equal width.
        origin: where the images come from.
    """

    conditions: tuple[Condition, ...]
    ece: float
    bins: tuple[Bin, ...]
    origin: str


def measure(
    model: nn.Module,
    images: Samples,
    *,
    only: Collection[str] | None = None,
    seed: int = 0,
    batch_size: int = 250,
    workers: int = 0,
) -> Robustness:
    """Compute accuracy and NLL on clean, deformed (`deform`) and attacked (`attacks`) images, and calibration.

    White-box attacks on pixels in [0, 1] that use the true labels: FGSM with epsilon 4/255 and 8/255; PGD with epsilon
    8/255, 20 steps of 2/255 and a random start. Runs in float32 and evaluation mode; restores mode and gradients.

    Args:
        only: conditions beside the clean images, by the names in the table, such as 'FGSM 4/255' [default: all].
        seed: seeds the angles (one per image and kind of deformation) and the random starts. Results do not depend on
            the batch size, except for rounding.
    Raises:
        InputError: a text, or an unknown condition; see also `attacks.pgd`.
    Differs:
        The paper states neither the epsilon of FGSM nor the settings of PGD.
    """
    if isinstance(images, TextSet):
        raise InputError(f"robustness is measured on images, but {images.name} is a text")
    config, where = timm.data.resolve_model_data_config(model), next(model.parameters()).device
    mean, std = (torch.tensor(config[key], device=where).view(1, -1, 1, 1) for key in ("mean", "std"))

    def network(pixels: Tensor) -> Tensor:
        return model.forward((pixels - mean) / std).float()

    conditions = _conditions(network, len(images), seed)
    if only is not None:
        if unknown := [name for name in only if name not in conditions]:
            raise InputError(f"no condition {unknown[0]!r}; conditions: {', '.join(conditions)}")
        conditions = {name: change for name, change in conditions.items() if name == "clean" or name in only}
    correct = dict.fromkeys(conditions, 0)
    nll = dict.fromkeys(conditions, 0.0)
    probabilities, hits = [], []
    batches = evaluate.batches(model, images, batch_size=batch_size, workers=workers, normalized=False)
    with hooks.evaluating(model), torch.no_grad(), evaluate.in_float32(where):
        for batch in _with_progress(batches, -(-len(images) // batch_size)):
            for name, changed in conditions.items():
                logits = network(changed(batch))
                hit = logits.argmax(1) == batch.labels
                correct[name] += int(hit.sum())
                nll[name] += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
                if name == "clean":
                    probabilities.append(logits.softmax(1).amax(1))
                    hits.append(hit)
    bins = reliability(torch.cat(probabilities), torch.cat(hits))
    return Robustness(
        tuple(Condition(name, 100 * correct[name] / len(images), nll[name] / len(images)) for name in conditions),
        calibration_error(bins),
        bins,
        images.origin,
    )


def _conditions(network: Callable[[Tensor], Tensor], count: int, seed: int) -> dict[str, Callable[[Batch], Tensor]]:
    """The change of the pixels of a batch, by the name of the condition."""
    generator = torch.Generator().manual_seed(seed)
    draws = {kind: 2 * torch.rand(count, generator=generator, device="cpu") - 1 for kind in DEFORMATIONS}

    def deformed(kind: str, amount: float) -> Callable[[Batch], Tensor]:
        return lambda batch: deform(batch.images, kind, amount, draws[kind][batch.indices.cpu()])

    def stepped(epsilon: int) -> Callable[[Batch], Tensor]:
        return lambda batch: fgsm(network, batch.images, batch.labels, epsilon=epsilon / 255)

    def climbed(batch: Batch) -> Tensor:
        return pgd(
            network,
            batch.images,
            batch.labels,
            epsilon=PGD / 255,
            step=PGD_STEP / 255,
            steps=PGD_STEPS,
            generator=generator,
        )

    return {
        "clean": lambda batch: batch.images,
        **{
            f"zoom to {100 * amount:g} %" if kind == "zoom" else f"{kind} ±{amount:g}°": deformed(kind, amount)
            for kind, amounts in DEFORMATIONS.items()
            for amount in amounts
        },
        **{f"FGSM {epsilon}/255": stepped(epsilon) for epsilon in FGSM},
        f"PGD-{PGD_STEPS} {PGD}/255": climbed,
    }


def _with_progress(batches: Iterator[Batch], count: int) -> Iterable[Batch]:
    """The batches, with a progress bar in a terminal, because attacks take minutes."""
    from rich.console import Console
    from rich.progress import track

    return track(batches, "robustness", total=count, console=Console(stderr=True), disable=not sys.stderr.isatty())


def draw(found: Robustness, picture: Path, *, title: str) -> Path:
    """Draw the reliability diagram and the accuracy under each condition; returns the path.

    Args:
        picture: output PNG, in an existing folder.
    """
    drawn, (left, right) = plots.figure(1, 2, (10.5, 5.0))
    width = 100 / len(found.bins)
    total = sum(b.count for b in found.bins)
    filled = [(i, b) for i, b in enumerate(found.bins) if b.count]
    middles = [(i + 0.5) * width for i, _ in filled]
    left.bar(middles, [b.accuracy for _, b in filled], 0.9 * width, color="#56b4e9", label="accuracy")
    mean = [b.confidence for _, b in filled], [b.accuracy for _, b in filled]
    left.plot(*mean, "o", color=plots.BLUE, label="at the mean confidence")
    share = [100 * b.count / total for _, b in filled]
    left.bar(middles, share, 0.3 * width, color="#999999", label="share of images")
    left.plot([0, 100], [0, 100], "--", color=plots.ORANGE, label="perfect calibration")
    left.set_xlabel("confidence: probability of the predicted class (%)")
    left.set_ylabel("accuracy; share of images (%)")
    left.set_xlim(0, 100)
    left.set_ylim(0, 100)
    left.set_title(f"expected calibration error {found.ece:.2f} %", fontsize=10)
    left.legend(fontsize=8, loc="upper left")
    left.grid(alpha=0.3)
    places = range(len(found.conditions))
    kinds = [one.name.partition(" ")[0].partition("-")[0] for one in found.conditions]
    colors = {kind: color for kind, (color, _) in zip(dict.fromkeys(kinds), plots.STYLES, strict=False)}
    right.barh(places, [one.accuracy for one in found.conditions], color=[colors[kind] for kind in kinds])
    for place, one in zip(places, found.conditions, strict=True):
        right.text(one.accuracy + 1, place, f"{one.accuracy:.1f}", va="center", fontsize=7)
    right.set_yticks(places, [one.name for one in found.conditions], fontsize=8)
    right.set_ylim(len(found.conditions) - 0.5, -0.5)
    right.set_xlim(0, 105)
    right.set_xlabel("accuracy (%)")
    right.grid(alpha=0.3, axis="x")
    drawn.suptitle(title)
    return plots.save(drawn, picture)
