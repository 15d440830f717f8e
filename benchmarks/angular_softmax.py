"""Cost of AngularSoftmax: a step of the last layer relative to linear + cross-entropy, measured in one run.

    python benchmarks/angular_softmax.py                   # a few minutes on two cores, most of it compiling
    python benchmarks/angular_softmax.py --quick           # eager only, few repeats, small memory
    python benchmarks/angular_softmax.py --busy            # one thread, CPU time: for a busy machine
    python benchmarks/angular_softmax.py --device cuda     # on the GPU

Speed: 1,000 classes, 512 features, 128 samples; forward, backward and SGD with momentum, compiled. Steps alternate; a
ratio is the median over adjacent pairs. Memory: the peak of one eager step above that of linear + cross-entropy, at
100,000 classes, 512 features, 64 samples, each in its own process.
"""

import argparse
from collections.abc import Callable

import measure
import torch
import torch.nn.functional as F

from hyperzoo.losses import AngularSoftmax

# operator and margin; None is linear + cross-entropy
LOSSES = [("cosine", 1.0), ("cosine", 4.0), ("linear", 4.0), ("sigmoid", 4.0), ("learnable", 4.0)]
SPEED_LIMIT = 1.05
MEMORY_LIMIT = 1e9


def make_step(
    operator: str | None, margin: float, sizes: tuple[int, int, int], device: str, dtype: torch.dtype, compiled: bool
) -> Callable[[], None]:
    """One step on resident tensors; `sizes` are samples, features and classes."""
    batch, width, classes = sizes
    torch.manual_seed(0)
    x = torch.randn(batch, width, device=device, requires_grad=True)
    rows = torch.nn.Parameter(torch.randn(classes, width, device=device) / width**0.5)
    y = torch.randint(classes, (batch,), device=device)
    raw_k = torch.nn.Parameter(torch.full((classes,), 0.7, device=device)) if operator == "learnable" else None
    criterion = AngularSoftmax(operator, margin).to(device) if operator else None

    def loss() -> torch.Tensor:
        if criterion is None:
            return F.cross_entropy(F.linear(x, rows).float(), y)
        return criterion(x, rows, y, raw_k)

    run = torch.compile(loss, fullgraph=True) if compiled else loss
    optimizer = torch.optim.SGD([rows] if raw_k is None else [rows, raw_k], lr=0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = run()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None

    return step


def print_peak_bytes(operator: str | None, margin: float, sizes: tuple[int, int, int], device: str) -> None:
    """Peak growth of memory during the second step."""
    step = make_step(operator, margin, sizes, device, torch.float32, compiled=False)
    step()
    print(measure.growth(step, device))


def peak_bytes(name: str, sizes: tuple[int, int, int], device: str) -> float:
    return measure.in_own_process(__file__, "--memory-of", name, "--sizes", *map(str, sizes), "--device", device)


def row(name: str, plain: str, own: str, value: str, limit: str, verdict: str) -> None:
    print(f"{name:28}{plain:>12}{own:>12}{value:>12}{limit:>12}  {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of AngularSoftmax to linear + cross-entropy.")
    parser.add_argument("--quick", action="store_true", help="eager only, few repeats, 10,000 classes for the memory")
    parser.add_argument("--busy", action="store_true", help="one thread and CPU time instead of two and wall time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 by autocast")
    parser.add_argument("--memory-of", metavar="OPERATOR:MARGIN", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1 if args.busy else 2)
    if args.memory_of:
        operator, _, margin = args.memory_of.partition(":")
        print_peak_bytes(None if operator == "plain" else operator, float(margin), tuple(args.sizes), args.device)
        return
    dtype = getattr(torch, args.dtype)
    compiled, repeats = not args.quick, 5 if args.quick else 60
    print(f"{measure.conditions(dtype, args.busy, args.device)}, {'compiled' if compiled else 'eager'}")
    print(f"{'':28}{'plain':>12}{'angular':>12}{'':>12}{'at most':>12}")
    sizes = (128, 512, 1000)
    plain = make_step(None, 1, sizes, args.device, dtype, compiled)
    for operator, margin in LOSSES:
        own = make_step(operator, margin, sizes, args.device, dtype, compiled)
        times = measure.rounds(plain, own, repeats=repeats, warm_up=3, now=measure.clock(args.busy))
        a, b = (1e3 * one for one in measure.medians(times))
        ratio = measure.ratio(times)
        row(
            f"step, {operator}, margin {margin:g}",
            f"{a:.2f} ms",
            f"{b:.2f} ms",
            f"{ratio:.3f}",
            f"{SPEED_LIMIT:.2f}",
            measure.verdict(ratio, SPEED_LIMIT) if compiled else "",
        )
    sizes = (64, 512, 10_000 if args.quick else 100_000)
    base = peak_bytes("plain:1", sizes, args.device)
    for operator, margin in LOSSES:
        peak = peak_bytes(f"{operator}:{margin}", sizes, args.device)
        row(
            f"peak, {operator}, margin {margin:g}",
            f"{base / 1e6:.0f} MB",
            f"{peak / 1e6:.0f} MB",
            f"+{(peak - base) / 1e6:.0f} MB",
            f"+{MEMORY_LIMIT / 1e6:.0f} MB",
            measure.verdict(peak - base, MEMORY_LIMIT),
        )


if __name__ == "__main__":
    main()
