"""A small published zoo in a folder of its own: real architectures, untrained tensors, a manifest that fits them.

`plain` is the default and bundled, `mhe` is bundled, `mixup` is on the Hub only and lies in a cache made by hand.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from hyperzoo.models import resnet_cifar
from hyperzoo.models._create import register, weight_cfgs
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest

ARCH = "resnet20_cifar"
PLAIN, MHE, MIXUP = (f"{ARCH}.{method}_c10" for method in ("plain", "mhe", "mixup"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LABELS = [f"class {i}" for i in range(10)]


class Published:
    """The folder of a manifest, the tensors of each weight, and a Hub cache."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache = root, root / "cache"
        self.tensors: dict[str, dict[str, torch.Tensor]] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        for seed, name in enumerate((PLAIN, MHE, MIXUP)):
            torch.manual_seed(seed)
            model = timm.create_model(ARCH)
            self.tensors[name] = {key: value.clone() for key, value in model.state_dict().items()}
            folder = self.snapshot("hyperzoo", name) if name == MIXUP else root / "checkpoints" / name
            self.write(folder, self.tensors[name], model.pretrained_cfg)
            self.entries[name] = entry(folder, default=name == PLAIN, commit=COMMIT if name == MIXUP else None)
        self.save()

    def snapshot(self, owner: str, name: str) -> Path:
        """The folder in which the Hub's client keeps the pinned commit of a repository."""
        return self.cache / f"models--{owner}--{name}" / "snapshots" / COMMIT

    def file(self, name: str) -> Path:
        return self.root / "checkpoints" / name / "model.safetensors"

    def write(self, folder: Path, tensors: dict[str, torch.Tensor], pretrained_cfg: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        kept = {key: value for key, value in pretrained_cfg.items() if key not in ("architecture", "file", "hf_hub_id")}
        config = {"architecture": ARCH, "num_classes": 10, "label_names": LABELS, "pretrained_cfg": kept}
        (folder / "config.json").write_text(json.dumps(config))

    def copy(self, source: Path, target: Path) -> Path:
        shutil.copytree(source, target)
        return target

    def save(self) -> None:
        raw = {"format": 1, "namespace": "hyperzoo", "weights": self.entries}
        (self.root / "weights.json").write_text(json.dumps(raw))

    def rehash(self, name: str) -> None:
        """The manifest calls the present bytes of a bundled file right."""
        self.entries[name]["files"]["model.safetensors"] = digest(self.file(name))
        self.save()
        weight_files.MANIFEST.weights = Manifest(self.root).weights


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entry(folder: Path, default: bool, commit: str | None) -> dict[str, Any]:
    """A manifest entry with every field."""
    file = folder / "model.safetensors"
    return {
        "default": default,
        "task": "image-classification",
        "bundled": commit is None,
        "bytes": file.stat().st_size,
        "parameters": 272_474,
        "files": {path.name: digest(path) for path in (file, folder / "config.json")},
        "commit": commit,
        "num_classes": 10,
        "input": {
            "size": [3, 32, 32],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.3],
            "crop_pct": 1.0,
            "interpolation": "bilinear",
        },
        "dataset": {
            "id": "uoft-cs/cifar10",
            "config": "plain_text",
            "train_fingerprint": "0" * 64,
            "test_fingerprint": "1" * 64,
        },
        "metrics": {
            "accuracy": {"mean": 91.25, "sd": None, "n": 1, "seeds": [0], "values": [91.25]},
            "this_file": {
                "accuracy": 91.25,
                "multicrop": 91.75,
                "nll": 0.3,
                "ece": 2.0,
                "correct": 9125,
                "total": 10000,
                "sample": {"correct": 456, "total": 500, "fingerprint": "2" * 64},
            },
        },
        "training": {"epochs": 30, "minutes": 40.0, "machine": "2 CPU cores", "precision": "bf16"},
        "recipe": "resnet_cifar/resnet20_cifar.plain_c10.yaml",
        "recipe_sha256": "3" * 64,
        "code_commit": "4" * 40,
        "code_changed": False,
        "versions": {"torch": torch.__version__},
        "license": "mit",
        "dataset_terms": "not stated by the authors",
        "paper": ["1512.03385"],
    }


def publish(root: Path, monkeypatch: Any) -> Published:
    """Put the small zoo in the place of the package's own, in the manifest and in timm's registry."""
    published = Published(root)
    monkeypatch.setattr(weight_files, "MANIFEST", Manifest(root))
    cfg = resnet_cifar.cfg_cifar()
    monkeypatch.setitem(resnet_cifar.default_cfgs, ARCH, weight_cfgs({ARCH: cfg})[ARCH])
    register(resnet_cifar.resnet20_cifar)
    return published


def withdraw(monkeypatch: Any) -> None:
    """Undo `publish`."""
    monkeypatch.undo()
    register(resnet_cifar.resnet20_cifar)
