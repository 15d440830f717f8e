"""Describe an architecture without its weights: size, input, feature stages, published weights."""

from dataclasses import dataclass
from typing import NamedTuple

import timm
import torch
from torch import nn

from hyperzoo import names
from hyperzoo.zoo.load import list_weights, weight_info
from hyperzoo.zoo.manifest import TASKS, VOCABULARY


class Stage(NamedTuple):
    """A stage of `feature_info`: its module, its output channels, and the stride of its output in input pixels."""

    module: str
    channels: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """An architecture of hyperzoo; parameters for the default number of classes or words.

    input_size: (C, H, W) of an image; for a language model (T,), the tokens of a training sequence.
    stages: empty for a language model.   weights: names of its published weights, the default first.
    """

    name: str
    family: str
    description: str
    task: str
    parameters: int
    input_size: tuple[int, ...]
    stages: tuple[Stage, ...]
    weights: tuple[str, ...]


def architecture(name: str) -> Architecture:
    """Describe an architecture; its tensors are never allocated.

    Raises:
        InvalidNameError, UnknownNameError: no architecture of hyperzoo.
    Example:
        >>> found = architecture('spherenet20')
        >>> found.parameters, found.input_size, found.stages[-1]
        (272474, (3, 32, 32), Stage(module='layer3', channels=64, stride=4))
    """
    weights = sorted(list_weights(name), key=lambda weight: not weight_info(weight).default)
    is_language, cfg = names.is_language(name), timm.get_pretrained_cfg(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    assert cfg is not None, "every architecture of hyperzoo has a default_cfg"
    return Architecture(
        name=name,
        family=family(name),
        description=(timm.model_entrypoint(name).__doc__ or "").strip().partition("\n")[0],
        task=next(task for task, files in TASKS.items() if (VOCABULARY in files) == is_language),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        input_size=tuple(cfg.input_size[-1:] if is_language else cfg.input_size),
        stages=() if is_language else _stages(model),
        weights=tuple(weights),
    )


def family(arch: str) -> str:
    """The family of a registered architecture: the file of `hyperzoo/models` that defines it."""
    return timm.model_entrypoint(arch).__module__.rpartition(".")[2]


def _stages(model: nn.Module) -> tuple[Stage, ...]:
    rows = model.feature_info
    return tuple(Stage(row["module"], row["num_chs"], row["reduction"]) for row in rows)  # type: ignore[union-attr]
