"""Read JSON values strictly into dataclasses: no unknown key, no missing one, no other type."""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any

from hyperzoo import names
from hyperzoo.errors import WeightFileError

_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def read(kind: Any, value: Any, where: str) -> Any:
    """Check a JSON value against a type annotation and turn objects into dataclasses and lists into tuples."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(kind)
        if missing := [key for key in hints if key not in value]:
            raise WeightFileError(f"{where} lacks {', '.join(missing)}")
        if unknown := [key for key in value if key not in hints]:
            raise WeightFileError(f"{where} has unknown fields: {', '.join(unknown)}")
        return typing.cast(type, kind)(
            **{key: read(hints[key], item, f"{where}: {key}") for key, item in value.items()}
        )
    if origin is types.UnionType:
        if value is None and types.NoneType in args:
            return None
        keys = value.keys() if isinstance(value, dict) else ()
        fitting = [kind for kind in args if dataclasses.is_dataclass(kind) and _hints(kind).keys() == keys]
        return read((fitting or args)[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(read(args[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: read(args[1], item, f"{where}: {key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise WeightFileError(
            f"{where} must be of type {getattr(kind, '__name__', kind)}; got {names.cut(repr(value))}"
        )
    return value
