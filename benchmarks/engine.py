"""Images per second of the engine relative to a bare loop with the same model, precision and resident tensors.

    python benchmarks/engine.py [updates]      # default 60

Both alternate, so that other load affects them equally; the ratio is that of the medians. Limit: at least 0.90.
"""

import statistics
import sys
import time

import timm
import torch
from accelerate import Accelerator
from engine_rate import median_rate

from hyperzoo.data import ImageSet
from hyperzoo.experiments import build
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.step import TrainStep

ROUNDS, BATCH, LIMIT = 5, 128, 0.90


def recipe() -> Recipe:
    return Recipe.model_validate(
        dict(
            name="benchmark",
            model=dict(arch="spherenet20"),
            data=dict(name="c10", batch_size=BATCH),
            optim=dict(lr=0.01, weight_decay=5e-4),
            train=dict(epochs=ROUNDS),
        )
    )


def bare_epoch(step: TrainStep, images: torch.Tensor, labels: torch.Tensor) -> float:
    optimizer = torch.optim.SGD(step.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    started = time.perf_counter()
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        step(x, y).loss.backward()
        optimizer.step()
    return len(labels) / (time.perf_counter() - started)


def main(updates: int) -> None:
    plan, engine = recipe(), Accelerator()
    pixels = torch.randint(0, 256, (updates * BATCH, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(pixels),))
    images = ImageSet("c10", "train", pixels, labels, tuple("abcdefghij"), "made")
    resident = torch.randn(pixels.shape).contiguous(memory_format=torch.channels_last).to(engine.device)
    model = timm.create_model("spherenet20").to(memory_format=torch.channels_last)
    step = build.step(plan, model).to(engine.device)
    bare: list[float] = [bare_epoch(step, resident[: 3 * BATCH], labels[: 3 * BATCH].to(engine.device))]

    def take_turns(_: torch.nn.Module) -> dict[str, float]:
        bare.append(bare_epoch(step, resident, labels.to(engine.device)))
        return {}

    ours = median_rate(plan, engine, step, build.batches(plan, images, model, engine), take_turns)
    theirs = statistics.median(bare[2:])
    where = f"{engine.device.type}, {torch.get_num_threads()} threads, {build.precision(plan)}, eager"
    print(f"spherenet20, batch {BATCH}, {where}: engine {ours:.0f} img/s, bare loop {theirs:.0f} img/s")
    print(f"ratio {ours / theirs:.3f}, at least {LIMIT}: {'ok' if ours / theirs >= LIMIT else 'MISSED'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
