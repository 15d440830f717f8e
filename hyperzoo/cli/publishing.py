"""Commands of maintainers: cards, publication, the page of all weights."""

from pathlib import Path

import click


@click.command()
@click.option("--check", is_flag=True, help="Only compare; exit 1 if a text differs.")
def card(check: bool) -> int:
    """Generate the model cards and the README's table from the manifest."""
    from hyperzoo.errors import PublishError
    from hyperzoo.publishing import cards, checkout
    from hyperzoo.zoo import weight_files

    place = checkout.here()
    if place is None:
        raise PublishError("cards are made in a checkout of the repository, this is an installed package")
    differing = (cards.check if check else cards.write)(weight_files.MANIFEST, place)
    for path in differing:
        click.echo(f"{'differs' if check else 'written'}\t{path.relative_to(place.root)}")
    return int(check and bool(differing))


@click.command()
@click.argument("name")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--push", is_flag=True, help="Also to the Hub: one commit, read back and pinned; needs HF_TOKEN.")
@click.option("--namespace", help="Owner of all weights on the Hub from now on; that of the manifest without it.")
def publish(name: str, runs: tuple[Path, ...], push: bool, namespace: str | None) -> None:
    """Publish finished RUNS of the recipe NAME in this checkout: files, manifest, card. Uploads only with --push."""
    from hyperzoo.publishing import publish as publishing

    info = publishing.publish(name, list(runs), push=push, namespace=namespace)
    this, check = info.metrics.this_file, f"hyperzoo verify {name}{' --hub' if push else ''}"
    click.echo(f"{name}\t{info.shown(info.score.mean)}\t{this.correct} of {this.total}\tcheck it: {check}")


@click.command()
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Path(path_type=Path), help="npm's onnxruntime-web as .tgz; without it npm pack.")
@click.option("--no-demo", is_flag=True, help="Leave the demo out: a page of some 100 kB instead of 7 MB.")
def site(folder: Path, runtime: Path | None, no_demo: bool) -> None:
    """Write all weights as one page, OUT/index.html, for any static host or for opening as a file.

    A sortable table; each row opens to card, pictures and the lines that load the weight. The demo classifies pictures
    in the browser. Where its runtime cannot be had, the page says so.
    """
    from hyperzoo.publishing import site as making

    page = making.write(folder, runtime=runtime, demo=not no_demo)
    click.echo(f"{page}\t{page.stat().st_size} bytes")
