"""Optimizer and learning rate: timm's own, the rate a pure function of the number of updates so far."""

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from hyperzoo.training.config import Optim


def make_optimizer(step: nn.Module, optim: Optim) -> Optimizer:
    """timm's optimizer over all parameters of a training step; biases and norms get no weight decay."""
    extra: dict[str, Any] = {} if optim.betas is None else {"betas": tuple(optim.betas)}
    return create_optimizer_v2(
        step, opt=optim.optimizer, lr=optim.lr, weight_decay=optim.weight_decay, momentum=optim.momentum, **extra
    )


class Schedule:
    """Sets the learning rate of every group before an update.

    The rate depends on the number of updates alone: warm-up from 0 to `lr` over `warmup_epochs`, then timm's schedule
    over the rest of the run. It has no state, so resuming, accumulation and several processes cannot shift it.

    Args:
        updates_per_epoch: optimizer steps in an epoch.
    """

    def __init__(self, optimizer: Optimizer, optim: Optim, *, epochs: int, updates_per_epoch: int) -> None:
        self._optimizer = optimizer
        prefix = optim.schedule not in ("multistep", "constant")  # their milestones count from the first epoch
        self._scheduler: Any = create_scheduler_v2(
            optimizer,
            sched=optim.schedule,
            num_epochs=epochs - optim.warmup_epochs if prefix else epochs,  # type: ignore[arg-type]  # fractions are fine
            warmup_epochs=optim.warmup_epochs,  # type: ignore[arg-type]
            warmup_lr=0.0,
            warmup_prefix=prefix,
            decay_milestones=[m for m in optim.milestones],  # type: ignore[misc]
            decay_rate=optim.decay_rate or (1.0 if optim.schedule == "poly" else 0.1),
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )[0]

    def apply(self, update: int) -> float:
        """Set and return the rate for this update (0 is the first); of the first group, if they differ."""
        self._scheduler.step_update(update)
        return self._optimizer.param_groups[0]["lr"]
