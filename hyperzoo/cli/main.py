"""The command `hyperzoo`: each function parses, calls one function of the package, and prints."""

import os
import sys
from pathlib import Path

import click

from hyperzoo import cli_networks
from hyperzoo.errors import HyperzooError, LaunchError, MissingExtraError
from hyperzoo.tables import flat, show

TRAIN_EXTRA = ("datasets", "pydantic", "ruamel", "torchmetrics", "matplotlib")  # the optional packages of [train]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hyperspherical and regularised networks: list, train, evaluate and verify.

    Exit codes: 0 fine, 1 an error or a check that failed, 2 wrong usage, 130 and 143 interrupted.
    """


@cli.command("list")
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


@cli.command()
@click.argument("name")
def info(name: str) -> None:
    """All that the manifest says about NAME, a weight or an architecture with one."""
    import dataclasses

    import hyperzoo

    show(("field", "value"), flat(dataclasses.asdict(hyperzoo.weight_info(name))))


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/<name>/<seed> without it.")
@click.option("--allow-change", is_flag=True, help="Resume although the recipe has changed.")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, allow_change: bool) -> None:
    """Train RECIPE (a file, or the name of a weight) or all runs of a sweep; resumes by itself.

    Overrides of a recipe: optim.lr=0.05 ... A sweep prints its results beside the published ones, and draws them.
    """
    from hyperzoo import train as training
    from hyperzoo.training.config import load_recipe
    from hyperzoo.training.grid import is_sweep

    if not is_sweep(recipe):
        training.run(load_recipe(recipe, overrides), out, allow_change=allow_change)
        return
    if overrides or allow_change:
        raise click.UsageError("a sweep takes no overrides and no --allow-change; change its file")
    from hyperzoo import plots, sweep

    file, lines = sweep.run(recipe, out)
    show(sweep.COLUMNS, [line.shown() for line in lines])
    click.echo(plots.curves(file, file.with_suffix(".png")))


@cli.command("eval")
@click.argument("name")
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--data", "dataset", help="Code of the data set: c10, c100, ...; a weight of ours has its own.")
@click.option("--pretrained", is_flag=True, help="Fetch timm's weight for a model of timm.")
@click.option("--limit", type=click.IntRange(1), help="Only so many of the images, always the same ones.")
@click.option("--robustness", is_flag=True, help="Also deformed and attacked images, and a picture.")
@click.option("--seed", default=0, show_default=True, help="Of the deformations and the attacks.")
@click.option("--out", type=click.Path(path_type=Path), help="That picture; robustness.png without it.")
def eval_(
    name: str,
    split: str,
    dataset: str | None,
    pretrained: bool,
    limit: int | None,
    robustness: bool,
    seed: int,
    out: Path | None,
) -> None:
    """Accuracy (%), NLL (nats) and calibration error (%), or perplexity, of NAME on a split of a data set; no verdict.

    NAME is a weight, any model of timm, or local-dir:FOLDER (a run folder is one). With --robustness also accuracy and
    NLL on rotated, sheared and zoomed images and under attack: some 60 times the work, see --limit.
    """
    import hyperzoo
    from hyperzoo import evaluate

    model, images = evaluate.subject(name, split=split, dataset=dataset, pretrained=pretrained, limit=limit)
    if robustness:
        from hyperzoo import robustness as measuring

        found = measuring.measure(model, images, seed=seed)
        show(measuring.COLUMNS, [condition.shown() for condition in found.conditions])
        click.echo(f"calibration error\t{found.ece:.2f} %\nimages\t{found.origin}\nseed\t{seed}")
        click.echo(measuring.draw(found, out or Path("robustness.png"), title=name))
        return
    metrics = evaluate.measure(model, images)
    show(("metric", "value"), [*flat(metrics.as_dict()), ("data", images.origin)])
    if dataset is None and limit is None:
        published = hyperzoo.weight_info(name).dataset
        known = {"test": published.test_fingerprint, "train": published.train_fingerprint}
        if metrics.fingerprint != known.get(split, metrics.fingerprint):
            click.echo("this is not the data that the published number stands for: another fingerprint", err=True)


@cli.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Every published weight.")
@click.option("--hub", is_flag=True, help="Also download the pinned files from the Hub again, bundled weights too.")
def verify(name: str | None, every: bool, hub: bool) -> int:
    """Compare NAME with its manifest entry: hash, tensors, golden outputs, correct answers. Exit 1 if any differs."""
    import hyperzoo
    from hyperzoo import verify as verifying

    if every == (name is not None):
        raise click.UsageError("give the name of a weight, or --all")
    words = {True: "ok", False: "DIFFERS", None: "skipped"}
    chosen = [name] if name is not None else hyperzoo.list_weights()
    checks = [check for one in chosen for check in verifying.verify(one, on_hub=hub)]
    show(("weight", "check", "result", "detail"), [(c.name, c.what, words[c.ok], c.detail) for c in checks])
    return int(any(check.ok is False for check in checks))


@cli.command()
@click.argument("name")
@click.option("--seeds", default=1, show_default=True, help="Runs, each with a seed that was not published.")
@click.option("--budget", default=1.0, show_default=True, help="Part of the epochs; below 1 there is no verdict.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs; runs/reproduce/<name> without it.")
def reproduce(name: str, seeds: int, budget: float, out: Path | None) -> int:
    """Train NAME again and compare with its card: exit 1 beyond 3 sd, or the stated rule where n = 1."""
    from hyperzoo import reproduce as reproducing

    report = reproducing.run(name, out, seeds=seeds, budget=budget)
    click.echo(report.verdict)
    return int(report.agrees is False)


@cli.command()
@click.option("--check", is_flag=True, help="Only compare; exit 1 if a text differs.")
def card(check: bool) -> int:
    """Generate the model cards and the README's table from the manifest."""
    from hyperzoo import cards, checkout, weights
    from hyperzoo.errors import PublishError

    place = checkout.here()
    if place is None:
        raise PublishError("cards are made in a checkout of the repository, this is an installed package")
    differing = (cards.check if check else cards.write)(weights.MANIFEST, place)
    for path in differing:
        click.echo(f"{'differs' if check else 'written'}\t{path.relative_to(place.root)}")
    return int(check and bool(differing))


@cli.command()
@click.argument("name")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--push", is_flag=True, help="Also to the Hub: one commit, read back and pinned; needs HF_TOKEN.")
@click.option("--namespace", help="Owner of all weights on the Hub from now on; that of the manifest without it.")
def publish(name: str, runs: tuple[Path, ...], push: bool, namespace: str | None) -> None:
    """Publish finished RUNS of the recipe NAME in this checkout: files, manifest, card. Uploads only with --push."""
    from hyperzoo import publish as publishing

    info = publishing.publish(name, list(runs), push=push, namespace=namespace)
    this, check = info.metrics.this_file, f"hyperzoo verify {name}{' --hub' if push else ''}"
    click.echo(f"{name}\t{info.shown(info.score.mean)}\t{this.correct} of {this.total}\tcheck it: {check}")


@cli.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["torch", "onnx"]), default="torch", show_default=True)
def export(name: str, out: Path, format: str) -> None:
    """Write NAME as one file OUT that runs without hyperzoo: a torch.export program (.pt2), or ONNX (.onnx).

    NAME is a weight, a run folder or local-dir:FOLDER. The file is opened again and its outputs are compared, for
    published weights with the golden ones; it is written only if they agree. Class names and normalisation are in it.
    """
    from hyperzoo import export as exporting

    done = exporting.export(name, out, format)
    size = done.file.stat().st_size
    click.echo(f"{done.file}\t{size} bytes\tlargest difference of outputs {done.difference:.1e}")


@cli.command()
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Path(path_type=Path), help="npm's onnxruntime-web as .tgz; without it npm pack.")
@click.option("--no-demo", is_flag=True, help="Leave the demo out: a page of some 100 kB instead of 7 MB.")
def site(folder: Path, runtime: Path | None, no_demo: bool) -> None:
    """Write all weights as one page, OUT/index.html, for any static host or for opening as a file.

    A sortable table; each row opens to card, pictures and the lines that load the weight. The demo classifies pictures
    in the browser. Where its runtime cannot be had, the page says so.
    """
    from hyperzoo import site as making

    page = making.write(folder, runtime=runtime, demo=not no_demo)
    click.echo(f"{page}\t{page.stat().st_size} bytes")


@cli.command()
@click.argument("what", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The picture; beside its data without it.")
def plot(what: Path, out: Path | None) -> None:
    """Draw WHAT: a run folder (its learning curve), a sweep.json (its runs side by side), or a figure by its name.

    Figures: `operators` of SphereConv; `half_space` of MHE; `clouds` of PER; and, each after training for up to some
    minutes, `softmax_features` of angular losses, `rare_class` of MHE, and of mixup `spiral` (boundaries), `spectrum`
    (flat classes) and `hidden_states`.
    """
    from hyperzoo import plots
    from hyperzoo.figures import FIGURES

    if str(what) in FIGURES:
        picture = FIGURES[str(what)](out or Path(f"{what}.png"))
    elif what.suffix == ".json":
        picture = plots.curves(what, out or what.with_suffix(".png"))
    else:
        title = what.resolve().parent.name if what.resolve().name.isdigit() else what.resolve().name
        picture = plots.learning_curve(what / "metrics.jsonl", out or what / "learning_curve.png", title=title)
    click.echo(picture)


for _command in (cli_networks.energy, cli_networks.activations, cli_networks.generate):
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process; exit codes: see `cli`."""
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
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAIN_EXTRA:
            raise
        return _fail(MissingExtraError(f'this needs the package {error.name}: pip install "hyperzoo[train]"'))
    except HyperzooError as error:
        return _fail(error)


def _fail(error: HyperzooError) -> int:
    click.echo(f"{type(error).__name__}: {error}", err=True)
    return getattr(error, "exit_code", 2 if isinstance(error, LaunchError) else 1)
