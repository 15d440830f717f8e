"""Cost of training steps on the CPU with and without `allocator.keep`, which keeps freed buffers.

    python benchmarks/allocator.py    # about 3 minutes on two cores

Batch 128 of 32 x 32, channels-last, bfloat16 if the CPU supports it natively. Processes with and without alternate.
Prints time and page faults per step and the peak resident set of both; the ratio of the times is the median over
adjacent pairs.
"""

import resource
import statistics
import subprocess
import sys
import time

from sphere_layers import make_step, native_dtype

from hyperzoo.training import allocator

ROUNDS, STEPS = 2, 8


def measure(arch: str, compiled: bool, kept: bool) -> None:
    """Print milliseconds and page faults per step, and the peak megabytes of this process."""
    if kept:
        assert allocator.keep(), "this system's C library is not glibc"
    step = make_step(arch, "compiled" if compiled else "eager", training=True, dtype=native_dtype())
    for _ in range(4):
        step()
    faults, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(1000 * statistics.median(seconds), (used.ru_minflt - faults) / STEPS, used.ru_maxrss / 1024)


def main() -> None:
    print(f"{'model':24}  {'without':>30}  {'with':>30}  ratio of times")
    for arch, compiled in (("cnn11_elu", False), ("resnet20_cifar", True)):
        pairs = []
        for _ in range(ROUNDS):
            pair = []
            for kept in ("", "kept"):
                command = [sys.executable, __file__, arch, "compiled" if compiled else "", kept]
                printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                pair.append([float(number) for number in printed.split()])
            pairs.append(pair)
        ratio = statistics.median(kept[0] / freed[0] for freed, kept in pairs)
        shown = (
            "{:4.0f} ms {:6.0f} faults {:5.0f} MB".format(*map(statistics.median, zip(*side, strict=True)))
            for side in zip(*pairs, strict=True)
        )
        print(f"{arch + (', compiled' if compiled else ', eager'):24}  {'  '.join(shown)}  {ratio:.2f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], bool(sys.argv[2]), bool(sys.argv[3]))
    else:
        main()
