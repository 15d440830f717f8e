"""The size of the images of a run: written into the network's description, and checked before the training."""

from typing import Any

import torch
from torch import nn

from hyperzoo import data, names
from hyperzoo.data.load import Samples
from hyperzoo.errors import RecipeError
from hyperzoo.experiments import pretrained
from hyperzoo.experiments.trial_batch import forward
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.step import TrainStep


def describe_images(network: nn.Module, train: Samples, size_px: int | None = None) -> None:
    """Write the size of the training images into `network.pretrained_cfg`, in place.

    They are tested uncropped. If the description is for another number of channels (gray images), it also gets their
    mean and standard deviation. config.json keeps it, and evaluation, preprocessing and export read it.

    Args:
        size_px: of streamed images, which are tested with the crop of the description [default: the description's].
    """
    if isinstance(train, data.TextSet) or (isinstance(train, data.StreamedSet) and not size_px):
        return
    cfg: Any = network.pretrained_cfg
    if isinstance(train, data.StreamedSet):
        cfg |= {"input_size": (train.channels, size_px, size_px)}
        return
    cfg |= {"input_size": tuple(train.images.shape[1:]), "crop_pct": 1.0}
    for key in ("test_input_size", "test_crop_pct"):  # timm's larger images in tests
        cfg.pop(key, None)
    if len(cfg["mean"]) != train.channels:
        cfg["mean"], cfg["std"] = train.statistics()


def check_sizes(recipe: Recipe, step: TrainStep, channels: int, size_px: int) -> None:
    """Raise a RecipeError unless the network takes images of the recipe's sizes; many transformers have one size.

    It is tried in evaluation mode, and in training mode on two images; see `trial_batch.forward`.
    """
    for size in sorted({size_px, *recipe.data.resize_px.values()}):
        try:
            for count, training in ((1, False), (2, True)):
                forward(step, torch.zeros(count, channels, size, size), training=training)
        except Exception as error:  # layers raise any kind for a shape that they do not take
            own = recipe.model.args.get("img_size") or pretrained.description(recipe)["input_size"][-1]
            raise RecipeError(
                f"{recipe.model.arch} takes no images of {size} x {size} pixels ({names.cut(str(error))}); set "
                f"data.size_px to {own}, or leave data.resize_px out"
            ) from error
