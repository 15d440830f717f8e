"""Cost of MHE: training steps with and without it, and the energy of large layers, measured in one run.

    python benchmarks/mhe.py            # about 3 minutes on two cores
    python benchmarks/mhe.py --quick    # two repeats and smaller layers: a smoke test
    python benchmarks/mhe.py --busy     # one thread, CPU time: for a busy machine

The plain step and the step with MHE alternate on one model, so that other load affects both equally; a ratio is the
median over adjacent pairs. `alone`: 1 + the time of forward and backward of the term alone, relative to a plain step;
it varies less than the difference of two long times. Memory: the growth of the resident set over one call (Linux).
"""

import argparse
from collections.abc import Callable

import measure
import timm
import torch
import torch.nn.functional as F

import hyperzoo  # noqa: F401  registers the models
from hyperzoo.regularizers import MHE, hyperspherical_energy, label_energy

# label, model, image size, batch, further arguments of MHE, limit
STEPS = [
    ("all layers", "resnet32_cifar", 32, 128, {}, 1.02),
    ("all layers", "resnet18", 224, 16, {}, 1.02),
    ("128 neurons a layer", "resnet18", 224, 16, {"neurons": 128}, 1.02),
    ("all layers", "resnet50", 224, 16, {}, 1.02),
    ("128 neurons a layer", "resnet50", 224, 16, {"neurons": 128}, 1.02),
]
HEAD_LIMIT = 1.50
LABEL_MEMORY_LIMIT = 1e9


def make_steps(arch: str, size: int, batch: int, **settings: int) -> tuple[Callable[[], None], ...]:
    """A plain training step, a step with MHE, and MHE alone, forward and backward."""
    torch.manual_seed(0)
    model = timm.create_model(arch).to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    term = MHE(model, hidden=1.0, output=10.0, half_space=True, **settings)

    def step(loss: Callable[[], torch.Tensor]) -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    def task() -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    def alone() -> None:
        term().backward()
        optimizer.zero_grad()

    return lambda: step(task), lambda: step(lambda: task() + term()), alone


def energy_of(rows: int, columns: int) -> tuple[Callable[[], object], ...]:
    """The energy of a layer, forward and backward; its Gram matrix; the Gram matrix forward and backward."""
    w = torch.randn(rows, columns, requires_grad=True)
    ones = torch.ones(rows, rows)
    return (
        lambda: hyperspherical_energy(w).backward(),
        lambda: w.detach() @ w.detach().mT,
        lambda: (w @ w.mT).backward(ones),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of MHE.")
    parser.add_argument("--quick", action="store_true", help="two repeats, smaller layers")
    parser.add_argument("--busy", action="store_true", help="one thread and CPU time instead of two and wall time")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.busy else 2)
    now = measure.clock(args.busy)
    print(f"{measure.conditions(torch.float32, args.busy)}, half space, s = 2, eager")
    print(f"\n{'training step':32}{'model':18}{'plain':>10}{'with MHE':>10}{'alone':>8}{'ratio':>8}{'at most':>9}")
    for what, arch, size, batch, settings, limit in STEPS:
        times = measure.rounds(*make_steps(arch, size, batch, **settings), repeats=2 if args.quick else 7, now=now)
        plain, own, alone = measure.medians(times)
        ratio = measure.ratio(times)
        text = f"{what:32}{arch:18}{plain * 1e3:7.0f} ms{own * 1e3:7.0f} ms{1 + alone / plain:8.3f}{ratio:8.3f}"
        print(f"{text}{limit:9.2f}  {measure.verdict(ratio, limit)}", flush=True)

    sizes = (64, 500, 2000) if args.quick else (64, 256, 1000, 4000, 10_000)
    print(f"\n{'rows x 512, full space':24}{'energy, forward + backward':>30}{'over Gram':>11}{'over its both':>22}")
    for n in sizes:
        repeats = 2 if args.quick else max(3, min(100, 10_000 // n))
        energy, gram, both = measure.medians(measure.rounds(*energy_of(n, 512), repeats=repeats, now=now))
        limit = f"  (at most {HEAD_LIMIT})" if n == 10_000 else ""
        print(f"{n:<24}{energy * 1e3:27.2f} ms{energy / gram:11.2f}{energy / both:22.2f}{limit}", flush=True)

    classes = 20_000 if args.quick else 100_000
    w, labels = torch.randn(classes, 512, requires_grad=True), torch.randint(classes, (128,))
    w.grad = torch.zeros_like(w)  # exists in training anyway
    grown = measure.growth(lambda: label_energy(w, labels).backward())
    note = measure.verdict(grown, LABEL_MEMORY_LIMIT)
    print(f"\nlabel_energy, {classes:,} x 512, 128 labels: {grown / 1e6:.0f} MB more (at most 1000)  {note}")


if __name__ == "__main__":
    main()
