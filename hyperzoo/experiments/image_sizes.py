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


def size_of(train: Samples, dataset: str | data.OwnImages) -> int | None:
    """The size of the training images in pixels; None for texts, and for data sets streamed at the network's size."""
    if isinstance(dataset, data.OwnImages):
        return dataset.fit.size_px
    return int(train.images.shape[-1]) if isinstance(train, data.ImageSet) else None


def check_sizes(recipe: Recipe, network: nn.Module, channels: int, size_px: int) -> None:
    """Raise a RecipeError unless the network takes images of the recipe's sizes; many transformers have one size.

    Args:
        network: is tried in evaluation mode; a training step also in training mode, on two images.
    """
    modes = ((1, False), (2, True))[: 2 if isinstance(network, TrainStep) else 1]
    for size in sorted({size_px, *recipe.data.resize_px.values()}):
        try:
            for count, training in modes:
                forward(network, torch.zeros(count, channels, size, size), training=training)
        except Exception as error:  # layers raise any kind for a shape that they do not take
            own = recipe.model.args.get("img_size") or pretrained.description(recipe)["input_size"][-1]
            other = "or choose another network" if size == size_px else "or leave data.resize_px out"
            raise RecipeError(
                f"{recipe.model.arch} takes no images of {size} x {size} pixels ({names.cut(str(error))}); set "
                f"data.size_px to {own}, the network's own size, {other}"
            ) from error
