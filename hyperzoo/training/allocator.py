"""Tell glibc to keep freed buffers (mallopt)."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep() -> bool:
    """Keep freed buffers for the next step, for the rest of this process; returns False on systems without glibc.

    By default glibc returns large buffers to the kernel, and the next step has one page fault per 4 KB: 20,000 in a
    step of ResNet-20 with batch size 128, a sixth of its time on two cores (`benchmarks/allocator.py`).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
