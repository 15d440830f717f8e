"""Commands on training runs: train, reproduce, plot, and a queue of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperzoo.cli.options import ModelCommand, Picture, RunFolder, json_option, progress_on_stderr
from hyperzoo.cli.tables import note, show, show_json, write

if TYPE_CHECKING:
    from hyperzoo.experiments.train import RunResult


@click.command(cls=ModelCommand)
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder [default: runs/<name>/<seed>; with own images runs/<name>-<images>/<seed>]",
)
@click.option("--allow-change", is_flag=True, help="Resume although the recipe has changed.")
@json_option
def train(recipe: str, overrides: tuple[str, ...], out: Path | None, allow_change: bool, as_json: bool) -> None:
    """Train RECIPE, a file or the name of a recipe of hyperzoo; a stopped run resumes.

    A recipe takes overrides: optim.lr=0.05 ... If RECIPE is a sweep (a table of a paper or a study), all its runs are
    trained, compared with the published results, and drawn.
    """
    from hyperzoo.experiments import train as training
    from hyperzoo.training.recipe import load_recipe
    from hyperzoo.training.sweep_file import is_sweep

    if not is_sweep(recipe):
        with progress_on_stderr(as_json):
            run = training.run(load_recipe(recipe, overrides), out, allow_change=allow_change)
        _show_run(run, as_json)
        return
    if overrides or allow_change:
        raise click.UsageError("a sweep takes no overrides and no --allow-change; change its file")
    from hyperzoo.analysis import plots, sweep_table
    from hyperzoo.experiments import sweep

    with progress_on_stderr(True):
        file, lines = sweep.run(recipe, out)
    if not training.is_main_process():
        return
    picture = plots.curves(file, file.with_suffix(".png"))
    if as_json:
        show_json({"results": file, "picture": picture, "rows": lines})
    else:
        columns, *rows = sweep_table.table(lines)
        show(columns, rows)
        note(str(picture))
    if partial := sweep.unfinished(file):
        note(partial)


def _show_run(run: "RunResult", as_json: bool) -> None:
    """Print a run as JSON, or that it was finished before; only in the first of several processes."""
    from hyperzoo.experiments import train as training
    from hyperzoo.training.log import metric_of
    from hyperzoo.zoo.weight_description import as_text

    if not training.is_main_process():
        return
    if as_json:
        show_json({"folder": run.folder, **run.values})
    elif not run.trained:
        metric = metric_of(run.values["metrics"])
        score = as_text(metric, run.values["metrics"][metric])
        write(
            f"{run.folder} is finished: {run.values['split']} {metric} {score} after epoch {run.values['epochs']}. "
            "Use another --out to train again"
        )


@click.command(cls=ModelCommand)
@click.argument("name")
@click.argument("folder", metavar="PHOTOS", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [default: runs/<name of PHOTOS>]")
@click.option("--allow-change", is_flag=True, help="Resume although the recipe has changed.")
@json_option
def finetune(
    name: str, folder: Path, overrides: tuple[str, ...], out: Path | None, allow_change: bool, as_json: bool
) -> None:
    """Fine-tune NAME on the images in the folder PHOTOS; a stopped run resumes.

    NAME is a weight of hyperzoo or timm, or a run folder. PHOTOS holds a folder of images per class, or train/ and
    test/ with such folders. The recipe takes overrides: train.epochs=30 optim.lr=0.0003 ...
    """
    from hyperzoo.experiments import train as training
    from hyperzoo.experiments.pretrained import finetuning_recipe

    recipe = finetuning_recipe(name, folder, overrides)
    with progress_on_stderr(as_json):
        run = training.run(recipe, out or Path("runs") / recipe.data.name, allow_change=allow_change)
    _show_run(run, as_json)


@click.command(cls=ModelCommand)
@click.argument("name")
@click.option("--seeds", default=1, show_default=True, help="Number of runs, each with a seed not yet published.")
@click.option("--budget", default=1.0, show_default=True, help="Fraction of the epochs; below 1 there is no verdict.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs [default: runs/reproduce/<name>]")
@json_option
def reproduce(name: str, seeds: int, budget: float, out: Path | None, as_json: bool) -> int:
    """Retrain NAME and compare with its card. Exit 1 beyond 3 sd, or beyond the stated rule for a single run."""
    import dataclasses

    from hyperzoo.experiments import reproduce as reproducing

    with progress_on_stderr(as_json):
        report = reproducing.run(name, out, seeds=seeds, budget=budget)
    if as_json:
        show_json(dataclasses.asdict(report) | {"verdict": report.verdict})
    else:
        write(report.verdict)
    return int(report.agrees is False)


@click.command(cls=ModelCommand)
@click.argument("what", type=RunFolder())
@click.option("--out", type=Picture(), help="Output PNG [default: next to WHAT]")
@json_option
def plot(what: Path, out: Path | None, as_json: bool) -> None:
    """Draw WHAT: a run folder (learning curve), a sweep or its sweep.json (runs compared), or a figure by its name.

    Figures: `overview` of the four methods; `operators` of SphereConv; `half_space` of MHE; `clouds` of PER. Those that
    train first, for up to some minutes: `softmax_features` of angular losses; `rare_class` of MHE; `spiral`
    (boundaries), `spectrum` (flat classes) and `hidden_states` of mixup.
    """
    from hyperzoo.analysis import plots
    from hyperzoo.analysis.figures import FIGURES
    from hyperzoo.errors import UnknownNameError

    if (what / "sweep.json").is_file():
        what = what / "sweep.json"
    if str(what) in FIGURES:
        picture = FIGURES[str(what)](out or Path(f"{what}.png"))
    elif what.suffix == ".json":
        picture = plots.curves(what, out or what.with_suffix(".png"))
    elif not what.is_dir():
        raise UnknownNameError(f"no run folder, results file or figure {str(what)!r}. Figures: {', '.join(FIGURES)}")
    else:
        title = what.resolve().parent.name if what.resolve().name.isdigit() else what.resolve().name
        picture = plots.learning_curve(what / "metrics.jsonl", out or what / "learning_curve.png", title=title)
    if as_json:
        show_json({"picture": picture})
    else:
        write(str(picture))


@click.command(cls=ModelCommand)
@click.argument("file", metavar="QUEUE", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, required=True, help="Time limit; the runs then stop and can be resumed.")
@click.option("--state", type=click.Path(path_type=Path), default="runs/queue", show_default=True, help="Run folders.")
@click.option(
    "--processes", type=click.IntRange(1), help="Number of parallel runs [default: as many as raise the total rate]"
)
@click.option("--epochs", type=click.IntRange(1), help="Train this many epochs only, to try the queue out.")
@json_option
def queue(file: Path, minutes: float, state: Path, processes: int | None, epochs: int | None, as_json: bool) -> int:
    """Train the runs of QUEUE in parallel, within a time limit.

    QUEUE is a file like recipes/queue.yaml, or a sweep as for `hyperzoo train`.

    Exit code 1 if a run failed, 130 after SIGINT or SIGTERM.
    """
    from hyperzoo.experiments import queue as queueing

    tasks = queueing.load(file, state, epochs=epochs)
    with progress_on_stderr(as_json):
        try:
            code = int(bool(queueing.work(tasks, minutes=minutes, processes=processes)))
        except KeyboardInterrupt:
            code = 130
    results = [(task, task.result()) for task in tasks]
    if as_json:
        show_json([{"name": task.name, "folder": task.folder, "result": result} for task, result in results])
    else:
        write(f"{sum(result is not None for _, result in results)} of {len(tasks)} runs are finished")
    return code
