"""The one builder of models: timm's, with a verified file; and the one door into timm's registry."""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
from hyperzoo.errors import RegistrationError, UnknownTagError, WeightFileError
from hyperzoo.layers import sphereize_classifier
from hyperzoo.zoo import weight_files

_logger = logging.getLogger(__name__)
_SOURCES = ("file", "url", "state_dict", "hf_hub_id", "hf_hub_filename")
Entry = TypeVar("Entry", bound=Callable[..., Any])
Model = TypeVar("Model", bound=nn.Module)


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
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    head_operator: str | None = None,
    head_k: float = 0.3,
    **kwargs: Any,
) -> Model:
    """Build an architecture as timm does; with `pretrained`, from a file with the manifest's sha256.

    A published weight is verified by whatever route its name came: default, tag, `hf-hub:` id, or a description taken
    from timm. A file that the caller names (overlay, `local-dir:`, another `hf-hub:` repository) must be a safetensors
    file; it gets the comparison of tensor names and shapes, not a hash.

    Args:
        head_operator, head_k: of a classifier of angles in the place of the plain one, which is what angular losses
            train; as `sphereize_classifier` has it.
        kwargs: go on to timm's `build_model_with_cfg` and from there to `model_cls`.
    Raises:
        UnknownTagError, WeightFileError, WeightHashError, WeightUnavailableError: no model is
            returned.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    if any(overlay.get(key) for key in _SOURCES):
        overlay = {**dict.fromkeys(_SOURCES), **overlay}  # the caller's source must not lose against the registered one
    cfg = resolved_cfg(arch, pretrained_cfg, overlay)  # raises for an unknown tag, also without `pretrained`
    if pretrained:
        overlay |= _verified(arch, cfg, cache_dir)
    return build_model_with_cfg(
        _with_angles(model_cls, head_operator, head_k) if head_operator else model_cls,
        arch,
        pretrained,
        pretrained_cfg=pretrained_cfg,  # type: ignore[arg-type]  # timm takes tags and objects too
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=weight_files.same_keys,
        cache_dir=cache_dir,
        **kwargs,
    )


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


def _verified(arch: str, cfg: PretrainedCfg, cache_dir: str | Path | None) -> dict[str, Any]:
    """What to lay over a resolved description so that timm reads a file that was checked."""
    if cfg.source == "hf-hub":
        repo, _, revision = (cfg.hf_hub_id or "").partition("@")
        name = repo.rpartition("/")[2]
        if name in weight_files.MANIFEST.weights:
            file = _hashed(name, repo=repo, revision=revision or None, cache_dir=cache_dir)
            return dict(source="", file=file)  # with no source, timm takes `file` first
    elif cfg.source != "local-dir":
        name = f"{arch}.{cfg.tag}"
        if name in weight_files.MANIFEST.weights and _is_registered_source(name, cfg):
            return dict(file=_hashed(name, cache_dir=cache_dir))
        if not any(getattr(cfg, key) for key in _SOURCES):
            raise UnknownTagError(f"{arch} has no published weight. {_tags(arch)} Use pretrained=False")
    return _callers_source(arch, cfg)


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
