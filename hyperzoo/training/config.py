"""Recipes: YAML read into strict, frozen models; every fault is reported at once, with its line and nearest name.

YAML 1.2 (ruamel.yaml): `1e-3` is a number and `no` is text. Repeated keys, unknown tags and unknown keys are faults.
"""

import difflib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import timm.optim
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hyperzoo import names
from hyperzoo.errors import InvalidNameError, RecipeError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(_Block):
    """What is trained."""

    arch: str
    args: dict[str, bool | int | float | str] = {}  # for the constructor: drop_rate, ...

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        if not timm.is_model(arch):
            raise ValueError(f"unknown architecture {arch!r}. {names.closest_text(arch, timm.list_models())}")
        return arch


class Data(_Block):
    """What it is trained on, and how images are varied."""

    name: str
    batch_size: AtLeastOne = 128  # of one optimizer step, over all processes
    hold_out: Count = 0  # training images kept aside for choices; with any, the test split is not read
    crop_px: Count = 4  # border of zeros, out of which a crop of the image's size is cut
    flip: bool = True
    resize_px: dict[AtLeastOne, AtLeastOne] = {}  # from this epoch on, train at this size; the last is the full size


class Method(_Block):
    """The loss."""

    label_smoothing: Fraction = 0.0


class Optim(_Block):
    """Optimizer and schedule, both timm's."""

    optimizer: str = "sgd"  # sgd is Nesterov momentum, as in timm; `momentum`, `adamw`, ...
    lr: Positive
    momentum: Fraction = 0.9
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] | None = None  # of Adam and its kin
    weight_decay: NonNegative = 0.0  # never on biases and norms
    clip_norm: Positive | None = None  # of the gradient of all parameters together
    schedule: Literal["cosine", "poly", "multistep", "wsd", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.0  # part of `epochs`
    milestones: list[Positive] = []  # epochs, for multistep
    decay_rate: Positive | None = None  # multistep: factor; poly: power

    @field_validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [str(known) for known in timm.optim.list_optimizers()]
        if name not in known:
            raise ValueError(f"unknown optimizer {name!r}. {names.closest_text(name, known)}")
        return name


class Train(_Block):
    """How long, how often, and in which arithmetic."""

    epochs: AtLeastOne
    seed: Count = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the processor has it, else fp32
    compile: Literal["auto", "on", "off"] = "auto"  # auto: with a compiler, for runs long enough to pay for it
    accumulate: AtLeastOne = 1  # parts in which a batch is worked through
    ema: Fraction = 0.0  # decay of the averaged weights that are published; 0 publishes the last ones
    processes: AtLeastOne | None = None  # refuse any other number


class Expect(_Block):
    """What a rerun should find."""

    accuracy: Annotated[float, Field(ge=0, le=100)]  # % on the test split, mean
    sd: NonNegative | None = None  # over n seeds; null for n = 1
    n: AtLeastOne = 1
    minutes: Positive | None = None  # on the machine that the header names


class Recipe(_Block):
    """One training run. `name` is the file name without `.yaml`."""

    name: str
    model: Model
    data: Data
    method: Method = Method()
    optim: Optim
    train: Train
    expect: Expect | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        faults = []
        if "." in self.name and names.parse(self.name).arch != self.model.arch:
            faults.append(f"the recipe is named {self.name!r}, but model.arch is {self.model.arch!r}")
        if self.optim.warmup_epochs >= self.train.epochs:
            faults.append(
                f"optim.warmup_epochs {self.optim.warmup_epochs:g} leaves nothing of {self.train.epochs} epochs"
            )
        if self.optim.schedule == "multistep" and not self.optim.milestones:
            faults.append("optim.schedule multistep needs optim.milestones")
        if self.data.batch_size % self.train.accumulate:
            faults.append(f"batch_size {self.data.batch_size} does not divide by accumulate {self.train.accumulate}")
        late = [epoch for epoch in self.data.resize_px if epoch > self.train.epochs]
        if late:
            faults.append(f"data.resize_px names epoch {late[0]}, but there are {self.train.epochs}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def digest(self) -> str:
        """sha256 of all that influences the result: everything but `name` and `expect`."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, without `name` and `expect`."""
        return self.model_dump(mode="json", exclude={"name", "expect"})


def load_recipe(path_or_name: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Read a recipe from a file, or by the name of a weight from the recipes of the package.

    Args:
        overrides: 'block.key=value' each, for example 'optim.lr=0.05'; the value is read as YAML.
    Raises:
        RecipeError: the file is missing or has faults; all are listed with their lines.
        InvalidNameError: neither a file nor a well-formed name.
    """
    path = _find(path_or_name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    reader = _Reader()
    values = reader.read(text)
    if not isinstance(values, dict):
        values = {}
    for override in overrides:
        reader.override(values, override)
    if "name" in values:
        reader.faults.append((reader.lines.get(("name",), 0), "unknown key 'name': the file name is the name"))
    try:
        recipe = Recipe.model_validate({**values, "name": path.name.removesuffix(".yaml")})
    except InvalidNameError as error:
        raise RecipeError(f"{path.name}: {error}") from error
    except ValidationError as error:
        reader.faults += [reader.fault(detail) for detail in error.errors()]
    if reader.faults:
        faults = sorted(set(reader.faults))
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        listed = " ".join((f"Line {line}: {text}" if line else text).rstrip(".") + "." for line, text in faults)
        raise RecipeError(f"{path.name} has {count}. {listed}")
    return recipe


def recipe_folders() -> list[Path]:
    """Where recipes lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.suffix == ".yaml":
        return path
    name = str(names.parse(str(path_or_name)))
    found = [file for folder in recipe_folders() for file in sorted(folder.rglob(f"{name}.yaml"))]
    if not found:
        known = {file.stem for folder in recipe_folders() for file in folder.rglob("*.*_*.yaml")}
        raise RecipeError(f"no recipe {name!r}. {names.closest_text(name, known)}")
    return found[0]


class _Reader:
    """Turns YAML nodes into plain values, and remembers lines and faults."""

    _plain: dict[str, Callable[[str], Any]] = {
        "null": lambda text: None,
        "bool": lambda text: text.lower() == "true",
        "str": str,
    }

    def __init__(self) -> None:
        self.lines: dict[tuple[Any, ...], int] = {}
        self.faults: list[tuple[int, str]] = []

    def read(self, text: str, at: tuple[Any, ...] = ()) -> Any:
        try:
            node = YAML(typ="safe", pure=True).compose(text)
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            self.faults.append((mark.line + 1 if mark else 1, f"not valid YAML: {reason}"))
            return None
        return None if node is None else self._value(node, at)

    def override(self, values: dict[str, Any], text: str) -> None:
        key, equals, value = text.partition("=")
        *blocks, last = key.split(".")
        for block in blocks:
            values = values.setdefault(block, {}) if isinstance(values, dict) else values
        if not equals or not blocks or not isinstance(values, dict):
            self.faults.append((0, f"override {text!r} is not of the form block.key=value"))
        else:
            values[last] = _Reader().read(value)

    def fault(self, detail: Any) -> tuple[int, str]:
        """Line and text of one of pydantic's errors."""
        loc = [part for part in detail["loc"] if part != "[key]"]
        while loc and tuple(loc) not in self.lines and detail["type"] not in ("missing", "extra_forbidden"):
            loc.pop()  # pydantic appends the names of union members
        loc = loc or list(detail["loc"])
        line = next((self.lines[key] for i in range(len(loc), -1, -1) if (key := tuple(loc[:i])) in self.lines), 0)
        name = ".".join(str(part) for part in loc)
        if detail["type"] == "extra_forbidden":
            known = _keys(loc[:-1])
            close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
            return (
                line,
                f"unknown key {loc[-1]!r} ({f'did you mean {close[0]!r}?' if close else 'known: ' + ', '.join(known)})",
            )
        if detail["type"] == "missing":
            return line, f"{name} is missing"
        if detail["type"] == "value_error":
            return line, str(detail["ctx"]["error"])
        message = detail["msg"][0].lower() + detail["msg"][1:].removeprefix("Input")
        return line, f"{name}: {message.replace('input ', '')}, got {detail['input']!r}"

    def _value(self, node: Node, at: tuple[Any, ...]) -> Any:
        line = node.start_mark.line + 1
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
            if kind in self._plain:
                return self._plain[kind](node.value)
            if kind in ("int", "float"):
                return _number(node.value, kind)
        self.faults.append((line, f"the tag {str(node.tag)!r} is not allowed"))
        return None


def _number(text: str, kind: str) -> float | str:
    try:
        return (
            int(text.replace("_", ""), 0)
            if kind == "int"
            else float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        )
    except ValueError:
        return text


def _keys(blocks: list[Any]) -> list[str]:
    model: Any = Recipe
    for block in blocks:
        model = model.model_fields[block].annotation
    return [key for key in getattr(model, "model_fields", ()) if (model, key) != (Recipe, "name")]
