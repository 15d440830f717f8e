"""Progress of a run: a live bar in a terminal, one plain line per epoch elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text
from torch import Tensor

_INTERVAL_S = 0.5


class Progress:
    """Show the progress of a run.

    Args:
        active: False shows nothing, for all processes but the first.
        unit: of the rate, in the plural; the log has the rate as `<unit>_per_s`.
    """

    def __init__(self, name: str, epochs: int, first_epoch: int = 0, active: bool = True, unit: str = "images") -> None:
        self._name, self._epochs, self._first, self._active, self._unit = name, epochs, first_epoch, active, unit
        self._console = Console(stderr=False)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._next = 0.0

    def __enter__(self) -> "Progress":
        if self._active and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task(self._name, total=self._epochs, completed=self._first, numbers="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._active and self._bar:
            self._bar.console.print(Text(text))  # a str would be read as markup
        elif self._active:
            print(text, flush=True)

    def wants_update(self) -> bool:
        """Whether the next `update` would be shown; needs no work on the device."""
        if self._bar is None or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _INTERVAL_S
        return True

    def update(self, epoch: int, step: int, steps: int, means: Tensor, per_s: float) -> None:
        """Show the mean loss and accuracy of the epoch so far, and the rate."""
        if self._bar is not None and self._task is not None:
            loss, correct = means.tolist()
            numbers = (
                f"epoch {epoch}/{self._epochs}  loss {loss:.4f}  acc {100 * correct:.2f} %  {per_s:.0f} {self._unit}/s"
            )
            self._bar.update(self._task, completed=epoch - 1 + step / steps, numbers=numbers)

    def epoch_done(self, row: dict[str, Any]) -> None:
        """Print the metrics of an epoch."""
        held = f"  held-out {row['accuracy']:.2f} %" if "accuracy" in row else ""
        held += f"  validation perplexity {row['perplexity']:.2f}" if "perplexity" in row else ""
        self.say(
            f"epoch {row['epoch']}/{self._epochs}  loss {row['loss']:.4f}  train {row['train_accuracy']:.2f} %{held}"
            f"  {row[f'{self._unit}_per_s']:.0f} {self._unit}/s  {row['seconds']:.0f} s  {_left(row, self._epochs)}"
        )


def _left(row: dict[str, Any], epochs: int) -> str:
    seconds = int((epochs - row["epoch"]) * row["seconds"])
    return "done" if row["epoch"] == epochs else f"{seconds // 60}:{seconds % 60:02d} left"
