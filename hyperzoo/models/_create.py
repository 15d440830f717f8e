"""The one builder of models: timm's, with a verified file; and the one door into timm's registry."""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import timm
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from hyperzoo import names
from hyperzoo.errors import InputError, RegistrationError, UnknownTagError, WeightFileError
from hyperzoo.layers import sphereize_classifier
from hyperzoo.zoo import weight_files

_logger = logging.getLogger(__name__)
_SOURCES = ("file", "url", "state_dict", "hf_hub_id", "hf_hub_filename")
Entry = TypeVar("Entry", bound=Callable[..., Any])
Model = TypeVar("Model", bound=nn.Module)


class Variant(NamedTuple):
    """A row of a model file's table: one line on the architecture, and the arguments that define it."""

    description: str
    args: dict[str, Any]


def register_variants(module: str, variants: Mapping[str, Variant], build: Callable[..., nn.Module]) -> None:
    """Register every row of a table with timm, and define its function in the model file.

    Args:
        module: `__name__` of the model file, which has set `default_cfgs`.
        build: (arch, pretrained, args of the row, **arguments of the caller) -> model; usually a partial `create`.
    Raises:
        RegistrationError, InvalidNameError: as for `register`.
    """
    for arch, variant in variants.items():
        setattr(sys.modules[module], arch, register(_entry(module, arch, variant, build)))


def _entry(module: str, arch: str, variant: Variant, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(arch, pretrained, variant.args, **kwargs)

    entry.__name__ = entry.__qualname__ = arch
    entry.__module__ = module
    entry.__doc__ = variant.description
    return entry


def register(entry: Entry) -> Entry:
    """Register an architecture with timm under the name of its function; a decorator.

    Registering the same function again (a reload) is silent.

    Raises:
        RegistrationError: timm or another module holds the name. InvalidNameError: the name breaks the grammar.
    """
    name = names.check_arch(entry.__name__)
    if timm.is_model(name):
        held = timm.model_entrypoint(name)
        if (held.__module__, held.__name__) != (entry.__module__, name):
            raise RegistrationError(
                f"cannot register {name!r} for {entry.__module__}: {held.__module__} holds this name. Choose another"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"Overwriting {name} in registry", UserWarning)
        register_model(entry)
    return entry


def weight_cfgs(architectures: Mapping[str, Mapping[str, Any]]) -> dict[str, DefaultCfg]:
    """timm's `default_cfgs` of a model file: a description per architecture, and one per weight in the manifest."""
    cfgs: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for arch, base in architectures.items():
        published = weight_files.MANIFEST.names(arch)
        if not published:
            cfgs[arch] = dict(base)
        for name in published:
            info = weight_files.MANIFEST.info(name)
            cfgs[name + "*" * info.default] = dict(base, **_published(info))
    return generate_default_cfgs(cfgs)


def _published(info: weight_files.WeightInfo) -> dict[str, Any]:
    cfg: dict[str, Any] = dict(
        num_classes=info.num_classes,
        input_size=info.input.size,
        mean=info.input.mean,
        std=info.input.std,
        crop_pct=info.input.crop_pct,
        interpolation=info.input.interpolation,
        license=info.license,
        paper_ids=tuple(f"arXiv:{paper}" for paper in info.paper),
    )
    if info.bundled:
        cfg["file"] = str(weight_files.MANIFEST.folder(info.name) / "model.safetensors")
    if info.commit:
        cfg["hf_hub_id"] = f"{weight_files.MANIFEST.namespace}/{info.name}@{info.commit}"
        cfg["hf_hub_filename"] = "model.safetensors"
    return cfg


def create(
    model_cls: Callable[..., Model],
    arch: str,
    pretrained: bool = False,
    defaults: Mapping[str, Any] | None = None,
    *,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    head_operator: str | None = None,
    head_k: float = 0.3,
    feature_cfg: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Model:
    """Build an architecture as timm does; with `pretrained`, from a file with the manifest's sha256.

    A published weight is verified by whatever route its name came: default, tag, `hf-hub:` id, or a description taken
    from timm. A file that the caller names (overlay, `local-dir:`, another `hf-hub:` repository) must be a safetensors
    file; it gets the comparison of tensor names and shapes, not a hash.

    Args:
        defaults: arguments that define the architecture; `kwargs` override them, except for a published weight.
        head_operator, head_k: replace the classifier by one of angles, as angular losses train it; see
            `sphereize_classifier`.
        feature_cfg, kwargs: passed to timm's `build_model_with_cfg`, which passes other arguments to `model_cls`.
    Raises:
        InputError: a published weight with another value than one of `defaults`.
        UnknownTagError, WeightFileError, WeightHashError, WeightUnavailableError: no model is returned.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    if any(overlay.get(key) for key in _SOURCES):
        overlay = {**dict.fromkeys(_SOURCES), **overlay}  # the caller's source must not lose against the registered one
    cfg = resolved_cfg(arch, pretrained_cfg, overlay)  # raises for an unknown tag, also without `pretrained`
    changed = {key: kwargs[key] for key, own in (defaults or {}).items() if _plain(kwargs.get(key, own)) != _plain(own)}
    if pretrained:
        overlay |= _verified(arch, cfg, cache_dir, changed)
    return build_model_with_cfg(
        _with_angles(model_cls, head_operator, head_k) if head_operator else model_cls,
        arch,
        pretrained,
        pretrained_cfg=pretrained_cfg,  # type: ignore[arg-type]  # timm takes tags and objects too
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=weight_files.same_keys,
        cache_dir=cache_dir,
        feature_cfg=dict(feature_cfg or {}),  # a copy, because timm writes the caller's out_indices into it
        **{**(defaults or {}), **kwargs},
    )


def _plain(value: Any) -> Any:
    """A value as JSON returns it."""
    return list(value) if isinstance(value, tuple) else value


def _with_angles(model_cls: Callable[..., Model], operator: str, k: float) -> Callable[..., Model]:
    """The same network with a classifier of angles, if it has one."""

    def build(*args: Any, **kwargs: Any) -> Model:
        model = model_cls(*args, **kwargs)
        if kwargs.get("num_classes") != 0:
            sphereize_classifier(model, operator, k=k)
        return model

    return build


def resolved_cfg(arch: str, pretrained_cfg: Any, overlay: dict[str, Any] | None) -> PretrainedCfg:
    """The description that timm will take, or UnknownTagError."""
    try:
        return resolve_pretrained_cfg(arch, pretrained_cfg, overlay)
    except RuntimeError as error:
        raise UnknownTagError(f"{error} {_tags(arch)}") from error


def _tags(arch: str) -> str:
    tags = [weight_files.MANIFEST.info(name).tag for name in weight_files.MANIFEST.names(arch)]
    return f"Tags of {arch}: {', '.join(tags) or 'none yet'}."


def _verified(
    arch: str, cfg: PretrainedCfg, cache_dir: str | Path | None, changed: Mapping[str, Any]
) -> dict[str, Any]:
    """What to lay over a resolved description so that timm reads a file that was checked."""
    if cfg.source == "hf-hub":
        repo, _, revision = (cfg.hf_hub_id or "").partition("@")
        name = repo.rpartition("/")[2]
        if name in weight_files.MANIFEST.weights:
            _check_unchanged(name, changed)
            file = _hashed(name, repo=repo, revision=revision or None, cache_dir=cache_dir)
            return dict(source="", file=file)  # with no source, timm takes `file` first
    elif cfg.source != "local-dir":
        name = f"{arch}.{cfg.tag}"
        if name in weight_files.MANIFEST.weights and _is_registered_source(name, cfg):
            _check_unchanged(name, changed)
            return dict(file=_hashed(name, cache_dir=cache_dir))
        if not any(getattr(cfg, key) for key in _SOURCES):
            raise UnknownTagError(f"{arch} has no published weight. {_tags(arch)} Use pretrained=False")
    return _callers_source(arch, cfg)


def _check_unchanged(name: str, changed: Mapping[str, Any]) -> None:
    """Refuse what would make another function of the same tensors, such as another operator."""
    if changed:
        given = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        raise InputError(f"{name} was trained without {given}; pass pretrained=False for an untrained network")


def _hashed(name: str, **where: Any) -> str:
    """The tensors of a published weight, after all its files, config.json too, were found to be the manifest's."""
    for part in sorted(weight_files.MANIFEST.info(name).files.keys() - {"model.safetensors"}):
        weight_files.path(name, part, **where)
    file = weight_files.path(name, **where)  # last, so that no other download comes between its hash and its use
    weight_files.check_file(file)
    return str(file)


def _is_registered_source(name: str, cfg: PretrainedCfg) -> bool:
    registered = timm.get_pretrained_cfg(name)
    return all(getattr(cfg, key) == getattr(registered, key) for key in _SOURCES)


def _callers_source(arch: str, cfg: PretrainedCfg) -> dict[str, Any]:
    """Keep timm from opening a pickle at a place that the caller named."""
    _logger.info("%s: the caller named the weights; their names and shapes are checked, no hash", arch)
    if cfg.source == "local-dir":
        weight_files.check_file(Path(cfg.file or "") / "model.safetensors")
    elif cfg.source == "hf-hub" or not (cfg.state_dict or cfg.file):
        if not cfg.hf_hub_id:
            raise WeightFileError(f"{arch}: weights at a url may be pickles. Download {cfg.url}, then name it by file=")
        filename = cfg.hf_hub_filename or "model.safetensors"
        if not filename.endswith(".safetensors"):
            raise WeightFileError(
                f"{arch}: {filename} of {cfg.hf_hub_id} is not a .safetensors file; it was not opened"
            )
        return dict(hf_hub_filename=filename)
    elif cfg.file and not cfg.state_dict:
        weight_files.check_file(Path(cfg.file))
    return {}
