"""The manifest entry of a weight that is about to be published."""

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn

from hyperzoo import names
from hyperzoo.data.sources import IMAGES, TEXTS, Repository
from hyperzoo.training.recipe import Recipe
from hyperzoo.zoo.manifest import (
    DatasetInfo,
    InputInfo,
    Manifest,
    Metrics,
    Spread,
    TextMetrics,
    ThisFile,
    ThisText,
    Training,
    WeightInfo,
)

REPOSITORIES: dict[str, Repository] = {**IMAGES, **TEXTS}
TERMS = {code: "research use; its authors state no license" for code in ("c10", "c100")} | {
    "ptb": (
        "Penn Treebank of the Linguistic Data Consortium, as Mikolov prepared it; its terms were not verified. The "
        "weight comes with the list of its 10,000 words, and with no sentence of it"
    ),
    "wt2": "CC-BY-SA-3.0 and GFDL (Wikipedia)",
}


class Run(NamedTuple):
    """A finished run folder and its result.json."""

    folder: Path
    result: dict[str, Any]

    @property
    def score(self) -> float:
        """On the test split: accuracy in percent, or perplexity."""
        metrics = self.result["metrics"]
        return metrics["perplexity" if "perplexity" in metrics else "accuracy"]


def entry(
    recipe: Recipe,
    recipe_path: Path,
    runs: list[Run],
    median: Run,
    model: nn.Module,
    this_file: ThisFile | ThisText,
    manifest: Manifest,
) -> WeightInfo:
    """The manifest entry of a weight, with `bytes` and `files` still to be filled in.

    Args:
        recipe_path: relative to `recipes/`.
        runs: all runs; `median` is the one that is published, and `model` and `this_file` are its network and metrics.
        manifest: as it is so far; the first weight of an architecture is its default.
    """
    name = recipe.name
    parsed, result, repository = names.parse(name), median.result, REPOSITORIES[recipe.data.name]
    config, env = timm.data.resolve_model_data_config(model), median.result["environment"]
    by_seed = sorted((run.result["seed"], round(run.score, 4)) for run in runs)
    values = [value for _, value in by_seed]
    spread = Spread(
        mean=round(statistics.fmean(values), 4),
        sd=round(statistics.stdev(values), 4) if len(values) > 1 else None,
        n=len(values),
        seeds=tuple(seed for seed, _ in by_seed),
        values=tuple(values),
    )
    before = manifest.weights.get(name)
    not_versions = ("threads", "device", "cpu_capability", "commit", "dirty")
    threads = f"{env['threads']} thread{'s' if env['threads'] != 1 else ''}"
    return WeightInfo(
        name=name,
        default=before.default if before else not manifest.names(parsed.arch),
        task="text-generation" if isinstance(this_file, ThisText) else "image-classification",
        bundled=True,
        bytes=0,
        parameters=sum(p.numel() for p in model.parameters()),
        files={},
        commit=None,
        num_classes=int(model.num_classes),  # type: ignore[arg-type]
        input=InputInfo(
            config["input_size"], config["mean"], config["std"], float(config["crop_pct"]), config["interpolation"]
        ),
        dataset=DatasetInfo(
            repository.hub_id, repository.config, result["train_fingerprint"], result["metrics"]["fingerprint"]
        ),
        metrics=TextMetrics(spread, this_file) if isinstance(this_file, ThisText) else Metrics(spread, this_file),
        training=Training(
            epochs=result["epochs"],
            minutes=float(result["minutes"]),
            machine=f"{env['device']}, {threads}, {env['cpu_capability']}",
            precision=result["precision"],
        ),
        recipe=recipe_path.as_posix(),
        recipe_sha256=recipe.digest(),
        code_commit=env["commit"],
        versions={package: version for package, version in env.items() if package not in not_versions},
        license=str(model.pretrained_cfg["license"]),  # type: ignore[index]
        dataset_terms=TERMS[recipe.data.name],
        paper=papers(parsed),
    )


def papers(name: names.Name) -> tuple[str, ...]:
    """arXiv numbers of the method's papers, then those of the architecture (`PAPERS` of its model file)."""
    model_file = sys.modules[timm.model_entrypoint(name.arch).__module__]
    return tuple(dict.fromkeys((*names.METHODS[name.method].papers, *getattr(model_file, "PAPERS", ()))))


def notes(info: WeightInfo, run: Run) -> dict[str, Any]:
    """What config.json says under `hyperzoo`; not its own hash, which lies in the manifest."""
    return {
        "format": 1,
        "name": info.name,
        "parameters": info.parameters,
        "recipe": info.recipe,
        "recipe_sha256": info.recipe_sha256,
        "code_commit": info.code_commit,
        "code_changed_since_commit": bool(run.result["environment"].get("dirty")),
        "versions": info.versions,
        "dataset": dataclasses.asdict(info.dataset),
        "metric": dataclasses.asdict(info.score),
    }
