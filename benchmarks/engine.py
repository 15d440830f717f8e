"""Images per second of the engine, relative to a bare loop on resident tensors and to timm on a folder of images.

    python benchmarks/engine.py                                        # both, 60 updates and 2,560 images
    python benchmarks/engine.py --updates 20 --images 2000
    python benchmarks/engine.py --timm-train pytorch-image-models/train.py

The engine and what it is compared with alternate, so that other load affects them equally; the ratio is that of the
medians. Limit: at least 0.97 of the bare loop.

The folder holds CIFAR-10 as PNG files. timm's `train.py` is not in its wheel: clone
https://github.com/huggingface/pytorch-image-models at the installed version, and pass its path as --timm-train. Without
it, its parts are used: timm's data set, loader and classification task with train.py's defaults, in a loop without
logging, checkpoints and evaluation. Network, batch size, image size, augmentation (crops of random size and flips, no
color jitter) and memory format are equal, and neither has workers. Limits: at least 3 with images in memory, which get
shifted crops instead, and 1 with streamed images. On a CPU, most of the time goes into the network: one that costs next
to nothing shows the reading, a small CNN what is left of it.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from engine_rate import median_rate
from timm.data import create_dataset, create_loader
from timm.task import ClassificationTask
from torchvision.transforms.v2.functional import to_pil_image

from hyperzoo import data
from hyperzoo.data import ImageSet
from hyperzoo.experiments import build, image_sizes
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.step import TrainStep

ROUNDS, BATCH, LIMIT = 5, 128, 0.97
SIZE, EPOCHS = 32, 6
NETWORKS: dict[str, dict[str, int]] = {
    "test_vit": dict(img_size=SIZE, depth=1),
    "test_resnet": {},
}  # fast: reading shows
LIMITS = {"in memory": 3.0, "streamed": 1.0}


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


def against_bare_loop(updates: int) -> None:
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


def png_folder(folder: Path, count: int) -> Path:
    """The first images of CIFAR-10 as PNG files in train/<class>/ and val/<class>/; the latter has a tenth."""
    images = data.load_images("c10", "train")
    for split, numbers in (("train", range(count)), ("val", range(count, count + count // 10))):
        for name in images.classes:
            (folder / split / name).mkdir(parents=True)
        for number in numbers:
            place = folder / split / images.classes[int(images.labels[number])]
            to_pil_image(images.images[number]).save(place / f"{number}.png")
    return folder


def timm_epochs(folder: Path, arch: str, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that trains an epoch with the parts of timm's train.py; returns its images per second."""
    device = torch.device("cpu")
    loader = create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True, batch_size=BATCH),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        color_jitter=0.0,
        num_workers=0,
        device=device,
    )
    model = timm.create_model(arch, num_classes=10, **NETWORKS[arch]).to(memory_format=torch.channels_last).train()
    task = ClassificationTask(model, criterion_kwargs=dict(smoothing=0.1), device=device, verbose=False)
    optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=2e-5)

    def epoch() -> float:
        started, count = clock(), 0
        for x, y in loader:
            task(x.contiguous(memory_format=torch.channels_last), y)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            count += len(x)
        return count / (clock() - started)

    return epoch


def on_folder(folder: Path, arch: str, held: str, between: Callable[[], None], clock: Callable[[], float]) -> float:
    """Images per second of the engine on a folder, without its checkpoints; `between` runs after each epoch."""
    source = dict(source=dict(folder=str(folder)), batch_size=BATCH, size_px=SIZE)
    words = dict(epochs=EPOCHS, precision="fp32", compile="off")
    plan = Recipe.model_validate(
        dict(
            name="benchmark", model=dict(arch=arch, args=NETWORKS[arch]), data=source, optim=dict(lr=0.01), train=words
        )
    )
    limit, data.own.MEMORY_BYTES = data.own.MEMORY_BYTES, 0 if held == "streamed" else data.own.MEMORY_BYTES
    try:
        images, _ = build.images(plan)
    finally:
        data.own.MEMORY_BYTES = limit
    network = build.model(plan, images.classes, images.channels).to(memory_format=torch.channels_last)
    image_sizes.describe_images(network, images, SIZE)
    engine = Accelerator(cpu=True)
    batches = build.batches(plan, images, network, engine)
    rates, started, epoch = [], clock(), batches.epoch

    def timed(number: int) -> Iterator[Any]:
        nonlocal started
        started = clock()
        return epoch(number)

    def measured(_: torch.nn.Module) -> dict[str, float]:
        rates.append(len(batches) * BATCH / (clock() - started))
        between()
        return {}

    batches.epoch = timed  # type: ignore[method-assign]
    median_rate(plan, engine, build.step(plan, network), batches, measured)
    return statistics.median(rates[1:])


def script_rate(script: Path, folder: Path, arch: str) -> float:
    """Images per second that timm's train.py reports for its last epoch."""
    words = f"--model {arch} --num-classes 10 --img-size {SIZE} --batch-size {BATCH} --epochs {EPOCHS} --workers 0 "
    words += "--device cpu --channels-last --opt sgd --lr 0.01 --color-jitter 0 --warmup-epochs 0 --log-interval 1"
    if "depth" in NETWORKS[arch]:
        words += f" --model-kwargs depth={NETWORKS[arch]['depth']}"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(script), "--data-dir", str(folder), "--val-split", "val", "--output", out]
        done = subprocess.run([*command, *words.split()], capture_output=True, text=True)
    averages = re.findall(r"\(\s*[\d.]+s,\s*([\d.]+)/s\)", done.stdout + done.stderr)
    if done.returncode or not averages:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return float(averages[-1])


def against_timm(count: int, script: Path | None, busy: bool) -> None:
    clock, timed = (time.process_time, "CPU time") if busy else (time.perf_counter, "elapsed time")
    name = "train.py" if script else "the parts of train.py (see --help)"
    print(f"{count} PNG files, batch {BATCH}, {SIZE} px, {torch.get_num_threads()} threads, fp32, {timed}")
    print(f"timm {timm.__version__}: {name}")
    with tempfile.TemporaryDirectory() as place:
        folder = png_folder(Path(place), count)
        for arch, (held, limit) in product(NETWORKS, LIMITS.items()):
            rates: list[float] = []
            between = partial(_take_turn, rates, None if script else timm_epochs(folder, arch, clock))
            ours = on_folder(folder, arch, held, between, clock)
            theirs = script_rate(script, folder, arch) if script else statistics.median(rates[1:])
            verdict = "ok" if ours / theirs >= limit else "MISSED"
            shown = f"{arch}, {held}: engine {ours:.0f} img/s, timm {theirs:.0f} img/s"
            print(f"{shown}, ratio {ours / theirs:.2f}, at least {limit}: {verdict}", flush=True)


def _take_turn(rates: list[float], epoch: Callable[[], float] | None) -> None:
    if epoch:
        rates.append(epoch())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=60, help="of the bare loop; 0 leaves it out")
    parser.add_argument("--images", type=int, default=2560, help="PNG files; 0 leaves timm out")
    parser.add_argument("--timm-train", type=Path, help="timm's train.py")
    parser.add_argument("--busy", action="store_true", help="CPU time of one thread; without the bare loop")
    words = parser.parse_args()
    if words.busy:
        torch.set_num_threads(1)
        words.updates = 0  # the bare loop is compared in elapsed time only
    if words.updates:
        against_bare_loop(words.updates)
    if words.images:
        against_timm(words.images, words.timm_train, words.busy)


if __name__ == "__main__":
    main()
