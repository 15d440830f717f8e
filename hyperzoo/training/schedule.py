"""timm's optimizers and learning-rate schedules; the rate is a pure function of the number of updates so far."""

from fnmatch import fnmatchcase
from typing import Any

from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from hyperzoo.errors import InputError
from hyperzoo.training.recipe import Optim


def make_optimizer(step: nn.Module, optim: Optim) -> Optimizer:
    """timm's optimizer for all parameters of a training step.

    As in timm, biases, norms, other vectors and the parameters in the model's `no_weight_decay()` do not decay. If
    `optim.decay` is set, exactly the parameters that match one of its patterns decay.

    Raises:
        InputError: a pattern of `decay` or `lr_scale` matches no parameter, or the optimizer refuses `args`.
    """
    extra: dict[str, Any] = dict(optim.args) if optim.betas is None else {"betas": tuple(optim.betas), **optim.args}
    groups = _groups(step, optim)
    try:
        return create_optimizer_v2(
            step,
            opt=optim.optimizer,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            param_group_fn=lambda _: groups,
            **extra,
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"timm's {optim.optimizer} refuses optim.args {optim.args}: {error}") from error


def _groups(step: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Groups of parameters with equal learning-rate scale (1 comes first; `Schedule` applies it) and weight decay."""
    named = {name.removeprefix("model."): p for name, p in step.named_parameters() if p.requires_grad}
    for pattern in (*(optim.decay or ()), *optim.lr_scale):
        if not any(fnmatchcase(name, pattern) for name in named):
            raise InputError(f"the pattern {pattern!r} of optim matches no parameter. Parameters: {', '.join(named)}")
    spared: set[str] = getattr(getattr(step, "model", None), "no_weight_decay", set)()
    depth = _layer_scales(step, optim.layer_decay) if optim.layer_decay else {}
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if optim.decay is None:
            decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in spared
        else:
            decays = any(fnmatchcase(name, pattern) for pattern in optim.decay)
        scale = next((scale for pattern, scale in optim.lr_scale.items() if fnmatchcase(name, pattern)), 1.0)
        scale *= depth.get(parameter, 1.0)
        groups.setdefault((scale != 1, scale, decays), []).append(parameter)
    return [
        {"params": members, "lr_scale": scale, "weight_decay": optim.weight_decay if decays else 0.0}
        for (_, scale, decays), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def _layer_scales(step: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """decay ** (number of layers above) for each parameter of the model; timm's `group_matcher` tells the layers."""
    model: nn.Module = step.model  # type: ignore[assignment]
    layers = param_groups_layer_decay(model, layer_decay=decay)
    return {parameter: group["lr_scale"] for group in layers for parameter in group["params"]}


class Schedule:
    """Set the learning rate of every group before an update.

    The rate depends only on the number of updates: warm-up from 0 to `lr` over `warmup_epochs`, then timm's schedule
    for the rest of the run. Without a state, it survives resuming, accumulation and several processes. A warm-up of at
    most one update is left out, because its only rate would be 0.

    Args:
        updates_per_epoch: optimizer steps per epoch.
    """

    def __init__(self, optimizer: Optimizer, optim: Optim, *, epochs: int, updates_per_epoch: int) -> None:
        self._optimizer = optimizer
        prefix = optim.schedule not in ("multistep", "constant")  # milestones count from the first epoch
        warmup_epochs = optim.warmup_epochs if optim.warmup_epochs * updates_per_epoch > 1 else 0.0
        falling = epochs - warmup_epochs if prefix else epochs
        self._scheduler: Any = create_scheduler_v2(
            optimizer,
            sched=optim.schedule,
            num_epochs=falling / optim.cycles,  # type: ignore[arg-type]  # fractions are fine
            warmup_epochs=warmup_epochs,  # type: ignore[arg-type]
            warmup_lr=0.0,
            warmup_prefix=prefix,
            decay_milestones=[m for m in optim.milestones],  # type: ignore[misc]
            decay_rate=optim.decay_rate or (1.0 if optim.schedule == "poly" else 0.1),
            cycle_limit=optim.cycles,
            cycle_decay=optim.cycle_decay,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )[0]

    def apply(self, update: int) -> float:
        """Set the rate of every group for an update (0 is the first); returns the rate of scale 1."""
        self._scheduler.step_update(update)
        first = self._optimizer.param_groups[0]
        return first["lr"] / first["lr_scale"]
