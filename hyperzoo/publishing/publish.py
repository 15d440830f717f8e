"""Publish finished runs as a weight: checkpoint, golden file, manifest entry, card, and a commit on the Hub."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import nn

from hyperzoo import data, names
from hyperzoo.analysis import evaluate, neuron_energy, plots
from hyperzoo.errors import (
    InputError,
    InvalidNameError,
    PublishError,
    WeightFileError,
)
from hyperzoo.experiments.model_args import model_args
from hyperzoo.files import sha256, write_whole
from hyperzoo.publishing import cards, manifest_entry
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.publishing.finished_run import FinishedRun, finished_run
from hyperzoo.publishing.publication import SLACK, Publication, in_half, model_and_classes
from hyperzoo.publishing.push import send
from hyperzoo.publishing.verify import TEST_SLACK, golden_input, golden_outputs
from hyperzoo.training.log import median_run
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.zoo.manifest import NAMESPACE, TASKS, Manifest
from hyperzoo.zoo.model_folder import save_model
from hyperzoo.zoo.weight_description import Sample, ThisFile, ThisText, WeightInfo

BUNDLED_BYTES = 12_000_000  # larger files come from the Hub
FULL_BYTES = 4_000_000  # larger files of images are stored in float16, if the accuracy stays
_REWRITE = """
import sys
from safetensors.numpy import load_file, save_file
save_file(load_file(sys.argv[1]), sys.argv[2], metadata={"format": "pt"})
"""


def publish(
    name: str,
    folders: list[Path],
    *,
    checkout: Checkout | None = None,
    push: bool = False,
    namespace: str | None = None,
) -> WeightInfo:
    """Publish the median of finished runs of one recipe in a checkout; returns the manifest entry.

    Writes the golden file, the card with its figures and log, all generated texts, `checkpoints/<name>/`, and the
    manifest last. Everything is computed and checked before the first write, so a refusal changes no file. A second
    publication in the same checkout waits for the first.

    Args:
        folders: run folders, one per seed. One is enough; the card then reports a single run. Only the median run
            needs its weights.
        checkout: where to write [default: the checkout that this package is imported from].
        push: also push to the Hub as `<namespace>/<name>`, in one commit; every file is read back and compared, and the
            commit is pinned in the manifest. Without a push, a pinned commit that holds these bytes stays pinned.
        namespace: Hub namespace for all weights from now on [default: the manifest's].
    Raises:
        PublishError: no checkout; a run that is unfinished or damaged, of another recipe, on other data or on the
            embedded sample, or without a test result; a test result that cannot be reproduced; a file above 12 MB that
            is not pushed; a push that failed or came back changed; a new namespace while other weights are in the old
            one.
        WeightFileError: NaN, tensors that do not fit the architecture, or a file that is not reproducible bit by bit.
        InvalidNameError, RecipeError, DataError: see `names`, `training.recipe`, `data.sources`.
    """
    name = str(names.parse(name))
    checkout = checkout or find_checkout()
    if checkout is None:
        raise PublishError("publishing needs a checkout of the repository; this is an installed package")
    with checkout.locked(), tempfile.TemporaryDirectory() as scratch:
        manifest = _manifest(name, checkout, namespace)
        recipe, recipe_path = _recipe(name, checkout)
        runs = [finished_run(folder, weights=False) for folder in folders]
        if not runs:
            raise PublishError(f"{name}: pass at least one run folder")
        _check_runs(recipe, runs, checkout)
        scored = {(run.score, run.result["seed"]): run.folder for run in runs}
        median = finished_run(scored[median_run(scored)])
        publication = Publication(recipe, recipe_path, tuple(runs), median, *model_and_classes(recipe, median))
        return _publish(in_half(publication, FULL_BYTES), manifest, checkout, Path(scratch), push=push)


def _publish(
    publication: Publication, manifest: Manifest, checkout: Checkout, scratch: Path, *, push: bool
) -> WeightInfo:
    name, model, run = publication.name, publication.model, publication.median
    info = _saved(publication, manifest, checkout, scratch)
    if not (info.bundled or info.commit or push):
        raise PublishError(
            f"{name} has {info.bytes} bytes; weights above {BUNDLED_BYTES} bytes come from the Hub: pass --push"
        )
    manifest.weights[name] = dataclasses.replace(info, commit="0" * 40) if push else info
    _manifest_text(manifest, scratch)
    weight = {part: (scratch / part).read_bytes() for part in info.files}
    golden = save(golden_outputs(model, golden_input(model)), metadata={"format": "pt"})
    # whitening filters are pairs of opposites by construction: in the half space their energy is infinite
    cfg: Any = model.pretrained_cfg
    frozen = cfg["first_conv"] if publication.recipe.model.init == "whiten" else ()
    energies = neuron_energy.layer_energies(model, half_space=True, exclude=frozen)
    log = run.folder / "metrics.jsonl"
    card_files = {
        ".metrics.jsonl": log,
        ".png": plots.learning_curve(log, scratch / "curve.png", title=name),
        ".energy.png": neuron_energy.draw(energies, scratch / "energy.png", title=name, half_space=True),
    }
    attachments = {checkout.card(name, suffix): file.read_bytes() for suffix, file in card_files.items()}
    texts = {path: text.encode() for path, text in cards.texts(manifest, checkout, {name: model}).items()}
    if push:
        recipe = (checkout.recipes / publication.recipe_path).read_bytes()
        sent = {**weight, "recipe.yaml": recipe}
        sent |= {"README.md": cards.for_hub(texts[checkout.card(name)].decode(), manifest.namespace).encode()}
        sent |= {path.name: content for path, content in attachments.items()}  # the card links to these names
        sent |= {"test/rand_tensors.safetensors": golden}  # timm's name for golden outputs
        commit = _push(f"{manifest.namespace}/{name}", sent, info, model, scratch / "hub")
        info = manifest.weights[name] = dataclasses.replace(info, commit=commit)
    files = {checkout.golden(name): golden, **attachments, **texts}
    # Next to the manifest, which says their hashes: between these renames alone, a replaced weight would not load.
    files |= {manifest.folder(name) / part: content for part, content in weight.items() if info.bundled}
    files |= {manifest.root / "weights.json": _manifest_text(manifest, scratch).encode()}
    try:
        write_whole(files)
    except OSError as error:
        raise PublishError(f"cannot write the published files: {error}") from error
    return info


def _saved(publication: Publication, manifest: Manifest, checkout: Checkout, folder: Path) -> WeightInfo:
    """Write the files of the weight to a folder, check them, and return the complete manifest entry."""
    name, model = publication.name, publication.model
    info = manifest_entry.weight_info(publication, _this_file(publication, checkout), manifest)
    notes = manifest_entry.config_notes(info)
    args, dtype = model_args(publication.recipe), publication.dtype
    save_model(model, folder, classes=publication.classes, args=args, notes=notes, dtype=dtype)
    _check_reproducible(folder, model)
    config = (folder / "config.json").read_text(encoding="utf-8")
    if path := re.search(r'"(?:/|~|\w:\\)[^"]*"', config):
        raise PublishError(f"{name}: config.json would contain a path of this machine: {path[0]}")
    digests = {part: sha256(folder / part) for part in TASKS[info.task]}
    size = (folder / "model.safetensors").stat().st_size
    before = manifest.weights.get(name)
    commit = before.commit if before and before.files == digests else None
    return dataclasses.replace(info, bytes=size, files=digests, bundled=size <= BUNDLED_BYTES, commit=commit)


def _push(repo: str, files: dict[str, bytes], info: WeightInfo, model: nn.Module, cache: Path) -> str:
    """Push one commit, download it into an empty cache, and compare the bytes and the outputs of the loaded model."""
    message = f"{info.name}: {info.metric} {info.shown(info.score.mean)}, n = {info.score.n}"
    commit, folder = send(repo, files, message, cache)
    _check_loads(folder, model)
    return commit


def _manifest(name: str, checkout: Checkout, namespace: str | None) -> Manifest:
    """The manifest before the publication, with the requested namespace."""
    manifest = Manifest(checkout.package)
    if namespace in (None, manifest.namespace):
        return manifest
    if not NAMESPACE.fullmatch(str(namespace)):
        raise InvalidNameError(
            f"{namespace!r} is not a namespace of the Hub; use letters, digits and _, with single - or . inside"
        )
    if others := [other for other, info in manifest.weights.items() if info.commit and other != name]:
        raise PublishError(
            f"the namespace cannot become {namespace}: {', '.join(others)} are in {manifest.namespace} on the Hub"
        )
    if name in manifest.weights:  # a commit of this weight would be in the old namespace
        manifest.weights[name] = dataclasses.replace(manifest.weights[name], commit=None)
    manifest.namespace = str(namespace)
    return manifest


def _recipe(name: str, checkout: Checkout) -> tuple[Recipe, Path]:
    """The recipe of a weight and its path relative to `recipes/`; drafts do not count."""
    found = [file for file in sorted(checkout.recipes.rglob(f"{name}.yaml")) if "drafts" not in file.parts]
    if len(found) != 1:
        raise PublishError(
            f"{name} needs exactly one recipe {checkout.recipes}/<family>/{name}.yaml; found {len(found)}"
        )
    return load_recipe(found[0]), found[0].relative_to(checkout.recipes)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that the runs of a weight share: all but the seed."""
    settings = recipe.settings()
    return {**settings, "train": {**settings["train"], "seed": None}}


def _check_runs(recipe: Recipe, runs: list[FinishedRun], checkout: Checkout) -> None:
    """Refuse runs of another recipe, on different data or on the embedded sample, and equal seeds."""
    sample: set[str] = set()
    if checkout.has_sample(recipe.data.name):
        sample = {data.load_images(recipe.data.name, split, checkout.mirror).fingerprint for split in ("train", "test")}
    first = _fingerprints(runs[0])
    for run in runs:
        folder, result = run
        found = _fingerprints(run)
        differing = " and ".join(split for split in found if found[split] != first[split])
        faults = {
            f"its recipe differs from {recipe.name}.yaml": _settings(Recipe.stored(result["recipe"]))
            != _settings(recipe),
            f"it was evaluated on the {result['split']}, not on the test split": result["split"] != "test",
            "it used the embedded sample, which is for tests and the demo only": bool(sample & set(found.values())),
            f"its {differing} data differ from those of {runs[0].folder}": bool(differing),
            "its recipe was changed while it ran": bool(result.get("recipe_changes")),
            "its code commit is unknown": not result["environment"].get("commit"),
        }
        if present := [text for text, is_present in faults.items() if is_present]:
            raise PublishError(f"{folder} cannot be published as {recipe.name}: {'; '.join(present)}")
    seeds = [run.result["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise PublishError(f"{recipe.name}: two runs have the same seed: {', '.join(map(str, sorted(seeds)))}")


def _fingerprints(run: FinishedRun) -> dict[str, str]:
    return {"train": run.result["train_fingerprint"], "test": run.result["metrics"]["fingerprint"]}


def _this_file(publication: Publication, checkout: Checkout) -> ThisFile | ThisText:
    """Metrics of the published file, on the test split and on the embedded sample if there is one."""
    model, code, run = publication.model, publication.recipe.data.name, publication.median
    try:
        full, stated = evaluate.test_metrics(model, code, classes=publication.classes), run.result["metrics"]
    except InputError as error:
        raise PublishError(f"{run.folder}: {error}") from error
    if full.fingerprint != stated["fingerprint"]:
        raise PublishError(f"the test data differ from those of {run.folder}; set HYPERZOO_DATA to the same mirror")
    rounding = SLACK / 100 * full.total if publication.dtype == torch.float16 else 0
    if abs(full.correct - stated["correct"]) > TEST_SLACK + rounding:
        raise PublishError(
            f"{run.folder} reports {stated['correct']} correct answers, but its file gives {full.correct}"
        )
    if not math.isclose(full.nll, stated["nll"], rel_tol=0.01, abs_tol=0.01):
        raise PublishError(f"{run.folder} reports an NLL of {stated['nll']}, but its file gives {full.nll}")
    if isinstance(full, evaluate.LanguageMetrics):
        return ThisText(round(full.perplexity, 4), round(full.nll, 4), full.correct, full.total)
    sample: Sample | None = None
    if checkout.has_sample(code):
        part = evaluate.test_metrics(model, code, mirror=checkout.mirror)
        sample = Sample(part.correct, part.total, part.fingerprint)
    rounded = {key: round(getattr(full, key), 4) for key in ("accuracy", "nll", "ece")}
    views = evaluate.measure(model, data.load_images(code, "test"), tta="multicrop")
    return ThisFile(**rounded, multicrop=round(views.score, 4), correct=full.correct, total=full.total, sample=sample)


def _check_reproducible(folder: Path, model: nn.Module) -> None:
    """Refuse a file that another process writes differently, or that timm's `local-dir:` loads to other outputs."""
    file, rewritten = folder / "model.safetensors", folder / "rewritten.safetensors"
    subprocess.run([sys.executable, "-c", _REWRITE, file, rewritten], check=True)
    if rewritten.read_bytes() != file.read_bytes():
        raise WeightFileError(f"{file.name}: another process writes different bytes for the same tensors")
    _check_loads(folder, model)


def _check_loads(folder: Path, model: nn.Module) -> None:
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    x = golden_input(model)
    if not torch.equal(golden_outputs(loaded, x)["output"], golden_outputs(model, x)["output"]):
        raise WeightFileError(f"model.safetensors: the model loaded through local-dir:{folder} gives other outputs")


def _manifest_text(manifest: Manifest, scratch: Path) -> str:
    """The text of weights.json, after it was read strictly: a malformed entry raises here."""
    entries = {name: dataclasses.asdict(manifest.weights[name]) for name in manifest.names()}
    for values in entries.values():
        del values["name"]
    raw = {"format": 1, "namespace": manifest.namespace, "weights": entries}
    text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
    (scratch / "weights.json").write_text(text, encoding="utf-8")
    Manifest(scratch)
    return text
