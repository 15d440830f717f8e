"""What each method costs on a GPU: training steps with and without it, measured in one run on an otherwise idle device.

    python benchmarks/gpu.py               # eager, about a minute
    python benchmarks/gpu.py --compiled    # a few minutes, most of it compiling
    python benchmarks/gpu.py --count       # only the number of operations; needs no GPU
    python benchmarks/gpu.py --quick       # small images and batches, on any device: a smoke test

First the loss and the gradient of each step on the device in float32, without TF32, against those of the CPU in
float64: the norm of the difference relative to that of the CPU. Then the times, in bfloat16 autocast and channels-last.
Plain steps and steps with the method alternate in groups, so that both see the same clocks; a ratio is the median over
adjacent groups. Memory: the peak allocated during a step. The operations are those of forward and backward, views not
counted; each starts a kernel, which takes 5 to 25 us of the CPU, whatever its size.
"""

import argparse
import contextlib
import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest import mock

import measure
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traffic import Traffic

import hyperzoo  # noqa: F401  registers the models
from hyperzoo.layers import sphereize
from hyperzoo.mixup import ManifoldMixup, Mixup
from hyperzoo.regularizers import MHE, PER, Orthogonality

CLASSES, ROUNDS = 100, 7
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Batch], Tensor]


class Row(NamedTuple):
    """A method on a network; `baseline` is the plain network, `steps` the length of a group of steps."""

    method: str
    network: str
    shape: tuple[int, int, int, int]
    baseline: str
    steps: int = 10


LARGE = (64, 3, 224, 224)
ROWS = [
    Row("SphereConv", "fast_sphere_cnn8", (1000, 3, 32, 32), "fast_cnn8"),
    Row("SphereConv", "spherenet20", (512, 3, 32, 32), "resnet20_cifar"),
    Row("SphereConv", "resnet50", LARGE, "resnet50", 5),
    Row("MHE", "resnet50", LARGE, "resnet50", 5),
    Row("orthogonality", "resnet50", LARGE, "resnet50", 5),
    Row("PER", "resnet50", LARGE, "resnet50", 5),
    Row("mixup", "resnet50", LARGE, "resnet50", 5),
    Row("Manifold Mixup", "resnet50", LARGE, "resnet50", 5),
    Row("MHE", "resnet20_cifar", (512, 3, 32, 32), "resnet20_cifar"),
    Row("PER", "fixup_resnet56_cifar", (512, 3, 32, 32), "fixup_resnet56_cifar"),
    Row("Manifold Mixup", "resnet20_cifar", (512, 3, 32, 32), "resnet20_cifar"),
]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES).train()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def with_method(method: str, model: nn.Module) -> Loss:
    """The loss of a batch with a method."""
    plain = partial(cross_entropy, model)
    generator = torch.Generator().manual_seed(0)
    if method == "MHE":
        mhe = MHE(model, hidden=1.0, output=10.0, half_space=True)
        return lambda batch: plain(batch) + mhe()
    if method == "orthogonality":
        orthogonality = Orthogonality(model, strength=1e-4)
        return lambda batch: plain(batch) + orthogonality()
    if method == "PER":
        per = PER(model, strength=1e-4, layers="type:ReLU")

        def penalized(batch: Batch) -> Tensor:
            with per:
                return plain(batch) + per()

        return penalized
    if method == "mixup":
        mixup = Mixup(CLASSES, generator=generator)
        return lambda batch: plain(mixup(*batch))
    if method == "Manifold Mixup":
        manifold_mixup = ManifoldMixup(model, CLASSES, layers=("input", "layer1", "layer2"), generator=generator)

        def mixed(batch: Batch) -> Tensor:
            with manifold_mixup:
                return plain(manifold_mixup(*batch))

        return mixed
    return plain


def both(row: Row) -> tuple[nn.Module, nn.Module]:
    """The plain network and the one of the method."""
    plain, own = network(row.baseline), network(row.network)
    if row.method == "SphereConv" and row.network == row.baseline:
        sphereize(own, "cosine", exclude=["*.downsample.*"])
    return plain, own


def draw(shape: tuple[int, ...], device: torch.device) -> Batch:
    torch.manual_seed(1)
    return torch.randn(shape).to(device), torch.randint(CLASSES, shape[:1]).to(device)


def difference(row: Row, device: torch.device) -> tuple[float, float]:
    """Relative differences of loss and gradient: the device in float32, the CPU in float64."""
    found: list[tuple[Tensor, Tensor]] = []
    _, model = both(row)
    for copied, where, dtype in (
        (model, device, torch.float32),
        (copy.deepcopy(model), torch.device("cpu"), torch.float64),
    ):
        copied.to(where, dtype)
        x, y = draw((4, 3, min(row.shape[2], 64), min(row.shape[3], 64)), torch.device("cpu"))
        loss = with_method(row.method, copied)((x.to(where, dtype), y.to(where)))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in copied.parameters() if p.grad is not None])
        found.append((loss.detach().double().cpu(), gradient.double().cpu()))
    (loss, gradient), (loss_64, gradient_64) = found
    return float((loss - loss_64).abs() / loss_64.abs()), float((gradient - gradient_64).norm() / gradient_64.norm())


def make_step(model: nn.Module, loss: Loss, batch: Batch, device: torch.device) -> Callable[[], None]:
    """Forward, backward and SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def cells(row: Row, device: torch.device, compiled: bool, repeats: int) -> list[str]:
    """The cells of a table row after method and network."""
    models = [model.to(device).to(memory_format=torch.channels_last) for model in both(row)]
    x, y = draw(row.shape, device)
    batch = x.contiguous(memory_format=torch.channels_last), y
    losses: tuple[Loss, Loss] = partial(cross_entropy, models[0]), with_method(row.method, models[1])
    if compiled:
        torch.compiler.reset()
        losses = torch.compile(losses[0], dynamic=False), torch.compile(losses[1], dynamic=False)
    plain, own = (make_step(model, loss, batch, device) for model, loss in zip(models, losses, strict=True))
    for step in (plain, own):
        measure.group(step, 12 if compiled else 3)()  # compile and warm up; 12 steps draw every layer of Manifold Mixup
    groups = [measure.group(step, row.steps) for step in (plain, own)]
    times = measure.rounds(*groups, repeats=repeats, warm_up=0)
    plain_ms, own_ms = (1e3 * one / row.steps for one in measure.medians(times))
    if device.type == "cuda":
        memory = [measure.growth(step, "cuda") for step in (plain, own)]
        grown = f"{memory[1] / memory[0]:.2f}"
    else:
        grown = "-"
    return [f"{plain_ms:.2f}", f"{own_ms:.2f}", f"{measure.ratio(times):.3f}", grown]


def operations(row: Row) -> list[str]:
    """The number of operations of the plain network and with the method, and their ratio.

    Counted on the meta device, whose tensors have no data but take the path of a GPU; it has no autocast.
    """
    counts, (plain, own) = [], both(row)
    with mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()):
        for model, method in ((plain, ""), (own, row.method)):
            model.to("meta")
            labels = torch.zeros(row.shape[0], dtype=torch.int64, device="meta")
            batch = torch.empty(row.shape, device="meta"), labels
            loss = with_method(method, model)
            loss(batch)  # computes what is kept for later steps
            with Traffic() as traffic:
                loss(batch).backward()
            counts.append(traffic.operations)
    return [f"{counts[0]:,}", f"{counts[1]:,}", f"{counts[1] / counts[0]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="What each method costs on a GPU.")
    parser.add_argument("--compiled", action="store_true", help="compile the networks")
    parser.add_argument("--only", metavar="METHOD", help="the rows of one method")
    parser.add_argument("--count", action="store_true", help="only count the operations")
    parser.add_argument("--quick", action="store_true", help="small images and batches, on any device")
    args = parser.parse_args()
    rows = [row for row in ROWS if args.only in (None, row.method)]
    if args.count:
        print("| method | network | operations, plain | with method | ratio |\n| --- | --- | --- | --- | --- |")
        for row in rows:
            if "ixup" not in row.method:  # draws on the CPU
                print(f"| {row.method} | `{row.network}` | {' | '.join(operations(row))} |", flush=True)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not args.quick:
        raise SystemExit("no GPU: try --count or --quick")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, bfloat16, {'compiled' if args.compiled else 'eager'}\n")
    print(
        "| method | network | batch | loss, error | gradient, error | plain (ms) | with method (ms) | ratio | memory |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if args.quick:
            row = row._replace(shape=(8, 3, 32, 32), steps=1)
        loss, gradient = difference(row, device)
        found = cells(row, device, args.compiled, 1 if args.quick else ROUNDS)
        what = [
            row.method,
            f"`{row.network}`",
            f"{row.shape[0]} of {row.shape[2]} px",
            f"{loss:.0e}",
            f"{gradient:.0e}",
        ]
        print(f"| {' | '.join(what + found)} |", flush=True)


if __name__ == "__main__":
    main()
