"""Accuracy, NLL and calibration error, or perplexity, on a split; the only file that asks for a test split."""

import math
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
from hyperzoo.analysis.calibration import calibration_error, reliability
from hyperzoo.data.load import Images, Samples
from hyperzoo.data.sources import IMAGES
from hyperzoo.errors import InputError
from hyperzoo.layers import hooks
from hyperzoo.names import DATASETS, TEXTS

PIECE = 35  # tokens that a language model reads at a time; the steps for which recurrent batch norm has statistics


@dataclass(frozen=True)
class Metrics:
    """What a model does on a set of images.

    accuracy, ece in %; nll in nats per image; correct of total images; fingerprint of the images; class_accuracy in %,
    of each class that occurs.
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
        """What is compared between runs."""
        return self.accuracy

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        right = f"{self.accuracy:.2f} % ({self.correct} of {self.total})"
        return f"{right}, NLL {self.nll:.4f}, ECE {self.ece:.2f} %"


@dataclass(frozen=True)
class TextMetrics:
    """What a language model makes of a text, read as one sequence from a state of zeros.

    perplexity: exp of nll, in nats a token, the mean over all tokens but the first; correct of total tokens were the
    likeliest in their place; fingerprint of the text.
    """

    perplexity: float
    nll: float
    correct: int
    total: int
    fingerprint: str

    @property
    def score(self) -> float:
        """What is compared between runs."""
        return self.perplexity

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.2f} ({self.correct} of {self.total} words were the likeliest)"


def run(
    name: str,
    *,
    split: str = "test",
    dataset: str | None = None,
    pretrained: bool = False,
    limit: int | None = None,
    batch_size: int = 250,
) -> Metrics | TextMetrics:
    """Evaluate a model on a split; the arguments are those of `subject`."""
    model, images = subject(name, split=split, dataset=dataset, pretrained=pretrained, limit=limit)
    return measure(model, images, batch_size=batch_size)


def subject(
    name: str,
    *,
    split: str = "test",
    dataset: str | None = None,
    pretrained: bool = False,
    limit: int | None = None,
) -> tuple[nn.Module, Samples]:
    """A network in evaluation mode, and the images or the text that it is evaluated on.

    Args:
        name, pretrained: as for `zoo.any_network`.
        split: 'test' or 'train', of a text also 'validation'.
        dataset: its code; None for a published weight: what that was trained on.
        limit: images, at most: a part that is drawn with a fixed seed.
    Raises:
        InputError: a model without a data set, or for other classes or channels than the images have; a limited text.
        UnknownNameError, DataError, WeightHashError, ...: as `zoo.any_network` and `data.load_images`.
    """
    if dataset is None:
        arch = name.partition(".")[0]
        if ":" in name or (timm.is_model(arch) and arch not in zoo.list_models()):
            known = ", ".join([*IMAGES, "imagenet", *TEXTS])
            raise InputError(f"{name} is no weight of ours: say on which data set (--data) to evaluate it: {known}")
        hub_id = zoo.weight_info(name).dataset.id
        dataset = next(code for code, known in DATASETS.items() if known == hub_id)
    model, images = zoo.any_network(name, pretrained=pretrained), data.load_split(dataset, split)
    channels = timm.data.resolve_model_data_config(model)["input_size"][0]
    if (model.num_classes, channels) != (len(images.classes), images.channels):
        raise InputError(
            f"{name} is for {channels} channels and {model.num_classes} classes; {dataset} has {images.channels} and "
            f"{len(images.classes)}"
        )
    if limit is None or limit >= len(images):
        return model, images
    if limit < 1:
        raise InputError(f"limit must be at least 1; got {limit}")
    if isinstance(images, data.TextSet):
        raise InputError("limit is for images; a text is read as a whole")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:limit]
    return model, images.take(chosen.sort().values)


def test_split(
    model: nn.Module, name: str, engine: Accelerator | None = None, *, mirror: Path | None = None, workers: int = 0
) -> Metrics | TextMetrics:
    """Evaluate a trained model on the test split of a data set, given by its code; of a given mirror, if any."""
    return measure(model, data.load_split(name, "test", mirror), engine=engine, workers=workers)


@contextmanager
def _in_float32(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, and none of the TF32 that CUDA otherwise takes for convolutions and LSTMs."""
    tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), tf32:
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
    """This process's share of the images, on the device of a model; as pixels in [0, 1] unless `normalized`."""
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
        size, crop = config["input_size"][-1], config["crop_pct"]
        return data.streamed_eval_batches(images, size_px=size, crop_pct=crop, workers=workers, **common)
    return data.eval_batches(images, **common)


def logits(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 250,
    engine: Accelerator | None = None,
    workers: int = 0,
) -> Tensor:
    """The outputs (N, K), float32, for this process's share of the images, on the CPU.

    In float32, evaluation mode and eager: a published number must not depend on the arithmetic of the training.
    """
    share = batches(model, images, batch_size=batch_size, engine=engine, workers=workers)
    with hooks.evaluating(model), _in_float32(next(model.parameters()).device):
        # forward, not a call: a compiled model would be compiled once more for evaluation
        parts = [model.forward(batch.images).float().cpu() for batch in share]
    return torch.cat(parts) if parts else torch.empty(0, int(model.num_classes))  # type: ignore[arg-type]


def measure(
    model: nn.Module,
    images: Samples,
    *,
    batch_size: int = 250,
    engine: Accelerator | None = None,
    workers: int = 0,
) -> Metrics | TextMetrics:
    """Metrics of a model on images, each counted once also over several processes; or on a text."""
    if isinstance(images, data.TextSet):
        return read(model, images)
    outputs = logits(model, images, batch_size=batch_size, engine=engine, workers=workers)
    if engine and engine.num_processes > 1:
        rank, processes, total = engine.process_index, engine.num_processes, len(images)
        everywhere = torch.zeros(total, outputs.shape[1], device=engine.device)
        everywhere[total * rank // processes : total * (rank + 1) // processes] = outputs.to(engine.device)
        outputs = engine.reduce(everywhere, "sum").cpu()
    right = outputs.argmax(1) == images.labels
    sizes = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    hits = torch.bincount(images.labels[right], minlength=len(images.classes)).tolist()
    return Metrics(
        accuracy=100 * sum(hits) / len(images),
        nll=float(nn.functional.cross_entropy(outputs, images.labels)),
        ece=calibration_error(reliability(outputs.softmax(1).amax(1), right)),
        correct=sum(hits),
        total=len(images),
        fingerprint=images.fingerprint,
        class_accuracy={c: 100 * hit / n for c, hit, n in zip(images.classes, hits, sizes, strict=True) if n},
    )


def read(model: nn.Module, text: data.TextSet) -> TextMetrics:
    """Metrics of a language model on a text, in float32; every process of a run reads all of it."""
    device = next(model.parameters()).device
    pieces = data.TextBatches(text, batch_size=1, length=PIECE, device=device)
    loss, correct = (torch.zeros((), dtype=kind, device=device) for kind in (torch.float64, torch.int64))
    state = None  # nothing below waits for the device
    with hooks.evaluating(model), _in_float32(device):
        for piece in pieces.epoch(1):
            logits, state = model.run(piece.tokens, state)  # type: ignore[operator]
            loss += F.cross_entropy(logits[0].float(), piece.targets[0], reduction="sum")
            correct += (logits[0].argmax(1) == piece.targets[0]).sum()
    nll = float(loss) / (len(text) - 1)
    return TextMetrics(math.exp(nll), nll, int(correct), len(text) - 1, text.fingerprint)
