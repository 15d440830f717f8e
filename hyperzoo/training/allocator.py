"""What the C library does with the buffers that a training step has freed."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep() -> bool:
    """Let glibc keep freed buffers for the next step, for the rest of this process; returns whether this system can.

    By default it returns each large buffer to the kernel, and the next step pays a page fault for every 4 KB of it:
    20,000 in a step of ResNet-20 at batch 128, a sixth of its time on two cores (`benchmarks/allocator.py`).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
