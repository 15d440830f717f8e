"""Accuracy, NLL and calibration error of a model on a split; the only file that asks for a test split."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hyperzoo import data, zoo
from hyperzoo.names import DATASETS

ECE_BINS = 15


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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(name: str, *, split: str = "test", batch_size: int = 250) -> Metrics:
    """Evaluate a published weight on a split of the data set that it was trained on.

    Args:
        name: a weight, or an architecture for its default weight.
        split: 'test' or 'train'.
    Raises:
        UnknownNameError, DataError, WeightHashError, ...: as `hyperzoo.load` and `data.load_images`.
    """
    loaded = zoo.load(name)
    code = next(code for code, hub_id in DATASETS.items() if hub_id == loaded.record.dataset.id)
    return measure(loaded.model, data.load_images(code, split), batch_size=batch_size)


def test_split(
    model: nn.Module, name: str, engine: Accelerator | None = None, *, mirror: Path | None = None, workers: int = 0
) -> Metrics:
    """Evaluate a trained model on the test split of a data set, given by its code; of a given mirror, if any."""
    return measure(model, data.load_images(name, "test", mirror), engine=engine, workers=workers)


def logits(
    model: nn.Module,
    images: data.ImageSet | data.StreamedSet,
    *,
    batch_size: int = 250,
    engine: Accelerator | None = None,
    workers: int = 0,
) -> Tensor:
    """The outputs (N, K), float32, for this process's share of the images, on the CPU.

    In float32, evaluation mode and eager: a published number must not depend on the arithmetic of the training.
    """
    config = timm.data.resolve_model_data_config(model)
    where = next(model.parameters()).device
    common: dict[str, Any] = dict(
        batch_size=batch_size,
        mean=config["mean"],
        std=config["std"],
        device=where,
        rank=engine.process_index if engine else 0,
        processes=engine.num_processes if engine else 1,
    )
    if isinstance(images, data.StreamedSet):
        size, crop = config["input_size"][-1], config["crop_pct"]
        batches = data.streamed_eval_batches(images, size_px=size, crop_pct=crop, workers=workers, **common)
    else:
        batches = data.eval_batches(images, **common)
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(where.type, enabled=False):
        # forward, not a call: a compiled model would be compiled once more for evaluation
        parts = [model.forward(batch.images).float().cpu() for batch in batches]
    model.train(training)
    return torch.cat(parts) if parts else torch.empty(0, int(model.num_classes))  # type: ignore[arg-type]


def measure(
    model: nn.Module,
    images: data.ImageSet | data.StreamedSet,
    *,
    batch_size: int = 250,
    engine: Accelerator | None = None,
    workers: int = 0,
) -> Metrics:
    """Metrics of a model on images, each counted once also over several processes."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # slow to import, part of [train]

    outputs = logits(model, images, batch_size=batch_size, engine=engine, workers=workers)
    if engine and engine.num_processes > 1:
        rank, processes, total = engine.process_index, engine.num_processes, len(images)
        everywhere = torch.zeros(total, outputs.shape[1], device=engine.device)
        everywhere[total * rank // processes : total * (rank + 1) // processes] = outputs.to(engine.device)
        outputs = engine.reduce(everywhere, "sum").cpu()
    right = outputs.argmax(1) == images.labels
    sizes = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    hits = torch.bincount(images.labels[right], minlength=len(images.classes)).tolist()
    ece = multiclass_calibration_error(outputs.softmax(1), images.labels, num_classes=outputs.shape[1], n_bins=ECE_BINS)
    return Metrics(
        accuracy=100 * sum(hits) / len(images),
        nll=float(nn.functional.cross_entropy(outputs, images.labels)),
        ece=100 * float(ece),
        correct=sum(hits),
        total=len(images),
        fingerprint=images.fingerprint,
        class_accuracy={c: 100 * hit / n for c, hit, n in zip(images.classes, hits, sizes, strict=True) if n},
    )
