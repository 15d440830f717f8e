"""How results are printed: a table in a terminal, tab-separated lines in a pipe, or JSON."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

_ONE_LINE = str.maketrans("\t\n", "  ")
# Names, words and messages come from files of anybody, and a terminal obeys control characters.
_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160), *range(0xD800, 0xE000))}
_ESCAPED = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\t\n"}


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in a terminal; elsewhere a header line and one line a row, cells separated by tabs."""
    if not sys.stdout.isatty():
        write("\n".join("\t".join(cell.translate(_ONE_LINE) for cell in row) for row in (columns, *rows)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # a narrow terminal wraps cells and cuts none
    for row in rows:
        table.add_row(*(Text(cell.translate(_ESCAPED)) for cell in row))  # rich replaces :words: in a str
    Console().print(table, markup=False)


def show_json(value: Any) -> None:
    """Print a result as JSON: tuples with field names and dataclasses as objects, NaN and infinity as null."""
    write(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def write(text: str) -> None:
    """Print to stdout, control characters escaped; a reader that has left, such as `head`, is no error."""
    try:
        click.echo(text.translate(_ESCAPED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """Print a remark or an error to stderr, control characters escaped; a pipe gets the result alone."""
    click.echo(text.translate(_ESCAPED), err=True)


def flat(value: object, key: str = "") -> list[tuple[str, str]]:
    """Nested values as rows ('block.key', text)."""
    if isinstance(value, dict):
        return [row for name, item in value.items() for row in flat(item, f"{key}.{name}" if key else str(name))]
    if isinstance(value, (tuple, list)):
        return [(key, ", ".join(map(str, value)) or "-")]
    return [(key, "-" if value is None else str(value))]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
