"""The exceptions of hyperzoo: each is a `HyperzooError` and also the builtin that a caller would catch.

None is a `TypeError`, because timm reacts to a `TypeError` in a weight filter by calling it again with one argument.
"""

import math
import sys
from collections.abc import Sequence


class HyperzooError(Exception):
    """Base class of all errors that hyperzoo raises on purpose."""


class InvalidNameError(HyperzooError, ValueError):
    """A name that violates the grammar in `names.py`; no file was touched."""


class UnknownNameError(HyperzooError, ValueError):
    """A well-formed name that does not exist."""


class UnknownTagError(HyperzooError, RuntimeError):
    """An existing architecture with an unknown tag (a RuntimeError, as in timm)."""


class RegistrationError(HyperzooError, ValueError):
    """An architecture name that timm or another module has registered already."""


class InputError(HyperzooError, ValueError):
    """An invalid tensor or argument of a layer, model or function."""


class WeightFileError(HyperzooError, RuntimeError):
    """An unusable weight file: truncated, malformed, a pickle, or with tensors that do not match the model."""


class WeightHashError(HyperzooError, RuntimeError):
    """A weight file whose sha256 differs from `weights.json`."""


class WeightUnavailableError(HyperzooError, OSError):
    """A weight that is neither bundled nor cached and could not be downloaded."""


class DataError(HyperzooError, OSError):
    """A data set, split or shard that is missing or invalid."""


class BrokenImageError(DataError):
    """Images that cannot be decoded; the message names all, up to ten.

    Args:
        pictures: their names, one or more.
        reason: of the first.
        remedy: what follows 'Replace or remove it'.
    """

    def __init__(self, pictures: Sequence[str], reason: str = "", remedy: str = "") -> None:
        self.pictures, self.reason = tuple(pictures), reason
        count = len(self.pictures)
        if count == 1:
            text = f"{pictures[0]} cannot be decoded{f': {reason}' * bool(reason)}. Replace or remove it"
        else:
            first = f"; the first: {reason}" * bool(reason)
            text = f"{count} images cannot be decoded: {listed(self.pictures)}{first}. Replace or remove them"
        super().__init__(text + remedy)


class RecipeError(HyperzooError, ValueError):
    """A recipe with faults; the message lists all of them."""


class RunError(HyperzooError, RuntimeError):
    """A training run that cannot start or continue."""


class BusyError(RunError):
    """A run folder that another training process is using."""


class NonFiniteError(RunError):
    """A NaN or infinite loss or gradient; no optimizer step was taken."""


class CheckpointError(RunError):
    """A training checkpoint that is damaged or belongs to another run; nothing was changed."""


class PublishError(HyperzooError, RuntimeError):
    """A weight that cannot be published; no file was changed."""


class ExportError(HyperzooError, RuntimeError):
    """A network that cannot be exported to a format, or whose exported outputs differ; no file was written."""


class LaunchError(RunError):
    """A number of processes other than the launcher or the recipe requested."""


class MissingExtraError(HyperzooError, ImportError):
    """A feature whose optional package is not installed."""


class PlatformError(HyperzooError, ImportError):
    """A feature that this operating system does not offer."""


class PackagePairError(HyperzooError, ImportError):
    """Incompatible versions of torch and torchvision, or one of them missing."""


class SiteError(HyperzooError, RuntimeError):
    """A weights page that cannot be written, or a demo runtime that cannot be downloaded; no file was changed."""


def listed(words: Sequence[str], most: int = 10) -> str:
    """The first words, and the number of the others.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


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
    number = isinstance(value, int if whole else int | float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    if number and not isinstance(value, bool) and low <= value <= high and value > above:  # type: ignore[operator]
        return
    limits = {"above": above, "of at least": low, "of at most": high}
    text = " and".join(f" {words} {limit}" for words, limit in limits.items() if abs(limit) < math.inf)
    text = f" from {low} to {high}" if -math.inf < low < high < math.inf else text
    raise InputError(f"{name} must be a {'whole' if whole else 'finite'} number{text}; got {value!r}")


def check_alpha(alpha: float) -> float:
    """Return the alpha of a mixup, or raise InputError unless it is 0 (no mixing) or from 0.01 to 1e6."""
    check_number("alpha", alpha, low=0)
    if alpha and not 0.01 <= alpha <= 1e6:
        raise InputError(f"alpha must be 0 (no mixing) or from 0.01 to 1e6; got {alpha!r}")
    return alpha


def check_seed(seed: object) -> None:
    """Raise InputError unless a `torch.Generator` takes this seed."""
    check_number("seed", seed, low=-(2**63), high=2**64 - 1, whole=True)
