"""What the commands share: the option --json, types of paths, and the registration of the models when one runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click

from hyperzoo.names import cut


class ModelCommand(click.Command):
    """A command that registers the architectures with timm when it runs, not when its help is shown."""

    def invoke(self, ctx: click.Context) -> Any:
        import hyperzoo.models  # noqa: F401  the import registers them

        return super().invoke(ctx)


class RunFolder(click.ParamType):
    """The path of a run folder, also as 'local-dir:FOLDER'."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(str(value).removeprefix("local-dir:"))


class OutputFile(click.ParamType):
    """The path of a file in an existing folder, checked before the work that fills it; '-' for stdout if `stdout`."""

    name = "path"

    def __init__(self, suffix: str, *, stdout: bool = False) -> None:
        self.suffix, self.stdout = suffix, stdout

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if self.stdout and value == "-":
            return path
        folder = path.absolute().parent
        if path.suffix != self.suffix:
            self.fail(f"{cut(str(path))} must end in {self.suffix}", param, ctx)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
            self.fail(f"{cut(str(path))} cannot be written: {cut(str(folder))} must be a writable folder", param, ctx)
        return path


class Picture(OutputFile):
    """The path of a PNG."""

    def __init__(self) -> None:
        super().__init__(".png")


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")


@contextmanager
def progress_on_stderr(active: bool) -> Iterator[None]:
    """Send to stderr what a run prints to stdout, so that only the result is left there."""
    if not active:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
