"""From finished run folders to a published weight: files, golden outputs, manifest entry, card; and to the Hub."""

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
from torch import nn

from hyperzoo import data, names, zoo
from hyperzoo.analysis import evaluate, neuron_energy, plots
from hyperzoo.errors import InvalidNameError, PublishError, RunError, WeightFileError, WeightUnavailableError
from hyperzoo.experiments import build
from hyperzoo.files import sha256, write_whole
from hyperzoo.publishing import cards, checkout, manifest_entry
from hyperzoo.publishing.checkout import Checkout
from hyperzoo.publishing.manifest_entry import Run
from hyperzoo.publishing.verify import TEST_SLACK, golden_input, outputs
from hyperzoo.training.log import read_result
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.zoo import hub, weight_files
from hyperzoo.zoo.manifest import FILES, TASKS, Manifest, Sample, ThisFile, ThisText, WeightInfo
from hyperzoo.zoo.model_folder import save_model

BUNDLED_BYTES = 12_000_000  # larger files come from the Hub
_WRITE_AGAIN = """
import sys
from safetensors.numpy import load_file, save_file
save_file(load_file(sys.argv[1]), sys.argv[2], metadata={"format": "pt"})
"""


def publish(
    name: str,
    folders: list[Path],
    *,
    place: Checkout | None = None,
    push: bool = False,
    namespace: str | None = None,
) -> WeightInfo:
    """Publish the median of finished runs of one recipe, in the files of a checkout; returns the manifest entry.

    Writes `checkpoints/<name>/`, the golden file, the card with its picture and log, all generated texts, and last the
    manifest. Everything is computed and checked first, so a refusal leaves every file as it was.

    Args:
        folders: run folders, one for each seed. One is enough; the card then says n = 1.
        place: the checkout to write to; the one that the package is imported from, without it.
        push: also send it to the Hub as `<namespace>/<name>`, in one commit, read every file back from there, and pin
            the commit in the manifest. Without it, a commit that holds these bytes already stays pinned.
        namespace: the owner on the Hub of all weights, from now on; the manifest's, without it.
    Raises:
        PublishError: no checkout; an unfinished run, one of another recipe, of other data, of the embedded sample or
            without a test result; a file above 12 MB that is not pushed; a test result that is not found again; a push
            that failed or came back changed; another namespace while other weights lie in this one.
        WeightFileError: NaN, other tensors than the architecture's, or two processes that write other bytes.
        InvalidNameError, RecipeError, DataError: see `names`, `training.config`, `data.sources`.
    """
    name = str(names.parse(name))
    place = place or checkout.here()
    if place is None:
        raise PublishError("publishing needs a checkout of the repository, this is an installed package")
    manifest = _manifest(name, place, namespace)
    recipe, recipe_file = _recipe(name, place)
    runs = sorted((_read(folder) for folder in folders), key=lambda run: (run.score, run.result["seed"]))
    if not runs:
        raise PublishError(f"{name}: no run folder was given")
    _check_runs(recipe, runs, place)
    median = runs[(len(runs) - 1) // 2]
    model, classes = _model(recipe, median)
    with tempfile.TemporaryDirectory() as scratch:
        return _publish(manifest, recipe, recipe_file, runs, median, model, classes, place, push, Path(scratch))


def _publish(
    manifest: Manifest,
    recipe: Recipe,
    recipe_file: Path,
    runs: list[Run],
    median: Run,
    model: nn.Module,
    classes: tuple[str, ...],
    place: Checkout,
    push: bool,
    scratch: Path,
) -> WeightInfo:
    name = recipe.name
    this_file = _this_file(model, recipe.data.name, median, place)
    info = manifest_entry.entry(
        recipe, recipe_file.relative_to(place.recipes), runs, median, model, this_file, manifest
    )
    save_model(model, scratch, classes=classes, args=build.model_args(recipe), notes=manifest_entry.notes(info, median))
    file = scratch / "model.safetensors"
    _check_export(scratch, model)
    config = (scratch / "config.json").read_text(encoding="utf-8")
    if path := re.search(r'"(?:/|~|\w:\\)[^"]*"', config):
        raise PublishError(f"{name}: config.json would hold a path of this machine: {path[0]}")
    digests, size = {part: sha256(scratch / part) for part in TASKS[info.task]}, file.stat().st_size
    before = manifest.weights.get(name)
    commit = before.commit if before and before.files == digests else None
    info = dataclasses.replace(info, bytes=size, files=digests, bundled=size <= BUNDLED_BYTES, commit=commit)
    if not (info.bundled or commit or push):
        raise PublishError(f"{name} has {size} bytes; above {BUNDLED_BYTES} a weight comes from the Hub: use --push")
    manifest.weights[name] = dataclasses.replace(info, commit="0" * 40) if push else info
    _manifest_text(manifest, scratch)
    log = median.folder / "metrics.jsonl"
    curve = plots.learning_curve(log, scratch / "curve.png", title=name)
    spread = neuron_energy.draw(
        neuron_energy.layer_energies(model, half_space=True), scratch / "energy.png", title=name
    )
    published = {part: (scratch / part).read_bytes() for part in info.files}
    golden = save(outputs(model, golden_input(model)), metadata={"format": "pt"})
    made = {".metrics.jsonl": log, ".png": curve, ".energy.png": spread}
    beside = {place.card(name, suffix): file.read_bytes() for suffix, file in made.items()}
    texts = {path: text.encode() for path, text in cards.texts(manifest, place).items()}
    if push:
        sent = {**published, "README.md": texts[place.card(name)], "recipe.yaml": recipe_file.read_bytes()}
        sent |= {path.name: content for path, content in beside.items()}  # where the card's links look for them
        sent |= {"test/rand_tensors.safetensors": golden}  # timm's name for golden outputs
        commit = _push(f"{manifest.namespace}/{name}", sent, info, model, scratch / "hub")
        info = manifest.weights[name] = dataclasses.replace(info, commit=commit)
    files = {manifest.folder(name) / part: content for part, content in published.items() if info.bundled}
    files |= {place.golden(name): golden, **beside, **texts}
    files |= {manifest.root / "weights.json": _manifest_text(manifest, scratch).encode()}
    _write(files)
    return info


def _push(repo: str, files: dict[str, bytes], info: WeightInfo, model: nn.Module, cache: Path) -> str:
    """One commit; then every file of it again, into an empty cache: equal bytes, and a model with equal outputs."""
    told = f"{info.name}: {info.metric} {info.shown(info.score.mean)}, n = {info.score.n}"
    commit = hub.push(repo, files, told)
    start, end = f"{repo}@{commit}", "Nothing was changed here, and nothing refers to that commit."
    try:
        got = {path: hub.fetch(repo, commit, path, cache_dir=cache) for path in files}
    except WeightUnavailableError as error:
        raise PublishError(f"{start} was pushed, but cannot be read again: {error}. {end}") from error
    if other := [path for path, content in files.items() if got[path].read_bytes() != content]:
        raise PublishError(f"{start} gives other bytes than were sent for {', '.join(other)}. {end}")
    _check_loads(got["model.safetensors"].parent, model)
    return commit


def _manifest(name: str, place: Checkout, namespace: str | None) -> Manifest:
    """The manifest as it is so far, under the namespace that was asked for."""
    manifest = Manifest(place.package)
    if namespace in (None, manifest.namespace):
        return manifest
    if not re.fullmatch(r"[A-Za-z0-9_]([-.]?[A-Za-z0-9_]){0,95}", str(namespace)):
        raise InvalidNameError(f"{namespace!r} is not a namespace of the Hub: letters, digits, _, single - or . inside")
    if there := [other for other, info in manifest.weights.items() if info.commit and other != name]:
        raise PublishError(
            f"the namespace cannot become {namespace}: {', '.join(there)} lie in {manifest.namespace} on the Hub"
        )
    if name in manifest.weights:  # what it may have on the Hub lies elsewhere now
        manifest.weights[name] = dataclasses.replace(manifest.weights[name], commit=None)
    manifest.namespace = str(namespace)
    return manifest


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
        return Run(folder, read_result(folder))
    except RunError as error:
        raise PublishError(str(error)) from error


def _settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings without the seed, which is what the runs of one weight differ in."""
    settings = recipe.settings()
    return {**settings, "train": {**settings["train"], "seed": None}}


def _check_runs(recipe: Recipe, runs: list[Run], place: Checkout) -> None:
    """Every run is one of this recipe, on the same whole data set, with a seed of its own."""
    first = runs[0].result
    sample: set[str] = set()
    if place.embeds(recipe.data.name):
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
            f"its {' and '.join(differing)} data are not those of {runs[0].folder}": bool(differing),
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
    weight_files.check_file(file)
    state = load_file(file)
    classes = zoo.class_names(run.folder)
    model = build.model(recipe, len(classes), 3)
    parsed = names.parse(recipe.name)
    cfg: Any = model.pretrained_cfg  # that of the default weight, if the architecture has one
    cfg["tag"], cfg["paper_ids"] = (
        parsed.tag,
        tuple(f"arXiv:{paper}" for paper in manifest_entry.papers(parsed)) or None,
    )
    model.load_state_dict(weight_files.same_keys(state, model))
    return model.eval(), classes


def _this_file(model: nn.Module, code: str, run: Run, place: Checkout) -> ThisFile | ThisText:
    """Measure the file that is published, on the full test split and on the embedded sample of it, if there is one."""
    full = evaluate.test_split(model, code)
    stated = run.result["metrics"]
    if full.fingerprint != stated["fingerprint"]:
        raise PublishError(f"the test data at hand are not those of {run.folder}; set HYPERZOO_DATA to the same mirror")
    if abs(full.correct - stated["correct"]) > TEST_SLACK:
        raise PublishError(f"{run.folder} says {stated['correct']} correct answers, its file gives {full.correct}")
    if isinstance(full, evaluate.TextMetrics):
        return ThisText(round(full.perplexity, 4), round(full.nll, 4), full.correct, full.total)
    sample: Sample | None = None
    if place.embeds(code):
        part = evaluate.test_split(model, code, mirror=place.mirror)
        sample = Sample(part.correct, part.total, part.fingerprint)
    return ThisFile(
        accuracy=round(full.accuracy, 4),
        nll=round(full.nll, 4),
        ece=round(full.ece, 4),
        correct=full.correct,
        total=full.total,
        sample=sample,
    )


def _check_export(folder: Path, model: nn.Module) -> None:
    """Another process writes the same bytes, and timm's `local-dir:` gives back the same outputs."""
    file, again = folder / "model.safetensors", folder / "again.safetensors"
    subprocess.run([sys.executable, "-c", _WRITE_AGAIN, file, again], check=True)
    if again.read_bytes() != file.read_bytes():
        raise WeightFileError(f"{file.name}: another process writes other bytes for the same tensors")
    _check_loads(folder, model)


def _check_loads(folder: Path, model: nn.Module) -> None:
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    x = golden_input(model)
    if not torch.equal(outputs(loaded, x)["output"], outputs(model, x)["output"]):
        raise WeightFileError(f"model.safetensors: loaded through local-dir:{folder} it gives other outputs")


def _manifest_text(manifest: Manifest, scratch: Path) -> str:
    """The text of weights.json, read strictly once: a malformed entry stops here."""
    entries = {name: dataclasses.asdict(manifest.weights[name]) for name in manifest.names()}
    for values in entries.values():
        del values["name"]
    raw = {"format": 1, "namespace": manifest.namespace, "weights": entries}
    text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
    (scratch / "weights.json").write_text(text, encoding="utf-8")
    Manifest(scratch)
    return text


def _write(files: dict[Path, bytes]) -> None:
    try:
        write_whole(files)
    except OSError as error:
        raise PublishError(f"cannot write the published files: {error}") from error
