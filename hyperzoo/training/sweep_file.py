"""Sweep files: a base recipe and the varied settings, read as strictly as a recipe; gives one recipe per run.

base: spherenet20.sphere_c10          # the name of a recipe, or a file next to the sweep
set: {train.epochs: 12}               # settings of all runs
rows:                                 # one row of the table each; keys as in `hyperzoo train RECIPE key=value`
  linear: {model.arch: spherenet20_linear}
  plain: {model.arch: resnet20_cifar}
seeds: [0, 1]
baseline: plain                       # the row that the others are compared with, paired by seed
published: {linear: 94.68}            # the source's accuracy in %, or perplexity, per row
source: arXiv 1711.03189, Table 4

`columns`, written like `rows`, are combined with them: each row runs with each column, as <row>-<column>, and
`published` has a number per column of a row. `baseline` may be a map, row: its baseline.
"""

import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator, model_validator

from hyperzoo import names
from hyperzoo.errors import RecipeError
from hyperzoo.training.recipe import Recipe, load_recipe, recipe_folders
from hyperzoo.training.strict_yaml import Block, Count, Reader, read_yaml, validated

_LABEL = re.compile(r"[a-z0-9_][a-z0-9_.]*", re.ASCII)


class Sweep(Block):
    """The contents of a sweep file."""

    base: str  # name of a recipe, or a .yaml file next to this one
    set: dict[str, Any] = {}  # settings of all runs, as block.key: value
    rows: dict[str, dict[str, Any]]  # label: the settings that this row changes
    columns: dict[str, dict[str, Any]] | None = None  # label: settings; each row then runs with each column
    seeds: list[Count] = [0]  # train.seed of the runs of each row
    baseline: str | dict[str, str] | None = None  # row that the others are compared with, paired by seed; or row: its
    # baseline
    published: dict[str, float | dict[str, float]] = {}  # accuracy in % or perplexity that the source states, per row;
    # with columns, per column of a row
    source: str | None = None  # where the published numbers stand

    @field_validator("rows", "columns")
    @classmethod
    def _labels(cls, lines: dict[str, Any] | None) -> dict[str, Any] | None:
        for label in lines or ():
            if not _LABEL.fullmatch(label):
                raise ValueError(f"a label is a folder name of lower-case letters, digits, _ and .; got {label!r}")
        return lines

    @model_validator(mode="after")
    def _consistent(self) -> "Sweep":
        if not self.rows or not self.seeds or self.columns == {}:
            raise ValueError("a sweep needs at least one row and one seed; `columns`, if given, at least one column")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeats a seed")
        labels = [label for label, _ in self.lines()]
        if any("train.seed" in changes for _, changes in self.lines()):
            raise ValueError("a row cannot set train.seed; list the seeds under `seeds`")
        if unknown := sorted(set(self.stated()) - set(labels)):
            raise ValueError(f"published has {unknown[0]!r}, which is not a run. Runs: {', '.join(labels)}")
        if unknown := [row for pair in self._pairs() for row in pair if row not in self.rows]:
            raise ValueError(f"baseline {unknown[0]!r} is not a row. Rows: {', '.join(self.rows)}")
        if self.published and not self.source:
            raise ValueError("`published` needs a `source`")
        return self

    def lines(self) -> list[tuple[str, dict[str, Any]]]:
        """(label, changed keys) of each line of the table: rows times columns."""
        if self.columns is None:
            return [(row, {**self.set, **changes}) for row, changes in self.rows.items()]
        return [
            (f"{row}-{column}", {**self.set, **changes, **more})
            for row, changes in self.rows.items()
            for column, more in self.columns.items()
        ]

    def baselines(self) -> dict[str, str]:
        """The label that each label is compared with: that of the row's baseline, in the same column."""
        columns = [""] if self.columns is None else [f"-{column}" for column in self.columns]
        return {f"{row}{column}": f"{baseline}{column}" for row, baseline in self._pairs() for column in columns}

    def _pairs(self) -> list[tuple[str, str]]:
        """(row, its baseline)."""
        if isinstance(self.baseline, dict):
            return list(self.baseline.items())
        return [(row, self.baseline) for row in self.rows if self.baseline is not None and row != self.baseline]

    def stated(self) -> dict[str, float]:
        """The published number of each label."""
        flat: dict[str, float] = {}
        for row, value in self.published.items():
            if isinstance(value, dict):
                flat |= {f"{row}-{column}": number for column, number in value.items()}
            else:
                flat[row] = value
        return flat


class Run(NamedTuple):
    """One run of a sweep; `label` is its line in the table and its folder."""

    label: str
    recipe: Recipe

    @property
    def subfolder(self) -> str:
        """Its run folder within the folder of the sweep."""
        return f"{self.label}/{self.recipe.train.seed}"


def size(sweep: Sweep, runs: list[Run]) -> str:
    """The number of runs and their length: '2 rows x 3 seeds = 6 runs of 12 epochs'."""
    parts = {"row": sweep.rows, "column": sweep.columns, "seed": sweep.seeds}
    grid = " x ".join(_counted(len(part), noun) for noun, part in parts.items() if part is not None)
    epochs = [run.recipe.train.epochs for run in runs]
    shortest = f"{min(epochs)} to " if min(epochs) < max(epochs) else ""
    return f"{grid} = {_counted(len(runs), 'run')} of {shortest}{_counted(max(epochs), 'epoch')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def sweep_files() -> list[Path]:
    """The sweeps of the package: tables of the papers and our studies."""
    rooms = [folder / room for folder in recipe_folders() for room in ("papers", "studies")]
    return [file for room in rooms for file in sorted(room.glob("*.yaml"))]


def is_sweep(path_or_name: str | Path) -> bool:
    """Whether this is a sweep: a file with the key `base`, or the name of a sweep of the package."""
    path = _find(path_or_name)
    return path is not None and "base" in read_yaml(path)[1]


def load_sweep(path_or_name: str | Path) -> tuple[Sweep, list[Run]]:
    """Read a sweep file, or a sweep of `recipes/papers` or `recipes/studies` by name, with the recipe of each run.

    Raises:
        RecipeError: a missing file, the faults of the sweep, or those of the first faulty run.
    """
    path = _find(path_or_name)
    if path is None:
        known = names.closest_text(str(path_or_name), _known())
        raise RecipeError(f"no sweep {str(path_or_name)!r}. {known} Or pass a .yaml file")
    reader, values = read_yaml(path)
    sweep = validated(Sweep, values, reader, path.name)
    return sweep, _runs(sweep, path)


class Queue(Block):
    """The contents of a queue file: sweeps in the order of training; a row has the name of the weight it makes."""

    jobs: dict[str, Sweep]  # label: a sweep, whose rows have the names of the weights that they produce


def load_queue(path: Path) -> list[Run]:
    """The runs of all jobs of a queue file, in order, or those of a sweep.

    Args:
        path: of a queue, or a sweep as for `load_sweep`.
    Raises:
        RecipeError: as for `load_sweep`; two jobs share a label.
    """
    if is_sweep(path):
        return load_sweep(path)[1]
    reader, values = read_yaml(path)
    queue = validated(Queue, values, reader, path.name)
    labels = [label for job in queue.jobs.values() for label, _ in job.lines()]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise RecipeError(
            f"{path.name}: two jobs have the row {min(twice)!r}; rows name the folders of runs, so rename one"
        )
    return [run for job in queue.jobs.values() for run in _runs(job, path)]


def _runs(sweep: Sweep, path: Path) -> list[Run]:
    """The runs of a sweep; its base may be a file in the same folder."""
    file = path.parent / sweep.base
    base = load_recipe(file if file.suffix == ".yaml" else sweep.base).model_dump(exclude={"name", "expect"})
    return [
        Run(label, _changed(base, {**changes, "train.seed": seed}, label, path))
        for label, changes in sweep.lines()
        for seed in sweep.seeds
    ]


def _changed(base: dict[str, Any], changes: dict[str, Any], label: str, path: Path) -> Recipe:
    values, reader = copy.deepcopy(base), Reader()
    for key, value in changes.items():
        reader.set(values, key, copy.deepcopy(value), Recipe)  # a later key may change a part of it
    name = f"{path.stem}/{label}".replace(".", "_")
    return validated(Recipe, {**values, "name": name}, reader, f"{path.name}, {label}")


def _find(path_or_name: str | Path) -> Path | None:
    path = Path(path_or_name)
    return path if path.suffix == ".yaml" else _known().get(str(path_or_name))


def _known() -> dict[str, Path]:
    return {file.stem: file for file in sweep_files()}
