"""`tools/gpu.sh`: queues in the background of several calls on one machine."""

import os
import re
import subprocess
import tarfile
from pathlib import Path

STUB = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *zipfile*) exit 3 ;; esac
"""


def test_calls_share_a_folder_and_a_later_queue_leaves_an_earlier_one_alone(tmp_path):
    root = Path(__file__).parents[1]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(STUB)
    (tmp_path / "bin" / "python3").chmod(0o755)
    (tmp_path / "recipes" / "drafts").mkdir(parents=True)
    (tmp_path / "recipes" / "drafts" / "base.yaml").touch()
    (tmp_path / "carry").mkdir()
    with tarfile.open(tmp_path / "carry" / "runs.tar.0", "w") as archive:
        archive.add(root / "pyproject.toml", "row/0/log.txt")
    script = f"""
        . {root / "tools" / "gpu.sh"}
        unpack carry b || exit 9
        start a recipes/drafts/base.yaml 8 1.5 && start b recipes/drafts/base.yaml 1 1
        await a 9; await b 9; show a
        mkdir more; touch more/site.zip; unpack more || echo refused; cat $ZOO/*.pid
        unset OUT; pack a
    """
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ZOO": "zoo"}
    environment["CALLS"] = str(tmp_path / "calls.txt")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    zoo = tmp_path / "zoo"
    assert (zoo / "runs" / "b" / "row" / "0" / "log.txt").exists() and not list(zoo.glob("runs.tar.*"))
    assert {"a.queue.yaml", "b.queue.yaml", "drafts"} == {path.name for path in (zoo / "recipes").iterdir()}
    calls = (tmp_path / "calls.txt").read_text()
    for name, processes, minutes in (("a", 8, 1.5), ("b", 1, 1)):
        options = f"--processes {processes} --minutes {minutes} --state {zoo / 'runs' / name}"
        assert f"-P -m hyperzoo queue recipes/{name}.queue.yaml {options}\n" in calls
    assert "refused" in done.stdout and len(re.findall(r"^[0-9]+$", done.stdout, re.MULTILINE)) == 2
    assert done.returncode and "OUT" in done.stderr and "bring" not in calls
