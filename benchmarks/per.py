"""Cost of PER: a training step with the term relative to the plain step, measured in one run.

    python benchmarks/per.py            # about 6 minutes on two cores
    python benchmarks/per.py --quick    # few repeats
    python benchmarks/per.py --compiled # all directions only; compile the image network together with the term
    python benchmarks/per.py --busy     # one thread, CPU time: for a busy machine
    python benchmarks/per.py --bf16     # autocast to bfloat16

Fixup ResNet-56, batch 128 of 32 x 32; a word LSTM of two layers of 200 units, 20 sequences of 35 words; and CNN-11 with
ELU, batch 128 of 16 x 16, as in the study `per_cnn11_short`. Float32 and eager by default, PER on the output of every
activation or on every hidden state, with one vector per position. Plain steps and steps with the term alternate, so
that other load affects both equally. Memory: the growth of the resident set over one step, in its own process (Linux).
"""

import argparse
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F

import hyperzoo  # noqa: F401  registers the models
from hyperzoo.regularizers import PER

BATCH, WORDS = 128, 10_000
# label, network, arguments of PER, limit (None: no limit)
SPEED: list[tuple[str, str, dict[str, Any], float | None]] = [
    ("all directions", "fixup_resnet56_cifar", {}, 1.08),
    ("all directions, every=4", "fixup_resnet56_cifar", {"every": 4}, 1.02),
    ("256 directions", "fixup_resnet56_cifar", {"slices": 256}, None),
    ("256 directions, rows=0.1", "fixup_resnet56_cifar", {"slices": 256, "rows": 0.1}, 1.35),
    ("all directions", "lstm200", {}, 1.05),
    ("all directions", "cnn11_elu", {}, None),
    ("256 directions", "cnn11_elu", {"slices": 256}, None),
    ("256 directions, rows=0.1", "cnn11_elu", {"slices": 256, "rows": 0.1}, None),
]
COMPILED_LIMIT = 1.03
MEMORY_LIMIT = 1.10


def make_step(
    network: str,
    term: bool,
    settings: dict[str, Any],
    channels_last: bool = False,
    compiled: bool = False,
    half: bool = False,
) -> Callable[[], None]:
    """One training step on resident tensors: forward, loss, backward and SGD."""
    torch.manual_seed(0)
    model = timm.create_model(network).train()
    if network == "lstm200":
        x, y, layers = torch.randint(WORDS, (20, 35)), torch.randint(WORDS, (700,)), "type:LSTM"
    else:
        size, layers = (16, "type:ELU") if network == "cnn11_elu" else (32, "type:ReLU")
        x, y = torch.randn(BATCH, 3, size, size), torch.randint(10, (BATCH,))
        if channels_last:
            model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        if compiled:
            model.compile(dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    per = PER(model, strength=1e-4, layers=layers, **settings) if term else None

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half), per or contextlib.nullcontext():
            loss = F.cross_entropy(model(x).flatten(0, -2).float(), y)
            if per is not None:
                loss = loss + per()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def seconds(step: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def compare(
    plain: Callable[[], None], step: Callable[[], None], repeats: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Seconds per step of both, medians over groups of steps, and the median ratio over adjacent groups.

    A group has four steps, so that each has a whole cycle of `every`.
    """
    for _ in range(2):
        plain()
    group(step)
    pairs = [(seconds(lambda: group(plain), clock), seconds(lambda: group(step), clock)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs) / 4,
        statistics.median(b for _, b in pairs) / 4,
        statistics.median(b / a for a, b in pairs),
    )


def group(step: Callable[[], None]) -> None:
    for _ in range(4):
        step()


def print_peak_bytes(term: bool) -> None:
    """Peak growth of the resident set during the third step, as counted by the kernel (Linux)."""
    step = make_step("fixup_resnet56_cifar", term, {})
    step()
    step()
    gc.collect()
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # reset the peak
    before = resident()["VmRSS"]
    step()
    print(resident()["VmHWM"] - before)


def resident() -> dict[str, int]:
    with open("/proc/self/status") as f:
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in f if line.startswith(("VmRSS", "VmHWM"))}


def peak_bytes(term: bool) -> int:
    command = [sys.executable, __file__, "--memory-of", "per" if term else "plain"]
    # a fixed threshold: each activation is mapped separately and returned to the system when freed
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.check_output(command, env=env, text=True).split()[-1])


def row(what: str, network: str, plain: str, own: str, ratio: float, limit: float | None) -> None:
    verdict = "" if limit is None else f"{limit:9.2f}  {'MISSED' if ratio > limit else 'ok'}"
    print(f"{what:28}{network:24}{plain:>10}{own:>10}{ratio:8.3f}{verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of a step with PER to the plain one.")
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--busy", action="store_true", help="one thread and CPU time instead of two and wall time")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the images")
    parser.add_argument("--compiled", action="store_true", help="compile the image network")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--only", help="the speed of one network, without memory")
    parser.add_argument("--memory-of", choices=("per", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1 if args.busy else 2)
    if args.memory_of:
        print_peak_bytes(args.memory_of == "per")
        return
    clock = time.process_time if args.busy else time.perf_counter
    repeats = 1 if args.quick else 3
    dtype = "bfloat16" if args.bf16 else "float32"
    print(
        f"{dtype}, {torch.get_num_threads()} threads, {'CPU' if args.busy else 'wall'} time, "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    )
    print(f"{'what':28}{'network':24}{'plain':>10}{'PER':>10}{'ratio':>8}{'at most':>9}")
    for what, network, settings, limit in SPEED:
        if args.only not in (None, network) or (args.compiled and settings):
            continue
        form = (args.channels_last, args.compiled, args.bf16)
        plain_step, step = (make_step(network, term, settings, *form) for term in (False, True))
        a, b, ratio = compare(plain_step, step, repeats * (4 if network == "lstm200" else 1), clock)
        row(what, network, f"{a * 1e3:.0f} ms", f"{b * 1e3:.0f} ms", ratio, COMPILED_LIMIT if args.compiled else limit)
    if args.only:
        return
    own, plain = (peak_bytes(term) for term in (True, False))
    what = "peak memory of a step"
    row(what, "fixup_resnet56_cifar", f"{plain / 1e6:.0f} MB", f"{own / 1e6:.0f} MB", own / plain, MEMORY_LIMIT)


if __name__ == "__main__":
    main()
