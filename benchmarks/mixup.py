"""Cost of Manifold Mixup: a training step with it relative to a plain step with soft targets, measured in one run.

    python benchmarks/mixup.py            # about 5 minutes on two cores; uses a GPU if there is one
    python benchmarks/mixup.py --quick    # resnet20_cifar, eager only, few repeats
    python benchmarks/mixup.py --busy     # one thread, CPU time: for a busy machine

Batch 128 (resnet20_cifar) or 32 of 32 x 32, channels-last, layers 'input', layer1 and layer2. The plain and the mixed
step alternate on models with equal weights, so that other load affects both equally; a ratio is the median over
adjacent pairs. Both build soft targets. Compiled graphs are counted in a separate epoch, after which no recompilation
is allowed.
"""

import argparse
import copy
from collections.abc import Callable

import measure
import timm
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import hyperzoo  # noqa: F401  registers the models
from hyperzoo.mixup import ManifoldMixup

CLASSES, LIMIT = 10, 1.02
LAYERS = ("input", "layer1", "layer2")
DRAWS = 24  # steps per epoch, enough to draw every layer
# network: batch, pairs of steps
NETWORKS = {"resnet20_cifar": (128, DRAWS), "preact_resnet18": (32, DRAWS)}


def make_steps(
    arch: str, batch: int, compiled: bool, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The plain and the mixed step on resident tensors: forward, backward and SGD."""
    torch.manual_seed(0)
    models = [timm.create_model(arch, num_classes=CLASSES).to(device, memory_format=torch.channels_last).train()]
    models.append(copy.deepcopy(models[0]))
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (batch,), device=device)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True) for m in models]
    if compiled:
        for model in models:
            model.compile(fullgraph=True, dynamic=False)
    mixup = ManifoldMixup(models[1], CLASSES, layers=LAYERS, generator=torch.Generator().manual_seed(0))

    def update(i: int, logits: torch.Tensor, targets: torch.Tensor) -> None:
        F.cross_entropy(logits.float(), targets).backward()
        optimizers[i].step()
        optimizers[i].zero_grad()

    def plain() -> None:
        if device.type == "cpu":  # where the mixed step reads the labels too
            low, high = y.aminmax()
            assert 0 <= low.item() and high.item() < CLASSES
        update(0, models[0](x), F.one_hot(y, CLASSES).float())

    def mixed() -> None:
        with mixup:
            images, targets = mixup(x, y)
            logits = models[1](images)
        update(1, logits, targets)

    return plain, mixed


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of a step with Manifold Mixup to the plain one.")
    parser.add_argument("--quick", action="store_true", help="resnet20_cifar, eager only, few repeats")
    parser.add_argument("--busy", action="store_true", help="one thread and CPU time instead of two and wall time")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.busy else 2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(measure.conditions(torch.float32, args.busy, device.type))
    print(f"{'model':20}{'mode':10}{'plain':>10}{'mixed':>10}{'ratio':>8}{'at most':>9}{'late graphs':>13}")
    for arch, (batch, repeats) in ({"resnet20_cifar": (128, 6)} if args.quick else NETWORKS).items():
        for compiled in (False,) if args.quick else (False, True):
            torch.compiler.reset()
            plain, mixed = make_steps(arch, batch, compiled, device)
            for _ in range(DRAWS if compiled else 3):  # compile and warm up
                mixed()
            plain()
            before = counters["stats"]["unique_graphs"]
            times = measure.rounds(
                plain, mixed, repeats=repeats, least=repeats, warm_up=0, now=measure.clock(args.busy)
            )
            late = counters["stats"]["unique_graphs"] - before
            plain_ms, mixed_ms = (1e3 * one for one in measure.medians(times))
            ratio = measure.ratio(times)
            verdict = measure.verdict(ratio, LIMIT) if not late else "MISSED"
            print(
                f"{arch:20}{'compiled' if compiled else 'eager':10}{plain_ms:7.1f} ms{mixed_ms:7.1f} ms"
                f"{ratio:8.3f}{LIMIT:9.2f}{late:13}  {verdict}",
                flush=True,
            )


if __name__ == "__main__":
    main()
