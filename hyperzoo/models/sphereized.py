"""Any architecture of timm with convolutions, or a classifier, that respond to angles only.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189): section 2 for the convolutions, section 3 for
the classifier, which angular losses train. `config.json` names the architecture in `base`.
"""

from collections.abc import Iterable
from typing import Any

import timm
import torch
from torch import nn

from hyperzoo import names
from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d, sphereize_classifier
from hyperzoo.layers import sphereize as sphereize_layers
from hyperzoo.models._create import create, register, weight_cfgs
from hyperzoo.models.resnet_cifar import cfg_cifar

__all__ = ["convert", "sphereized"]
PAPERS = ("1711.03189",)  # arXiv numbers, on the cards of weights

_OF_THE_WEIGHT = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load")
default_cfgs = weight_cfgs({"sphereized": cfg_cifar()})


def convert(
    network: nn.Module,
    base: str,
    *,
    sphereize: str | None = None,
    head_operator: str | None = None,
    head_k: float = 0.3,
) -> None:
    """Make a network of the architecture `base` that of `sphereized`, in place; its tensors stay.

    Args:
        sphereize: operator of the convolutions; None leaves them.
        head_operator, head_k: operator of the classifier; None leaves it. A network without a classifier has none.
    Raises:
        InputError: sphere layers, nothing to convert beside the patch embedding, more filters that cannot be converted
            than others; or a classifier that is not one linear layer.
    """
    if sphereize:
        _sphereize_all(network, base, sphereize)
    if head_operator and getattr(network, "num_classes", None) != 0:
        sphereize_classifier(network, head_operator, k=head_k)
    network.pretrained_cfg["architecture"] = "sphereized"  # type: ignore[index, operator, assignment]


def _sphereize_all(network: nn.Module, base: str, operator: str) -> None:
    stem = network.pretrained_cfg.get("first_conv")  # type: ignore[union-attr, operator]
    if any(isinstance(module, SphereConv2d) for module in network.modules()):
        why = "has no convolutions for sphereize: its convolutions are sphere layers"
    else:
        try:
            report = sphereize_layers(network, operator)
        except InputError as error:
            raise InputError(f"{base}: {error}. Or leave sphereize out") from error
        layers = {name: network.get_submodule(name) for name in (*report.changed, *report.left) if name != stem}
        kept = [name for name in report.left if name in layers and not isinstance(layers[name], nn.Linear)]
        taken = [name for name in report.changed if name != stem]
        if _size(layers[name] for name in taken) > _size(layers[name] for name in kept):
            return
        why = f"has no convolutions for sphereize: its only one is {stem}"
        if kept:
            share = _size(layers[name] for name in taken) / _size(layers[name] for name in (*taken, *kept))
            reasons = "; ".join(dict.fromkeys(report.left[name] for name in kept))
            why = (
                f"would stay mostly plain: sphereize converts {len(taken)} of {len(taken) + len(kept)} convolutions, "
                f"{share:.0%} of their weights ({reasons})"
            )
    raise InputError(f"{base} {why}. Choose a convolutional network with inner products, or leave sphereize out")


def _size(layers: Iterable[nn.Module]) -> int:
    return sum(layer.weight.numel() for layer in layers)  # type: ignore[union-attr, operator, misc]


@register
def sphereized(
    pretrained: bool = False,
    *,
    base: str = "resnet20_cifar",
    sphereize: str | None = None,
    head_operator: str | None = None,
    head_k: float = 0.3,
    pretrained_cfg: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Any architecture of timm, `base`, whose convolutions or classifier respond to angles.

    Args:
        base: name of the architecture, without a tag.
        sphereize: operator of the convolutions [default: cosine, or none with `head_operator`].
        head_operator, head_k: operator of the classifier, see `sphereize_classifier`.
        kwargs: as for `base`; features_only returns all stages.
    Raises:
        UnknownNameError: no such architecture. InputError: see `convert`.
    """
    if not timm.is_model(base):
        raise names.unknown("architecture", base, timm.list_models())
    kind = dict(
        sphereize=sphereize or (None if head_operator else "cosine"), head_operator=head_operator, head_k=head_k
    )
    if pretrained_cfg is None and (found := timm.get_pretrained_cfg(base)):
        pretrained_cfg = {key: value for key, value in found.to_dict().items() if key not in _OF_THE_WEIGHT}
        pretrained_cfg["architecture"] = "sphereized"

    def build(**args: Any) -> nn.Module:
        network = timm.create_model(base, **args)
        convert(network, base, **kind)  # type: ignore[arg-type]
        return network

    features = _feature_cfg(base) if kwargs.get("features_only") else {}
    return create(build, "sphereized", pretrained, pretrained_cfg=pretrained_cfg, feature_cfg=features, **kwargs)


def _feature_cfg(base: str) -> dict[str, Any]:
    """All stages of an architecture; timm's default wrapper takes no stages inside other modules."""
    with torch.device("meta"):
        stages = timm.create_model(base).feature_info
    nested = any("." in stage["module"] for stage in stages)  # type: ignore[union-attr]
    return dict(out_indices=tuple(range(len(stages)))) | ({"feature_cls": "getter"} if nested else {})  # type: ignore[arg-type]
