"""Commands on published weights: list them, show one, verify, export."""

from pathlib import Path

import click

from hyperzoo.cli.tables import flat, show


@click.command("list")
def list_() -> None:
    """Architectures and their published weights, with accuracy in percent and the number of runs behind it."""
    import hyperzoo

    rows = []
    for arch in hyperzoo.list_models():
        infos = [hyperzoo.weight_info(name) for name in hyperzoo.list_weights(arch)]
        for info in infos:
            told = f"{info.metric} " if info.metric != "accuracy" else ""
            rows.append((arch, info.tag, f"{told}{info.score.mean:.2f}", str(info.score.n), str(info.parameters)))
        if not infos:
            rows.append((arch, "-", "-", "-", "-"))
    show(("architecture", "tag", "accuracy", "runs", "parameters"), rows)


@click.command()
@click.argument("name")
def info(name: str) -> None:
    """All that the manifest says about NAME, a weight or an architecture with one."""
    import dataclasses

    import hyperzoo

    show(("field", "value"), flat(dataclasses.asdict(hyperzoo.weight_info(name))))


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Every published weight.")
@click.option("--hub", is_flag=True, help="Also download the pinned files from the Hub again, bundled weights too.")
def verify(name: str | None, every: bool, hub: bool) -> int:
    """Compare NAME with its manifest entry: hash, tensors, golden outputs, correct answers. Exit 1 if any differs."""
    import hyperzoo
    from hyperzoo.publishing import verify as verifying

    if every == (name is not None):
        raise click.UsageError("give the name of a weight, or --all")
    words = {True: "ok", False: "DIFFERS", None: "skipped"}
    chosen = [name] if name is not None else hyperzoo.list_weights()
    checks = [check for one in chosen for check in verifying.verify(one, on_hub=hub)]
    show(("weight", "check", "result", "detail"), [(c.name, c.what, words[c.ok], c.detail) for c in checks])
    return int(any(check.ok is False for check in checks))


@click.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["torch", "onnx"]), default="torch", show_default=True)
def export(name: str, out: Path, format: str) -> None:
    """Write NAME as one file OUT that runs without hyperzoo: a torch.export program (.pt2), or ONNX (.onnx).

    NAME is a weight, a run folder or local-dir:FOLDER. The file is opened again and its outputs are compared, for
    published weights with the golden ones; it is written only if they agree. Class names and normalisation are in it.
    """
    from hyperzoo.publishing import export as exporting

    done = exporting.export(name, out, format)
    size = done.file.stat().st_size
    click.echo(f"{done.file}\t{size} bytes\tlargest difference of outputs {done.difference:.1e}")
