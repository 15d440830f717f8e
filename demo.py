"""Load, train, draw and export on the embedded data, in four steps; `make demo` runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent
MIRROR = ROOT / "tests" / "assets" / "mirror"
RUN = Path("runs") / "make_demo"
os.chdir(ROOT)
os.environ["HYPERZOO_DATA"] = str(MIRROR)  # test images and a few training images of CIFAR-10
os.environ["HF_HUB_OFFLINE"] = "1"

import timm  # noqa: E402  after the environment is set
import torch  # noqa: E402

import hyperzoo  # noqa: E402
from hyperzoo import data  # noqa: E402
from hyperzoo.analysis import evaluate, plots  # noqa: E402
from hyperzoo.training import checkpoint  # noqa: E402


def load_published() -> None:
    """Compare accuracy on the embedded test images with the manifest."""
    print("1. Published weights on the 500 embedded test images")
    for name in ("fast_cnn8", "spherenet20", "resnet20_cifar"):
        loaded = hyperzoo.load(name)
        stated = loaded.info.metrics.this_file
        found = evaluate.test_metrics(loaded.model, "c10")
        print(
            f"   {loaded.info.name:26} {found.accuracy:5.1f} %: {found.correct} of {found.total} correct, "
            f"{stated.sample.correct} expected; full test set: {stated.accuracy:.2f} % of {stated.total:,}"
        )


def train() -> None:
    """Run `hyperzoo train` in an empty folder."""
    print("\n2. hyperzoo train recipes/demo.yaml (130 images: the accuracy means nothing)")
    shutil.rmtree(RUN, ignore_errors=True)
    command = [sys.executable, "-m", "hyperzoo", "train", "recipes/demo.yaml", "--out", str(RUN)]
    subprocess.run(command, check=True)


def draw(model: torch.nn.Module) -> None:
    """Draw the learning curve of the run, and predictions on test images."""
    print("\n3. Figures")
    curve = plots.learning_curve(RUN / "metrics.jsonl", RUN / "learning_curve.png", title="recipes/demo.yaml")
    images = data.load_images("c10", "test")
    title = "Trained on 130 images"
    pictures = [curve, plots.grid(images, evaluate.logits(model, images), RUN / "predictions.png", title=title)]
    best = hyperzoo.load("fast_cnn8")
    logits = evaluate.logits(best.model, images)
    pictures.append(plots.grid(images, logits, RUN / "predictions_published.png", title=best.info.name))
    print("   " + "\n   ".join(map(str, pictures)))


def compare(exported: torch.nn.Module) -> None:
    """Compare the run folder, loaded by timm, with the checkpoint that it was exported from."""
    print("\n4. The run folder is an export: timm.create_model('local-dir:runs/make_demo', pretrained=True)")
    saved = checkpoint.newest(RUN / "checkpoints")
    assert saved is not None, "a finished run has a checkpoint"
    trained = timm.create_model("spherenet20").eval()
    trained.load_state_dict({key.removeprefix("model."): value for key, value in saved.tensors["step"].items()})
    images = data.load_images("c10", "test")
    before, after = (evaluate.logits(model, images) for model in (trained, exported))
    correct = json.loads((RUN / "result.json").read_text())["metrics"]["correct"]
    again = int((after.argmax(1) == images.labels).sum())
    print(f"   logits of checkpoint and loaded network: largest difference {float((before - after).abs().max()):.1e}")
    print(f"   correct answers in result.json and now: {correct} and {again} of {len(images)}")
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-5) or abs(correct - again) > 1:
        sys.exit("the exported network differs from the trained one")


def main() -> None:
    load_published()
    train()
    exported = timm.create_model(f"local-dir:{RUN}", pretrained=True).eval()
    draw(exported)
    compare(exported)
    print("\nDone: a network trained from scratch, its learning curve, and figures of its predictions.")
    print(f"They are in {RUN}/ (model.safetensors, config.json, result.json, metrics.jsonl, *.png).")
    print("Try next: .venv/bin/hyperzoo list; .venv/bin/hyperzoo verify --all; .venv/bin/hyperzoo train --help")


if __name__ == "__main__":
    main()
