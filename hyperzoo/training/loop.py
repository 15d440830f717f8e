"""The training loop: update, check, log, checkpoint. It resumes after the last whole epoch and stops on signals."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hyperzoo import files
from hyperzoo.errors import CheckpointError, NonFiniteError, RunError
from hyperzoo.training import checkpoint
from hyperzoo.training.progress import Progress
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.schedule import Schedule
from hyperzoo.training.seeding import seed_epoch
from hyperzoo.training.step import TrainStep

RECIPE_SETTINGS = ("lr", "weight_decay", "momentum", "betas")  # of a parameter group; a resumed run may change them


class Stopped(RunError):
    """A signal ended the run after a whole step; the run resumes after the last whole epoch."""

    def __init__(self, number: int, epoch: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the run resumes after epoch {epoch}")
        self.exit_code = 128 + number


class Batches(Protocol):
    """A training set: its batches per epoch, and an iterator over (inputs, labels, indices)."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]: ...


@dataclass
class Trainer:
    """Train a step in a run folder.

    Args:
        step: model and criterion, on the accelerator's device.
        batches: this process's share of the training set.
        evaluate: called with the model to be published, after every `validate_every`-th epoch and after the last one;
            its metrics go into the log.
        recipe_changes, started_from, trained_on: kept in the checkpoints, for result.json and for the next start.
    """

    recipe: Recipe
    accelerator: Accelerator
    step: TrainStep
    optimizer: torch.optim.Optimizer
    batches: Batches
    folder: Path
    progress: Progress
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    compile_model: bool = False
    recipe_changes: list[dict[str, Any]] = field(default_factory=list)
    started_from: dict[str, Any] | None = None
    trained_on: dict[str, Any] | None = None
    _pending: int | None = field(default=None, init=False)
    rows: list[dict[str, Any]] = field(default_factory=list, init=False)

    def run(self, resume_from: checkpoint.Checkpoint | None = None) -> nn.Module:
        """Train to the last epoch; returns the model to be published.

        Raises:
            NonFiniteError: NaN or infinity in a loss or gradient, whose update was not made, or in the state after an
                epoch, which was not saved.
            CheckpointError: a checkpoint does not fit the model, or cannot be written.
            Stopped: SIGINT or SIGTERM.
        """
        train, optim = self.recipe.train, self.recipe.optim
        model = self.step.model
        self._ema = ModelEmaV3(model, decay=train.ema, use_warmup=True) if train.ema else None
        first = self._restore(resume_from) if resume_from else 0
        self._schedule = Schedule(self.optimizer, optim, epochs=train.epochs, updates_per_epoch=len(self.batches))
        if self.compile_model:
            model.compile(dynamic=False)
        self._wrapped = self.accelerator.prepare_model(self.step)
        self._write_log()
        with self._signals(), self.progress:
            for epoch in range(first + 1, train.epochs + 1):
                seed_epoch(train.seed, epoch)
                self.step.begin_epoch(torch.initial_seed())
                row = self._epoch(epoch)
                self._share_buffers()
                self._check_state(epoch)
                if self.evaluate is not None and (epoch % train.validate_every == 0 or epoch == train.epochs):
                    row |= self.evaluate(self.published)
                self.rows.append(row)
                if self.accelerator.is_main_process:
                    checkpoint.save(self.folder / "checkpoints", self._snapshot(epoch))
                    self._write_log()
                    self.progress.epoch_done(row)
                self.accelerator.wait_for_everyone()
                if self._pending is not None:
                    raise Stopped(self._pending, epoch)
        return self.published

    @property
    def published(self) -> nn.Module:
        """The averaged model if the recipe sets `train.ema`, otherwise the trained one."""
        return self._ema.module if self._ema else self.step.model

    def _share_buffers(self) -> None:
        """Give all processes the buffers of the first, whose model is saved: each has statistics of its own images."""
        if self.accelerator.num_processes > 1:
            for buffer in self.published.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        self.step.train()
        size = self.recipe.data.resized_to(epoch)
        started, seen = time.perf_counter(), 0
        totals: Tensor | None = None
        norm = torch.zeros(())
        rate = 0.0
        for number, batch in enumerate(self.batches.epoch(epoch)):
            rate = self._schedule.apply((epoch - 1) * len(self.batches) + number)
            sums, norm = self._update(batch, size, epoch, number)
            totals = sums if totals is None else totals + sums
            seen += batch[1].numel()
            if self._pending is not None:
                raise Stopped(self._pending, epoch - 1)
            if self.progress.wants_update():
                self.progress.update(epoch, number + 1, len(self.batches), totals[:2] / seen, self._rate(seen, started))
        assert totals is not None, "an epoch has at least one batch"
        loss, correct, *terms, count = self.accelerator.reduce(torch.cat([totals, totals.new_tensor([seen])])).tolist()
        names = ("task", *self.step.terms)
        return {
            "epoch": epoch,
            "loss": loss / count,
            **({f"loss_{name}": value / count for name, value in zip(names, terms, strict=True)} if terms[1:] else {}),
            "train_accuracy": 100 * correct / count,
            "lr": rate,
            "grad_norm": float(norm),
            **({"size_px": size or batch[0].shape[-1]} if batch[0].ndim == 4 else {}),
            "seconds": round(time.perf_counter() - started, 3),
            f"{self.step.unit}_per_s": round(self._rate(seen, started), 1),
            **({"reports": reports} if (reports := self._reports()) else {}),
        }

    def _reports(self) -> dict[str, dict[str, float]]:
        """Statistics of the layers in the last update, from each term that has a `report`."""
        found: dict[str, dict[str, float]] = {
            name: getattr(term, "report", dict)() for name, term in self.step.terms.items()
        }
        return {name: report for name, report in found.items() if report}

    def _update(
        self, batch: tuple[Tensor, Tensor, Tensor], size: int | None, epoch: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """One optimizer step in `accumulate` parts; returns the sums over the batch of loss, correct answers and terms,
        and the gradient norm."""
        images, labels, _ = batch
        count = self.recipe.train.accumulate
        parts = list(zip(images.chunk(count), labels.chunk(count), strict=True))
        sums = torch.zeros(3 + len(self.step.terms), device=images.device)
        terms: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for i, (x, y) in enumerate(parts):
            quiet = self.accelerator.no_sync(self._wrapped) if i + 1 < len(parts) else nullcontext()
            with quiet:
                result = self._wrapped(x, y, size, len(images) / len(x) if i == 0 else 0.0)
                (result.loss * (len(x) / len(images))).backward()
            n = y.numel()
            sums += torch.stack([result.loss.detach() * n, result.correct, *(v * n for v in result.terms.values())])
            terms = {key: terms.get(key, 0) + value * (len(x) / len(images)) for key, value in result.terms.items()}
        norm = self.accelerator.clip_grad_norm_(self.step.parameters(), self.recipe.optim.clip_norm or math.inf)
        if not self._everywhere(torch.isfinite(sums[0]) & torch.isfinite(norm)):
            raise self._non_finite(batch, terms, norm, epoch, number)
        self.optimizer.step()
        if self._ema:
            self._ema.update(self.step.model, step=(epoch - 1) * len(self.batches) + number)
        return sums, norm

    def _non_finite(
        self, batch: Any, terms: dict[str, Tensor], norm: Tensor, epoch: int, number: int
    ) -> NonFiniteError:
        inputs, _, indices = batch
        bad = indices[~torch.isfinite(inputs).flatten(1).all(1)]
        dots = " ..." if len(indices) > 16 else ""
        found = [
            ", ".join(f"{name} {float(value):.6g}" for name, value in terms.items()),
            f"gradient norm {float(norm):.6g}",
            f"images with NaN or infinity: {bad.tolist()}" if len(bad) else f"samples: {indices[:16].tolist()}{dots}",
            *(f"in {name}: {layers}" for name, report in self._reports().items() if (layers := _not_finite(report))),
        ]
        return NonFiniteError(
            f"epoch {epoch}, step {number + 1}: loss terms: {'; '.join(found)}. No step was taken"
            f"{' (found by another process)' if self._finite(terms, norm) else ''}. "
            f"Last good checkpoint: epoch {epoch - 1}. Lower optim.lr or set optim.clip_norm"
        )

    def _check_state(self, epoch: int) -> None:
        """Raise a NonFiniteError if the state after an epoch is not finite.

        The check before an update sees neither an overflow of the update itself nor the buffers.
        """
        bad = checkpoint.not_finite(self._snapshot(epoch).tensors)
        if not self._everywhere(torch.tensor(not bad, device=self.accelerator.device)):
            raise NonFiniteError(
                f"epoch {epoch}, after its last step: NaN or infinity in {bad or 'another process'}; this was not "
                f"saved. Last good checkpoint: epoch {epoch - 1}. Lower optim.lr or set optim.clip_norm"
            )

    def _everywhere(self, flag: Tensor) -> bool:
        """Whether a flag () is true in every process."""
        if self.accelerator.num_processes > 1:
            flag = self.accelerator.reduce(flag.float(), "mean") == 1
        return bool(flag)

    @staticmethod
    def _finite(terms: dict[str, Tensor], norm: Tensor) -> bool:
        return bool(torch.isfinite(norm)) and all(bool(torch.isfinite(value)) for value in terms.values())

    def _rate(self, seen: int, started: float) -> float:
        return seen * self.accelerator.num_processes / (time.perf_counter() - started)

    def _snapshot(self, epoch: int) -> checkpoint.Checkpoint:
        tensors, rest = checkpoint.pack_optimizer(self.optimizer)
        groups = {"step": self.step.state_dict(), "optimizer": tensors}
        if self._ema:
            groups["ema"] = self._ema.module.state_dict()
        state = {"optimizer": rest, "recipe": self.recipe.settings(), "rows": self.rows}
        state["recipe_changes"] = self.recipe_changes
        state |= {"started_from": self.started_from} if self.started_from else {}
        state |= {"trained_on": self.trained_on} if self.trained_on else {}
        return checkpoint.Checkpoint(epoch, groups, state)

    def _restore(self, saved: checkpoint.Checkpoint) -> int:
        groups = self.optimizer.param_groups
        settings = [{key: group[key] for key in RECIPE_SETTINGS if key in group} for group in groups]
        try:
            self.step.load_state_dict(saved.tensors["step"])
            checkpoint.unpack_optimizer(self.optimizer, saved.tensors.get("optimizer", {}), saved.state["optimizer"])
            if self._ema:
                self._ema.module.load_state_dict(saved.tensors["ema"])
            self.rows = list(saved.state["rows"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint of epoch {saved.epoch} in {self.folder} does not fit the recipe and its data: "
                f"{error}. Use another --out"
            ) from error
        if len(self.rows) != saved.epoch:
            raise CheckpointError(
                f"the checkpoint of epoch {saved.epoch} in {self.folder} logs {len(self.rows)} epochs; delete it"
            )
        for group, of_recipe in zip(self.optimizer.param_groups, settings, strict=True):
            group.pop("initial_lr", None)  # the schedule sets it anew
            group |= of_recipe
        return saved.epoch

    def _write_log(self) -> None:
        """Write metrics.jsonl, one line per epoch, from the rows of the checkpoint, so that the two agree."""
        if self.accelerator.is_main_process:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            files.write_whole({self.folder / "metrics.jsonl": text.encode()})

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM take effect after the step; a second signal ends the process at once."""

        def note(number: int, _: Any) -> None:
            self._pending = number
            signal.signal(number, signal.SIG_DFL)

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signal handlers exist in the main thread only
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _not_finite(report: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in report.items() if not math.isfinite(value))
