"""The command `hyperzoo`: each function parses, calls one function of the package, and prints."""

import sys
from pathlib import Path

import click

from hyperzoo.errors import HyperzooError, LaunchError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hyperspherical and regularised networks: list, train, evaluate and verify."""


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/<name>/<seed> without it.")
@click.option("--allow-change", is_flag=True, help="Resume although the recipe has changed.")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, allow_change: bool) -> None:
    """Train RECIPE (a file, or the name of a weight); resumes by itself. Overrides: optim.lr=0.05 ..."""
    from hyperzoo import train as training
    from hyperzoo.training.config import load_recipe

    training.run(load_recipe(recipe, overrides), out, allow_change=allow_change)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit 1 on an error of ours, 2 on wrong usage, 130 and 143 on signals."""
    try:
        cli.main(arguments, standalone_mode=True)
    except HyperzooError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, LaunchError) else 1))
