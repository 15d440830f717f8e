"""The neurons of a model: which of its tensors hold them, and along which axis.

A neuron is a row. Linear (O, I): as it is. Convolution (O, I / groups, kernel): one output filter. Transposed
convolution (I, O / groups, kernel): one output channel. Recurrent layers: the rows of each gate, every gate a matrix of
its own. Attention: query, key and value apart. Embedding (V, D): one row a token, only where it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hyperzoo.errors import InputError
from hyperzoo.layers import hooks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
GATES = {4: "ifgo", 3: "rzn"}  # of LSTM and GRU, in the order in which torch stacks them


@dataclass(frozen=True)
class Layer:
    """One matrix of neurons: a tensor of a module, or one of the `parts` that are stacked in it."""

    name: str
    module: nn.Module
    tensor: str
    part: int = 0
    parts: int = 1

    @property
    def weight(self) -> Tensor:
        """The whole tensor, in the shape in which the module keeps it."""
        weight: Tensor = getattr(self.module, self.tensor)
        return weight

    def rows(self) -> Tensor:
        """The neurons as they are now, (N, D). The order inside a row follows memory: no angle depends on it."""
        weight = self.weight
        refuse_sharded(self.name, weight)
        if isinstance(self.module, TRANSPOSED):
            weight = weight.unflatten(0, (self.module.groups, -1)).transpose(1, 2).flatten(0, 1)
        if self.parts > 1:
            weight = weight.chunk(self.parts)[self.part]
        if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            weight = weight.permute(0, 2, 3, 1)  # a view; flattening it as it is would copy
        return weight.flatten(1)


@dataclass(frozen=True)
class Neurons:
    """The chosen layers of a model, and why others were left out ({name: reason})."""

    hidden: tuple[Layer, ...]
    output: tuple[Layer, ...]
    skipped: dict[str, str]


def select(
    model: nn.Module,
    *,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    output_layer: str | None = None,
    frozen: bool = False,
) -> Neurons:
    """Find the matrices of neurons of any model; nothing in the model is changed.

    Args:
        layers: hidden layers, by the words of `hooks.select` ('layer1', 'layer?.*.conv2', 'type:SphereConv2d'); a block
            stands for all layers in it. None: every convolution, linear, recurrent and attention layer, but no
            embedding, and no depthwise convolution, whose neurons are single kernels.
        exclude: hidden layers to leave out, by the same words.
        output_layer: name of the output layer. None: what timm's `get_classifier()` says where the model has it, else
            the last linear layer.
        frozen: take layers that are not trained too.
    Raises:
        UnknownNameError: a word that nothing in the model fits.
        InputError: a chosen weight that is sharded, lazy, of fewer than two dimensions, not floating-point, not finite.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
        >>> [layer.name for layer in select(net).hidden], [layer.name for layer in select(net).output]
        (['0'], ['2'])
    """
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise InputError(f"the model is sharded (FSDP): {_SHARDED}")
    model = hooks.unwrapped(model)
    found = [layer for name, module in model.named_modules() for layer in _layers(name, module)]
    outputs = _output_modules(model, output_layer)
    wanted = None if layers is None else _modules_in(model, layers)
    unwanted = _modules_in(model, exclude) if exclude else set()
    hidden: list[Layer] = []
    output: list[Layer] = []
    skipped: dict[str, str] = {}
    seen: dict[Tensor, str] = {}
    # the output layer first: a tensor that it shares with an embedding is an output layer
    for layer in sorted(found, key=lambda layer: layer.module not in outputs):
        is_output = layer.module in outputs
        if not is_output and (layer.module in unwanted or (wanted is not None and layer.module not in wanted)):
            continue
        with torch.enable_grad():  # a parametrised weight is computed here
            weight = layer.weight
        _check_kind(layer.name, weight)
        reason = _reason_to_skip(layer, weight, is_output or wanted is not None, seen)
        if not weight.requires_grad and not frozen:
            reason = reason or "frozen"
        if reason:
            skipped[layer.name] = reason
            continue
        if not weight.is_meta and not bool(weight.detach().isfinite().all()):
            raise InputError(f"{layer.name} holds NaN or infinite weights: load sound ones, or exclude it")
        if layer.part == layer.parts - 1:
            seen[weight] = layer.name
        (output if is_output else hidden).append(layer)
    return Neurons(tuple(hidden), tuple(output), skipped)


def check_rows(weight: Tensor) -> None:
    """Raise InputError unless the weight is a floating-point matrix (..., N, D) held by this process."""
    refuse_sharded("weight", weight)
    if weight.dim() < 2 or not weight.is_floating_point():
        raise InputError(
            f"expected floating-point (N, D), one neuron per row; got {weight.dtype} {tuple(weight.shape)}"
        )


def refuse_sharded(name: str, weight: Tensor) -> None:
    """A DTensor is told by its `placements`: importing its class takes a second."""
    if hasattr(weight, "placements"):
        raise InputError(f"{name} is sharded (a DTensor): {_SHARDED}")


_SHARDED = "each process holds some of the neurons only, and most pairs would be missed. Use DDP, or do without"


def _modules_in(model: nn.Module, words: str | Sequence[str]) -> set[nn.Module]:
    return {inner for module in hooks.select(model, words).values() for inner in module.modules()}


def _layers(owner: str, module: nn.Module) -> Iterator[Layer]:
    for tensor, letters in _tensors(module):
        name = owner if owner and tensor == "weight" else f"{owner}.{tensor}".lstrip(".")
        if letters:
            for part, letter in enumerate(letters):
                yield Layer(f"{name}.{letter}", module, tensor, part, len(letters))
        else:
            yield Layer(name, module, tensor)


def _tensors(module: nn.Module) -> list[tuple[str, str]]:
    """The tensors of a module that hold neurons, each with the letters of the matrices stacked in it."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        sizes = {name: len(w) // module.hidden_size for name, w in module.named_parameters(recurse=False)}
        return [
            (name, "" if name.startswith("weight_hr") else GATES.get(size, ""))
            for name, size in sizes.items()
            if name.startswith("weight_")
        ]
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            return [("in_proj_weight", "qkv")]
        return [(f"{letter}_proj_weight", "") for letter in "qkv"]
    return [("weight", "")] if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, *EMBEDDINGS, nn.Linear)) else []


def _output_modules(model: nn.Module, name: str | None) -> list[nn.Module]:
    heads: list[nn.Module]
    if name is not None:
        heads = list(hooks.select(model, name).values())
    elif callable(getattr(model, "get_classifier", None)):
        given = model.get_classifier()  # type: ignore[operator]
        heads = [head for head in (given if isinstance(given, (tuple, list)) else [given]) if head is not None]
    else:
        heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
        heads = heads[-1:]
    inside = [[module for module in head.modules() if _tensors(module)] for head in heads]
    if name is not None and not all(inside):
        raise InputError(f"output_layer={name!r} has no neurons: name a linear, convolution or recurrent layer")
    return [modules[-1] for modules in inside if modules]


def _check_kind(name: str, weight: Tensor) -> None:
    refuse_sharded(name, weight)
    if is_lazy(weight):
        raise InputError(f"{name} is lazy and has no weight yet: run one forward pass first")
    if not weight.is_floating_point():
        raise InputError(f"{name} holds {weight.dtype}, which are no directions: exclude it")
    if weight.dim() < 2:
        raise InputError(f"{name} has a weight of shape {tuple(weight.shape)}; neurons need two dimensions or more")


def _reason_to_skip(layer: Layer, weight: Tensor, asked_for: bool, seen: dict[Tensor, str]) -> str | None:
    module = layer.module
    if weight in seen:
        return f"the same tensor as {seen[weight]}"
    if isinstance(module, EMBEDDINGS) and not asked_for:
        return "an embedding: name it in layers"
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and 1 < module.groups == module.in_channels and not asked_for:
        return "depthwise, its neurons are single kernels: name it in layers"
    return None
