"""A training run that takes milliseconds: the real engine on 64 made images and a small net with dropout."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from hyperzoo.data import ImageBatches, ImageSet
from hyperzoo.training import checkpoint
from hyperzoo.training.loop import Trainer
from hyperzoo.training.progress import Progress
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.schedule import make_optimizer
from hyperzoo.training.seeding import seed_epoch
from hyperzoo.training.step import TrainStep


def recipe(epochs=3, optimizer="sgd", **train) -> Recipe:
    return Recipe.model_validate(
        dict(
            name="tiny",
            model=dict(arch="resnet20_cifar"),
            data=dict(name="c10", batch_size=16, crop_px=1, resize_px=train.pop("resize_px", {})),
            optim=dict(
                lr=0.05,
                weight_decay=1e-3,
                optimizer=optimizer,
                warmup_epochs=0.5,
                clip_norm=train.pop("clip_norm", None),
            ),
            train=dict(epochs=epochs, **{"precision": "fp32"} | train),
        )
    )


def image_set(count=64, size=8) -> ImageSet:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet("c10", "train", images, torch.arange(count) % 10, tuple("abcdefghij"), "made")


def network(dropout=0.2) -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), *head)


def trainer(folder: Path, plan: Recipe, *, model=None, batches=None, count=64) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    engine = Accelerator()
    seed_epoch(plan.train.seed, 0)
    step = TrainStep(model or network(), nn.CrossEntropyLoss())
    batches = batches or ImageBatches(
        image_set(count),
        batch_size=plan.data.batch_size,
        seed=plan.train.seed,
        crop_px=plan.data.crop_px,
        flip=True,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        rank=engine.process_index,
        processes=engine.num_processes,
    )
    return Trainer(
        recipe=plan,
        accelerator=engine,
        step=step,
        optimizer=make_optimizer(step, plan.optim),
        batches=batches,
        folder=folder,
        progress=Progress("tiny", plan.train.epochs, active=False),
    )


def run(folder: Path, plan: Recipe, **parts) -> dict[str, torch.Tensor]:
    """Train to the end, from the newest checkpoint if there is one; returns the published tensors."""
    published = trainer(folder, plan, **parts).run(checkpoint.newest(folder / "checkpoints"))
    return {name: value.clone() for name, value in published.state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names and bits."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
