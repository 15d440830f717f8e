"""The entry of a publication in the manifest."""

import dataclasses
import statistics
from typing import Any

import timm

from hyperzoo import names
from hyperzoo.data.sources import REPOSITORIES
from hyperzoo.publishing.publication import Publication, papers
from hyperzoo.training.seeding import versions
from hyperzoo.zoo.manifest import Manifest
from hyperzoo.zoo.weight_description import (
    DatasetInfo,
    InputInfo,
    Metrics,
    Spread,
    TextMetrics,
    ThisFile,
    ThisText,
    Training,
    WeightInfo,
)


def weight_info(publication: Publication, this_file: ThisFile | ThisText, manifest: Manifest) -> WeightInfo:
    """The manifest entry of a weight; `bundled`, `bytes`, `files` and `commit` are placeholders.

    Args:
        this_file: metrics of the published file.
        manifest: before the publication; the first weight of an architecture becomes its default.
    """
    name, recipe, model, result = publication.name, publication.recipe, publication.model, publication.median.result
    parsed, repository = names.parse(name), REPOSITORIES[recipe.data.name]
    config, env = timm.data.resolve_model_data_config(model), result["environment"]
    by_seed = sorted((run.result["seed"], round(run.score, 4)) for run in publication.runs)
    values = [value for _, value in by_seed]
    spread = Spread(
        mean=round(statistics.fmean(values), 4),
        sd=round(statistics.stdev(values), 4) if len(values) > 1 else None,
        n=len(values),
        seeds=tuple(seed for seed, _ in by_seed),
        values=tuple(values),
    )
    before = manifest.weights.get(name)
    processor = f"{env['device']}, {env['threads']} thread{'s' * (env['threads'] != 1)}, {env['cpu_capability']}"
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
            machine=processor if env["device"].startswith("cpu") else env["device"],
            precision=result["precision"],
        ),
        recipe=publication.recipe_path.as_posix(),
        recipe_sha256=recipe.digest(),
        code_commit=env["commit"],
        code_changed=any(run.result["environment"].get("dirty") for run in publication.runs),
        versions=versions(env),
        license=str(model.pretrained_cfg["license"]),  # type: ignore[index]
        dataset_terms=repository.terms,
        paper=papers(parsed),
    )


def config_notes(info: WeightInfo) -> dict[str, Any]:
    """The values of config.json under `hyperzoo`; the hashes are in the manifest only."""
    return {
        "format": 1,
        "name": info.name,
        "parameters": info.parameters,
        "recipe": info.recipe,
        "recipe_sha256": info.recipe_sha256,
        "code_commit": info.code_commit,
        "code_changed_since_commit": info.code_changed,
        "versions": info.versions,
        "dataset": dataclasses.asdict(info.dataset),
        "metric": dataclasses.asdict(info.score),
    }
