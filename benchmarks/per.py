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
from collections.abc import Callable
from typing import Any

import measure
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


def print_peak_bytes(term: bool) -> None:
    """Peak growth of memory during the third step."""
    step = make_step("fixup_resnet56_cifar", term, {})
    step()
    step()
    print(measure.growth(step))


def peak_bytes(term: bool) -> float:
    return measure.in_own_process(__file__, "--memory-of", "per" if term else "plain")


def row(what: str, network: str, plain: str, own: str, ratio: float, limit: float | None) -> None:
    verdict = "" if limit is None else f"{limit:9.2f}  {measure.verdict(ratio, limit)}"
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
    repeats = 1 if args.quick else 3
    print(measure.conditions(torch.bfloat16 if args.bf16 else torch.float32, args.busy))
    print(f"{'what':28}{'network':24}{'plain':>10}{'PER':>10}{'ratio':>8}{'at most':>9}")
    for what, network, settings, limit in SPEED:
        if args.only not in (None, network) or (args.compiled and settings):
            continue
        form = (args.channels_last, args.compiled, args.bf16)
        cycle = settings.get("every", 1)  # steps that are timed together
        steps = [measure.group(make_step(network, term, settings, *form), cycle) for term in (False, True)]
        count = repeats * (4 if network == "lstm200" else 1)
        times = measure.rounds(*steps, repeats=count, now=measure.clock(args.busy))
        a, b = (one / cycle for one in measure.medians(times))
        ratio = measure.ratio(times)
        row(what, network, f"{a * 1e3:.0f} ms", f"{b * 1e3:.0f} ms", ratio, COMPILED_LIMIT if args.compiled else limit)
    if args.only:
        return
    own, plain = (peak_bytes(term) for term in (True, False))
    what = "peak memory of a step"
    row(what, "fixup_resnet56_cifar", f"{plain / 1e6:.0f} MB", f"{own / 1e6:.0f} MB", own / plain, MEMORY_LIMIT)


if __name__ == "__main__":
    main()
