"""From finished run folders to a published weight: files, golden outputs, manifest entry, card. Nothing is uploaded."""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hyperzoo import build, cards, checkout, data, entry, evaluate, names, plots, weights
from hyperzoo.checkout import Checkout
from hyperzoo.entry import Run
from hyperzoo.errors import PublishError, WeightFileError
from hyperzoo.export import export_model
from hyperzoo.manifest import FILES, Manifest, Sample, ThisFile, WeightInfo
from hyperzoo.training.config import Recipe, load_recipe
from hyperzoo.verify import TEST_SLACK, outputs

BUNDLED_BYTES = 12_000_000  # larger files come from the Hub
_WRITE_AGAIN = """
import sys
from safetensors.numpy import load_file, save_file
save_file(load_file(sys.argv[1]), sys.argv[2], metadata={"format": "pt"})
"""


def publish(name: str, folders: list[Path], *, place: Checkout | None = None) -> WeightInfo:
    """Publish the median of finished runs of one recipe, in the files of a checkout; returns the manifest entry.

    Writes `checkpoints/<name>/`, the golden file, the card with its picture and log, all generated texts, and last the
    manifest. Everything is computed and checked first, so a refusal leaves every file as it was.

    Args:
        folders: run folders, one for each seed. One is enough; the card then says n = 1.
        place: the checkout to write to; the one that the package is imported from, without it.
    Raises:
        PublishError: no checkout; an unfinished run, one of another recipe, of other data, of the embedded sample or
            without a test result; a file above 12 MB; a test result that is not found again.
        WeightFileError: NaN, other tensors than the architecture's, or two processes that write other bytes.
        InvalidNameError, RecipeError, DataError: see `names`, `training.config`, `data.sources`.
    """
    name = str(names.parse(name))
    place = place or checkout.here()
    if place is None:
        raise PublishError("publishing needs a checkout of the repository, this is an installed package")
    recipe, recipe_file = _recipe(name, place)
    runs = sorted((_read(folder) for folder in folders), key=lambda run: (run.accuracy, run.result["seed"]))
    if not runs:
        raise PublishError(f"{name}: no run folder was given")
    _check_runs(recipe, runs, place)
    median = runs[(len(runs) - 1) // 2]
    model, classes = _model(recipe, median)
    with tempfile.TemporaryDirectory() as scratch:
        return _publish(name, recipe, recipe_file, runs, median, model, classes, place, Path(scratch))


def _publish(
    name: str,
    recipe: Recipe,
    recipe_file: Path,
    runs: list[Run],
    median: Run,
    model: nn.Module,
    classes: tuple[str, ...],
    place: Checkout,
    scratch: Path,
) -> WeightInfo:
    manifest = Manifest(place.package)
    this_file = _this_file(model, recipe.data.name, median, place)
    info = entry.entry(recipe, recipe_file.relative_to(place.recipes), runs, median, model, this_file, manifest)
    export_model(model, scratch, classes=classes, notes=entry.notes(info, median))
    file = scratch / "model.safetensors"
    _check_export(scratch, model)
    config = (scratch / "config.json").read_text(encoding="utf-8")
    if path := re.search(r'"(?:/|~|\w:\\)[^"]*"', config):
        raise PublishError(f"{name}: config.json would hold a path of this machine: {path[0]}")
    info = dataclasses.replace(
        info, bytes=file.stat().st_size, files={part: weights.sha256(scratch / part) for part in FILES}
    )
    if info.bytes > BUNDLED_BYTES:
        raise PublishError(f"{name} has {info.bytes} bytes; above {BUNDLED_BYTES} a weight comes from the Hub")
    manifest.weights[name] = info
    manifest_text = _manifest_text(manifest)
    (scratch / "weights.json").write_text(manifest_text, encoding="utf-8")
    Manifest(scratch)  # reads strictly: a malformed entry stops here
    log = median.folder / "metrics.jsonl"
    picture = plots.learning_curve(log, scratch / "curve.png", title=name)
    files = {manifest.folder(name) / part: (scratch / part).read_bytes() for part in FILES}
    files |= {place.golden(name): save(outputs(model, golden_input(model)), metadata={"format": "pt"})}
    files |= {place.card(name, ".metrics.jsonl"): log.read_bytes(), place.card(name, ".png"): picture.read_bytes()}
    files |= {path: text.encode() for path, text in cards.texts(manifest, place).items()}
    files |= {manifest.root / "weights.json": manifest_text.encode()}
    _write(files)
    return info


def golden_input(model: nn.Module) -> Tensor:
    """A fixed batch (4, C, H, W) of the model's input size, float32: value i is 4 (7919 i mod 2003) / 2003 - 2."""
    size = timm.data.resolve_model_data_config(model)["input_size"]
    count = torch.arange(4 * size[0] * size[1] * size[2])
    return (4 * (7919 * count % 2003).double() / 2003 - 2).float().view(4, *size)


def _recipe(name: str, place: Checkout) -> tuple[Recipe, Path]:
    found = [file for file in sorted(place.recipes.rglob(f"{name}.yaml")) if "drafts" not in file.parts]
    if len(found) != 1:
        raise PublishError(f"{name} needs one recipe {place.recipes}/<family>/{name}.yaml; found {len(found)}")
    return load_recipe(found[0]), found[0]


def _read(folder: Path) -> Run:
    missing = [part for part in ("result.json", "metrics.jsonl", *FILES) if not (folder / part).is_file()]
    if missing:
        raise PublishError(f"{folder} is not a finished run: {', '.join(missing)} is missing")
    try:
        return Run(folder, json.loads((folder / "result.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise PublishError(f"{folder / 'result.json'} is not valid JSON: {error}") from error


def _settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings without the seed, which is what the runs of one weight differ in."""
    settings = recipe.settings()
    return {**settings, "train": {**settings["train"], "seed": None}}


def _check_runs(recipe: Recipe, runs: list[Run], place: Checkout) -> None:
    """Every run is one of this recipe, on the same whole data set, with a seed of its own."""
    first = runs[0].result
    sample = {data.load_images(recipe.data.name, split, place.mirror).fingerprint for split in ("train", "test")}
    for folder, result in runs:
        got = {"train": result["train_fingerprint"], "test": result["metrics"]["fingerprint"]}
        differing = [
            key
            for key in got
            if got[key] != {"train": first["train_fingerprint"], "test": first["metrics"]["fingerprint"]}[key]
        ]
        faults = {
            f"its recipe is not that of {recipe.name}.yaml": _settings(Recipe.stored(result["recipe"]))
            != _settings(recipe),
            f"it was measured on the {result['split']}, not on the test split": result["split"] != "test",
            "it was made with the embedded sample, which serves tests and the demo only": bool(
                sample & set(got.values())
            ),
            f"its {' and '.join(differing)} images are not those of {runs[0].folder}": bool(differing),
            "its code commit is unknown": not result["environment"].get("commit"),
        }
        if bad := [text for text, is_so in faults.items() if is_so]:
            raise PublishError(f"{folder} cannot be published as {recipe.name}: {'; '.join(bad)}")
    seeds = [run.result["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise PublishError(f"{recipe.name}: two runs have the same seed: {', '.join(map(str, sorted(seeds)))}")


def _model(recipe: Recipe, run: Run) -> tuple[nn.Module, tuple[str, ...]]:
    """The architecture filled with the tensors of a run, every name and shape compared, in eval mode."""
    file = run.folder / "model.safetensors"
    weights.check_file(file)
    state = load_file(file)
    classes = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["label_names"]
    model = build.model(recipe, len(classes), 3)
    tag = names.parse(recipe.name).tag
    cfg: Any = model.pretrained_cfg
    cfg["tag"] = tag  # so that config.json is the same before and after the first publication
    model.load_state_dict(weights.same_keys(state, model))
    return model.eval(), tuple(classes)


def _this_file(model: nn.Module, code: str, run: Run, place: Checkout) -> ThisFile:
    """Measure the file that is published, on the full test split and on the embedded sample of it."""
    full, sample = evaluate.test_split(model, code), evaluate.test_split(model, code, mirror=place.mirror)
    stated = run.result["metrics"]
    if full.fingerprint != stated["fingerprint"]:
        raise PublishError(
            f"the test images at hand are not those of {run.folder}; set HYPERZOO_DATA to the same mirror"
        )
    if abs(full.correct - stated["correct"]) > TEST_SLACK:
        raise PublishError(f"{run.folder} says {stated['correct']} correct answers, its file gives {full.correct}")
    return ThisFile(
        accuracy=round(full.accuracy, 4),
        nll=round(full.nll, 4),
        ece=round(full.ece / 100, 4),
        correct=full.correct,
        total=full.total,
        sample=Sample(sample.correct, sample.total, sample.fingerprint),
    )


def _check_export(folder: Path, model: nn.Module) -> None:
    """Another process writes the same bytes, and timm's `local-dir:` gives back the same outputs."""
    file, again = folder / "model.safetensors", folder / "again.safetensors"
    subprocess.run([sys.executable, "-c", _WRITE_AGAIN, file, again], check=True)
    if again.read_bytes() != file.read_bytes():
        raise WeightFileError(f"{file.name}: another process writes other bytes for the same tensors")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    x = golden_input(model)
    if not torch.equal(outputs(loaded, x)["output"], outputs(model, x)["output"]):
        raise WeightFileError(f"{file.name}: loaded through local-dir: it gives other outputs")


def _manifest_text(manifest: Manifest) -> str:
    entries = {name: dataclasses.asdict(manifest.weights[name]) for name in manifest.names()}
    for values in entries.values():
        del values["name"]
    raw = {"format": 1, "namespace": manifest.namespace, "weights": entries}
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


def _write(files: dict[Path, bytes]) -> None:
    """Write all files beside their places first, then rename them in order: a full disk changes nothing."""
    written: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written[path] = path.with_name(f".{path.name}.new")
            written[path].write_bytes(content)
        for path, temporary in written.items():
            temporary.replace(path)
    except OSError as error:
        raise PublishError(f"cannot write the published files: {error}") from error
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
