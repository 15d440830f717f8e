"""Recipes: what one may say, in frozen models. `strict_yaml.py` reads them; methods: `recipe_methods.py`."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import timm.optim
from pydantic import Field, ValidationError, field_validator, model_validator

from hyperzoo import names
from hyperzoo.errors import RecipeError
from hyperzoo.training.recipe_methods import Method
from hyperzoo.training.strict_yaml import (
    AtLeastOne,
    Block,
    Count,
    Fraction,
    NonNegative,
    Positive,
    read_yaml,
    validated,
)

_TEXTS = ", ".join(names.TEXTS)


class Model(Block):
    """What is trained."""

    arch: str
    args: dict[str, bool | int | float | str | list[int | float]] = {}  # for the constructor: drop_rate, widths, ...
    init: Literal["whiten"] | None = None  # whiten: first convolution = frozen patch-whitening filters of the data

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        if not timm.is_model(arch):
            raise ValueError(f"unknown architecture {arch!r}. {names.closest_text(arch, timm.list_models())}")
        return arch


class Data(Block):
    """What it is trained on, and how images are varied."""

    name: str
    batch_size: AtLeastOne = 128  # of one optimizer step, over all processes
    hold_out: Count = 0  # training images kept aside for choices; with any, the test split is not read
    keep: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}  # part of the training images of a class, to make it rare
    keep_seed: Count = 0  # which ones; of its own, so that the seeds of a recipe share their images
    crop_px: Count = 4  # border, out of which a crop of the image's size is cut
    border: Literal["zeros", "reflect", "symmetric"] = "zeros"  # what that border holds
    flip: bool | Literal["alternating"] = True  # alternating: both sides of every image in each pair of epochs
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.08  # of images that are streamed: least part in a random crop
    workers: Count = 0  # of images that are streamed: processes that decode
    length: AtLeastOne = 35  # of texts: tokens in a piece, through which the gradient flows
    choice: bool = False  # of texts: a run for a choice, judged on the validation split; the test split is not read
    size_px: AtLeastOne | None = None  # of images in memory: all of them, those held out too, become so small first
    resize_px: dict[AtLeastOne, AtLeastOne] = {}  # from this epoch on, train at this size; the last is the full size


class Optim(Block):
    """Optimizer and schedule, both timm's."""

    optimizer: str = "sgd"  # sgd is Nesterov momentum, as in timm; `momentum`, `adamw`, `muon`, `lookahead_muon`, ...
    lr: Positive
    momentum: Fraction = 0.9
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] | None = None  # of Adam and its kin
    args: dict[str, bool | int | float | str] = {}  # more of timm's optimizer, such as nesterov, adjust_lr_fn of muon
    weight_decay: NonNegative = 0.0  # not on biases and norms, unless `decay` says so
    decay: list[str] | None = None  # patterns of the names of parameters that decay, such as '*bn*'; no others then do
    lr_scale: dict[str, Positive] = {}  # factor of the rate by such patterns; the first that matches counts
    clip_norm: Positive | None = None  # of the gradient of all parameters together
    schedule: Literal["cosine", "poly", "multistep", "wsd", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.0  # part of `epochs`
    milestones: list[Positive] = []  # epochs, for multistep
    decay_rate: Positive | None = None  # multistep: factor; poly: power
    cycles: AtLeastOne = 1  # of cosine: equal parts after the warm-up, each falls to 0 (warm restarts, 1608.03983)
    cycle_decay: Positive = 1.0  # factor of the rate from which the next cycle falls

    @field_validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [str(known) for known in timm.optim.list_optimizers()]
        if name.removeprefix("lookahead_") not in known:
            raise ValueError(f"unknown optimizer {name!r}. {names.closest_text(name, known)}")
        return name


class Train(Block):
    """How long, how often, and in which arithmetic."""

    epochs: AtLeastOne
    seed: Count = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the processor has it, else fp32
    compile: Literal["auto", "on", "off"] = "auto"  # auto: with a compiler, for runs long enough to pay for it
    accumulate: AtLeastOne = 1  # parts in which a batch is worked through
    ema: Fraction = 0.0  # decay of the averaged weights that are published; 0 publishes the last ones
    processes: AtLeastOne | None = None  # refuse any other number


class Expect(Block):
    """What a rerun should find."""

    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None  # % on the test split, mean
    perplexity: Positive | None = None  # of texts: on the test split, mean
    sd: NonNegative | None = None  # over n seeds; null for n = 1
    n: AtLeastOne = 1
    minutes: Positive | None = None  # per seed, on the machine that the header names
    baseline: str | None = None  # weight that the card shows beside this one: same data and training, no method

    @field_validator("baseline")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        return name if name is None else str(names.parse(name))

    @model_validator(mode="after")
    def _one(self) -> "Expect":
        if (self.accuracy is None) == (self.perplexity is None):
            raise ValueError("expect states an accuracy, or for a text a perplexity")
        return self


class Recipe(Block):
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
        if self.optim.cycles > 1 and self.optim.schedule != "cosine":
            faults.append(f"optim.cycles {self.optim.cycles} needs optim.schedule cosine, not {self.optim.schedule}")
        if self.data.batch_size % self.train.accumulate:
            faults.append(f"batch_size {self.data.batch_size} does not divide by accumulate {self.train.accumulate}")
        late = [epoch for epoch in self.data.resize_px if epoch > self.train.epochs]
        if late:
            faults.append(f"data.resize_px names epoch {late[0]}, but there are {self.train.epochs}")
        if self.data.size_px and not self.data.hold_out and self.data.name not in names.TEXTS:
            faults.append("data.size_px needs data.hold_out: only a run for a choice is judged on smaller images")
        faults += self._faults_of_texts() if self.data.name in names.TEXTS else []
        if names.is_language(self.model.arch) != (self.data.name in names.TEXTS):
            faults.append(f"{self.model.arch} cannot be trained on {self.data.name}; texts, for lstm*: {_TEXTS}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_texts(self) -> list[str]:
        """What a recipe for a text says that only images have."""
        said = {"data." + key: getattr(self.data, key) for key in ("hold_out", "keep", "size_px", "resize_px")}
        said |= {"method." + key: getattr(self.method, key) for key in ("angular", "mixup", "manifold_mixup")}
        return [f"{key} is for images, not for {self.data.name}" for key, value in said.items() if value]

    def digest(self) -> str:
        """sha256 of all that influences the result: what the recipe says beyond the defaults, and not `name`, `expect`.

        A key that a later version adds therefore leaves the digest of older recipes alone; a default never changes.
        """
        said = self.model_dump(mode="json", exclude={"name", "expect"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, without `name` and `expect`."""
        return self.model_dump(mode="json", exclude={"name", "expect"})

    def shortened(self, epochs: int) -> "Recipe":
        """The same for another number of epochs: warm-up, milestones and the sizes of images in proportion."""
        values, part = self.model_dump(exclude={"expect"}), epochs / self.train.epochs
        values["train"]["epochs"] = epochs
        values["optim"]["warmup_epochs"] *= part
        values["optim"]["milestones"] = [milestone * part for milestone in self.optim.milestones]
        sizes = sorted(self.data.resize_px.items())  # the full size stays, were it for the last epoch only
        values["data"]["resize_px"] = {min(epochs, round((start - 1) * part) + 1): size for start, size in sizes}
        return Recipe.model_validate(values)

    @classmethod
    def stored(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe out of a run folder or checkpoint, also of an earlier version: keys that it lacks have defaults.

        Raises:
            RecipeError: not a recipe that this version understands.
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
    for override in overrides:
        reader.override(values, override)
    if "name" in values:
        reader.faults.append((reader.lines.get(("name",), 0), "unknown key 'name': the file name is the name"))
    return validated(Recipe, {**values, "name": path.name.removesuffix(".yaml")}, reader, path.name)


_KINDS = {"drafts": "draft", "papers": "table of a paper", "studies": "study"}


def recipe_folders() -> list[Path]:
    """Where recipes lie: in the installed package, or beside it in a checkout."""
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
    close = difflib.get_close_matches(name, files, n=3, cutoff=0.4)
    shown = [f"{known} ({kinds[known]})" for known in close or sorted(files)]
    raise RecipeError(
        f"no recipe {name!r}. {'Closest' if close else 'Known'}: {', '.join(shown)}. Or pass a .yaml file"
    )
