"""What every command shares: it registers the models before it runs, and it can print JSON."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click


class ModelCommand(click.Command):
    """A command that registers the architectures with timm when it runs, not when its help is shown."""

    def invoke(self, ctx: click.Context) -> Any:
        import hyperzoo.models  # noqa: F401  the import registers them

        return super().invoke(ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")


@contextmanager
def progress_on_stderr(active: bool) -> Iterator[None]:
    """Send to stderr what a run prints to stdout, so that only the result is left there."""
    if not active:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
