"""Training rate of the engine on synthetic samples, shared by several benchmarks."""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from hyperzoo.training.loop import Batches, Trainer
from hyperzoo.training.progress import Progress
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.schedule import make_optimizer
from hyperzoo.training.step import TrainStep


def median_rate(
    plan: Recipe,
    engine: Accelerator,
    step: TrainStep,
    batches: Batches,
    between: Callable[[nn.Module], dict[str, float]],
    compile_model: bool = False,
) -> float:
    """Images or tokens per second, the median over all epochs but the first; `between` runs after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            recipe=plan,
            accelerator=engine,
            step=step,
            optimizer=make_optimizer(step, plan.optim),
            batches=batches,
            folder=Path(folder),
            progress=Progress("benchmark", plan.train.epochs, active=False, unit=step.unit),
            evaluate=between,
            compile_model=compile_model,
        )
        trainer.run()
    return statistics.median(row[f"{step.unit}_per_s"] for row in trainer.rows[1:])
