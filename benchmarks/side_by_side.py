"""Images per second of parallel training runs on one device: 1, 2, 3, ... processes; eager, compiled, CUDA graphs.

Processes share the cores of a CPU evenly; there it also measures one run in so many processes, which share each batch
and average their gradients, as under `torchrun`.

    python benchmarks/side_by_side.py                            # spherenet20; 1, 2, 3, 4 processes
    python benchmarks/side_by_side.py resnet20_cifar --counts 1 4 --updates 400

Each process runs the engine on synthetic images resident on the device. After one epoch of warm-up and compilation, all
start together; the rates of the following epochs are added. CUDA graphs are enabled by TORCHINDUCTOR_CUDAGRAPHS=1 for a
compiled model; the variable also works for `hyperzoo queue`.
"""

import argparse
import multiprocessing
import os
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch
from accelerate import Accelerator
from accelerate.utils.other import get_free_port
from engine_rate import median_rate

from hyperzoo.data import ImageSet
from hyperzoo.experiments import build
from hyperzoo.training.recipe import Recipe

EPOCHS, BATCH, CORES = 4, 128, os.cpu_count() or 1
ONE_RUN = "one-run"
# train.compile, CUDA graphs
KINDS = {"eager": ("off", "0"), "compiled": ("on", "0"), "cuda-graphs": ("on", "1"), ONE_RUN: ("off", "0")}


def train(arch: str, compiled: str, updates: int, together: Barrier, rates: Queue, group: dict[str, str]) -> None:
    """Body of one process; `group` has the environment of a process of `torchrun`."""
    os.environ.update(group)
    try:
        rates.put(rate(arch, compiled, updates, together))
    except BaseException:
        together.abort()  # the others must not wait for this process
        raise


def rate(arch: str, compiled: str, updates: int, together: Barrier) -> float:
    """The median rate over all epochs but the first."""
    plan = Recipe.model_validate(
        dict(
            name="benchmark",
            model=dict(arch=arch),
            data=dict(name="c10", batch_size=BATCH),
            optim=dict(lr=0.01, weight_decay=5e-4),
            train=dict(epochs=EPOCHS, compile=compiled),
        )
    )
    pixels = torch.randint(0, 256, (updates * BATCH, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet("c10", "train", pixels, torch.randint(0, 10, (len(pixels),)), tuple("abcdefghij"), "made")
    engine = Accelerator()
    model = build.model(plan, 10, 3).to(memory_format=torch.channels_last)
    step = build.step(plan, model).to(engine.device)

    def wait(_: torch.nn.Module) -> dict[str, float]:
        together.wait()
        return {}

    return median_rate(
        plan, engine, step, build.batches(plan, images, model, engine), wait, compile_model=compiled == "on"
    )


def total(arch: str, kind: str, count: int, updates: int) -> float | None:
    """Images per second of `count` processes together; None if one failed."""
    context = multiprocessing.get_context("spawn")
    compiled, os.environ["TORCHINDUCTOR_CUDAGRAPHS"] = KINDS[kind]
    os.environ["OMP_NUM_THREADS"] = str(max(1, CORES // count))
    together, rates = context.Barrier(count, timeout=300), context.Queue()
    one_run, port, crew = kind == ONE_RUN, str(get_free_port()), []
    for rank in range(count):
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        group |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        words = arch, compiled, updates, together, rates, group if one_run and count > 1 else {}
        crew.append(context.Process(target=train, args=words))
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    if any(process.exitcode for process in crew):
        return None
    found = [rates.get() for _ in crew]
    return found[0] if one_run else sum(found)  # each process of one run knows the rate of all


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of training runs side by side on one device.")
    parser.add_argument("arch", nargs="?", default="spherenet20")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3, 4], help="numbers of processes")
    parser.add_argument("--updates", type=int, default=200, help="updates per epoch")
    possible = [kind for kind in KINDS if kind != (ONE_RUN if torch.cuda.is_available() else "cuda-graphs")]
    parser.add_argument("--kinds", nargs="+", choices=possible, default=possible, help="[default: all]")
    args = parser.parse_args()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.arch}, batch {BATCH}, {where}; images/s of all processes, and relative to the first")
    for kind in args.kinds:
        first = None
        for count in args.counts:
            found = total(args.arch, kind, count, args.updates)
            first = first or found
            shown = f"{found:8.0f}  {found / first:.2f}" if found and first else "failed"
            print(f"{kind:12}  {count}  {shown}", flush=True)


if __name__ == "__main__":
    main()
