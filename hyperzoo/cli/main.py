"""Run the command `hyperzoo` and turn errors into exit codes."""

import os
import sys

import click

from hyperzoo.cli.commands import cli
from hyperzoo.cli.tables import note
from hyperzoo.errors import HyperzooError, LaunchError, MissingExtraError

TRAIN_EXTRA = ("datasets", "pydantic", "ruamel", "matplotlib", "scipy")  # packages of the extra [train]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process; exit codes: see `cli`."""
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str] | None) -> int:
    try:
        code = cli.main(arguments, prog_name="hyperzoo", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAIN_EXTRA:
            raise
        return _fail(MissingExtraError(f'{error.name} is not installed: pip install "hyperzoo[train]"'))
    except (HyperzooError, OSError) as error:  # an OSError: a full disk, or a file that cannot be read or written
        return _fail(error)


def _fail(error: HyperzooError | OSError) -> int:
    note(f"{type(error).__name__}: {error}")
    return getattr(error, "exit_code", 2 if isinstance(error, LaunchError) else 1)
