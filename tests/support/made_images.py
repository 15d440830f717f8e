"""Image sets made for the tests, in memory and as a mirror."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from hyperzoo.data import ImageSet

CIFAR = Path("uoft-cs/cifar10/plain_text")


def toy(count: int = 24, classes: int = 3, size: int = 8, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return ImageSet("toy", "train", images, labels, tuple("abcdefghij"[:classes]), "made for the test")


def write_mirror(folder: Path, images: ImageSet, shards: int = 4, encoding: str = "PNG") -> Path:
    """A mirror of 'c10' with the given images as its train split; return the folder of the shards."""
    target = folder / CIFAR
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for image, label in zip(images.images, images.labels.tolist(), strict=True):
        file = io.BytesIO()
        Pillow.fromarray(image.permute(1, 2, 0).numpy()).save(
            file, encoding, **{"WEBP": {"lossless": True}}.get(encoding, {})
        )
        rows.append({"img": {"bytes": file.getvalue(), "path": None}, "label": label})
    features = Features({"img": Image(), "label": ClassLabel(names=list(images.classes))})
    table = Dataset.from_list(rows, features=features).data.table
    for shard, part in enumerate(torch.arange(len(images)).tensor_split(shards)):
        pq.write_table(table.take(part.numpy()), target / f"train-{shard:05d}-of-{shards:05d}.parquet")
    return target
