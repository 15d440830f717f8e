"""Commands on training runs: train, reproduce, plot, and a queue of them."""

from pathlib import Path

import click

from hyperzoo.cli.tables import show


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/<name>/<seed> without it.")
@click.option("--allow-change", is_flag=True, help="Resume although the recipe has changed.")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, allow_change: bool) -> None:
    """Train RECIPE (a file, or the name of a weight) or all runs of a sweep; resumes by itself.

    Overrides of a recipe: optim.lr=0.05 ... A sweep prints its results beside the published ones, and draws them.
    """
    from hyperzoo.experiments import train as training
    from hyperzoo.training.recipe import load_recipe
    from hyperzoo.training.sweep_file import is_sweep

    if not is_sweep(recipe):
        training.run(load_recipe(recipe, overrides), out, allow_change=allow_change)
        return
    if overrides or allow_change:
        raise click.UsageError("a sweep takes no overrides and no --allow-change; change its file")
    from hyperzoo.analysis import plots
    from hyperzoo.experiments import sweep

    file, lines = sweep.run(recipe, out)
    show(sweep.COLUMNS, [line.shown() for line in lines])
    click.echo(plots.curves(file, file.with_suffix(".png")))


@click.command()
@click.argument("name")
@click.option("--seeds", default=1, show_default=True, help="Runs, each with a seed that was not published.")
@click.option("--budget", default=1.0, show_default=True, help="Part of the epochs; below 1 there is no verdict.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs; runs/reproduce/<name> without it.")
def reproduce(name: str, seeds: int, budget: float, out: Path | None) -> int:
    """Train NAME again and compare with its card: exit 1 beyond 3 sd, or the stated rule where n = 1."""
    from hyperzoo.experiments import reproduce as reproducing

    report = reproducing.run(name, out, seeds=seeds, budget=budget)
    click.echo(report.verdict)
    return int(report.agrees is False)


@click.command()
@click.argument("what", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The picture; beside its data without it.")
def plot(what: Path, out: Path | None) -> None:
    """Draw WHAT: a run folder (its learning curve), a sweep.json (its runs side by side), or a figure by its name.

    Figures: `operators` of SphereConv; `half_space` of MHE; `clouds` of PER; and, each after training for up to some
    minutes, `softmax_features` of angular losses, `rare_class` of MHE, and of mixup `spiral` (boundaries), `spectrum`
    (flat classes) and `hidden_states`.
    """
    from hyperzoo.analysis import plots
    from hyperzoo.analysis.figures import FIGURES

    if str(what) in FIGURES:
        picture = FIGURES[str(what)](out or Path(f"{what}.png"))
    elif what.suffix == ".json":
        picture = plots.curves(what, out or what.with_suffix(".png"))
    else:
        title = what.resolve().parent.name if what.resolve().name.isdigit() else what.resolve().name
        picture = plots.learning_curve(what / "metrics.jsonl", out or what / "learning_curve.png", title=title)
    click.echo(picture)


@click.command()
@click.argument("file", metavar="QUEUE", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, required=True, help="Until the runs are stopped, to be resumed later.")
@click.option("--state", type=click.Path(path_type=Path), default="runs/queue", show_default=True, help="Of the runs.")
@click.option("--processes", type=int, help="Runs side by side; found out by trying, without it.")
@click.option("--epochs", type=int, help="Train so many epochs only, to try the queue out.")
def queue(file: Path, minutes: float, state: Path, processes: int | None, epochs: int | None) -> int:
    """Train the runs of QUEUE (a file like recipes/queue.yaml) within a given time, several side by side.

    Exit code 1 if a run failed, 130 after SIGINT or SIGTERM.
    """
    from hyperzoo.experiments import queue as queueing

    tasks = queueing.load(file, state, epochs=epochs)
    try:
        code = int(bool(queueing.work(tasks, minutes=minutes, processes=processes)))
    except KeyboardInterrupt:
        code = 130
    click.echo(f"{sum(task.result() is not None for task in tasks)} of {len(tasks)} runs are finished")
    return code
