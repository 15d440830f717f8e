"""The content of a publication: finished runs of one recipe, and the network of the median run."""

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from hyperzoo import names, zoo
from hyperzoo.analysis import evaluate
from hyperzoo.errors import WeightFileError
from hyperzoo.experiments import build
from hyperzoo.publishing.finished_run import FinishedRun
from hyperzoo.training.recipe import Recipe
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.model_folder import read_config

SLACK = 0.05  # points of accuracy that float16 may change: a fifth of the standard error of 94 % on 10,000 images


@dataclasses.dataclass(frozen=True)
class Publication:
    """What is published: the finished runs of one recipe, and the network of the median run.

    Attributes:
        recipe_path: relative to `recipes/`.
        runs: one run per seed; `median` is the one that is published.
        model: the network of the median run, in evaluation mode.
        classes: its class names; the words, for a language model.
        dtype: of the published tensors.
    """

    recipe: Recipe
    recipe_path: Path
    runs: tuple[FinishedRun, ...]
    median: FinishedRun
    model: nn.Module
    classes: tuple[str, ...]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return self.recipe.name


def model_and_classes(recipe: Recipe, run: FinishedRun) -> tuple[nn.Module, tuple[str, ...]]:
    """The network of a run in evaluation mode, after all tensor names and shapes were compared, and its class names."""
    file = run.folder / "model.safetensors"
    weight_files.check_file(file)
    state, classes, config = load_file(file), zoo.class_names(run.folder), read_config(run.folder)
    described = config.get("pretrained_cfg", config)
    if lacking := [key for key in ("input_size", "mean", "std") if key not in described]:
        raise WeightFileError(f"{run.folder / 'config.json'} lacks {', '.join(lacking)}; train again with --out")
    model = build.model(recipe, len(classes), described["input_size"][0])
    parsed = names.parse(recipe.name)
    paper_ids = tuple(f"arXiv:{paper}" for paper in papers(parsed))
    cfg: Any = model.pretrained_cfg  # that of the default weight, if the architecture has one
    cfg["tag"], cfg["paper_ids"], cfg["num_classes"] = parsed.tag, paper_ids or None, len(classes)
    cfg |= {key: tuple(described[key]) for key in ("input_size", "mean", "std")}  # as `describe_images` set them
    cfg["crop_pct"] = described["crop_pct"]
    model.load_state_dict(weight_files.same_keys(state, model))
    return model.eval(), classes


def in_half(publication: Publication, above: int) -> Publication:
    """The same in float16, if its float32 tensors are larger and its accuracy changes by at most `SLACK` points.

    The network then has the rounded numbers in float32, as they are loaded.

    Args:
        above: bytes of the largest file in float32.
    """
    model, code = publication.model, publication.recipe.data.name
    count = sum(value.numel() for value in model.state_dict().values())
    if 4 * count <= above or code in names.TEXTS:
        return publication
    rounded = copy.deepcopy(model).half().float()
    if abs(evaluate.test_metrics(rounded, code).score - publication.median.score) > SLACK + 1e-9:
        return publication
    return dataclasses.replace(publication, model=rounded, dtype=torch.float16)


def papers(name: names.Name) -> tuple[str, ...]:
    """arXiv numbers of the method's papers, then those of the architecture (`PAPERS` of its model file)."""
    model_file = sys.modules[timm.model_entrypoint(name.arch).__module__]
    return tuple(dict.fromkeys((*names.METHODS[name.method].papers, *getattr(model_file, "PAPERS", ()))))
