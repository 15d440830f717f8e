"""Hyperspherical and regularised networks with verified weights; importing this registers the models with timm."""

from hyperzoo.errors import PackagePairError as _PackagePairError

try:
    import timm as _timm  # noqa: F401
except (ImportError, RuntimeError) as _error:
    # A torchvision made for another torch says "operator torchvision::nms does not exist".
    from importlib import metadata as _metadata

    _found = {dist.name: dist.version for dist in _metadata.distributions() if dist.name in ("torch", "torchvision")}
    raise _PackagePairError(
        f"timm cannot be imported with torch {_found.get('torch', '(missing)')} and torchvision "
        f"{_found.get('torchvision', '(missing)')}: {_error}. Install the pair: pip install --upgrade torch torchvision"
    ) from _error

from hyperzoo import layers as layers
from hyperzoo import models as models
from hyperzoo.zoo import Loaded as Loaded
from hyperzoo.zoo import WeightInfo as WeightInfo
from hyperzoo.zoo import list_models as list_models
from hyperzoo.zoo import list_weights as list_weights
from hyperzoo.zoo import load as load
from hyperzoo.zoo import preprocess as preprocess
from hyperzoo.zoo import weight_info as weight_info

__version__ = "0.5.0"
