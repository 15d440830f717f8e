"""Push files to the Hub and compare what arrives; push a finished run with a generated card, without a checkout."""

import hashlib
import html
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hyperzoo import __version__, names, zoo
from hyperzoo.analysis import plots
from hyperzoo.data.sources import REPOSITORIES
from hyperzoo.errors import InvalidNameError, PublishError, WeightUnavailableError
from hyperzoo.publishing.finished_run import FinishedRun, finished_run
from hyperzoo.training.log import DESCRIBED, metric_of
from hyperzoo.training.recipe import Recipe
from hyperzoo.training.seeding import versions
from hyperzoo.training.strict_yaml import yaml_text
from hyperzoo.zoo import hub, weight_files
from hyperzoo.zoo.load import LOCAL, is_registered
from hyperzoo.zoo.manifest import VOCABULARY
from hyperzoo.zoo.model_folder import read_config
from hyperzoo.zoo.weight_description import as_text

CARD = "run_card.md"  # the template, next to this file
LISTED = 100  # classes in the table of a card
_ABSOLUTE = re.compile(r"[/\\~]|\w:[/\\]")


class Pushed(NamedTuple):
    """A run on the Hub: repository, commit, and the names of its files."""

    repo: str
    commit: str
    files: tuple[str, ...]


def push(folder: Path, repo: str, *, private: bool = False) -> Pushed:
    """Push a finished run to the Hub in one commit, read every file back and compare it.

    Sends the weights, config.json, the class names or words, the recipe, the result, the log with its learning curve,
    and a card. Absolute paths in the recipe and the result are cut to their last parts. The checkpoints stay here.

    Args:
        repo: '<owner>/<name>'; created if missing, otherwise its files are replaced by a new commit.
        private: create the repository as a private one.
    Raises:
        InvalidNameError: not '<owner>/<name>', or the name of a published weight, whose files have known hashes.
        PublishError: an unfinished or damaged run, a public repository for a private run, a push that failed or came
            back changed.
        WeightFileError: the run does not load.
    """
    owner, _, name = repo.partition("/")
    if not (owner and name and "@" not in repo and hub.is_repository(repo)):
        raise InvalidNameError(f"{names.cut(ascii(repo))} is not a repository of the Hub; write <owner>/<name>")
    if name in weight_files.MANIFEST.weights:
        raise InvalidNameError(
            f"{name} is a published weight of hyperzoo, which is loaded with known hashes only; choose another name"
        )
    run = finished_run(folder)
    with tempfile.TemporaryDirectory() as scratch:
        files = _files(run, repo, Path(scratch))
        commit, _ = send(repo, files, f"{run.result['name']}: {_score(run)}", Path(scratch) / "hub", private=private)
    return Pushed(repo, commit, tuple(files))


def send(
    repo: str, files: Mapping[str, bytes], message: str, cache: Path, *, private: bool = False
) -> tuple[str, Path]:
    """Push one commit and download it into an empty cache; returns the commit and the folder of the equal files.

    Raises:
        PublishError: the push failed, or another byte came back.
    """
    commit = hub.push(repo, files, message, private=private)
    pushed, unchanged = (
        f"{repo}@{commit}",
        "No local file was changed, and nothing refers to that commit by its hash; push again.",
    )
    try:
        downloaded = {
            path: hub.fetch(repo, commit, path, cache_dir=cache, size=len(content)) for path, content in files.items()
        }
    except WeightUnavailableError as error:
        raise PublishError(f"{pushed} was pushed, but cannot be downloaded: {error}. {unchanged}") from error
    if differing := [path for path, content in files.items() if downloaded[path].read_bytes() != content]:
        raise PublishError(f"{pushed}: the downloaded bytes of {', '.join(differing)} differ. {unchanged}")
    return commit, downloaded["model.safetensors"].parent


def _files(run: FinishedRun, repo: str, scratch: Path) -> dict[str, bytes]:
    """The files of the repository by name, after the model has been loaded from them."""
    config = read_config(run.folder)
    labels = config.pop("label_names", None)  # names of classes such as /m/01g317 are no paths
    config, result = _without_paths([config, run.result])
    config = {**({} if labels is None else {"label_names": labels}), **config}
    recipe = Recipe.stored(result["recipe"])
    log = run.folder / "metrics.jsonl"
    files = {
        "model.safetensors": (run.folder / "model.safetensors").read_bytes(),
        "config.json": _json(config),
        "metrics.jsonl": log.read_bytes(),
        "recipe.yaml": yaml_text(recipe.model_dump(exclude={"name", "expect"}, exclude_defaults=True)).encode(),
        "learning_curve.png": plots.learning_curve(log, scratch / "curve.png", title=recipe.name).read_bytes(),
    }
    if (words := run.folder / VOCABULARY).is_file():
        files[VOCABULARY] = words.read_bytes()
    digests = {part: hashlib.sha256(content).hexdigest() for part, content in files.items() if part in DESCRIBED}
    files["result.json"] = _json({**result, "files": digests})
    (sent := scratch / "sent").mkdir()
    for part, content in files.items():
        (sent / part).write_bytes(content)
    loaded = zoo.load(str(sent))
    parameters = sum(p.numel() for p in loaded.model.parameters())
    sent_run = FinishedRun(run.folder, result)
    files["README.md"] = _card(sent_run, config, recipe, repo, loaded.classes, parameters).encode()
    return files


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _without_paths(value: Any) -> Any:
    """Nested values whose absolute paths are cut to their last part, or to as many as tell them apart.

    Example:
        >>> _without_paths([{'a': '/data/train/0.parquet', 'b': '/data/test/0.parquet'}, '/data/birds/'])
        [{'a': 'train/0.parquet', 'b': 'test/0.parquet'}, 'birds']
    """
    parts = {text: _parts(text) for text in _texts(value) if _ABSOLUTE.match(text.removeprefix(LOCAL))}

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list):
            return [cut(item) for item in value]
        if not isinstance(value, str) or value not in parts:
            return value
        own = parts[value]
        others = [other for other in parts.values() if other != own]
        count = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        return "/".join(own[-count:])

    return cut(value)


def _texts(value: Any) -> Iterator[str]:
    """All strings in nested values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", path.removeprefix(LOCAL)) if part]


def _card(
    run: FinishedRun,
    config: Mapping[str, Any],
    recipe: Recipe,
    repo: str,
    classes: tuple[str, ...],
    parameters: int,
) -> str:
    """The card of a run."""
    result, metrics = run.result, run.result["metrics"]
    env, source = result["environment"], result["recipe"]["data"].get("source") or {}
    hub_id = source.get("hub") if source else REPOSITORIES[recipe.data.name].hub_id
    by_class = sorted(metrics.get("class_accuracy", {}).items(), key=lambda item: item[1])
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template.filters["cell"] = _cell
    return template.get_template(CARD).render(
        repo=repo,
        arch=config["architecture"],
        base=config.get("model_args", {}).get("base"),
        ours=is_registered(config["architecture"]),
        language=names.is_language(recipe.model.arch),
        channels=config.get("pretrained_cfg", config).get("input_size", [None])[0],
        classes=classes,
        parameters=parameters,
        metrics=metrics,
        score=_score(run),
        by_class=by_class[:LISTED],
        listed=LISTED,
        result=result,
        dataset=hub_id or recipe.data.name,
        hub_id=hub_id,
        training_part=recipe.data.training_part,
        versions=", ".join(f"{package} {version}" for package, version in versions(env).items()),
        version=__version__,
    )


def _cell(text: str) -> str:
    """A text in a table of a card: Markdown and HTML in the name of a class stay text."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _score(run: FinishedRun) -> str:
    metric = metric_of(run.result["metrics"])
    return f"{metric} {as_text(metric, run.score)}"
