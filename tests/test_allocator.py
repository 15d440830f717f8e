"""With `allocator.keep`, glibc reuses freed buffers without page faults; other C libraries are unaffected."""

import platform
import subprocess
import sys

import pytest

from hyperzoo.training import allocator

FAULTS = """
import resource, sys
import torch
from hyperzoo.training import allocator
assert not sys.argv[1:] or allocator.keep()
torch.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(2**23)  # 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments):
    command = [sys.executable, "-c", FAULTS, *arguments]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_buffers_are_used_again_without_page_faults():
    assert 4 * faults("kept") < faults()  # once or twice the heap grows still


def test_a_system_without_glibc_is_left_alone(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not allocator.keep()
