"""How cost grows: the time of each method over its sizes, as tables and pictures in docs/performance.md.

    python benchmarks/scaling.py             # all curves, about 3 minutes of CPU time
    python benchmarks/scaling.py mhe per     # those whose names start so
    python benchmarks/scaling.py --print     # tables only, no file is written

CPU time of one thread, float32, eager, forward and backward; the least of several calls, so other load on the machine
counts little. The exponent is the slope of log(time) over log(size) in the upper half of the sizes. Memory is the peak
growth of the resident set during a call (Linux).
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import blocks
import measure
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from engine_rate import median_rate
from measure import Call
from torch import Tensor

from hyperzoo.analysis import plots
from hyperzoo.data import ImageSet
from hyperzoo.experiments import build
from hyperzoo.layers import SphereConv2d
from hyperzoo.losses import AngularSoftmax
from hyperzoo.regularizers import PER, hyperspherical_energy, label_energy
from hyperzoo.training import allocator
from hyperzoo.training.recipe import Recipe

LEAST_S, LONG_S, CALLS = 0.1, 10, 3
DOCS = Path(__file__).parent.parent / "docs"
CLASSES_OF_A_BATCH, ROWS = 128, 1024


class Curve(NamedTuple):
    """The time of several forms over one size.

    Args:
        unit: of the size.
        forms: label -> (size -> a call to time); the first is what the others are compared with.
        memory: also measure the peak memory of a call of the last form but one.
    """

    name: str
    unit: str
    sizes: Sequence[int]
    forms: dict[str, Callable[[int], Call]]
    memory: bool = False


def convolution(kind: type[torch.nn.Conv2d], channels: int, size: int, images: int = 4) -> Call:
    """A 3 x 3 convolution."""
    x = torch.randn(images, channels, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = kind(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    return lambda: layer(x).backward(grad)


def energy(of: Callable[[Tensor], Tensor], count: int) -> Call:
    rows = torch.randn(count, 256, requires_grad=True)
    return lambda: of(rows).backward()


def drawn(rows: Tensor) -> Tensor:
    return hyperspherical_energy(rows[torch.randperm(len(rows))[:ROWS]])


def by_labels(rows: Tensor) -> Tensor:
    return label_energy(rows, torch.randint(len(rows), (CLASSES_OF_A_BATCH,)))


def activation(width: int, positions: int, **settings: float) -> Call:
    """A ReLU on 16 images of `positions` / 16 pixels, with PER if there are settings."""
    side = math.isqrt(positions // 16)
    x = torch.randn(16, width, side, side, requires_grad=True)
    model = torch.nn.Sequential(torch.nn.ReLU())
    grad = torch.randn_like(x)
    term = PER(model, strength=0.1, layers="0", **settings) if settings else None  # type: ignore[arg-type]

    def call() -> None:
        if term is None:
            model(x).backward(grad)
            return
        with term:
            out = model(x)
            torch.autograd.backward([out, term()], [grad, None])

    return call


def classifier(loss: AngularSoftmax | None, classes: int) -> Call:
    """The last layer for 64 features of width 256, with logits of variance 1 at first: larger ones underflow."""
    x, rows = torch.randn(64, 256, requires_grad=True), (torch.randn(classes, 256) / 16).requires_grad_()
    y = torch.randint(classes, (64,))
    if loss is None:
        return lambda: F.cross_entropy(F.linear(x, rows), y).backward()
    return lambda: loss(x, rows, y).backward()


CURVES = [
    Curve(
        "sphere_channels",
        "channels, 16 images of 16 x 16",
        (16, 32, 64, 128, 256, 512, 1024),
        {kind.__name__: partial(convolution, kind, size=16, images=16) for kind in (torch.nn.Conv2d, SphereConv2d)},
    ),
    Curve(
        "sphere_size",
        "pixels per side, 4 images of 64 channels",
        (8, 16, 32, 64, 128),
        {kind.__name__: partial(convolution, kind, 64) for kind in (torch.nn.Conv2d, SphereConv2d)},
    ),
    Curve(
        "mhe",
        "neurons of width 256",
        (64, 256, 1024, 4096, 16_384, 100_000),
        {
            f"{ROWS:,} random rows": partial(energy, drawn),
            "all pairs": partial(energy, hyperspherical_energy),
            f"{CLASSES_OF_A_BATCH} labels": partial(energy, by_labels),
        },
        memory=True,
    ),
    Curve(
        "per_width",
        "channels, 4,096 positions",
        (16, 64, 256, 1024),
        {
            "ReLU alone": partial(activation, positions=4096),
            "all directions": partial(activation, positions=4096, slices=None),
            "256 directions": partial(activation, positions=4096, slices=256),
        },
    ),
    Curve(
        "per_positions",
        "positions, 64 channels",
        (1024, 4096, 16_384, 65_536),
        {
            "ReLU alone": partial(activation, 64),
            "all directions": partial(activation, 64, slices=None),
            "256 directions": partial(activation, 64, slices=256),
            "256 directions, rows 0.1": partial(activation, 64, slices=256, rows=0.1),
        },
    ),
    Curve(
        "angular_softmax",
        "classes",
        (100, 1000, 10_000, 100_000),
        {
            "linear + cross-entropy": partial(classifier, None),
            "A-Softmax, m = 4": partial(classifier, AngularSoftmax("cosine", 4)),
            "W-Softmax": partial(classifier, AngularSoftmax()),
        },
        memory=True,
    ),
]


def least(call: Call) -> tuple[float, float]:
    """The least CPU time of a call in seconds, and the growth of memory during the first in MB.

    The first call only warms up, unless it takes longer than `LONG_S`: then it is the only one.
    """
    started = time.thread_time()
    grown = measure.growth(call) / 1e6
    first = time.thread_time() - started
    times: list[float] = [first] if first > LONG_S else []
    while first <= LONG_S and (len(times) < CALLS or (sum(times) < LEAST_S and len(times) < 200)):
        times.append(measure.seconds(call, time.thread_time))
    return min(times), grown


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The slope of log(time) over log(size), by least squares over the upper half of the sizes.

    Example:
        >>> round(exponent([1, 2, 4, 8], [9.0, 4.0, 16.0, 64.0]), 6)
        2.0
    """
    upper = slice(len(sizes) // 2 - 1 if len(sizes) < 6 else len(sizes) // 2, None)
    x = torch.tensor(sizes[upper], dtype=torch.float64).log()
    y = torch.tensor(times[upper], dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def time_of(curve: Curve) -> tuple[dict[str, list[float]], str]:
    """The times in seconds by form, and the table in Markdown."""
    times: dict[str, list[float]] = {form: [] for form in curve.forms}
    first, *others = curve.forms
    head = [curve.unit, f"{first} (ms)", *(f"{form} (ms)" for form in others), *(f"{form}: ratio" for form in others)]
    if curve.memory:
        head.append(f"memory of {others[0]} (MB)")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for size in curve.sizes:
        grown = dict[str, float]()
        for form, make in curve.forms.items():
            spent, grown[form] = least(make(size))
            times[form].append(spent)
        now = [times[form][-1] for form in curve.forms]
        cells = [f"{size:,}", *(f"{1000 * t:.3g}" for t in now), *(f"{t / now[0]:.2f}" for t in now[1:])]
        if curve.memory:
            cells.append(f"{grown[others[0]]:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    found = [f"{exponent(curve.sizes, times[form]):.2f}" for form in curve.forms]
    lines.append("| " + " | ".join(["exponent", *found, *[""] * (len(head) - 1 - len(found))]) + " |")
    return times, "\n".join(lines)


def engine_rate(batch: int, images: int = 512) -> float:
    """Images per second of CPU time of the training engine, without its checkpoints."""
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    samples = ImageSet("c10", "train", pixels, torch.randint(0, 10, (images,)), tuple("abcdefghij"), "made")
    words = dict(epochs=3, precision="fp32", compile="off")
    data = dict(name="c10", batch_size=batch)
    plan = Recipe.model_validate(
        dict(name="benchmark", model=dict(arch="resnet20_cifar"), data=data, optim=dict(lr=0.01), train=words)
    )
    engine, model = Accelerator(cpu=True), timm.create_model("resnet20_cifar").to(memory_format=torch.channels_last)
    batches = build.batches(plan, samples, model, engine)
    epoch, started, spent = batches.epoch, [0.0], list[float]()

    def timed(number: int) -> Iterator[Any]:
        started[0] = time.process_time()
        return epoch(number)

    def stop(_: torch.nn.Module) -> dict[str, float]:
        spent.append(time.process_time() - started[0])
        return {}

    batches.epoch = timed  # type: ignore[method-assign]
    median_rate(plan, engine, build.step(plan, model), batches, stop)
    return images / min(spent[1:])


def draw(curve: Curve, times: dict[str, list[float]], picture: Path) -> None:
    drawn_, axes = plots.figure(1, 1, (4.6, 3.0))
    for form, seconds in times.items():
        axes.plot(curve.sizes, [1000 * t for t in seconds], marker="o", markersize=3, label=form)
    axes.set(xscale="log", yscale="log", xlabel=curve.unit, ylabel="ms of CPU time")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    plots.save(drawn_, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="starts of names of curves, or engine [default: all]")
    parser.add_argument("--print", action="store_true", help="write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    allocator.keep()
    torch.manual_seed(0)
    page = DOCS / "performance.md"
    for curve in CURVES:
        if args.names and not curve.name.startswith(tuple(args.names)):
            continue
        times, table = time_of(curve)
        print(f"{curve.name}\n{table}\n", flush=True)
        if not args.print:
            draw(curve, times, DOCS / f"scaling_{curve.name}.png")
            blocks.replace(page, curve.name, table)
    if not args.names or "engine" in args.names:
        rows = [f"| {batch} | {engine_rate(batch):.0f} |" for batch in (8, 32, 128)]
        table = "\n".join(["| batch size | images per second of CPU time |", "| --- | --- |", *rows])
        print(table)
        if not args.print:
            blocks.replace(page, "engine", table)


if __name__ == "__main__":
    main()
