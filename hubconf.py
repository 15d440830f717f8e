"""Entry points of torch.hub, generated from the package: one per architecture, and `load`.

torch.hub.load('<owner>/hyperzoo:v1', 'spherenet20', pretrained=True, trust_repo=True)
"""

from collections.abc import Callable as _Callable
from typing import Any as _Any

import timm as _timm

import hyperzoo as _hyperzoo
from hyperzoo import load as load

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors"]


def _help(arch: str) -> str:
    lines = [f"{_timm.model_entrypoint(arch).__doc__ or arch}", "", "Weights (pretrained=True, tag=...):"]
    for name in _hyperzoo.list_weights(arch):
        info = _hyperzoo.weight_info(name)
        score = info.score
        spread = "" if score.sd is None else f" +- {score.sd:.2f}"
        lines.append(
            f"    {info.tag}{' (default)' if info.default else ''}: {info.metric} {score.mean:.2f}{spread}"
            f"{' %' * (info.metric == 'accuracy')} (n = {score.n}) on {info.dataset.id}, license {info.license}"
        )
    if not _hyperzoo.list_weights(arch):
        lines.append("    none yet")
    return "\n".join(
        [*lines, "", "Other keywords are passed to timm.create_model: num_classes, in_chans, features_only, ..."]
    )


def _entry(arch: str) -> _Callable[..., _Any]:
    def build(pretrained: bool = False, tag: str | None = None, **kwargs: _Any) -> _Any:
        return _timm.create_model(f"{arch}.{tag}" if tag else arch, pretrained=pretrained, **kwargs)

    build.__name__ = build.__qualname__ = arch
    build.__doc__ = _help(arch)
    return build


globals().update({arch: _entry(arch) for arch in _hyperzoo.list_models()})
