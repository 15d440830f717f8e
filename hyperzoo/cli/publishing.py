"""Push a run to the Hub; for maintainers: cards, publication, the page of all weights."""

from pathlib import Path

import click

from hyperzoo.cli.options import ModelCommand, RunFolder, json_option
from hyperzoo.cli.tables import note, show_json, write


@click.command(cls=ModelCommand)
@click.option("--check", is_flag=True, help="Compare only; exit 1 if a text differs.")
@json_option
def card(check: bool, as_json: bool) -> int:
    """Generate the model cards and the README's table from the manifest."""
    from hyperzoo.errors import PublishError
    from hyperzoo.publishing import cards
    from hyperzoo.publishing.checkout import find_checkout
    from hyperzoo.zoo import weight_files

    checkout = find_checkout()
    if checkout is None:
        raise PublishError("cards are generated in a checkout of the repository; this is an installed package")
    differing = (cards.check if check else cards.write)(weight_files.MANIFEST, checkout)
    alone = cards.without_weight(weight_files.MANIFEST, checkout)
    states = {
        **dict.fromkeys(differing, "differs" if check else "written"),
        **dict.fromkeys(alone, "no weight; remove it"),
    }
    rows = [(path.relative_to(checkout.root), state) for path, state in states.items()]
    if as_json:
        show_json([{"file": path, "state": state} for path, state in rows])
    else:
        for path, state in rows:
            write(f"{state}\t{path}")
    return int(check and bool(rows))


@click.command(cls=ModelCommand)
@click.argument("name")
@click.argument("runs", nargs=-1, required=True, type=RunFolder())
@click.option("--push", is_flag=True, help="Also push to the Hub: one commit, read back and pinned; needs HF_TOKEN.")
@click.option("--namespace", help="Hub namespace for all weights from now on [default: the manifest's]")
@json_option
def publish(name: str, runs: tuple[Path, ...], push: bool, namespace: str | None, as_json: bool) -> None:
    """Publish finished RUNS of the recipe NAME in this checkout: files, manifest, card. Uploads only with --push."""
    from hyperzoo.publishing import publish as publishing

    info = publishing.publish(name, list(runs), push=push, namespace=namespace)
    if as_json:
        show_json(info)
        return
    this, check = info.metrics.this_file, f"hyperzoo verify {name}{' --hub' if push else ''}"
    write(f"{name}\t{info.shown(info.score.mean)}\t{this.correct} of {this.total}\tcheck it: {check}")


@click.command(cls=ModelCommand)
@click.argument("run", type=RunFolder())
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create a private repository.")
@json_option
def push(run: Path, repo: str, private: bool, as_json: bool) -> None:
    """Push the finished RUN to the Hub as OWNER/NAME, with a generated card. Needs HF_TOKEN or `hf auth login`.

    Sends model, class names, recipe, result and log in one commit, reads every file back and compares it. Of absolute
    paths in the recipe, only the last part is sent.
    """
    from hyperzoo.publishing import push as pushing

    pushed = pushing.push(run, repo, private=private)
    if as_json:
        show_json(pushed)
    else:
        write(f'{pushed.repo}@{pushed.commit}\tload it: hyperzoo.load("hf-hub:{pushed.repo}")')


@click.command(cls=ModelCommand)
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Path(path_type=Path), help="npm's onnxruntime-web as .tgz [default: npm pack]")
@click.option("--no-demo", is_flag=True, help="Leave out the demo, which takes about 15 MB.")
@click.option("--docs", help="Address of the documentation, for a link: what `make docs` writes [default: no link]")
@click.option("--repository", help="https:// address of the git repository, for a link [default: no link]")
@json_option
def site(
    folder: Path, runtime: Path | None, no_demo: bool, docs: str | None, repository: str | None, as_json: bool
) -> None:
    """Write all weights as one page, OUT/index.html, for any static host or to be opened as a file.

    A sortable table; each row opens to the card, its figures and the code that loads the weight. The demo classifies
    images in the browser. If its runtime is not available, the page says so.
    """
    from hyperzoo.publishing import site as making

    page = making.write(folder, runtime=runtime, demo=not no_demo, docs=docs, repository=repository, report=note)
    size = page.stat().st_size
    if as_json:
        show_json({"file": page, "bytes": size})
    else:
        write(f"{page}\t{size} bytes")
