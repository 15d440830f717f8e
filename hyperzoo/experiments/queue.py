"""Train the runs of a queue file within a given time, several in parallel.

    hyperzoo queue recipes/queue.yaml --minutes 9 --state runs/queue

Each run has its own process and its own folder, <state>/<row>/<seed>. Another call with this folder resumes each run
after its last whole epoch.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hyperzoo.errors import HyperzooError, RunError, check_number
from hyperzoo.experiments import train
from hyperzoo.training.log import finished_result, read_log
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.sweep_file import load_queue

GAIN = 1.1  # factor of the images per second that another process must bring
POLL_S, GRACE_S = 0.2, 20
SCORES = ("accuracy", "perplexity")


@dataclass(frozen=True)
class Task:
    """One run of a queue and its folder."""

    label: str
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.recipe.train.seed}"

    def rows(self) -> list[dict[str, Any]]:
        """The log so far, one row per epoch; a damaged one counts as none, and the run writes it anew."""
        try:
            return read_log(self.folder / "metrics.jsonl")
        except RunError:
            return []

    def result(self) -> dict[str, Any] | None:
        """The result of the finished run, or None; see `finished_result`."""
        return finished_result(self.folder, self.recipe.digest())


@dataclass
class Member:
    """A process that trains a task; `since` is the length of its log when the crew last changed."""

    task: Task
    process: BaseProcess
    since: int

    def rate(self) -> float | None:
        """Samples per second of an epoch that the whole present crew took part in; None before the first."""
        rows = self.task.rows()
        if len(rows) < self.since + 2:  # the first may have begun earlier or include the compilation
            return None
        return next(value for key, value in rows[-1].items() if key.endswith("_per_s"))


@dataclass
class Crew:
    """Processes that train in parallel.

    A growing crew starts with one process and adds another as long as each raises the sum of the rates by `GAIN`. The
    first one that does not is stopped, and the size stays.
    """

    size: int
    growing: bool
    members: list[Member] = field(default_factory=list)
    _rate: float = 0.0

    def start(self, task: Task) -> None:
        process = multiprocessing.get_context("spawn").Process(target=_train, args=(task,))
        process.start()
        self.members.append(Member(task, process, len(task.rows())))

    def leave(self) -> list[Member]:
        """Remove and return the members whose process has ended."""
        ended = [member for member in self.members if member.process.exitcode is not None]
        self.members = [member for member in self.members if member not in ended]
        return ended

    def grow(self) -> list[Task]:
        """Change the size as the rates suggest; returns the task of a member that was stopped."""
        if not self.growing or len(self.members) < self.size:
            return []
        rates = [member.rate() for member in self.members]
        if None in rates:
            return []
        total = sum(rate or 0.0 for rate in rates)
        print(f"{self.size} in parallel: {total:.0f} samples/s", flush=True)
        if total < GAIN * self._rate:
            self.growing, self.size = False, self.size - 1
            newest = self.members.pop()
            _stop([newest])
            return [newest.task]
        self._rate, self.size = total, self.size + 1
        for member in self.members:
            member.since = len(member.task.rows())
        return []

    def stop(self) -> None:
        """Stop all members after their current step."""
        _stop(self.members)
        self.members = []


def _stop(members: list[Member]) -> None:
    """Send SIGTERM, which a run obeys after its step, and kill -9 later; either costs at most an epoch."""
    for member in members:
        member.process.terminate()
    until = time.monotonic() + GRACE_S
    for member in members:
        member.process.join(max(0.0, until - time.monotonic()))
        member.process.kill()
        member.process.join()


def _stop_with_queue() -> None:
    """Wait until the process of the queue ends, also by kill -9, and stop this one after its current step."""
    queue = multiprocessing.parent_process()
    assert queue is not None, "runs in a process that a queue started"
    queue.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _train(task: Task) -> None:
    """Train a task in a process of its own; its output goes to <folder>/log.txt."""
    threading.Thread(target=_stop_with_queue, daemon=True).start()
    task.folder.mkdir(parents=True, exist_ok=True)
    with (task.folder / "log.txt").open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            train.run(task.recipe, task.folder)
        except HyperzooError as error:
            print(f"{type(error).__name__}: {error}")
            sys.exit(getattr(error, "exit_code", 1))


def load(path: Path, state: Path, *, epochs: int | None = None) -> list[Task]:
    """The tasks of a queue file, in order.

    Args:
        epochs: shorten each run to this number, to try the queue; such runs have folders of their own.
    Raises:
        RecipeError: see `sweep_file.load_queue`.
    """
    tasks = []
    for label, recipe in load_queue(path):
        name = str(recipe.train.seed)
        if epochs:
            recipe, name = recipe.shortened(epochs), f"{name}-{epochs}epochs"
        tasks.append(Task(label, recipe, state / label / name))
    return tasks


def work(tasks: list[Task], *, minutes: float, processes: int | None = None) -> list[Task]:
    """Train tasks in order until all have ended or the time is over; returns the failed ones.

    Args:
        minutes: until the runs are stopped, above 0.
        processes: runs in parallel [default: as many as raise the throughput].
    """
    check_number("minutes", minutes, above=0)
    deadline = time.monotonic() + 60 * minutes
    waiting, failed = [task for task in tasks if task.result() is None], []
    crew = Crew(processes or 1, growing=processes is None)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while (waiting or crew.members) and time.monotonic() < deadline:
            while waiting and len(crew.members) < crew.size:
                crew.start(waiting.pop(0))
            for member in crew.leave():
                print(_summary(member.task), flush=True)
                if member.process.exitcode:
                    failed.append(member.task)
            waiting[:0] = crew.grow()
            time.sleep(POLL_S)
    finally:
        crew.stop()
        signal.signal(signal.SIGTERM, before)
    return failed


def _summary(task: Task) -> str:
    result, rows = task.result(), task.rows()
    scores = [f"{key} {value:.2f}" for key, value in (result or {}).get("metrics", {}).items() if key in SCORES]
    found = " ".join(scores) or f"not finished, see {task.folder / 'log.txt'}"
    return f"{task.name}: {len(rows)} of {task.recipe.train.epochs} epochs, {found}"
