"""Cost of the sphere layers: spherenet20 relative to its inner-product baseline, and sphereize, measured in one run.

    python benchmarks/sphere_layers.py            # about 10 minutes on two cores, most of it compiling
    python benchmarks/sphere_layers.py --quick    # eager only, few repeats
    python benchmarks/sphere_layers.py --busy     # one thread, CPU time: for a busy machine
    python benchmarks/sphere_layers.py --only spherenet20_learnable

Batch 128 of 32 x 32 (resnet18: 32 of 64 x 64), channels-last, two threads. Baseline and model alternate, so that other
load affects both equally; a ratio is the median over adjacent pairs. Memory: the growth of the resident set over one
step, in its own process. The default of --dtype is bfloat16 if the CPU supports it natively (AVX-512), and otherwise
float32: emulated bfloat16 is ten times slower, and its ratios mean nothing for the sphere layers.
"""

import argparse
from collections.abc import Callable
from typing import Literal, NamedTuple

import measure
import timm
import torch
import torch.nn.functional as F

import hyperzoo  # noqa: F401  registers the models
from hyperzoo.layers import fold, sphereize
from hyperzoo.layers._torch import cpu_computes_bf16

BASELINE = "resnet20_cifar"
SPHEREIZED = "resnet18, sphereized"


Mode = Literal["eager", "compiled", "exported"]


class Row(NamedTuple):
    """One line of the table, with its limit. Inference is that of the folded model."""

    what: str
    mode: Mode
    model: str
    limit: float
    baseline: str = BASELINE
    shape: tuple[int, int, int, int] = (128, 3, 32, 32)


SPEED = [
    Row("training step", "eager", "spherenet20", 1.30),
    Row("training step", "eager", "spherenet20_linear", 1.60),
    Row("training step", "eager", "spherenet20_sigmoid", 1.60),
    Row("training step", "eager", "spherenet20_learnable", 1.60),
    Row("training step", "eager", "fast_sphere_cnn8", 1.10, "fast_cnn8"),
    Row("inference of one image", "eager", "spherenet20", 1.05, shape=(1, 3, 32, 32)),
    Row("inference", "exported", "spherenet20", 1.05),
    Row("inference of one image", "exported", "spherenet20", 1.05, shape=(1, 3, 32, 32)),
    Row("training step", "compiled", "spherenet20", 1.05),
    Row("training step", "compiled", "spherenet20_linear", 1.15),
    Row("training step", "compiled", "spherenet20_sigmoid", 1.20),
    Row("training step", "compiled", "spherenet20_learnable", 1.30),
    Row("inference", "compiled", "spherenet20", 1.03),
    Row("training step", "compiled", SPHEREIZED, 1.25, "resnet18", (32, 3, 64, 64)),
    Row("training step", "compiled", "fast_sphere_cnn8", 1.03, "fast_cnn8"),
]
MEMORY = [("peak memory of a step, eager", False), ("peak memory of a step, compiled", True)]
MEMORY_LIMIT = 1.30


def native_dtype() -> torch.dtype:
    """bfloat16 if this CPU supports it natively, otherwise float32."""
    return torch.bfloat16 if cpu_computes_bf16() else torch.float32


def make_step(
    arch: str, mode: Mode, training: bool, dtype: torch.dtype, shape: tuple[int, int, int, int] = (128, 3, 32, 32)
) -> Callable[[], None]:
    """One step on resident tensors: forward, loss, backward and SGD, or the forward pass of the folded model alone."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18" if arch == SPHEREIZED else arch, num_classes=10)
    if arch == SPHEREIZED:
        sphereize(model, "cosine", exclude=["*.downsample.*"])
    model = model.to(memory_format=torch.channels_last).train(training)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, shape[:1])
    forward: Callable[[torch.Tensor], torch.Tensor] = model if training else fold(model)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    if mode == "compiled":
        forward = torch.compile(forward, fullgraph=True, dynamic=False)
    elif mode == "exported":
        with torch.no_grad(), autocast:  # a program keeps the dtypes it was exported with
            forward = torch.export.export(forward, (x,)).module()
    if not training:

        def infer() -> None:
            with torch.no_grad(), autocast:
                forward(x)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def train() -> None:
        with autocast:
            logits = forward(x)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def profile(step: Callable[[], None]) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        for _ in range(3):
            step()
    return record.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60)


def print_peak_bytes(arch: str, compiled: bool, dtype: torch.dtype) -> None:
    """Peak growth of memory during the third step."""
    step = make_step(arch, "compiled" if compiled else "eager", True, dtype)
    step()
    step()
    print(measure.growth(step))


def peak_bytes(arch: str, compiled: bool, dtype: torch.dtype) -> float:
    words = "--memory-of", arch, "--dtype", str(dtype).removeprefix("torch.")
    return measure.in_own_process(__file__, *words, *["--compiled"] * compiled)


def row(what: str, arch: str, baseline: str, own: str, ratio: float, limit: float) -> bool:
    verdict = measure.verdict(ratio, limit)
    print(f"{what:34}{arch:22}{baseline:>10}{own:>10}{ratio:8.2f}{limit:9.2f}  {verdict}", flush=True)
    return verdict == "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of spherenet20 to its inner-product baseline.")
    parser.add_argument("--quick", action="store_true", help="eager only, few repeats")
    parser.add_argument("--busy", action="store_true", help="one thread and CPU time instead of two and wall time")
    parser.add_argument("--only", choices=sorted({one.model for one in SPEED}), help="the speed of one model")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 if native, otherwise float32"
    )
    parser.add_argument("--profile", action="store_true", help="profiles of the missed rows after the table")
    parser.add_argument("--memory-of", metavar="ARCH", help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype) if args.dtype else native_dtype()
    torch.set_num_threads(1 if args.busy else 2)
    if args.memory_of:
        print_peak_bytes(args.memory_of, args.compiled, dtype)
        return
    repeats = 3 if args.quick else 9
    print(measure.conditions(dtype, args.busy))
    print(f"{'what':34}{'model':22}{'baseline':>10}{'sphere':>10}{'ratio':>8}{'at most':>9}")
    baselines: dict[tuple[str, Mode, bool, tuple[int, ...]], Callable[[], None]] = {}
    profiles = []
    for one in SPEED:
        if (args.quick and one.mode != "eager") or args.only not in (None, one.model):
            continue
        training, what = one.what == "training step", f"{one.what}, {one.mode}"
        key = one.baseline, one.mode, training, one.shape
        if key not in baselines:
            torch.compiler.reset()
            baselines[key] = make_step(one.baseline, one.mode, training, dtype, one.shape)
        step = make_step(one.model, one.mode, training, dtype, one.shape)
        times = measure.rounds(baselines[key], step, repeats=repeats, warm_up=3, now=measure.clock(args.busy))
        a, b = measure.medians(times)
        ratio = measure.ratio(times)
        missed = row(what, one.model, f"{a * 1e3:.4g} ms", f"{b * 1e3:.4g} ms", ratio, one.limit)
        if missed and args.profile:
            profiles.append(f"{what}, {one.model}:\n{profile(step)}")
    for what, compiled in [] if args.only else MEMORY[: 1 if args.quick else None]:
        own, baseline = (peak_bytes(arch, compiled, dtype) for arch in ("spherenet20", BASELINE))
        row(what, "spherenet20", f"{baseline / 1e6:.0f} MB", f"{own / 1e6:.0f} MB", own / baseline, MEMORY_LIMIT)
    print(*profiles, sep="\n")


if __name__ == "__main__":
    main()
