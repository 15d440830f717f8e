"""CPU time of the command line's help, version and shell completion, compared with `import timm`.

    python benchmarks/start_up.py    # under a minute

Each command runs in fresh processes; the minimum over the repeats is reported, user plus system time, so that other
load on the machine hardly counts. Commands may take at most 0.5 s.
"""

import os
import resource
import subprocess
import sys

REPEATS, LIMIT_S = 3, 0.5
HYPERZOO = [sys.executable, "-m", "hyperzoo"]
COMPLETION = {"_HYPERZOO_COMPLETE": "zsh_complete", "COMP_WORDS": "hyperzoo ", "COMP_CWORD": "1"}
COMMANDS = {
    "hyperzoo --help": ([*HYPERZOO, "--help"], {}),
    "hyperzoo --version": ([*HYPERZOO, "--version"], {}),
    "hyperzoo train --help": ([*HYPERZOO, "train", "--help"], {}),
    "completion of a command": (HYPERZOO, COMPLETION),
}
IMPORTS = {
    "import timm": ([sys.executable, "-c", "import timm"], {}),
    "import hyperzoo": ([sys.executable, "-c", "import hyperzoo"], {}),
}


def cpu_s(command: list[str], variables: dict[str, str]) -> float:
    """CPU time of a process in seconds, the minimum over `REPEATS` runs."""
    times = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    print(f"{'process':24}  {'CPU time':>8}  {'at most':>8}")
    for name, process in COMMANDS.items():
        seconds = cpu_s(*process)
        print(f"{name:24}  {seconds:6.2f} s  {LIMIT_S:6.2f} s{'  MISSED' if seconds > LIMIT_S else ''}", flush=True)
    for name, process in IMPORTS.items():
        print(f"{name:24}  {cpu_s(*process):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
