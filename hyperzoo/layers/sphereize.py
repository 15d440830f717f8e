"""Convert the convolutions of any model to sphere layers, in place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from hyperzoo.errors import InputError
from hyperzoo.layers._torch import has_hooks
from hyperzoo.layers.hooks import classifiers, unwrapped
from hyperzoo.layers.operators import check_operator, first_raw_k
from hyperzoo.layers.sphere import SphereConv2d, SphereLinear

# Subclasses that compute the same as their parent, the first two after TensorFlow's SAME padding
_TF_SAME = ("timm.layers.conv2d_same.Conv2dSame", "timm.layers.conv2d_same.Conv2dSameExport")
_LIKE_PARENT = (*_TF_SAME, "timm.layers.linear.Linear")
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # sometimes without calling the layer
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class SphereizeReport:
    """Result of `sphereize`, by module names; a shared module appears under each of its names.

    Args:
        operator: operator of the new layers.
        changed: modules that are sphere layers now.
        left: convolutions and linear layers that were not converted, with the reason.
        out_of_place: activations whose `inplace` was set to False.
    """

    operator: str
    changed: tuple[str, ...]
    left: dict[str, str]
    out_of_place: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"sphereize: {len(self.changed)} changed to operator={self.operator}, {len(self.left)} left"]
        if self.changed:
            lines.append(f"  changed: {_few(self.changed)}")
        for reason in dict.fromkeys(self.left.values()):
            lines.append(f"  left, {reason}: {_few([name for name in self.left if self.left[name] == reason])}")
        if self.out_of_place:
            lines.append(f"  inplace=False, because cosine layers need their outputs: {_few(self.out_of_place)}")
        return "\n".join(lines)


def sphereize(
    model: nn.Module,
    operator: str = "cosine",
    *,
    k: float = 0.3,
    eps: float = 1e-4,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    linear: bool = False,
) -> SphereizeReport:
    """Convert the convolutions of a model to sphere layers, in place, and report what was converted.

    A new layer reuses the parameters of the old one, so weights, device, dtype, memory format, `requires_grad`, ties,
    optimizer references and state-dict names stay; only the learnable operator adds `raw_k`. A bias is added to
    g(theta), as in the paper's formula (arXiv 1711.03189, section 2). A second call changes nothing.

    Args:
        model: any module. Convolutions with any stride, dilation, groups and zero padding are converted ('same' and
            timm's Conv2dSame too); a shared module is converted once and stays shared.
        operator, k, eps: as for `SphereConv2d`.
        include, exclude: glob patterns of module names, such as ['layer1.*'] [default: include all, exclude none].
            Exclude the head of a model without timm's `get_classifier`, such as a final 1 x 1 convolution: it is
            converted like any other layer, and bounded outputs are poor logits.
        linear: also convert `nn.Linear`.
    Returns:
        The converted names, and the skipped names with the reason: subclasses with their own forward, padding other
        than zeros, hooks or parametrizations, filters that see a single number (their angle is only a sign), and timm's
        classifier (`get_classifier()`) unless `include` matches it, because bounded outputs are poor logits.
    Raises:
        InputError: bad arguments, a pattern without a match, a model that has no convolution or is one itself, none of
            the layers to convert can be (timm's StdConv2d), a lazy or quantized layer to convert. The model is then
            unchanged.
    Differs:
        With the cosine, `inplace` is set to False on all activations, because the backward pass needs the output of the
        convolution. In-place code inside a forward method is not detected; directly after a cosine layer, autograd
        raises an error. Nor is code that reads `layer.weight` without calling the layer, except torch's own attention,
        which is skipped.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2))
        >>> print(sphereize(net, 'linear'))
        sphereize: 1 changed to operator=linear, 1 left
          changed: 0
          left, linear=True converts it: 3
    """
    check_operator(operator, k, eps)
    layers: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) or _is_quantized(module):
            layers.setdefault(module, []).append(name)
    if not any(linear or not _is_linear(module) for module in layers):
        hint = "; linear=True takes its linear layers" if layers else ""
        raise InputError(f"{type(model).__name__} has no convolution to convert{hint}")
    selected = _select([name for names in layers.values() for name in names], include, exclude)
    heads = () if include is not None else classifiers(unwrapped(model))
    reserved = {layer for head in heads for layer in head.modules()}
    read = {layer for reader in model.modules() if isinstance(reader, _READS_WEIGHTS) for layer in reader.modules()}

    new: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}
    refused: dict[str, list[str]] = {}  # why a layer that the arguments choose cannot be converted: names
    for layer, names in layers.items():
        why = kept_out = _kept_out(names, selected)
        if not kept_out and (why := _why_left(layer, linear)) and (linear or not _is_linear(layer)):
            refused.setdefault(why, []).extend(names)
        if not why and layer in reserved:
            why = "the classifier: include takes it"
        if not why and layer in read:
            why = "a torch attention layer reads the weight without calling the layer"
        if why:
            left.update(dict.fromkeys(names, why))
            continue
        _check_convertible(layer, names[0])
        new[layer] = _sphere(layer, operator, k, eps)

    if refused and not new and not any(isinstance(layer, (SphereConv2d, SphereLinear)) for layer in layers):
        shown = "; ".join(f"{why}: {_few(names)}" for why, names in refused.items())
        raise InputError(
            f"sphereize converts no layer of {type(model).__name__} ({shown}). Replace these by plain nn.Conv2d first, "
            "or choose another network"
        )
    for layer, replacement in new.items():
        for name in layers[layer]:
            model.set_submodule(name, replacement)
    changed = tuple(name for layer in new for name in layers[layer])
    loose = operator == "cosine" and any(getattr(layer, "bias", None) is None for layer in new.values())
    return SphereizeReport(operator, changed, left, tuple(_set_out_of_place(model)) if loose else ())


def _select(names: list[str], include: Sequence[str] | None, exclude: Sequence[str] | None) -> dict[str, str]:
    """For each name, the reason why it is not selected, or ''."""
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if patterns is None:
            continue
        if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"{argument} must be a list of patterns, such as ['layer1.*']; got {patterns!r}")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(
                    f"{argument}: {pattern!r} matches no convolution and no linear layer. Names: {_few(names)}"
                )
    reasons = {}
    for name in names:
        taken = include is None or any(fnmatchcase(name, pattern) for pattern in include)
        refused = any(fnmatchcase(name, pattern) for pattern in exclude or ())
        reasons[name] = "in exclude" if refused else "" if taken else "not in include"
    return reasons


def _kept_out(names: list[str], selected: dict[str, str]) -> str:
    """The reason to skip a module: it is excluded under any name, or included under none; or ''."""
    reasons = [selected[name] for name in names]
    return "in exclude" if "in exclude" in reasons else "" if "" in reasons else reasons[0]


def _why_left(layer: nn.Module, linear: bool) -> str:
    """The reason why a layer cannot or should not become a sphere layer, or ''."""
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if isinstance(layer, (SphereConv2d, SphereLinear)):
        return f"a sphere layer already (operator={layer.operator})"
    if _is_linear(layer) and not linear:
        return "linear=True converts it"
    if _is_quantized(layer):
        return ""  # `_check_convertible` raises
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        return f"{type(layer).__name__} has no sphere form"
    if isinstance(layer, LazyModuleMixin):
        return ""  # `_check_convertible` raises
    if hasattr(layer, "parametrizations") or not isinstance(layer.weight, nn.Parameter):
        return "its weight is parametrized"
    if layer.weight.is_complex():
        return "its weight is complex"
    if has_hooks(layer):
        return "it has hooks"
    if kind not in _LIKE_PARENT and _has_own_forward(layer):
        return f"{type(layer).__name__} has its own forward"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding_mode={layer.padding_mode}"
    if layer.weight[0].numel() == 1:
        return "each filter sees a single number, whose angle is only a sign"
    return ""


def _has_own_forward(layer: nn.Conv2d | nn.Linear) -> bool:
    parent = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    methods = ("forward", "_conv_forward") if parent is nn.Conv2d else ("forward",)
    return any(name in vars(layer) or getattr(type(layer), name) is not getattr(parent, name) for name in methods)


def _check_convertible(layer: nn.Module, name: str) -> None:
    """Raise InputError for a layer that must not be skipped silently."""
    kind = type(layer).__name__
    if not name:
        raise InputError(
            f"the model itself is a {kind}, which cannot be replaced in place; build a sphere layer instead"
        )
    if isinstance(layer, LazyModuleMixin):
        raise InputError(f"{name} is a {kind} without weights; run the model on one batch before sphereize")
    if _is_quantized(layer):
        raise InputError(f"{name} ({kind}) is quantized; sphereize and train first, then quantize")


def _is_quantized(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    module = type(layer).__module__.split(".")
    if "Conv" not in type(layer).__name__ and "Linear" not in type(layer).__name__:
        return False
    whole = isinstance(weight, nn.Parameter) and not (weight.is_floating_point() or weight.is_complex())
    return whole or "quantized" in module or "qat" in module


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or "Linear" in type(layer).__name__


def _sphere(layer: nn.Module, operator: str, k: float, eps: float) -> SphereConv2d | SphereLinear:
    """The sphere layer with the parameters of `layer`; built on the meta device, without random numbers."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    kind: dict[str, Any] = dict(operator=operator, k=k, eps=eps, device="meta")
    new: SphereConv2d | SphereLinear
    if isinstance(layer, nn.Linear):
        new = SphereLinear(layer.in_features, layer.out_features, **kind)
    else:
        sizes: dict[str, Any] = {name: getattr(layer, name) for name in ("kernel_size", "stride", "dilation", "groups")}
        new = SphereConv2d(layer.in_channels, layer.out_channels, padding=_padding(layer), **sizes, **kind)
    new.weight, new.bias = layer.weight, layer.bias
    new.raw_k = first_raw_k(operator, layer.weight.size(0), like=layer.weight)
    return new.train(layer.training)


def _padding(layer: nn.Conv2d) -> tuple[int, int] | str:
    """The padding as numbers if it is symmetric; 'same' with an odd number of zeros becomes 'tf_same'."""
    if f"{type(layer).__module__}.{type(layer).__qualname__}" in _TF_SAME:
        return "tf_same"
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        rows, columns = (d * (size - 1) for d, size in zip(layer.dilation, layer.kernel_size, strict=True))
        return "tf_same" if rows % 2 or columns % 2 else (rows // 2, columns // 2)
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def _set_out_of_place(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
            yield name


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
