"""A batch that the network is tried on before the training: of one sample, which batch norm may not take."""

import timm
import torch
from torch import Tensor, nn

from hyperzoo import names
from hyperzoo.errors import RecipeError
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.step import TrainStep


def forward(network: nn.Module, inputs: Tensor, *, training: bool) -> None:
    """Run a network, or that of a training step, on inputs, without a trace: running statistics and generators stay.

    Shapes:
        inputs: (B, C, H, W) float32, or (B, T) int64 tokens.
    Args:
        training: in training mode, where the frozen layers of a training step stay in evaluation mode, or in evaluation
            mode.
    Raises:
        What the network raises.
    """
    model = network.model if isinstance(network, TrainStep) else network
    before, device = network.training, next(network.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            network.train(training)
            torch.func.functional_call(model, buffers, inputs.to(device))
    finally:
        network.train(before)


def check_smallest_batch(recipe: Recipe, step: TrainStep, count: int, processes: int) -> None:
    """Raise a RecipeError if a process has one sample at a time, and a layer of the network needs more in training.

    That is batch norm on a feature map of one pixel, or of a recurrent network. Batches have equal sizes, because an
    incomplete one is dropped.

    Args:
        count: training images; of a text, tokens.
    """
    batch_size, parts = recipe.data.batch_size, recipe.train.accumulate
    size = batch_size if recipe.data.is_text else min(batch_size, count)
    if len(torch.empty(size // processes).chunk(parts)[-1]) > 1:
        return
    try:
        for inputs in _inputs(recipe, step, 1):
            forward(step, inputs, training=True)
    except Exception as error:  # layers raise any kind
        try:
            for inputs in _inputs(recipe, step, 2):
                forward(step, inputs, training=True)
        except Exception:  # nothing about the size of the batch
            return
        few = size < batch_size or (not recipe.data.is_text and count < 2 * processes * parts)
        remedy = "add training images" if few else f"set data.batch_size to {2 * processes * parts} or more"
        fewer = ["use fewer processes"] * (processes > 1) + ["lower train.accumulate"] * (parts > 1)
        raise RecipeError(
            f"{recipe.model.arch} cannot be trained on one sample at a time ({names.cut(str(error))}), which is what a "
            f"batch of {size}{' (all images)' * (size < batch_size)} gives each of {processes} process(es) with "
            f"train.accumulate {parts}; {', or '.join([remedy, *fewer])}"
        ) from error


def _inputs(recipe: Recipe, step: TrainStep, count: int) -> list[Tensor]:
    """Zeros in the shapes of the training, of so many samples."""
    if recipe.data.is_text:
        return [torch.zeros(count, recipe.data.length, dtype=torch.int64)]
    channels, *size = timm.data.resolve_model_data_config(step.model)["input_size"]
    sizes = [size, *([px, px] for px in recipe.data.resize_px.values())]
    return [torch.zeros(count, channels, *shape) for shape in sizes]
