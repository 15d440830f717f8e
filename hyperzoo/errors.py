"""The errors of hyperzoo: each is a `HyperzooError` and also the builtin that a caller would catch.

None is a `TypeError`: timm answers a `TypeError` from a weight filter by calling the filter again with one argument.
"""

import math


class HyperzooError(Exception):
    """Every error that hyperzoo raises on purpose."""


class InvalidNameError(HyperzooError, ValueError):
    """A name that breaks the grammar of `names.py`; no file was touched."""


class UnknownNameError(HyperzooError, ValueError):
    """A well-formed name that nothing is known by."""


class UnknownTagError(HyperzooError, RuntimeError):
    """An architecture that exists, with a tag that does not (a RuntimeError, as in timm)."""


class RegistrationError(HyperzooError, ValueError):
    """An architecture name that timm, or another module, holds already."""


class InputError(HyperzooError, ValueError):
    """A tensor or an argument that a layer, a model or a function cannot take."""


class WeightFileError(HyperzooError, RuntimeError):
    """A weight file that cannot be used: cut short, malformed, a pickle, or with other tensors than the model."""


class WeightHashError(HyperzooError, RuntimeError):
    """A weight file whose sha256 is not the one in `weights.json`."""


class WeightUnavailableError(HyperzooError, OSError):
    """A weight that is neither bundled nor cached, and could not be fetched."""


class DataError(HyperzooError, OSError):
    """A data set, split or shard that is missing or not what it should be."""


class RecipeError(HyperzooError, ValueError):
    """A recipe with faults; all of them are listed."""


class RunError(HyperzooError, RuntimeError):
    """A training run that cannot start or go on."""


class BusyError(RunError):
    """A run folder in which another process is training."""


class NonFiniteError(RunError):
    """A loss or a gradient that is NaN or infinite; no optimizer step was taken."""


class CheckpointError(RunError):
    """A training checkpoint that is damaged or belongs to something else; nothing was changed."""


class PublishError(HyperzooError, RuntimeError):
    """A weight that cannot be published; no file was changed."""


class ExportError(HyperzooError, RuntimeError):
    """A network that cannot be written in a format, or gives other outputs in it; no file was written."""


class LaunchError(RunError):
    """Another number of processes than the launcher or the recipe asked for."""


class MissingExtraError(HyperzooError, ImportError):
    """An optional package is needed for this."""


class PackagePairError(HyperzooError, ImportError):
    """A torch and a torchvision that do not belong together, or one of them missing."""


class SiteError(HyperzooError, RuntimeError):
    """A page of weights that cannot be written, or the runtime of its demo that cannot be had; no file was changed."""


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    whole: bool = False,
) -> None:
    """Raise InputError unless the value is a finite number, not a bool, with low <= value <= high and value > above.

    Args:
        whole: accept integers only.
    Example:
        >>> check_number("alpha", -1, low=0)
        Traceback (most recent call last):
        hyperzoo.errors.InputError: alpha must be a finite number of at least 0; got -1
    """
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and not whole)
    if number and not isinstance(value, bool) and low <= value <= high and value > above:  # type: ignore[operator]
        return
    text = f" of at least {low}" if high == math.inf else f" from {low} to {high}"
    text = f" above {above}" if above > -math.inf else "" if low == -math.inf else text
    raise InputError(f"{name} must be a {'whole' if whole else 'finite'} number{text}; got {value!r}")
