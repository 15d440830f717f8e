"""Hyperspherical and regularized networks with verified weights.

`import hyperzoo` registers the architectures with timm, so `timm.create_model('spherenet20', pretrained=True)` works.
Functions and sub-packages are imported on first use; nothing here imports accelerate or datasets.

In the process of the command `hyperzoo` (or `python -m hyperzoo`) the import registers nothing and loads neither torch
nor timm, so help, version and shell completion answer at once. There the first use of a function or of
`hyperzoo.models` registers the architectures.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperzoo import data as data
    from hyperzoo import layers as layers
    from hyperzoo import losses as losses
    from hyperzoo import mixup as mixup
    from hyperzoo import models as models
    from hyperzoo import regularizers as regularizers
    from hyperzoo.zoo import Loaded as Loaded
    from hyperzoo.zoo import WeightInfo as WeightInfo
    from hyperzoo.zoo import list_models as list_models
    from hyperzoo.zoo import list_weights as list_weights
    from hyperzoo.zoo import preprocess as preprocess
    from hyperzoo.zoo import weight_info as weight_info
    from hyperzoo.zoo.load import load as load

__version__ = "0.5.0"
_FROM_ZOO = ("Loaded", "WeightInfo", "list_models", "list_weights", "load", "preprocess", "weight_info")
_PACKAGES = ("data", "layers", "losses", "mixup", "models", "regularizers")
__all__ = [
    "Loaded", "WeightInfo", "data", "layers", "list_models", "list_weights", "load", "losses", "mixup", "models",
    "preprocess", "regularizers", "weight_info",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"hyperzoo.{name}")
    if name in _FROM_ZOO:
        importlib.import_module("hyperzoo.models")  # registers the architectures that the functions look up
        value = globals()[name] = getattr(importlib.import_module("hyperzoo.zoo"), name)
        return value
    raise AttributeError(f"module 'hyperzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _is_command() -> bool:
    """Whether this process runs the command: started by its console script, or by `python -m hyperzoo`."""
    if sys.argv[0:1] == ["-m"]:  # while Python looks for the module to run
        options = sys.orig_argv
        return "-m" in options and options[options.index("-m") + 1 :][:1] == ["hyperzoo"]
    return os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe") == "hyperzoo"


if not _is_command():
    importlib.import_module("hyperzoo.models")
