"""Build models through timm from verified files, and register architectures with timm."""

import inspect
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
from hyperzoo.zoo.model_folder import check_folder

_logger = logging.getLogger(__name__)
_SOURCES = ("file", "url", "state_dict", "hf_hub_id", "hf_hub_filename")
Entry = TypeVar("Entry", bound=Callable[..., Any])
Model = TypeVar("Model", bound=nn.Module)


NEUTRAL = {"num_classes", "in_chans", "global_pool", "device", "dtype", "identity_init"}
NEUTRAL |= {"drop_rate", "drop_path_rate", "stage_drop_rates", "dropout"}
"""Arguments that a published weight takes: timm adapts the layer, or they act in training or at the start only."""


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
        RegistrationError: the name is taken, by timm or another module. InvalidNameError: it breaks the grammar.
    """
    name = names.check_arch(entry.__name__)
    if timm.is_model(name):
        held = timm.model_entrypoint(name)
        if (held.__module__, held.__name__) != (entry.__module__, name):
            raise RegistrationError(
                f"cannot register {name!r} for {entry.__module__}: {held.__module__} has this name. Choose another"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # timm's only one says that a name is registered again
        register_model(entry)
    return entry


def weight_cfgs(architectures: Mapping[str, Mapping[str, Any]]) -> dict[str, DefaultCfg]:
    """timm's `default_cfgs` of a model file: one per weight in the manifest, or one for an architecture without any."""
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

    A published weight is verified whether it is named by default, by tag, by `hf-hub:` id or by timm's pretrained_cfg.
    A file of the caller's (overlay, `local-dir:`, another `hf-hub:` repository) must be safetensors; its tensor names
    and shapes are compared, but it has no hash to compare with.

    Args:
        defaults: arguments that define the architecture; `kwargs` override them, except for a published weight, which
            takes only those that leave its function as it is, such as `num_classes` and `drop_rate`.
        head_operator, head_k: replace the classifier by one of angles, as angular losses train it; see
            `sphereize_classifier`.
        feature_cfg, kwargs: passed to timm's `build_model_with_cfg`, which passes other arguments to `model_cls`.
    Raises:
        InputError: a published weight with an argument that changes its function.
        UnknownTagError, WeightFileError, WeightHashError, WeightUnavailableError: no model is returned.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    if any(overlay.get(key) for key in _SOURCES):
        overlay = {**dict.fromkeys(_SOURCES), **overlay}  # the caller's source takes precedence over the registered one
    cfg = resolved_cfg(arch, pretrained_cfg, overlay)  # raises for an unknown tag, also without `pretrained`
    if pretrained:
        own = {**_own_arguments(model_cls), **(defaults or {})}
        changed = {key: value for key, value in kwargs.items() if key in own and _plain(value) != _plain(own[key])}
        if head_operator and kwargs.get("num_classes", cfg.num_classes) == cfg.num_classes:
            changed["head_operator"] = head_operator
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


def _own_arguments(model_cls: Callable[..., nn.Module]) -> dict[str, Any]:
    """The defaults of the arguments that change the function of a network."""
    found: dict[str, inspect.Parameter] = {}
    for one in reversed(model_cls.__mro__) if isinstance(model_cls, type) else [model_cls]:
        if one not in (object, nn.Module):  # a subclass passes the arguments of its base on
            found |= inspect.signature(one).parameters
    return {key: one.default for key, one in found.items() if key not in NEUTRAL and one.default is not one.empty}


def _plain(value: Any) -> Any:
    """A value as JSON returns it."""
    return list(value) if isinstance(value, tuple) else value


def _with_angles(model_cls: Callable[..., Model], operator: str, k: float) -> Callable[..., Model]:
    """The same network, with a classifier of angles if it has a classifier."""

    def build(*args: Any, **kwargs: Any) -> Model:
        model = model_cls(*args, **kwargs)
        if kwargs.get("num_classes") != 0:
            sphereize_classifier(model, operator, k=k)
        return model

    return build


def resolved_cfg(arch: str, pretrained_cfg: Any, overlay: dict[str, Any] | None) -> PretrainedCfg:
    """The pretrained_cfg that timm will use, or UnknownTagError."""
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
    """The overlay of the resolved pretrained_cfg that makes timm read a checked file."""
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
    """Refuse arguments with which the same tensors compute another function, such as another operator."""
    if changed:
        given = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        raise InputError(f"{name} was trained without {given}; pass pretrained=False for an untrained network")


def _hashed(name: str, **where: Any) -> str:
    """The path of a published weight's tensors, after every file, config.json too, matched its sha256."""
    for part in sorted(weight_files.MANIFEST.info(name).files.keys() - {"model.safetensors"}):
        weight_files.path(name, part, **where)
    file = weight_files.path(name, **where)  # last, so that no other download separates its hash from its use
    weight_files.check_file(file)
    return str(file)


def _is_registered_source(name: str, cfg: PretrainedCfg) -> bool:
    registered = timm.get_pretrained_cfg(name)
    return all(getattr(cfg, key) == getattr(registered, key) for key in _SOURCES)


def _callers_source(arch: str, cfg: PretrainedCfg) -> dict[str, Any]:
    """Check a source that the caller named, so that timm never opens a pickle."""
    _logger.info("%s: weights of the caller's; their names and shapes are compared, no hash", arch)
    if cfg.source == "local-dir":
        check_folder(Path(cfg.file or ""))
    elif cfg.source == "hf-hub" or not (cfg.state_dict or cfg.file):
        if not cfg.hf_hub_id:
            raise WeightFileError(
                f"{arch}: {cfg.url} may be a pickle, so it is not loaded. Download a safetensors file, then pass file="
            )
        filename = cfg.hf_hub_filename or "model.safetensors"
        if not filename.endswith(".safetensors"):
            raise WeightFileError(
                f"{arch}: {filename} of {cfg.hf_hub_id} is not a .safetensors file; it was not opened"
            )
        return dict(hf_hub_filename=filename)
    elif cfg.file and not cfg.state_dict:
        weight_files.check_file(Path(cfg.file))
    return {}
