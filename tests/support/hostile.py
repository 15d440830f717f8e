"""Hostile inputs of seven kinds, made from a seed: each ends with a right value or with a typed error.

Input n of a kind and a seed is always the same, and the message of a finding names all three. Out of a finding comes a
small test next to the code it concerns.
"""

import copy
import gc
import json
import random
import struct
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from huggingface_hub import close_session, constants
from ruamel.yaml import YAML
from safetensors.torch import load_file, save

from hyperzoo import data, files, zoo
from hyperzoo.errors import HyperzooError
from hyperzoo.publishing.finished_run import finished_run
from hyperzoo.training import checkpoint, log
from hyperzoo.training.recipe import Recipe, load_recipe
from hyperzoo.zoo import hub
from hyperzoo.zoo.manifest import FILES
from hyperzoo.zoo.model_folder import save_model
from support import fuzz_weights, hostile_numbers
from support.hub_double import Double, talk_to
from support.made_images import toy, write_mirror
from support.published import COMMIT, MIXUP, publish, withdraw

LIMIT_S = 20.0
RECIPES = Path(__file__).parents[2] / "recipes"
NESTED: list[Any] = []
for _ in range(100):
    NESTED = [NESTED]
VALUES = [
    *(None, True, False, 0, -1, 1, 3, 2**63, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "../../x", "/etc/passwd", "a\0b", "\ud800", "\x1b[31m", "ä" * 300, "a" * 100_000),
    *([], {}, [[]], [None], [1, "a"], {"": None}, {"a": {}}, NESTED),
]
"""What stands in place of any value of a JSON file."""


class Case:
    """One kind of input: a good one, made once; `attempt` damages a copy and uses it.

    Attributes:
        shown: the last input, or what was done to it.
    """

    shown: Any = None

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.folder = folder

    def attempt(self, rng: random.Random) -> None:
        """Use one input; returns if all values are right.

        Raises:
            AssertionError: a wrong value. HyperzooError: the input was refused.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End what the kind has started."""


def damaged_json(values: Any, rng: random.Random) -> bytes:
    """The text of values with one to three of them replaced, removed, renamed or damaged as text."""
    values = copy.deepcopy(values)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        places = [*_places(values)]
        if not places:
            break
        inside, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[rng.choice(("", "x", "pretrained", "__class__", key.upper()))] = inside.pop(key)
            case _:
                inside[key] = copy.deepcopy(rng.choice(VALUES))
    text = json.dumps(values).encode()
    match rng.randrange(16):
        case 0 | 1:
            return fuzz_weights.mutated(text, rng)
        case 2:
            return text[: rng.randrange(len(text))]
        case 3:
            return rng.choice(
                (b"", b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), text + text, b"[" * 200_000)
            )
        case 4:
            return json.dumps(rng.choice(VALUES)).encode()
    return text


def _places(values: Any) -> Any:
    """Each object or list inside of values, with each of its keys or indices."""
    if isinstance(values, dict | list):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield values, key
            yield from _places(values[key])


class Weights(Case):
    """A weight file: bits and bytes anywhere, and values of its header."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        super().__init__(folder, monkeypatch)
        self.good = save(timm.create_model(fuzz_weights.ARCH, **fuzz_weights.ARGS).state_dict())

    def attempt(self, rng: random.Random) -> None:
        file, content = self.folder / "model.safetensors", self.good
        if rng.random() < 0.5:
            (length,) = struct.unpack("<Q", content[:8])
            header = damaged_json(json.loads(content[8 : 8 + length]), rng)
            self.shown = header[:2_000]
            content = struct.pack("<Q", len(header)) + header + content[8 + length :]
        else:
            content = fuzz_weights.mutated(content, rng)
        file.write_bytes(content)
        overlay = dict(file=str(file))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Casting complex values to real", UserWarning)
            model = timm.create_model(
                fuzz_weights.ARCH, pretrained=True, pretrained_cfg_overlay=overlay, **fuzz_weights.ARGS
            )
        tensors = load_file(file)
        for name, value in model.state_dict().items():
            assert torch.equal(value, tensors[name]) and torch.isfinite(value).all(), name


class Configs(Case):
    """config.json of a folder with a saved model."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        super().__init__(folder, monkeypatch)
        args = dict(num_classes=3, **fuzz_weights.ARGS)
        save_model(timm.create_model(fuzz_weights.ARCH, **args), folder, classes=("a", "b", "c"), args=args)
        self.good = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "model.safetensors")

    def attempt(self, rng: random.Random) -> None:
        content = damaged_json(self.good, rng)
        self.shown = content[:3_000]
        (self.folder / "config.json").write_bytes(content)
        loaded = zoo.load(str(self.folder))
        state = loaded.model.state_dict()
        assert state.keys() == self.tensors.keys()
        assert all(torch.equal(value, self.tensors[name]) for name, value in state.items())
        assert len(loaded.classes) == 3 and all(isinstance(name, str) for name in loaded.classes)
        assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


YAML_VALUES = [
    *(
        "",
        "~",
        "null",
        "0",
        "-1",
        "1",
        "3",
        "0.5",
        "1e-3",
        "1e400",
        ".nan",
        ".inf",
        "-.inf",
        "0x10",
        "0o7",
        "1_0",
        "9" * 400,
    ),
    *(
        "true",
        "no",
        "high",
        '"',
        "'",
        "a: b",
        "a #b",
        "- 1",
        "? ",
        "|",
        ">",
        "%YAML 1.1",
        "--- 1\n--- 2",
        "\t",
        "\0",
        "\x07",
    ),
    *(
        "{",
        "[",
        "]",
        "{a: 1, a: 2}",
        "[1, 2",
        "{hidden: 1, output: 1",
        "@2",
        "`x",
        "*a",
        "&a [*a]",
        "&a {b: *a}",
        "!x 5",
    ),
    *(
        "!!python/object:os.system x",
        "!!binary aGk=",
        "2001-01-01",
        "[" * 1_000,
        "[0.9, 0.99]",
        "{}",
        "[]",
        "5 6",
        "ä",
        "<<: 1",
    ),
]
PLAIN = ["1", "3", "0.5", "true", "null", "64", "0.0", "[0.9, 0.99]", "cosine"]
KEYS = [
    *(
        "model.arch",
        "model.args",
        "data.name",
        "data.batch_size",
        "data.hold_out",
        "data.crop_px",
        "data.flip",
        "data.keep",
    ),
    *(
        "optim.lr",
        "optim.momentum",
        "optim.betas",
        "optim.clip_norm",
        "optim.milestones",
        "optim.schedule",
        "optim.cycles",
    ),
    *(
        "train.epochs",
        "train.seed",
        "train.processes",
        "train.accumulate",
        "train.ema",
        "train.precision",
        "train.compile",
    ),
    *(
        "method.mhe",
        "method.mhe.hidden",
        "method.angular",
        "method.mixup",
        "method.per",
        "method.vcl",
        "data.resize_px",
    ),
    *(
        "",
        ".",
        "optim",
        "optim.",
        "optim..lr",
        "optim.lr.x",
        "name",
        "name.x",
        "model.__class__",
        "expect",
        "a.b",
        "optim.LR",
    ),
]


class Recipes(Case):
    """A recipe file, and overrides."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        super().__init__(folder, monkeypatch)
        self.texts = [file.read_text() for file in sorted(RECIPES.glob("*/*.yaml"))]

    def attempt(self, rng: random.Random) -> None:
        text, file = rng.choice(self.texts), self.folder / "hostile.yaml"
        lines, overrides = text.splitlines(), ()
        match rng.randrange(4):
            case 0:
                file.write_bytes(fuzz_weights.mutated(text.encode(), rng))
            case 1:
                at = rng.randrange(len(lines))
                lines[at : at + rng.randrange(2)] = [f"{lines[at].partition(':')[0]}: {rng.choice(YAML_VALUES)}"]
                file.write_text("\n".join(lines))
            case _:
                file.write_text(text)
                overrides = tuple(
                    f"{rng.choice(KEYS)}={rng.choice((*YAML_VALUES, *PLAIN * 4))}" for _ in range(rng.choice((1, 1, 2)))
                )
        self.shown = overrides or file.read_bytes()
        recipe = load_recipe(file, overrides)
        assert Recipe.stored(recipe.settings()).digest() == recipe.digest()
        for key, value in dict(override.split("=", 1) for override in overrides).items():
            self.check(recipe, key, value)

    @staticmethod
    def check(recipe: Recipe, key: str, text: str) -> None:
        """What an accepted override says, by the parser of YAML alone, is what the recipe holds."""
        wanted: Any = YAML(typ="safe", pure=True).load(text)
        found: Any = recipe.model_dump(mode="json")
        for part in key.split("."):
            found = found[part]
        if isinstance(wanted, dict):
            found = {name: found[name] for name in wanted}
        assert found == wanted or wanted is None, f"{key} is {found!r}"


class Data(Case):
    """A parquet file of images: its bytes, its metadata, the pictures and labels in it."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        super().__init__(folder, monkeypatch)
        monkeypatch.setattr(constants, "HF_HOME", str(folder / "hf"))
        monkeypatch.setenv("HYPERZOO_DATA", str(folder / "mirror"))
        self.images = toy(count=6)
        self.file = next(write_mirror(folder / "mirror", self.images, shards=1).glob("*.parquet"))
        self.good, self.table = self.file.read_bytes(), pq.read_table(self.file)

    def attempt(self, rng: random.Random) -> None:
        rows, row = self.table.to_pylist(), rng.randrange(6)
        touched = {row}
        metadata, kind = self.table.schema.metadata, rng.randrange(5)
        self.shown = kind
        if kind == 0:
            self.file.write_bytes(fuzz_weights.mutated(self.good, rng))
            touched = {*range(6)}
        else:
            if kind == 1:
                picture = rows[row]["img"]["bytes"]
                cut = picture[: rng.randrange(len(picture))]
                rows[row]["img"]["bytes"] = rng.choice((fuzz_weights.mutated(picture, rng), cut, None, b"", b"GIF89a"))
            elif kind == 2:
                rows[row]["label"] = rng.choice((None, -1, 3, 2**62, -(2**63), 0, 2))
            elif kind == 3:
                rows[row]["img"] = rng.choice(
                    (None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": None, "path": None})
                )
            else:
                metadata = {b"huggingface": damaged_json(json.loads(metadata[b"huggingface"]), rng)}
            self.shown = kind, rows[row] if kind < 4 else metadata
            table = pa.Table.from_pylist(rows, schema=self.table.schema.remove_metadata())
            pq.write_table(table.replace_schema_metadata(metadata), self.file)
        found = data.load_images("c10", "train")
        assert found.images.dtype == torch.uint8 and found.images.shape == self.images.images.shape
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < len(found.classes)
        for i in {*range(6)} - touched:
            assert torch.equal(found.images[i], self.images.images[i]) and found.labels[i] == self.images.labels[i]


class Runs(Case):
    """A run folder: its result, its log, and the manifests and states of its checkpoints."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        super().__init__(folder, monkeypatch)
        model = timm.create_model(fuzz_weights.ARCH, num_classes=2, **fuzz_weights.ARGS)
        save_model(model, folder, classes=("a", "b"), args=fuzz_weights.ARGS)
        rows = [{"epoch": epoch, "loss": 1 / epoch, "lr": 0.1, "seconds": 1.0} for epoch in (1, 2)]
        for epoch in (1, 2):
            tensors = {"step": {"w": torch.full((3,), float(epoch))}}
            checkpoint.save(folder / "checkpoints", checkpoint.Checkpoint(epoch, tensors, {"rows": rows[:epoch]}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics = {"accuracy": 75.0, "nll": 0.5, "ece": 1.0, "correct": 75, "total": 100, "fingerprint": "0" * 64}
        self.result = {
            "name": "x",
            **{"seed": 0, "split": "test", "epochs": 2, "minutes": 0.1, "precision": "fp32", "environment": {}},
            **{"metrics": metrics, "train_fingerprint": "1" * 64, "recipe_sha256": "2" * 64, "recipe": {"train": {}}},
            "files": {name: files.sha256(folder / name) for name in (*FILES, "metrics.jsonl")},
        }
        (folder / "result.json").write_text(json.dumps(self.result))
        parts = ("result.json", "metrics.jsonl", *(f"checkpoints/epoch-00002/{x}.json" for x in ("manifest", "state")))
        self.good = {folder / part: (folder / part).read_bytes() for part in parts}

    def attempt(self, rng: random.Random) -> None:
        for path, content in self.good.items():
            path.write_bytes(content)
        path = rng.choice([*self.good])
        if path.suffix == ".jsonl":
            lines = self.good[path].splitlines()
            content = b"\n".join(damaged_json(json.loads(line), rng) for line in lines)
        else:
            content = damaged_json(json.loads(self.good[path]), rng)
        path.write_bytes(content)
        self.shown = path.name, content[:2_000]
        newest = checkpoint.newest(self.folder / "checkpoints")
        assert newest and newest.tensors["step"]["w"].tolist() == [newest.epoch] * 3
        assert [row["epoch"] for row in newest.state["rows"]] == [*range(1, newest.epoch + 1)]
        done = log.finished_result(self.folder, "2" * 64)
        assert done is None or done["recipe_sha256"] == "2" * 64
        run = finished_run(self.folder)
        assert abs(run.score - 100 * run.result["metrics"]["correct"] / run.result["metrics"]["total"]) < 0.01
        rows = log.read_log(self.folder / "metrics.jsonl")
        assert rows[-1]["epoch"] == run.result["epochs"]


class Hub(Case):
    """Answers of the Hub: statuses, bodies and headers, on the way to a published weight or to somebody's model."""

    faults = (
        "cut reset short flip slow no-etag no-commit other-etag traversal-etag gzip-bomb retry-after hang drip".split()
    )
    other = "someone/else"

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        super().__init__(folder, monkeypatch)
        for name, value in {"SILENT_S": 0.2, "LIMIT_S": 1.0, "BYTES_PER_S": 10**12}.items():
            monkeypatch.setattr(hub, name, value)
        self.double, self.monkeypatch = Double(), monkeypatch
        self.published, self.tries = publish(folder / "zoo", monkeypatch), 0
        snapshot = self.published.snapshot("hyperzoo", MIXUP)
        self.files = {part: (snapshot / part).read_bytes() for part in FILES}
        self.double.commit(f"hyperzoo/{MIXUP}", self.files, oid=COMMIT)

    def attempt(self, rng: random.Random) -> None:
        self.tries += 1
        talk_to(self.double, self.folder / f"home {self.tries}", self.monkeypatch)
        bodies, name = dict(self.files), rng.choice((MIXUP, f"hf-hub:{self.other}"))
        kind = rng.choice((*self.faults, *(str(rng.randrange(200, 600)) for _ in self.faults), "ok", "ok", "ok", "ok"))
        if kind == "ok":
            name = f"hf-hub:{self.other}"
            part = rng.choice(FILES)
            body = bodies[part]
            bodies[part] = (
                damaged_json(json.loads(body), rng) if part == "config.json" else fuzz_weights.mutated(body, rng)
            )
        self.double.commit(self.other, bodies)
        on = rng.choice(("", "HEAD ", "GET ", "GET /lfs/", "config.json", "model.safetensors"))
        times = rng.choice((1, 2, 10**6))
        self.shown = name, kind, on, times
        self.double.fault("ok")
        self.double.fault(kind, on, times)
        model = zoo.load(name).model
        if kind != "flip" or name == MIXUP:  # without a hash, bytes changed on the way are other weights
            tensors = self.published.tensors[MIXUP] if kind != "ok" else None
            for key, value in model.state_dict().items():
                assert torch.isfinite(value).all() and (tensors is None or torch.equal(value, tensors[key])), key

    def close(self) -> None:
        self.double.stop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # sockets of downloads that were given up
            close_session()
            gc.collect()
        withdraw(self.monkeypatch)


class Numbers(Case):
    """Tensors and settings for the public functions of layers, losses, regularizers and mixups."""

    def attempt(self, rng: random.Random) -> None:
        hostile_numbers.attempt(self, rng)


KINDS = {
    "weight file": Weights,
    "config.json": Configs,
    "recipe": Recipes,
    "data set": Data,
    "run folder": Runs,
    "answer of the Hub": Hub,
    "number": Numbers,
}


def campaign(kind: str, count: int, seed: int, folder: Path, monkeypatch: Any) -> Counter[str]:
    """How many of `count` inputs of a kind were refused, and how many worked.

    Raises:
        AssertionError: an input ended in another way, or took too long.
    """
    case, outcomes = KINDS[kind](folder, monkeypatch), Counter[str]()
    try:
        for n in range(count):
            start = time.monotonic()
            try:
                case.attempt(random.Random(f"{kind} {seed} {n}"))
                outcomes["worked"] += 1
            except HyperzooError:
                outcomes["refused"] += 1
            except BaseException as error:
                shown = f"{kind} {n} of seed {seed}: {type(error).__name__}: {error}"
                raise AssertionError(f"{shown[:1_000]}\n{case.shown!r:.3000}") from error
            took = time.monotonic() - start
            assert took < LIMIT_S, f"{kind} {n} of seed {seed} took {took:.0f} s\n{case.shown!r:.3000}"
    finally:
        case.close()
    return outcomes
