"""Strict reading of YAML settings: all faults are reported at once, each with its line and the nearest key.

YAML 1.2 (ruamel.yaml): `1e-3` is a number and `no` is text. Repeated keys, unknown tags and unknown keys are faults.
So is a text beyond the limits below: an alias repeats its values, so a few lines can stand for billions of them.
"""

import copy
import difflib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hyperzoo import names
from hyperzoo.errors import RecipeError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
AtLeastOne = Annotated[int, Field(ge=1, lt=2**63)]
Settings = TypeVar("Settings", bound=BaseModel)
LONGEST = 20_000  # characters of a text; the longest of the package has 4,500
MOST = 10_000  # values of a text, after the expansion of aliases
DEEPEST = 20  # levels of nesting
_TOO_DEEP = f"more than {DEEPEST} levels of nesting"

_WORDS: dict[str, dict[str, Any]] = {
    "null": {"": None, "~": None, "null": None},
    "bool": {"true": True, "false": False},
}


class Block(BaseModel):
    """A block of settings: strictly typed, frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    foreign_keys: ClassVar[dict[str, str]] = {}  # keys of other libraries: what to write or do instead


def read_yaml(path: Path) -> tuple["Reader", dict[str, Any]]:
    """The values of a YAML file, and the reader with their lines and the faults so far.

    Raises:
        RecipeError: the file is missing or not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)  # one more shows that it is too long
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    reader = Reader()
    values = reader.read(text)
    return reader, values if isinstance(values, dict) else {}


def yaml_text(values: dict[str, Any]) -> str:
    """Values as the text of a YAML file, for `read_yaml`."""
    writer, text = YAML(typ="safe", pure=True), io.StringIO()
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(values, text)
    return text.getvalue()


def validated(block: type[Settings], values: dict[str, Any], reader: "Reader", where: str) -> Settings:
    """Build a block of settings, or raise one RecipeError with all faults of the reader and the values."""
    try:
        built = block.model_validate(values)
    except ValidationError as error:
        reader.faults += [reader.fault(detail, block) for detail in error.errors()]
    if reader.faults:
        faults = sorted({(line, names.cut(text, 500)) for line, text in reader.faults})
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        listed = " ".join((f"Line {line}: {text}" if line else text).rstrip(".") + "." for line, text in faults)
        raise RecipeError(f"{where} has {count}. {listed}")
    return built


def overridden(values: dict[str, Any], overrides: Sequence[str], key: str, settings: type[BaseModel]) -> Any:
    """The value of 'block.key' of `settings` after the overrides, or None; faults are left to `validated`."""
    inner: Any = copy.deepcopy(values)
    reader = Reader()
    for override in overrides:
        reader.override(inner, override, settings)
    for part in key.split("."):
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner


class Reader:
    """Turns YAML nodes into plain values; keeps their lines and the faults."""

    def __init__(self) -> None:
        self.lines: dict[tuple[Any, ...], int] = {}
        self.overrides: dict[tuple[Any, ...], str] = {}  # the override that set a key, by its path
        self.faults: list[tuple[int, str]] = []
        self._values = 0

    def read(self, text: str, at: tuple[Any, ...] = ()) -> Any:
        try:
            if len(text) > LONGEST:
                raise YAMLError(f"longer than {LONGEST:,} characters")
            node = YAML(typ="safe", pure=True).compose(text)
            return None if node is None else self._value(node, at)
        except (YAMLError, RecursionError) as error:  # `compose` recurses once a level
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            reason = _TOO_DEEP if isinstance(error, RecursionError) else reason
            self.faults.append((mark.line + 1 if mark else 1, f"not readable as YAML: {reason}"))
            return None

    def override(self, values: dict[str, Any], text: str, settings: type[BaseModel]) -> None:
        """Set 'block.key=value' in the values of `settings`; the value is read as YAML."""
        key, equals, value = text.partition("=")
        reader, path = Reader(), tuple(key.split("."))
        parsed = reader.read(value, path)
        made = [path[:end] for end in range(1, len(path)) if path[:end] not in self.lines]  # blocks the file lacks
        self.overrides |= dict.fromkeys((*made, path, *reader.lines), text)
        self.faults += [(0, f"override {text}: {fault}") for _, fault in reader.faults]
        if not reader.faults:
            self.set(values, key if equals else "", parsed, settings, text)

    def set(
        self, values: dict[str, Any], key: str, value: Any, settings: type[BaseModel], shown: str | None = None
    ) -> None:
        """Set the key 'block.key' of nested values."""
        *blocks, last = key.split(".")
        if last and not blocks:
            text = _no_block(settings, [key], value, "=") if key in _keys(settings, []) else _unknown(settings, [key])
            self.faults.append((0, f"override {shown}: {text}" if shown else text))
            return
        inner: Any = values
        for block in blocks:
            if isinstance(inner, dict):
                inner[block] = inner.get(block) or {}
                inner = inner[block]
        if blocks and isinstance(inner, dict):
            inner[last] = value
        else:
            self.faults.append((0, f"override {shown or key!r} is not of the form block.key=value"))

    def fault(self, detail: Any, block: type[BaseModel]) -> tuple[int, str]:
        """Line and text of one of pydantic's errors about a block of settings; line 0 if an override is at fault."""
        loc = [part for part in detail["loc"] if part != "[key]"]
        known = self.lines.keys() | self.overrides.keys()
        while loc and tuple(loc) not in known and detail["type"] not in ("missing", "extra_forbidden"):
            loc.pop()  # pydantic appends the names of union members
        loc = loc or list(detail["loc"])
        paths = [tuple(loc[:end]) for end in range(len(loc), -1, -1)]
        if override := next((self.overrides[path] for path in paths if path in self.overrides), None):
            return 0, f"override {override}: {_text(detail, loc, block, '=')}"
        return next((self.lines[path] for path in paths if path in self.lines), 0), _text(detail, loc, block, ": ")

    def _value(self, node: Node, at: tuple[Any, ...]) -> Any:
        line = node.start_mark.line + 1
        self._values += 1
        if self._values > MOST or len(at) > DEEPEST:
            reason = f"more than {MOST:,} values" if self._values > MOST else _TOO_DEEP
            raise MarkedYAMLError(problem=reason, problem_mark=node.start_mark)
        self.lines.setdefault(at, line)
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if isinstance(node, MappingNode) and kind == "map":
            values: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self._value(key_node, (*at, "key"))
                if isinstance(key, (dict, list)):
                    self.faults.append((key_node.start_mark.line + 1, "a key must be a word or a number"))
                    continue
                if key in values:
                    self.faults.append((key_node.start_mark.line + 1, f"repeated key {key!r}"))
                self.lines[(*at, key)] = key_node.start_mark.line + 1
                values[key] = self._value(value_node, (*at, key))
            return values
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self._value(item, (*at, i)) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            if kind in ("int", "float"):
                return _number(node.value, kind)
            if kind == "str":
                return node.value
            if kind in _WORDS:
                if (word := node.value.lower()) not in _WORDS[kind]:
                    self.faults.append((line, f"{node.value!r} is not a {kind}"))
                return _WORDS[kind].get(word)
        self.faults.append((line, f"the tag {str(node.tag)!r} is not allowed"))
        return None


def _text(detail: Any, loc: list[Any], block: type[BaseModel], equals: str) -> str:
    """One of pydantic's errors in a sentence; `equals` stands between a key and its value."""
    if detail["type"] == "extra_forbidden":
        return _unknown(block, loc)
    if detail["type"] == "model_type":
        return _no_block(block, loc, detail["input"], equals)
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    name = ".".join(str(part) for part in loc)
    if detail["type"] == "missing":
        return f"{name} is missing"
    message = detail["msg"][0].lower() + detail["msg"][1:].removeprefix("Input")
    return f"{name}: {message.replace('input ', '')}, got {detail['input']!r}"


def _number(text: str, kind: str) -> float | str:
    try:
        return (
            int(text.replace("_", ""), 0)
            if kind == "int"
            else float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        )
    except ValueError:
        return text


def _unknown(block: type[BaseModel], loc: list[Any]) -> str:
    """The fault of an unknown key: with its place in another block, or the nearest key, or all keys of its block."""
    key, known = loc[-1], _keys(block, loc[:-1])
    if remedy := getattr(block, "foreign_keys", {}).get(key):
        return f"unknown key {key!r} ({remedy})"
    places = sorted((path for path in _paths(block, []) if path[-1] == key), key=len)[:3]
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    meant = " or ".join(repr(".".join(path)) for path in places) or (repr(close[0]) if close else "")
    return f"unknown key {key!r} ({f'did you mean {meant}?' if meant else 'known: ' + ', '.join(known)})"


def _no_block(block: type[BaseModel], loc: list[Any], value: Any, equals: str) -> str:
    """The fault of a value where a block of settings is expected, with the right form for its first plain key."""
    name, keys = ".".join(map(str, loc)), _keys(block, loc)
    example = next(key for key in keys if not _keys(block, [*loc, key]))
    shown = "..." if isinstance(value, bool) or value in keys else value
    written = f"{name}.{example}={shown}" if equals == "=" else f"{example}: {shown}"
    return f"{name} is a block of settings, got {value!r}; write {written} (keys: {', '.join(keys)})"


def _paths(block: type[BaseModel], inner: list[str]) -> Iterator[list[str]]:
    """The paths of all keys in a nested block and in its own blocks."""
    for key in _keys(block, inner):
        yield [*inner, key]
        yield from _paths(block, [*inner, key])


def _keys(block: Any, inner: list[Any]) -> list[str]:
    """The keys of a nested block; other types have none."""
    for name in inner:
        if name in getattr(block, "model_fields", ()):  # otherwise a key of a dictionary
            annotation = block.model_fields[name].annotation
            kinds = (annotation, *get_args(annotation))
            block = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return [key for key in getattr(block, "model_fields", ()) if inner or key != "name"]  # that is the file name
