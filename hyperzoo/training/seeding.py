"""The seeds, package versions and code commit of a run."""

import json
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from hyperzoo import __version__


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed all global generators for an epoch; epoch 0 is the time before the first.

    Generators are seeded anew in each epoch, so a checkpoint needs no generator state. Seeds differ between the
    processes of a run and between epochs.
    """
    process = PartialState().process_index if epoch else 0
    set_seed((seed * 1_000_003 + epoch + process * 2_654_435_761) % 2**32)


def environment() -> dict[str, Any]:
    """Package versions, threads, device and code commit, for result.json."""
    device = PartialState().device  # of the run; ACCELERATE_USE_CPU may leave a GPU aside
    packages = ("torch", "torchvision", "timm", "accelerate", "safetensors", "datasets")
    return {
        "hyperzoo": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **_commit(),
    }


def versions(environment: dict[str, Any]) -> dict[str, str]:
    """The package versions of an environment, without the machine and the commit."""
    others = ("threads", "device", "cpu_capability", "commit", "dirty")
    return {package: version for package, version in environment.items() if package not in others}


def _commit() -> dict[str, Any]:
    """The commit of the code, and whether any tracked file of the checkout has changed since.

    Of an installed package, the commit that pip recorded; a repository around the environment is not ours.
    """
    file = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        recorded = None
        with suppress(PackageNotFoundError):  # an unpacked archive that is not installed
            recorded = json.loads(distribution("hyperzoo").read_text("direct_url.json") or "{}").get("vcs_info")
        return {"commit": recorded["commit_id"], "dirty": False} if recorded else {"commit": None, "dirty": None}
