"""The neurons of a model: which tensors hold them, and along which axis.

A neuron is a row. Linear (O, I): the weight itself. Convolution (O, I / groups, kernel): one output filter. Transposed
convolution (I, O / groups, kernel): one output channel. Recurrent layers: one matrix per gate.
`nn.MultiheadAttention`: query, key and value separately; timm's `qkv` is an `nn.Linear` and so counts as one matrix.
Embedding (V, D): one row per token, only if selected by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hyperzoo.errors import InputError
from hyperzoo.layers import hooks
from hyperzoo.layers.recurrent_bn import BatchNormLSTM

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
GATES = {4: "ifgo", 3: "rzn"}  # of LSTM and GRU, in torch's order


@dataclass(frozen=True)
class Layer:
    """One matrix of neurons: a tensor of a module, or one of the `parts` stacked in it."""

    name: str
    module: nn.Module
    tensor: str
    part: int = 0
    parts: int = 1

    @property
    def weight(self) -> Tensor:
        """The whole tensor, in the shape that the module stores."""
        weight: Tensor = getattr(self.module, self.tensor)
        return weight

    def rows(self) -> Tensor:
        """The current neurons, (N, D). The order within a row follows memory; no angle depends on it."""
        weight = self.weight
        refuse_sharded(self.name, weight)
        if isinstance(self.module, TRANSPOSED):
            weight = weight.unflatten(0, (self.module.groups, -1)).transpose(1, 2).flatten(0, 1)
        if self.parts > 1:
            weight = weight.chunk(self.parts)[self.part]
        if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            weight = weight.permute(0, 2, 3, 1)  # a view; flattening without it copies
        return weight.flatten(1)


@dataclass(frozen=True)
class Neurons:
    """The selected layers of a model, and the reason why others were skipped ({name: reason})."""

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
    """Find the matrices of neurons of any model, without changing it.

    Args:
        layers: hidden layers, as for `hooks.select` ('layer1', 'layer?.*.conv2', 'type:SphereConv2d'); a block selects
            all layers in it [default: every convolution, linear, recurrent and attention layer, except embeddings and
            depthwise convolutions, whose neurons are single kernels].
        exclude: hidden layers to skip, as for `hooks.select`.
        output_layer: name of the output layer [default: timm's `get_classifier()`; for a model without it the last
            layer, if that is an `nn.Linear`, otherwise none].
        frozen: include layers that are not trained.
    Raises:
        UnknownNameError: a selector without a match.
        InputError: a selected weight that is sharded, lazy, not finite, not floating point, or has fewer than two
            dimensions.
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
    # the output layer first, so that a tensor shared with an embedding counts as output layer
    for layer in sorted(found, key=lambda layer: layer.module not in outputs):
        is_output = layer.module in outputs
        if not is_output and (layer.module in unwanted or (wanted is not None and layer.module not in wanted)):
            continue
        with torch.enable_grad():  # a parametrized weight is computed here
            weight = layer.weight
        _check_kind(layer.name, weight)
        reason = _reason_to_skip(layer, weight, is_output or wanted is not None, seen)
        if not weight.requires_grad and not frozen:
            reason = reason or "frozen"
        if reason:
            skipped[layer.name] = reason
            continue
        if not weight.is_meta and not bool(weight.detach().isfinite().all()):
            raise InputError(f"{layer.name} has NaN or infinite weights: load valid ones, or exclude it")
        if layer.part == layer.parts - 1:
            seen[weight] = layer.name
        (output if is_output else hidden).append(layer)
    return Neurons(tuple(hidden), tuple(output), skipped)


def check_rows(weight: Tensor) -> None:
    """Raise InputError unless the weight is a floating-point matrix (..., N, D) held by this process."""
    refuse_sharded("weight", weight)
    if weight.dim() < 2 or not weight.is_floating_point():
        raise InputError(
            f"expected floating-point (N, D), one neuron per row; got {tuple(weight.shape)} {weight.dtype}"
        )


def refuse_sharded(name: str, weight: Tensor) -> None:
    """Raise InputError for a DTensor, recognized by `placements`, because importing its class takes a second."""
    if hasattr(weight, "placements"):
        raise InputError(f"{name} is sharded (a DTensor): {_SHARDED}")


_SHARDED = "each process holds only some of the neurons, so most pairs would be missed. Use DDP, or drop the term"


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
    """The tensors of a module that hold neurons, each with the letters of its stacked matrices."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase, BatchNormLSTM)):
        names = [*dict(module.named_parameters(recurse=False)), *getattr(module, "parametrizations", ())]
        sizes = {name: len(getattr(module, name)) // module.hidden_size for name in names if name.startswith("weight_")}
        return [(name, "" if name.startswith("weight_hr") else GATES.get(size, "")) for name, size in sizes.items()]
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
        heads = hooks.classifiers(model)
    else:
        layers = [module for module in model.modules() if _tensors(module) and not isinstance(module, EMBEDDINGS)]
        heads = [module for module in layers[-1:] if isinstance(module, nn.Linear)]
    inside = [[module for module in head.modules() if _tensors(module)] for head in heads]
    if name is not None and not all(inside):
        raise InputError(f"output_layer={name!r} has no neurons; name a linear, convolutional or recurrent layer")
    return [modules[-1] for modules in inside if modules]


def _check_kind(name: str, weight: Tensor) -> None:
    refuse_sharded(name, weight)
    if is_lazy(weight):
        raise InputError(f"{name} is lazy and has no weight: run one forward pass first")
    if not weight.is_floating_point():
        raise InputError(f"{name} holds {weight.dtype}, not floating-point directions: exclude it")
    if weight.dim() < 2:
        raise InputError(f"{name} has a weight of shape {tuple(weight.shape)}; neurons need two dimensions or more")


def _reason_to_skip(layer: Layer, weight: Tensor, asked_for: bool, seen: dict[Tensor, str]) -> str | None:
    module = layer.module
    if weight in seen:
        return f"the same tensor as {seen[weight]}"
    if isinstance(module, EMBEDDINGS) and not asked_for:
        return "an embedding; select it by name in layers"
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and 1 < module.groups == module.in_channels and not asked_for:
        return "depthwise, so its neurons are single kernels; select it by name in layers"
    return None
