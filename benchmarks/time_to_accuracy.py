"""Time to the published accuracy on this machine, for every published image recipe.

    python benchmarks/time_to_accuracy.py [recipe ...]      # names of weights or drafts; default: all image weights
    python benchmarks/run_all.py time_to_accuracy           # the same, and writes the table into benchmarks/README.md

For each recipe: its FLOPs (convolutions and matrix products, forward and backward), images per second of the engine on
synthetic images, and the minutes that all its epochs take at that rate. The ratio compares the engine with a bare torch
loop over the same network, optimizer, precision and image size, on resident tensors and without the method; it costs
what the method and the augmentation cost. Both alternate, so that other load affects them equally. Limit for recipes
without a method: at least 0.95. What was measured for a recipe is used again for those that differ from it in their
data set, epochs and learning rates only.
"""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from engine_rate import median_rate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperzoo import zoo
from hyperzoo.data import ImageSet
from hyperzoo.experiments import build
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.training.schedule import make_optimizer

ROUNDS, IMAGES_PER_ROUND, LIMIT = 3, 500, 0.95  # the first round warms up
TRAINING_IMAGES, SIZE = 50_000, 32  # of CIFAR-10 and CIFAR-100


def epochs_by_size(recipe: Recipe) -> Counter[int]:
    """Number of epochs by image size."""
    return Counter(recipe.data.resized_to(epoch) or SIZE for epoch in range(1, recipe.train.epochs + 1))


def network(recipe: Recipe, classes: int) -> nn.Module:
    return build.model(recipe, classes, 3).to(memory_format=torch.channels_last).train()


def flops_per_image(recipe: Recipe, classes: int, size: int) -> float:
    """FLOPs of a training step; a multiply-add counts as two."""
    count, model = 16, network(recipe, classes)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(count, 3, size, size)).sum().backward()
    return counter.get_total_flops() / count


def bare_loop(recipe: Recipe, engine: Accelerator, model: nn.Module, classes: int, size: int) -> Callable[[], float]:
    """A function that trains the model for one round and returns images per second."""
    batch = recipe.data.batch_size
    rounds = max(1, IMAGES_PER_ROUND // batch)
    x = torch.randn(batch, 3, size, size, device=engine.device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, classes, (batch,), device=engine.device)
    optimizer = make_optimizer(nn.ModuleDict({"model": model}), recipe.optim)  # names as in a training step
    low = build.precision(recipe) == "bf16"

    def loss() -> Tensor:
        with torch.autocast(engine.device.type, torch.bfloat16, enabled=low):
            return F.cross_entropy(model(x).float(), y, label_smoothing=recipe.method.label_smoothing)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return rounds * batch / (time.perf_counter() - started)

    return run


def rates(recipe: Recipe, engine: Accelerator, classes: int, size: int) -> tuple[float, float]:
    """Images per second of the engine and of the bare loop."""
    data = recipe.data.model_copy(update=dict(resize_px={1: size}))
    short = recipe.train.model_copy(update=dict(epochs=ROUNDS, ema=0.0))
    optim = recipe.optim.model_copy(update=dict(warmup_epochs=0.0, cycles=1))  # these would not fit into the rounds
    plan = recipe.model_copy(update=dict(data=data, optim=optim, train=short))
    count = max(1, IMAGES_PER_ROUND // data.batch_size) * data.batch_size
    pixels, labels = (
        torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8),
        torch.randint(0, classes, (count,)),
    )
    images = ImageSet(data.name, "train", pixels, labels, tuple(map(str, range(classes))), "made")
    model, baseline = network(plan, classes), network(plan, classes)
    for each in (model, baseline):
        build.initialize(plan, each, images)
    updates = TRAINING_IMAGES // data.batch_size * recipe.train.epochs
    compile_model, _ = build.compiles(recipe, model, updates, engine.device)
    if compile_model:
        baseline.compile(dynamic=False)
    step = build.step(plan, model).to(engine.device)
    bare = bare_loop(plan, engine, baseline.to(engine.device), classes, size)
    bare()
    measured: list[float] = []

    def take_turns(_: nn.Module) -> dict[str, float]:
        measured.append(bare())
        return {}

    batches = build.batches(plan, images, model, engine)
    ours = median_rate(plan, engine, step, batches, take_turns, compile_model)
    return ours, statistics.median(measured[1:])


def costs(recipe: Recipe, size: int) -> str:
    """What the rate of a training step depends on."""
    train = recipe.train.compile, recipe.train.accumulate, recipe.train.precision
    return str((recipe.model, recipe.method, train, recipe.optim.optimizer, recipe.data.batch_size, size))


def row(recipe: Recipe, stated: str, engine: Accelerator, measured: dict[str, tuple[float, float]]) -> str:
    classes = 100 if recipe.data.name == "c100" else 10
    flops = minutes = bare_minutes = 0.0
    for size, epochs in epochs_by_size(recipe).items():
        seen = epochs * TRAINING_IMAGES
        flops += seen * flops_per_image(recipe, classes, size)
        key = costs(recipe, size)
        if key not in measured:
            measured[key] = rates(recipe, engine, classes, size)
        ours, bare = measured[key]
        minutes, bare_minutes = minutes + seen / ours / 60, bare_minutes + seen / bare / 60
    ratio = bare_minutes / minutes
    has_method = bool(recipe.method.model_dump(exclude_defaults=True, exclude={"label_smoothing"}))
    verdict = "" if has_method else "MISSED" if ratio < LIMIT else "ok"
    rate = recipe.train.epochs * TRAINING_IMAGES / minutes / 60
    numbers = f"{recipe.train.epochs:8}{flops / 1e15:8.2f}{rate:10.0f}{minutes:9.0f}{ratio:8.2f}"
    return f"{recipe.name:34}{stated:>9}{numbers}  {verdict}".rstrip()


def main(chosen: list[str]) -> None:
    engine = Accelerator()
    published = {name: info for name in zoo.list_weights() if (info := zoo.weight_info(name)).metric == "accuracy"}
    print(f"{engine.device.type}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'recipe':34}{'accuracy':>9}{'epochs':>8}{'PFLOP':>8}{'images/s':>10}{'minutes':>9}{'ratio':>8}")
    measured: dict[str, tuple[float, float]] = {}
    for name in chosen or list(published):
        stated = f"{published[name].score.mean:.2f} %" if name in published else "-"
        print(row(load_recipe(name), stated, engine, measured), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
