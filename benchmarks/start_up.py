"""CPU time of a start: the command line's help, version and shell completion, the import, a pretrained network.

    python benchmarks/start_up.py    # about two minutes

Each command and import runs in fresh processes; the minimum over the repeats is reported, user plus system time, so
that other load on the machine hardly counts. The first import may compile the package, as an installation does.

A pretrained load is compared with what it cannot do without: a network with random weights and the sha256 of the file,
in one process, alternately.
"""

import os
import resource
import subprocess
import sys
import time
from functools import partial

import measure
import timm

from hyperzoo import files
from hyperzoo.zoo import weight_files

REPEATS, LIMIT_S, IMPORT_LIMIT_S = 5, 0.5, 0.05
LOADS, LOAD_LIMIT = 40, 1.1
HYPERZOO = [sys.executable, "-m", "hyperzoo"]
COMPLETION = {"_HYPERZOO_COMPLETE": "zsh_complete", "COMP_WORDS": "hyperzoo ", "COMP_CWORD": "1"}
COMMANDS = {
    "hyperzoo --help": ([*HYPERZOO, "--help"], {}),
    "hyperzoo --version": ([*HYPERZOO, "--version"], {}),
    "hyperzoo train --help": ([*HYPERZOO, "train", "--help"], {}),
    "completion of a command": (HYPERZOO, COMPLETION),
}
WEIGHTS = ("spherenet20.sphere_c10", "fast_cnn8.plain_c10")


def cpu_s(command: list[str], variables: dict[str, str]) -> float:
    """CPU time of a process in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def import_s() -> float:
    """CPU time of `import hyperzoo` in a process that has imported timm, from compiled files."""
    code = "import time, timm; start = time.process_time(); import hyperzoo; print(time.process_time() - start)"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return float(subprocess.check_output([sys.executable, "-c", code], env=env, text=True))


def untrained(name: str) -> None:
    """A network with random weights, and the hash of the file of the pretrained one."""
    timm.create_model(name.partition(".")[0])
    files.sha256(weight_files.MANIFEST.folder(name) / "model.safetensors")


def main() -> None:
    print(f"{'process':28}{'CPU time':>10}{'at most':>10}")
    for name, process in COMMANDS.items():
        seconds = min(cpu_s(*process) for _ in range(REPEATS))
        print(f"{name:28}{seconds:8.2f} s{LIMIT_S:8.2f} s  {measure.verdict(seconds, LIMIT_S)}", flush=True)
    seconds = min(import_s() for _ in range(REPEATS))
    reached = measure.verdict(seconds, IMPORT_LIMIT_S)
    print(f"{'import hyperzoo, after timm':28}{seconds:8.3f} s{IMPORT_LIMIT_S:8.2f} s  {reached}")
    print(f"\n{'pretrained network':28}{'untrained and hash':>20}{'pretrained':>12}{'ratio':>8}{'at most':>9}")
    for name in WEIGHTS:
        calls = partial(untrained, name), partial(timm.create_model, name, pretrained=True)
        times = measure.rounds(*calls, repeats=LOADS, now=time.process_time)
        a, b = (f"{1e3 * one:.1f} ms" for one in measure.medians(times))
        ratio = measure.ratio(times)
        print(f"{name:28}{a:>20}{b:>12}{ratio:8.2f}{LOAD_LIMIT:9.2f}  {measure.verdict(ratio, LOAD_LIMIT)}", flush=True)


if __name__ == "__main__":
    main()
