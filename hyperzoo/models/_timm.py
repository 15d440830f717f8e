"""The only file that uses private API of timm, and the check that timm can be imported at all."""

from importlib import metadata

from hyperzoo.errors import PackagePairError

try:
    import timm  # noqa: F401
except (ImportError, RuntimeError) as error:
    # A torchvision built for another torch raises "operator torchvision::nms does not exist".
    found = {dist.name: dist.version for dist in metadata.distributions() if dist.name in ("torch", "torchvision")}
    raise PackagePairError(
        f"timm cannot be imported with torch {found.get('torch', '(missing)')} and torchvision "
        f"{found.get('torchvision', '(missing)')}: {error}. Install the pair: pip install --upgrade torch torchvision"
    ) from error

from timm.models._features import feature_take_indices as feature_take_indices
