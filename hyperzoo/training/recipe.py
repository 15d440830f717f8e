"""The language of recipes: every key with its type, default and meaning.

The blocks `data` and `method` are in `recipe_data.py` and `recipe_methods.py`.

The comment after a key gives its meaning, its unit and the data it applies to.
"""

import difflib
import hashlib
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import timm
import timm.optim
from pydantic import Field, ValidationError, field_validator, model_validator

from hyperzoo import names
from hyperzoo.errors import RecipeError
from hyperzoo.layers.operators import OPERATORS
from hyperzoo.training.recipe_data import Data
from hyperzoo.training.recipe_methods import Method
from hyperzoo.training.strict_yaml import (
    AtLeastOne,
    Block,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Reader,
    read_yaml,
    validated,
)

_TEXTS = ", ".join(names.TEXTS)
_SET_BY_HYPERZOO = {*inspect.signature(timm.create_model).parameters, "num_classes", "in_chans", "features_only"}


UNSAVED_OPTIMIZERS = ("adafactorbv", "adahessian", "kron")  # state that is no tensor, or second derivatives


class Model(Block):
    """The network."""

    arch: str  # any architecture of timm or hyperzoo, without a tag
    args: dict[str, bool | int | float | str | list[int | float]] = {}  # constructor arguments: drop_rate, widths, ...
    init: Literal["whiten"] | None = None  # whiten: the first convolution gets frozen patch-whitening filters
    pretrained: str | Literal[True] | None = None  # start from a weight of hyperzoo or timm (true: the default one of
    # arch), or a run folder; a classifier for another number of classes is new
    sphereize: Literal[tuple(OPERATORS)] | None = None  # type: ignore[valid-type]  # its convolutions become
    # sphere layers with this operator; not of transformers, nor of networks that have sphere layers
    freeze: Literal["backbone"] | list[str] | None = None  # parameters that stay: all but the classifier, or by pattern

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        if not timm.is_model(arch):
            raise ValueError(f"unknown architecture {arch!r}. {names.closest_text(arch, timm.list_models())}")
        if "." in arch:
            name = arch.partition(".")[0]
            raise ValueError(f"model.arch {arch!r} has a tag; set model.arch to {name} and model.pretrained to {arch}")
        return arch

    @field_validator("args")
    @classmethod
    def _of_the_constructor(cls, args: dict[str, Any]) -> dict[str, Any]:
        if taken := [key for key in args if key in _SET_BY_HYPERZOO or key.startswith("pretrained")]:
            raise ValueError(f"model.args cannot set {taken[0]}, which hyperzoo sets; remove it")
        return args


class Optim(Block):
    """timm's optimizer and learning-rate schedule."""

    optimizer: str = "sgd"  # a name of timm: sgd (Nesterov), momentum, adamw, muon, ...; lookahead_<name>
    lr: Positive  # peak learning rate
    momentum: Fraction = 0.9  # of optimizers with momentum
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] | None = None  # of Adam and its variants
    args: dict[str, bool | int | float | str] = {}  # other arguments of timm's optimizer: nesterov, adjust_lr_fn, ...
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None  # factor of the rate per layer below the classifier
    weight_decay: NonNegative = 0.0  # of weight matrices, filters and VCL's betas; not of biases and norms
    decay: list[str] | None = None  # name patterns such as '*bn*': exactly these parameters decay
    lr_scale: dict[str, Positive] = {}  # name pattern: factor of the learning rate; the first match counts
    clip_norm: Positive | None = None  # largest norm of the whole gradient
    schedule: Literal["cosine", "poly", "multistep", "wsd", "constant"] = "cosine"  # of the learning rate
    warmup_epochs: NonNegative = 0.0  # linear from 0 to lr; included in train.epochs
    milestones: list[Positive] = []  # multistep: epochs of the steps
    decay_rate: Positive | None = None  # multistep: factor per step [default: 0.1]; poly: power [default: 1]
    cycles: AtLeastOne = 1  # cosine: equal cycles after the warm-up, each down to 0 (warm restarts, arXiv 1608.03983)
    cycle_decay: Positive = 1.0  # cosine: factor of the peak rate from cycle to cycle

    @field_validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [str(known) for known in timm.optim.list_optimizers()]
        if name.removeprefix("lookahead_") not in known:
            raise ValueError(f"unknown optimizer {name!r}. {names.closest_text(name, known)}")
        if any(kind in name for kind in UNSAVED_OPTIMIZERS):
            raise ValueError(
                f"the state of {name!r} fits no checkpoint, or it needs second derivatives; choose another"
            )
        return name


class Train(Block):
    """Length, seed and arithmetic of the run."""

    epochs: AtLeastOne  # passes over the training set, warm-up included
    seed: Count = 0  # of initialization, order, augmentation and methods
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # bf16: mixed; auto: bf16 if the hardware computes it
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: if the run is long enough to gain from it
    accumulate: AtLeastOne = 1  # gradient accumulation: parts per batch; more parts need less memory
    ema: Fraction = 0.0  # publish an exponential moving average of the weights with this decay; 0: the last weights
    processes: AtLeastOne | None = None  # required number of processes [default: any]
    validate_every: AtLeastOne = 1  # epochs from validation to validation, on the images of data.hold_out; the last
    # epoch is always validated


class Expect(Block):
    """The published result; it neither influences the run nor enters the digest."""

    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None  # images: % on the test split, mean over seeds
    perplexity: Positive | None = None  # texts: on the test split, mean over seeds
    sd: NonNegative | None = None  # standard deviation over seeds; null for a single run
    n: AtLeastOne = 1  # number of seeds
    minutes: Positive | None = None  # per seed, on the machine in the header
    baseline: str | None = None  # weight without the method, which the card compares with this one

    @field_validator("baseline")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        return name if name is None else str(names.parse(name))

    @model_validator(mode="after")
    def _one(self) -> "Expect":
        if (self.accuracy is None) == (self.perplexity is None):
            raise ValueError("expect needs an accuracy, or for a text a perplexity, and not both")
        return self


class Recipe(Block):
    """One training run. `name` is the file name without `.yaml`."""

    foreign_keys: ClassVar[dict[str, str]] = {
        "learning_rate": "did you mean 'optim.lr'?",
        "device": "a GPU is used if there is one; for the CPU, set ACCELERATE_USE_CPU=true in the environment",
    }

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
            faults.append(
                f"the recipe is named {self.name!r}, but model.arch is {self.model.arch!r}; copy it under another name"
            )
        if self.optim.warmup_epochs >= self.train.epochs:
            faults.append(
                f"optim.warmup_epochs {self.optim.warmup_epochs:g} must be below train.epochs {self.train.epochs}; "
                "lower it, to 0 for no warm-up"
            )
        if self.optim.schedule == "multistep" and not self.optim.milestones:
            faults.append("optim.schedule multistep needs optim.milestones")
        if self.optim.cycles > 1 and self.optim.schedule != "cosine":
            faults.append(f"optim.cycles {self.optim.cycles} needs optim.schedule cosine, not {self.optim.schedule}")
        if self.data.batch_size % self.train.accumulate:
            faults.append(f"batch_size {self.data.batch_size} does not divide by accumulate {self.train.accumulate}")
        late = [epoch for epoch in self.data.resize_px if epoch > self.train.epochs]
        if late:
            faults.append(f"data.resize_px has epoch {late[0]}, but train.epochs is {self.train.epochs}")
        resized = self.data.size_px and not self.data.source and not self.data.is_text
        if resized and not self.data.hold_out and not self.data.judge_on:
            faults.append("data.size_px needs data.hold_out: the test split is resized only with data.judge_on: test")
        if self.train.validate_every > 1 and not (self.data.hold_out or self.data.source or self.data.is_text):
            faults.append("train.validate_every needs validation images; set data.hold_out")
        if self.data.choice and not self.data.is_text:
            faults.append("data.choice is for texts; data.hold_out gives validation images")
        faults += self._faults_of_texts() if self.data.is_text else []
        if names.is_language(self.model.arch) != self.data.is_text:
            faults.append(f"{self.model.arch} cannot be trained on {self.data.name}; texts, for lstm*: {_TEXTS}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_texts(self) -> list[str]:
        """Keys for images in a recipe for a text."""
        keys = ("hold_out", "judge_on", "per_class", "keep", "label_noise", "size_px", "resize_px")
        said: dict[str, Any] = {"data." + key: getattr(self.data, key) for key in keys}
        said |= {"data.fraction": self.data.fraction < 1, "data.long_tail": self.data.long_tail > 1}
        said |= {"method." + key: getattr(self.method, key) for key in ("angular", "mixup", "manifold_mixup")}
        return [f"{key} is for images, not for {self.data.name}" for key, value in said.items() if value]

    def digest(self) -> str:
        """sha256 of all settings that differ from their defaults, without `name` and `expect`.

        So a new key changes no digest of an older recipe, as long as no default ever changes.
        """
        said = self.non_default()
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def non_default(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as plain values, without `name` and `expect`; for `stored`."""
        return self.model_dump(mode="json", exclude={"name", "expect"}, exclude_defaults=True)

    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, without `name` and `expect`."""
        return self.model_dump(mode="json", exclude={"name", "expect"})

    def shortened(self, epochs: int) -> "Recipe":
        """The recipe for another number of epochs; warm-up, milestones and `resize_px` are scaled with it."""
        values, part = self.model_dump(exclude={"expect"}), epochs / self.train.epochs
        values["train"]["epochs"] = epochs
        values["optim"]["warmup_epochs"] *= part
        values["optim"]["milestones"] = [milestone * part for milestone in self.optim.milestones]
        sizes = sorted(self.data.resize_px.items())  # the full size stays, at least in the last epoch
        values["data"]["resize_px"] = {min(epochs, round((start - 1) * part) + 1): size for start, size in sizes}
        return Recipe.model_validate(values)

    @classmethod
    def stored(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe from a run folder or checkpoint; keys that an older version lacked get their defaults.

        Raises:
            RecipeError: this version does not know a key or a value.
        """
        try:
            return cls.model_validate_json(json.dumps({"name": "stored", **values}))
        except ValidationError as error:
            raise RecipeError(f"the stored recipe is not one of this version: {error}") from error


def load_recipe(path_or_name: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Read a recipe from a file, or by the name of a published weight or a draft from the recipes of the package.

    Args:
        overrides: 'block.key=value' each, for example 'optim.lr=0.05'; the value is read as YAML.
    Raises:
        RecipeError: the file is missing or has faults; all are listed with their lines.
    """
    path = _find(path_or_name)
    reader, values = read_yaml(path)
    if "name" in values:
        reader.faults.append((reader.lines.get(("name",), 0), "unknown key 'name': the file name is the name"))
    return _made({**values, "name": path.name.removesuffix(".yaml")}, reader, path.name, overrides)


def make_recipe(values: dict[str, Any], overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """A recipe from its values, `name` among them, and overrides; as `load_recipe`."""
    return _made(values, Reader(), f"the recipe {values['name']}", overrides)


def _made(values: dict[str, Any], reader: Reader, where: str, overrides: tuple[str, ...] | list[str]) -> Recipe:
    for override in overrides:
        reader.override(values, override, Recipe)
    return validated(Recipe, values, reader, where)


_KINDS = {"drafts": "draft", "papers": "table of a paper", "studies": "study"}


def recipe_folders() -> list[Path]:
    """The folder of the recipes: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parent.parent
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.suffix == ".yaml":
        return path
    files = {file.stem: file for folder in recipe_folders() for file in sorted(folder.glob("*/*.yaml"))}
    kinds = {name: _KINDS.get(file.parent.name, "weight") for name, file in files.items()}
    name = str(path_or_name)
    if kinds.get(name) in ("weight", "draft"):
        return files[name]
    if path.is_dir():
        raise RecipeError(f"{name} is a folder; to resume a run, repeat its command: the recipe, and --out {name}")
    if Path(f"{name}.yaml").is_file():
        raise RecipeError(f"no recipe {name!r}; did you mean {name}.yaml?")
    close = difflib.get_close_matches(name, files, n=3, cutoff=0.4)
    shown = ", ".join(f"{known} ({kinds[known]})" for known in close or sorted(files)[:5])
    rest = "" if close else f" and {len(files) - 5} more"
    raise RecipeError(f"no recipe {name!r}. {'Closest' if close else 'Known'}: {shown}{rest}. Or pass a .yaml file")
