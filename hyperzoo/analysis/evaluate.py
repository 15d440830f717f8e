"""Accuracy, NLL and calibration error, or perplexity, on a split."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from hyperzoo import data, zoo
from hyperzoo.analysis import views
from hyperzoo.analysis.calibration import calibration_error, reliability
from hyperzoo.analysis.training_data import as_trained_on, check_fits, data_named, data_of, warn_of_other_samples
from hyperzoo.data.load import Images, Samples
from hyperzoo.errors import InputError
from hyperzoo.layers import hooks
from hyperzoo.training.log import perplexity

PIECE = 35  # tokens per forward pass of a language model; recurrent batch norm has statistics for so many steps


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of a model on a set of images.

    Attributes:
        accuracy, ece: in percent.
        nll: in nats per image.
        correct, total: numbers of images.
        fingerprint: of the images.
        class_accuracy: in percent, for each class with at least one image.
    """

    accuracy: float
    nll: float
    ece: float
    correct: int
    total: int
    fingerprint: str
    class_accuracy: dict[str, float]

    @property
    def score(self) -> float:
        """The metric that runs are compared by."""
        return self.accuracy

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        accuracy = f"{self.accuracy:.2f} % ({self.correct} of {self.total})"
        return f"{accuracy}, NLL {self.nll:.4f}, ECE {self.ece:.2f} %"


@dataclass(frozen=True)
class LanguageMetrics:
    """Metrics of a language model on a text, read as one sequence from a zero state.

    Attributes:
        perplexity: exp(nll); infinity if that is too large for a float.
        nll: in nats per token, mean over all tokens but the first.
        correct, total: tokens that were predicted as the likeliest, of all tokens but the first.
        fingerprint: of the text.
    """

    perplexity: float
    nll: float
    correct: int
    total: int
    fingerprint: str

    @property
    def score(self) -> float:
        """The metric that runs are compared by."""
        return self.perplexity

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.2f} ({self.correct} of {self.total} words predicted correctly)"


def run(
    name: str,
    *,
    split: str = "test",
    dataset: str | None = None,
    pretrained: bool = False,
    limit: int | None = None,
    batch_size: int = 250,
    tta: str = "none",
) -> ImageMetrics | LanguageMetrics:
    """Evaluate a model on a split. For the arguments, see `load_model_and_samples` and `measure`."""
    model, samples = load_model_and_samples(name, split=split, dataset=dataset, pretrained=pretrained, limit=limit)
    return measure(model, samples, batch_size=batch_size, tta=tta)


def load_model_and_samples(
    name: str,
    *,
    split: str = "test",
    dataset: str | None = None,
    pretrained: bool = False,
    limit: int | None = None,
) -> tuple[nn.Module, Samples]:
    """Load a model in evaluation mode, and the images or the text to evaluate it on.

    Args:
        name, pretrained: see `zoo.any_network`.
        split: 'test' or 'train'; texts also have 'validation', and own images may have it.
        dataset: code of a data set, or a folder; see `data_named` [default: that of a published weight or of a run].
        limit: evaluate on at most this many images, drawn with a fixed seed.
    Raises:
        InputError: no known data set; classes, their order or channels that do not fit; a limit below 1 or for a text.
        UnknownNameError, DataError, WeightHashError, ...: see `zoo.any_network` and `data.load_images`.
    """
    where = data_of(name) if dataset is None else data_named(name, dataset, split)
    model, samples = zoo.any_network(name, pretrained=pretrained), as_trained_on(name, data.load_split(where, split))
    title = where if isinstance(where, str) else where.name
    check_fits(name, model, samples, title)
    if dataset is None:
        warn_of_other_samples(name, split, samples)
    if limit is None or limit >= len(samples):
        return model, samples
    if limit < 1:
        raise InputError(f"limit must be 1 or more; got {limit}")
    if isinstance(samples, data.TextSet):
        raise InputError(f"limit is for images, but {title} is a text, which is evaluated as one sequence")
    drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0), device="cpu")[:limit]
    return model, samples.take(drawn.sort().values)


def test_metrics(
    model: nn.Module,
    dataset: str | data.OwnImages,
    engine: Accelerator | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    mirror: Path | None = None,
    workers: int = 0,
    size_px: int | None = None,
) -> ImageMetrics | LanguageMetrics:
    """Evaluate a model on the test split of a data set.

    Args:
        dataset: code of the data set, or your own images.
        classes: names of the model's outputs, which must be those of the data set [default: not compared].
        mirror: folder to read the data set from [default: HYPERZOO_DATA, or the Hub].
        size_px: resize images in memory to this size first [default: their own].
    Raises:
        InputError: other class names, or in another order.
    """
    samples = data.load_split(dataset, "test", mirror)
    if size_px and isinstance(samples, data.ImageSet):
        samples = samples.resized(size_px)
    if classes is not None and classes != samples.classes:
        own, there = next(
            (pair for pair in zip(classes, samples.classes, strict=False) if len(set(pair)) > 1), ("", "")
        )
        raise InputError(
            f"the model's {len(classes)} class names are not the {len(samples.classes)} of {dataset}: {own!r} in the "
            f"place of {there!r}. Use the names with which it was trained"
        )
    return measure(model, samples, engine=engine, workers=workers)


def check_test_split(dataset: str | data.OwnImages) -> int:
    """Raise a DataError, as `test_metrics` would, if the test split is missing, or an image of your own is broken.

    Returns:
        The number of broken images that are left out.
    """
    return data.load.locate_test_split(dataset)


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Disable autocast, and TF32, which CUDA otherwise uses in convolutions and LSTMs."""
    tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), tf32:
        yield


def batches(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 250,
    engine: Accelerator | None = None,
    workers: int = 0,
    normalized: bool = True,
) -> Iterator[data.Batch]:
    """Yield this process's share of the images on the model's device; pixels are in [0, 1] unless `normalized`."""
    config = timm.data.resolve_model_data_config(model)
    common: dict[str, Any] = dict(
        batch_size=batch_size,
        mean=config["mean"] if normalized else (0.0,) * images.channels,
        std=config["std"] if normalized else (1.0,) * images.channels,
        device=next(model.parameters()).device,
        rank=engine.process_index if engine else 0,
        processes=engine.num_processes if engine else 1,
    )
    if isinstance(images, data.StreamedSet):
        common |= {key: config[key] for key in ("crop_pct", "interpolation")}
        return data.streamed_eval_batches(images, size_px=config["input_size"][-1], workers=workers, **common)
    return data.eval_batches(images, **common)


def logits(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 250,
    engine: Accelerator | None = None,
    workers: int = 0,
    tta: str = "none",
) -> Tensor:
    """Compute the outputs (N, K) for this process's share of the images; float32, on the CPU.

    With `tta`, averages over views of each image (see `views.averaged`).
    Runs in float32, in evaluation mode and without compilation: a published number must not depend on the precision of
    the training.
    """
    share = batches(model, images, batch_size=batch_size, engine=engine, workers=workers)
    with hooks.evaluating(model), torch.inference_mode(), in_float32(next(model.parameters()).device):
        # forward() skips the compiled call, which would compile the model again for evaluation
        parts = [views.averaged(model.forward, batch.images, tta).cpu() for batch in share]
    return torch.cat(parts) if parts else torch.empty(0, int(model.num_classes))  # type: ignore[arg-type]


def measure(
    model: nn.Module,
    samples: Samples,
    *,
    batch_size: int = 250,
    engine: Accelerator | None = None,
    workers: int = 0,
    tta: str = "none",
) -> ImageMetrics | LanguageMetrics:
    """Compute the metrics of a model on images or on a text.

    With several processes each image counts once, and every process gets the metrics of all images.

    Args:
        tta: test-time augmentation of images: 'none', 'flip' or 'multicrop'.
    Raises:
        InputError: an unknown `tta`, or one for a text.
    """
    if isinstance(samples, data.TextSet):
        if tta != "none":
            raise InputError(f"test-time augmentation {tta!r} is for images, not for texts; leave out --tta")
        return _language_metrics(model, samples)
    outputs = logits(model, samples, batch_size=batch_size, engine=engine, workers=workers, tta=tta)
    if engine and engine.num_processes > 1:
        rank, processes, total = engine.process_index, engine.num_processes, len(samples)
        gathered = torch.zeros(total, outputs.shape[1], device=engine.device)
        gathered[total * rank // processes : total * (rank + 1) // processes] = outputs.to(engine.device)
        outputs = engine.reduce(gathered, "sum").cpu()
    return image_metrics(outputs, samples)


def image_metrics(outputs: Tensor, images: Images) -> ImageMetrics:
    """Compute the metrics of the outputs of a model, one row per image.

    Shapes:
        outputs: (N, K) float32, as `logits` returns them.
    """
    correct = outputs.argmax(1) == images.labels
    sizes = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    hits = torch.bincount(images.labels[correct], minlength=len(images.classes)).tolist()
    return ImageMetrics(
        accuracy=100 * sum(hits) / len(images),
        nll=float(nn.functional.cross_entropy(outputs, images.labels)),
        ece=calibration_error(reliability(outputs.softmax(1).amax(1), correct)),
        correct=sum(hits),
        total=len(images),
        fingerprint=images.fingerprint,
        class_accuracy={c: 100 * hit / n for c, hit, n in zip(images.classes, hits, sizes, strict=True) if n},
    )


def _language_metrics(model: nn.Module, text: data.TextSet) -> LanguageMetrics:
    """Metrics on a text, in float32; every process reads the whole text."""
    device = next(model.parameters()).device
    pieces = data.TextBatches(text, batch_size=1, length=PIECE, device=device)
    loss, correct = (torch.zeros((), dtype=kind, device=device) for kind in (torch.float64, torch.int64))
    state = None  # the loop does not synchronize with the device
    with hooks.evaluating(model), torch.inference_mode(), in_float32(device):
        for piece in pieces.epoch(1):
            logits, state = model.run(piece.tokens, state)  # type: ignore[operator]
            loss += F.cross_entropy(logits[0].float(), piece.targets[0], reduction="sum")
            correct += (logits[0].argmax(1) == piece.targets[0]).sum()
    nll = float(loss) / (len(text) - 1)
    return LanguageMetrics(perplexity(nll), nll, int(correct), len(text) - 1, text.fingerprint)
