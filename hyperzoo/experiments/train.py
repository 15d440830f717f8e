"""Train a recipe into a run folder; with torchrun or accelerate launch, `-m hyperzoo train RECIPE` is distributed."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from hyperzoo import data, files
from hyperzoo.analysis import evaluate
from hyperzoo.data.load import Samples
from hyperzoo.errors import HyperzooError, LaunchError, RunError
from hyperzoo.experiments import build, changes, image_sizes, trial_batch
from hyperzoo.experiments.model_args import model_args
from hyperzoo.experiments.run_lock import locked
from hyperzoo.training import allocator, checkpoint, seeding
from hyperzoo.training.log import DESCRIBED, finished_result
from hyperzoo.training.loop import Trainer
from hyperzoo.training.progress import Progress
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.schedule import make_optimizer
from hyperzoo.training.step import memory_format
from hyperzoo.zoo.model_folder import save_model

PATIENCE = timedelta(minutes=10)  # longest wait for another process; epochs are shared, so waits are short
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
    """Train a recipe, from the newest checkpoint in its run folder if there is one; a finished run stays as it is.

    A run is finished if result.json is of this recipe and describes the files next to it. It is removed when training
    starts, and written last.

    Args:
        out: run folder [default: runs/<name>/<seed>; with your own images runs/<name>-<name of the images>/<seed>].
        allow_change: resume a run that another recipe began; result.json lists the changes. The keys in `changes.FIXED`
            cannot change.
    Raises:
        LaunchError: another number of processes than requested; nothing was written.
        BusyError: another process is training in the folder.
        RunError: the recipe has changed, a disk is full, or another process of the run ended or does not answer.
        NonFiniteError, CheckpointError, DataError: see `training.loop`, `training.checkpoint`, `data.sources`.
        Stopped: SIGINT or SIGTERM; carries the exit code.
    """
    named = f"{recipe.name}-{recipe.data.name}" if recipe.data.source else recipe.name
    folder = out or Path("runs") / named / str(recipe.train.seed)
    seeding.seed_epoch(recipe.train.seed, 0)
    # without a precision, which all Accelerators of a process share; `TrainStep` has the recipe's
    engine = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    _check_processes(recipe, engine)
    with locked(folder, engine), _typed_errors(folder, engine):
        done = finished_result(folder, recipe.digest())
        if done:
            return RunResult(folder, done, trained=False)
        saved = checkpoint.newest(folder / "checkpoints")
        changed = changes.recipe_changes(recipe, saved, allow_change) if saved else []
        return _run(recipe, folder, engine, saved, changed)


def _run(
    recipe: Recipe,
    folder: Path,
    engine: Accelerator,
    saved: checkpoint.Checkpoint | None,
    changed: list[dict[str, Any]],
) -> RunResult:
    started, environment = time.time(), seeding.environment()  # now: the code may change during a long run
    if engine.device.type == "cpu":
        allocator.keep()
    dataset = build.dataset(recipe)
    train, held = build.samples(recipe, dataset)
    if isinstance(dataset, data.OwnImages):
        dataset = dataset.like(train.channels)
    left_out = {"train": len(getattr(train, "skipped", ()))}
    if _reads_test_split(recipe):
        left_out["test"] = evaluate.check_test_split(dataset)  # now, rather than after the training
    if held is not None and held.split == "validation":
        left_out["validation"] = len(getattr(held, "skipped", ()))
    trained_on, started_from = changes.trained_on(recipe, train, held, saved), changes.started_from(recipe, saved)
    model = build.model(recipe, train.classes, train.channels)
    model = model.to(memory_format=memory_format(model))
    image_sizes.describe_images(model, train, dataset.fit.size_px if isinstance(dataset, data.OwnImages) else None)
    build.initialize(recipe, model, train)
    step = build.step(recipe, model.to(engine.device)).to(engine.device)  # terms group layers by device
    batches = build.batches(recipe, train, model, engine)
    if size_px := image_sizes.size_of(train, dataset):
        image_sizes.check_sizes(recipe, step, train.channels, size_px)  # type: ignore[union-attr]
    trial_batch.check_smallest_batch(recipe, step, len(train), engine.num_processes)
    progress = Progress(
        recipe.name, recipe.train.epochs, saved.epoch if saved else 0, engine.is_main_process, unit=step.unit
    )
    compiled, reason = build.compiles(recipe, model, recipe.train.epochs * len(batches), engine.device)
    progress.say(
        f"{recipe.name}: {len(train)} {step.unit}, {len(batches)} updates an epoch, {build.precision(recipe)}, "
        f"{engine.num_processes} process(es) on {engine.device.type}; {reason}"
    )
    for line in _remarks(recipe, dataset, train, left_out):
        progress.say(line)
    if started_from:
        progress.say(f"starting from {started_from['name']}")
    if saved:
        progress.say(f"resuming after epoch {saved.epoch}")

    def on_held_out(published: nn.Module) -> dict[str, Any]:
        assert held is not None
        values = evaluate.measure(published, held, engine=engine, workers=recipe.data.workers).as_dict()
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
        recipe_changes=changed,
        started_from=started_from,
        trained_on=trained_on,
    )
    if engine.is_main_process:
        (folder / "result.json").unlink(missing_ok=True)
    published = trainer.run(saved)
    split, metrics = _final_metrics(recipe, published, dataset, held, engine)
    values = {
        "name": recipe.name,
        "seed": recipe.train.seed,
        "split": split,
        "metrics": metrics.as_dict(),
        "train_fingerprint": train.fingerprint,
        f"train_{step.unit}": len(train),
        **({"skipped": left_out} if any(left_out.values()) else {}),
        **({"started_from": started_from} if started_from else {}),
        "recipe_sha256": recipe.digest(),
        "recipe": recipe.model_dump(mode="json"),
        "recipe_changes": changed,
        "precision": build.precision(recipe),
        "compiled": compiled,
        "epochs": recipe.train.epochs,
        "minutes": round(sum(row["seconds"] for row in trainer.rows) / 60, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment,
    }
    if engine.is_main_process:
        save_model(published, folder, classes=train.classes, args=model_args(recipe))
        values["files"] = {name: files.sha256(folder / name) for name in DESCRIBED if (folder / name).exists()}
        files.write_json(folder / "result.json", values)
        progress.say(f"{split}: {metrics}; {time.time() - started:.0f} s in this call -> {folder}")
    return RunResult(folder, values)


def _reads_test_split(recipe: Recipe) -> bool:
    return recipe.data.judge_on == "test" or not (recipe.data.hold_out or recipe.data.choice)


def _remarks(
    recipe: Recipe, dataset: str | data.OwnImages, train: Samples, left_out: Mapping[str, int]
) -> Iterator[str]:
    """Lines about own images, images that are left out, and batches that are smaller than asked."""
    if isinstance(dataset, data.OwnImages):
        yield dataset.summary(getattr(train, "skipped", ()))
        for part in ("validation", "test"):
            if count := left_out.get(part):
                yield f"{count} images that cannot be decoded are left out of {part}"
    if len(train) < recipe.data.batch_size and not recipe.data.is_text:
        yield f"the batches have {len(train)} images, all there are, not {recipe.data.batch_size}"


def _final_metrics(
    recipe: Recipe, model: nn.Module, dataset: str | data.OwnImages, held: Samples | None, engine: Accelerator
) -> tuple[str, evaluate.ImageMetrics | evaluate.LanguageMetrics]:
    """The split that the result of a run is measured on, as text, and the metrics."""
    if _reads_test_split(recipe):
        size = None if recipe.data.source else recipe.data.size_px
        metrics = evaluate.test_metrics(model, dataset, engine, workers=recipe.data.workers, size_px=size)
        return f"test at {size} px" if size else "test", metrics
    assert held is not None  # with data.hold_out or data.choice
    metrics = evaluate.measure(model, held, engine=engine, workers=recipe.data.workers)
    return "held-out part of train" if recipe.data.hold_out else "validation", metrics


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


@contextmanager
def _typed_errors(folder: Path, engine: Accelerator) -> Iterator[None]:
    """Turn errors of the system into RunErrors: a full disk, or a process that was killed or does not answer."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HyperzooError):
            raise
        raise RunError(
            f"the run in {folder} stopped: {error}. Free some space if a disk is full, and start it again; it resumes "
            "after its last whole epoch"
        ) from error
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)  # no type of its own
        if isinstance(error, HyperzooError) or not lost:
            raise
        raise RunError(
            f"process {engine.process_index} of {engine.num_processes} lost another one, which ended or did not answer "
            f"for {PATIENCE.total_seconds() / 60:g} minutes: {error}. Start the run again; it resumes after its last "
            "whole epoch"
        ) from error
