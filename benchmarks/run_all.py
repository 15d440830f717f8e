"""Run the benchmarks one after the other, and write what they print into benchmarks/README.md.

    python benchmarks/run_all.py              # about an hour on two cores with AVX2, 42 to 52 minutes with AMX
    python benchmarks/run_all.py --busy       # CPU time of one thread, where a benchmark has it: for a busy machine
    python benchmarks/run_all.py per mixup    # some of them
    python benchmarks/run_all.py time_to_accuracy    # only when named: it takes as long as all others

A benchmark that fails or takes more than its time keeps its old table, and the exit code is then 1. The curves of
`scaling.py` go into docs/performance.md.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import blocks
import torch
from sphere_layers import native_dtype

HERE = Path(__file__).parent
LIMIT_S = 3600
# name of the block: command; the first word is the file
COMMANDS = {
    "sphere_layers": "sphere_layers",
    "sphere_layers_float32": "sphere_layers --dtype float32 --quick",
    "angular_softmax": "angular_softmax",
    "mhe": "mhe",
    "per": "per",
    "per_compiled": "per --compiled --quick --only fixup_resnet56_cifar",
    "per_noise": "per_noise",
    "mixup": "mixup",
    "engine": "engine --updates 20 --images 1280",
    "language": "language 20",
    "traffic": "traffic",
    "start_up": "start_up",
    "side_by_side": "side_by_side resnet20_cifar --counts 1 2 --updates 15 --kinds eager one-run",
    "scaling": "scaling",
    "time_to_accuracy": "time_to_accuracy",
}
ONLY_NAMED = ("time_to_accuracy",)
ONLY_WITH_BFLOAT16 = ("sphere_layers_float32",)  # elsewhere the table before it is in float32
WITH_BUSY = ("sphere_layers", "angular_softmax", "mhe", "per", "per_compiled", "mixup", "engine")


def machine() -> str:
    """The processor, its instructions and the version of torch, as one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def run(name: str, busy: bool) -> str | None:
    """What a benchmark prints, as a fenced text under its command; None if it failed."""
    file, *words = COMMANDS[name].split()
    words += ["--busy"] * (busy and name in WITH_BUSY)
    command = [sys.executable, str(HERE / f"{file}.py"), *words]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as stopped:
        print(f"{(stopped.output or b'').decode()}\n{name}: stopped after {LIMIT_S} s", file=sys.stderr)
        return None
    if done.returncode:
        print(f"{name}: exit code {done.returncode}", file=sys.stderr)
        return None
    print(done.stdout, flush=True)
    where = f"{machine()}, {time.strftime('%Y-%m-%d')}"
    return f"{where}:\n\n```text\n{' '.join([f'{file}.py', *words])}\n{done.stdout.strip()}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COMMANDS)} [default: all but {ONLY_NAMED[0]}]")
    parser.add_argument("--busy", action="store_true", help="CPU time of one thread, where a benchmark has it")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in COMMANDS]:
        parser.error(f"no benchmark {unknown[0]}; choose from {', '.join(COMMANDS)}")
    readme, failed, begun = HERE / "README.md", [], time.perf_counter()
    for name in args.names or [name for name in COMMANDS if name not in ONLY_NAMED]:
        if name in ONLY_WITH_BFLOAT16 and native_dtype() is torch.float32:
            blocks.replace(readme, name, f"{machine()} has no native bfloat16: see the table before.")
            continue
        started = time.perf_counter()
        text = run(name, args.busy)
        print(f"{name}: {time.perf_counter() - started:.0f} s\n", flush=True)
        if text is None:
            failed.append(name)
        elif name != "scaling":
            blocks.replace(readme, name, text)
    print(f"{(time.perf_counter() - begun) / 60:.0f} minutes; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
