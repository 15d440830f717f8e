"""Train a recipe into a run folder; with torchrun or accelerate launch, `-m hyperzoo train RECIPE` is distributed."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from filelock import FileLock, Timeout
from torch import nn

from hyperzoo import files
from hyperzoo.analysis import evaluate
from hyperzoo.errors import BusyError, LaunchError, RunError
from hyperzoo.experiments import build
from hyperzoo.training import allocator, checkpoint, seeding
from hyperzoo.training.log import read_result
from hyperzoo.training.loop import Trainer
from hyperzoo.training.progress import Progress
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.schedule import make_optimizer
from hyperzoo.zoo.model_folder import save_model

TWO_PROCESSES = "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 -m hyperzoo train RECIPE"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: holds model.safetensors, config.json, result.json and metrics.jsonl.
        values: the contents of result.json.
        trained: False if the run was finished before this call.
    """

    folder: Path
    values: dict[str, Any]
    trained: bool = True


def run(recipe: Recipe, out: Path | None = None, *, allow_change: bool = False) -> RunResult:
    """Train a recipe, from the newest checkpoint in its run folder if there is one; a finished run is only read.

    Args:
        out: run folder [default: runs/<name>/<seed>].
        allow_change: resume a run that another recipe began.
    Raises:
        LaunchError: another number of processes than requested; nothing was written.
        BusyError: another process is training in the folder.
        RunError: the recipe has changed, result.json is damaged, or the folder cannot be written.
        NonFiniteError, CheckpointError, DataError: see `training.loop`, `training.checkpoint`, `data.sources`.
        Stopped: SIGINT or SIGTERM; carries the exit code.
    """
    folder = out or Path("runs") / recipe.name / str(recipe.train.seed)
    seeding.seed_epoch(recipe.train.seed, 0)
    engine = (
        Accelerator()
    )  # without a precision, which all Accelerators of a process share; `TrainStep` has the recipe's
    _check_processes(recipe, engine)
    with _locked(folder, engine):
        done = folder / "result.json"
        saved = checkpoint.newest(folder / "checkpoints")
        if saved:
            _check_recipe(recipe, saved, allow_change)
        if done.exists() and saved and saved.epoch == recipe.train.epochs:
            return RunResult(folder, read_result(folder), trained=False)
        return _run(recipe, folder, engine, saved)


def _run(recipe: Recipe, folder: Path, engine: Accelerator, saved: checkpoint.Checkpoint | None) -> RunResult:
    started, environment = time.time(), seeding.environment()  # now: the code may change during a long run
    if engine.device.type == "cpu":
        allocator.keep()
    train, held = build.samples(recipe)
    model = build.model(recipe, len(train.classes), train.channels).to(memory_format=torch.channels_last)
    build.describe_images(model, train)
    build.initialize(recipe, model, train)
    step = build.step(recipe, model).to(engine.device)
    batches = build.batches(recipe, train, model, engine)
    progress = Progress(
        recipe.name, recipe.train.epochs, saved.epoch if saved else 0, engine.is_main_process, unit=step.unit
    )
    compiled, reason = build.compiles(recipe, model, recipe.train.epochs * len(batches), engine.device)
    progress.say(
        f"{recipe.name}: {len(train)} {step.unit}, {len(batches)} updates an epoch, {build.precision(recipe)}, "
        f"{engine.num_processes} process(es) on {engine.device.type}; {reason}"
    )
    if saved:
        progress.say(f"resuming after epoch {saved.epoch}")

    def on_held_out(published: nn.Module) -> dict[str, Any]:
        assert held is not None
        values = evaluate.measure(published, held, engine=engine).as_dict()
        values.pop("class_accuracy", None)  # result.json has it for the last epoch
        return values

    trainer = Trainer(
        recipe=recipe,
        accelerator=engine,
        step=step,
        optimizer=make_optimizer(step, recipe.optim),
        batches=batches,
        folder=folder,
        progress=progress,
        evaluate=on_held_out if held else None,
        compile_model=compiled,
    )
    published = trainer.run(saved)
    if held is not None and (recipe.data.hold_out or recipe.data.choice):
        split = "held-out part of train" if recipe.data.hold_out else "validation"
        metrics = evaluate.measure(published, held, engine=engine)
    else:
        metrics, split = evaluate.test_metrics(published, recipe.data.name, engine, workers=recipe.data.workers), "test"
    values = {
        "name": recipe.name,
        "seed": recipe.train.seed,
        "split": split,
        "metrics": metrics.as_dict(),
        "train_fingerprint": train.fingerprint,
        f"train_{step.unit}": len(train),
        "recipe_sha256": recipe.digest(),
        "recipe": recipe.model_dump(mode="json"),
        "precision": build.precision(recipe),
        "compiled": compiled,
        "epochs": recipe.train.epochs,
        "minutes": round(sum(row["seconds"] for row in trainer.rows) / 60, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment,
    }
    if engine.is_main_process:
        save_model(published, folder, classes=train.classes, args=build.model_args(recipe))
        files.write_json(folder / "result.json", values)
        progress.say(f"{split}: {metrics}; {time.time() - started:.0f} s in this call -> {folder}")
    return RunResult(folder, values)


def is_main_process() -> bool:
    """Whether this process is the only one of a run, or the first of several."""
    return PartialState().is_main_process


def _check_processes(recipe: Recipe, engine: Accelerator) -> None:
    asked = {"the launcher": int(os.environ.get("WORLD_SIZE", "1")), "the recipe": recipe.train.processes}
    for who, count in asked.items():
        if count is not None and count != engine.num_processes:
            raise LaunchError(
                f"{who} asks for {count} processes, accelerate runs {engine.num_processes}. "
                f"For two processes without a GPU: {TWO_PROCESSES}"
            )
    asked_for_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    if asked_for_fsdp and engine.distributed_type.value != "FSDP":
        raise LaunchError("ACCELERATE_USE_FSDP asks for FSDP, but accelerate does not use it on this device; unset it")


def _check_recipe(recipe: Recipe, saved: checkpoint.Checkpoint, allow_change: bool) -> None:
    before, now = _flat(Recipe.stored(saved.state["recipe"]).settings()), _flat(recipe.settings())
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed and not allow_change:
        shown = ", ".join(f"{key} ({before.get(key)!r} -> {now.get(key)!r})" for key in changed)
        raise RunError(f"the recipe has changed since this run began: {shown}. Use another --out, or --allow-change")


def _flat(blocks: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their keys 'block.key'."""
    flat: dict[str, Any] = {}
    for key, value in blocks.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + str(key): value}
    return flat


@contextmanager
def _locked(folder: Path, engine: Accelerator) -> Iterator[None]:
    """Lock a run folder; the system releases the lock when the process ends, also after kill -9."""
    if not engine.is_main_process:
        engine.wait_for_everyone()
        yield
        return
    owner = folder / "run.pid"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / "run.lock", timeout=0))
            files.write_whole({owner: str(os.getpid()).encode()})
        except Timeout as error:
            process = owner.read_text() if owner.exists() else "unknown"
            raise BusyError(f"process {process} is training in {folder}; use another --out") from error
        except OSError as error:
            raise RunError(f"cannot write to the run folder {folder}: {error}") from error
        engine.wait_for_everyone()
        yield
