"""Weight names, `<architecture>.<method>_<dataset>`: one grammar and two closed tables."""

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from hyperzoo.errors import InvalidNameError, UnknownNameError


class MethodInfo(NamedTuple):
    """The title of a method, and the arXiv numbers of its papers."""

    title: str
    papers: tuple[str, ...] = ()


METHODS = {
    "plain": MethodInfo("none (baseline)"),
    "sphere": MethodInfo("SphereNet", ("1711.03189",)),
    "mhe": MethodInfo("minimum hyperspherical energy", ("1805.09298",)),
    "per": MethodInfo("projected error function", ("2002.05366",)),
    "vcl": MethodInfo("variance constancy loss"),
    "orth": MethodInfo("orthogonality regularizer"),
    "l1": MethodInfo("L1 penalty of activations"),
    "l2": MethodInfo("L2 penalty of activations"),
    "mixup": MethodInfo("input mixup", ("1710.09412",)),
    "manifoldmixup": MethodInfo("manifold mixup", ("1806.05236",)),
}
DATASETS = {
    "c10": "uoft-cs/cifar10",
    "c100": "uoft-cs/cifar100",
    "ptb": "ptb-text-only/ptb_text_only",
    "wt2": "Salesforce/wikitext",
}
TEXTS = ("ptb", "wt2")  # data sets of text; all others are images
MAX_LENGTH = 80
_NAME = re.compile(r"([a-z0-9_]+)\.([a-z0-9]+)_([a-z0-9]+)", re.ASCII)
_ARCH = re.compile(r"[a-z0-9_]+", re.ASCII)


class Name(NamedTuple):
    """The three parts of a weight name; `str()` joins them."""

    arch: str
    method: str
    dataset: str

    @property
    def tag(self) -> str:
        return f"{self.method}_{self.dataset}"

    def __str__(self) -> str:
        return f"{self.arch}.{self.tag}"


def parse(name: str) -> Name:
    """Parse and validate a weight name. Names enter paths only through this function.

    Raises:
        InvalidNameError: not a string of the form `[a-z0-9_]+.[a-z0-9]+_[a-z0-9]+`, longer than 80 characters, or
            with a method or data set that is not in the tables.

    Example:
        >>> parse('spherenet20.sphere_c10').dataset
        'c10'
    """
    match = _NAME.fullmatch(name) if isinstance(name, str) and len(name) <= MAX_LENGTH else None
    if match is None:
        raise InvalidNameError(
            f"{cut(ascii(name))} is not a weight name: write <architecture>.<method>_<dataset> in lower case with at "
            f"most {MAX_LENGTH} characters, for example spherenet20.sphere_c10"
        )
    found = Name(*match.groups())
    for part, table in (("method", METHODS), ("dataset", DATASETS)):
        word = getattr(found, part)
        if word not in table:
            raise InvalidNameError(f"{name!r}: unknown {part} {word!r}. {closest_text(word, table)}")
    return found


def is_language(arch: str) -> bool:
    """Whether an architecture is a language model; exactly their names begin with 'lstm'."""
    return arch.startswith("lstm")


def check_arch(arch: str) -> str:
    """Return the architecture name, or raise InvalidNameError unless it matches `[a-z0-9_]+`."""
    if not (isinstance(arch, str) and len(arch) <= MAX_LENGTH and _ARCH.fullmatch(arch)):
        raise InvalidNameError(
            f"{cut(ascii(arch))} is not an architecture name: use lower-case letters, digits and underscores"
        )
    return arch


def closest_text(word: str, known: Iterable[str]) -> str:
    """Sentence of an error message: up to three known words close to a misspelled one, or else the first ten."""
    words = sorted(known)
    spellings = (word, word.lower()) if len(word) < 1000 else ()
    matches = (difflib.get_close_matches(each, words, n=3, cutoff=0.4) for each in spellings)
    close = next(filter(None, matches), [])
    if close:
        return f"Closest: {', '.join(close)}."
    more = f", and {len(words) - 10} more" if len(words) > 10 else ""
    return f"Known: {', '.join(words[:10]) or 'none'}{more}."


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a well-formed name that does not exist."""
    see = " See: hyperzoo list" if kind in ("weight", "architecture", "model") else ""
    return UnknownNameError(f"no {kind} {cut(repr(name))}. {closest_text(name, known)}{see}")


def cut(text: str, length: int = MAX_LENGTH + 20) -> str:
    """A text for a message, without its end if it is long."""
    return text if len(text) <= length else f"{text[: length - 20]}..."
