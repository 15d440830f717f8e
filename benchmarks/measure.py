"""Time and memory of calls, as most benchmarks measure them."""

import ctypes
import gc
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
Clock = Callable[[], float]
LEAST, LONGEST_S = 3, 20.0


def clock(busy: bool = False) -> Clock:
    """Elapsed seconds, after all work of a GPU; with `busy` the CPU time of this process."""
    return _cpu_time if busy else _elapsed


def _elapsed() -> float:
    _wait()
    return time.perf_counter()


def _cpu_time() -> float:
    _wait()
    return time.process_time()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rounds(
    *calls: Call, repeats: int, least: int = LEAST, warm_up: int = 1, now: Clock = _elapsed
) -> list[tuple[float, ...]]:
    """Seconds of each call. The calls alternate, so that other load on the machine affects all of them.

    Args:
        repeats: rounds, each with every call; after `LONGEST_S` seconds no more than `least`.
        warm_up: rounds that are not measured.
    """
    for _ in range(warm_up):
        for call in calls:
            call()
    times: list[tuple[float, ...]] = []
    started = time.perf_counter()
    while len(times) < repeats and (len(times) < least or time.perf_counter() - started < LONGEST_S):
        times.append(tuple(seconds(call, now) for call in calls))
    return times


def seconds(call: Call, now: Clock = _elapsed) -> float:
    started = now()
    call()
    return now() - started


def medians(times: list[tuple[float, ...]]) -> list[float]:
    """The median of each call, in seconds."""
    return [statistics.median(column) for column in zip(*times, strict=True)]


def ratio(times: list[tuple[float, ...]]) -> float:
    """The second call to the first, the median over rounds."""
    return statistics.median(second / first for first, second, *_ in times)


def verdict(value: float, limit: float) -> str:
    """Whether a value is at most its limit."""
    return "not measured" if math.isnan(value) else "ok" if value <= limit else "MISSED"


def group(call: Call, count: int) -> Call:
    """`count` calls as one."""

    def calls() -> None:
        for _ in range(count):
            call()

    return calls


def growth(call: Call, device: str = "cpu") -> float:
    """Peak growth of memory during a call in bytes: of the GPU's allocator, or of the resident set.

    NaN where the kernel's peak cannot be reset, as in some containers and outside of Linux.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - allocated
    if not os.access("/proc/self/clear_refs", os.W_OK):
        call()
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)  # kept buffers would hide the growth
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # reset the peak
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key))


def in_own_process(file: str, *words: str) -> float:
    """The number that a script prints last, run in a process of its own."""
    # a fixed threshold: each activation is mapped separately and returned to the system when freed
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.check_output([sys.executable, file, *words], env=env, text=True).split()[-1])


def conditions(dtype: torch.dtype, busy: bool, device: str = "cpu") -> str:
    """The conditions of a measurement, as the first line of a table."""
    name = str(dtype).removeprefix("torch.")
    where = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    clocked = "CPU" if busy else "wall"
    return f"{name}, {torch.get_num_threads()} threads, {clocked} time, {where}, torch {torch.__version__}"
