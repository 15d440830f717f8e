"""How results are printed: a table in a terminal, and one record a line in a pipe."""

import sys
from collections.abc import Iterable, Sequence

import click


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in a terminal; elsewhere one record a line, fields separated by tabs, without a heading."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def flat(value: object, key: str = "") -> list[tuple[str, str]]:
    """Nested values as rows ('block.key', text)."""
    if isinstance(value, dict):
        return [row for name, item in value.items() for row in flat(item, f"{key}.{name}" if key else str(name))]
    if isinstance(value, (tuple, list)):
        return [(key, ", ".join(map(str, value)))]
    return [(key, "-" if value is None else str(value))]
