"""Signal propagation in networks without shortcuts: gradient, similarity of images and scale, layer by layer.

    python benchmarks/gradients_by_depth.py [--picture docs/depth.png]     # 5 minutes; CIFAR-10 from HYPERZOO_DATA or
                                                                           # the Hub

64 training images of CIFAR-10 at 12 px in CNN-n in training mode, with batch norm, SphereNorm or no norm. For the first
and the last of the n convolutions: the norm of the gradient of the loss with respect to the output of its unit, the
mean cosine between the outputs of two images, and the root mean square of the output. At initialization, and for some
networks of 45 convolutions also after 100 updates of Adam (1e-3, batches of 50 of 2,000 images). `--picture` draws all
layers of CNN-69.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

import hyperzoo  # noqa: F401  registers the models
from hyperzoo import data
from hyperzoo.analysis import evaluate, plots

IMAGES, SIZE_PX, NARROW, WIDE = 64, 12, [16, 24, 32], [128, 192, 256]
DEPTHS, TRAINED, UPDATES, BATCH, RATE = (9, 18, 30, 45, 69), 45, 100, 50, 1e-3
NORMS = {"batch norm": "batch", "no norm": "none", "SphereNorm": "sphere"}
SLOPE, ORTHOGONAL = "slope", "orthogonal"  # a ReLU whose slope follows from the depth; orthogonal initial filters
FORMS: dict[str, dict[str, Any]] = {
    "ReLU": {},
    "no ReLU": {"relu": False},
    SLOPE: {},
    ORTHOGONAL: {},
    "identity": {"identity_init": True},
}
SHOWN = (  # norm and form of the networks that are trained and drawn
    ("batch norm", "ReLU"),
    ("batch norm", SLOPE),
    ("no norm", "ReLU"),
    ("no norm", SLOPE),
    ("no norm", "identity"),
)


def slope(depth: int) -> float:
    """The slope of negative values with which a leaky ReLU adds 1 / depth to the cosine of two orthogonal inputs:
    (1 - slope)^2 / (pi (1 + slope^2)) = 1 / depth. A ReLU adds 1 / pi."""
    rest = 1 - math.pi / depth
    return (1 - math.sqrt(1 - rest**2)) / rest


def relu_cosine(cosine: float) -> float:
    """The cosine of ReLU(x) and ReLU(y) for Gaussian vectors of many entries with this cosine."""
    return (math.sqrt(1 - cosine**2) + (math.pi - math.acos(cosine)) * cosine) / math.pi


def network(sphere: bool, norm: str, form: str, depth: int, widths: list[int] = NARROW) -> nn.Module:
    """A network at its start, always with the same seed."""
    torch.manual_seed(0)
    args = {**FORMS[form], "negative_slope": slope(depth)} if form == SLOPE else FORMS[form]
    name = "sphere_cnn9" if sphere else "plain_cnn9"
    model = timm.create_model(name, depth=depth, widths=widths, norm=NORMS[norm], **args).train()
    if form == ORTHOGONAL:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight, gain=math.sqrt(2))
    return model


def layers(model: nn.Module, batch: data.Batch) -> Iterator[tuple[float, float, float]]:
    """Gradient norm, mean cosine of two images and root mean square of every unit's output."""
    outputs: list[torch.Tensor] = []
    units = [unit for stage in (model.stage1, model.stage2, model.stage3) for unit in stage]  # type: ignore[union-attr]
    hooks = [unit.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for unit in units]
    loss = F.cross_entropy(model(batch.images), batch.labels)
    for hook in hooks:
        hook.remove()
    for output, gradient in zip(outputs, torch.autograd.grad(loss, outputs), strict=True):
        rows = F.normalize(output.detach().flatten(1))
        cosine = ((rows @ rows.T).sum().item() - len(rows)) / (len(rows) * (len(rows) - 1))
        yield gradient.norm().item(), cosine, output.detach().square().mean().sqrt().item()


def train(model: nn.Module, samples: data.ImageSet) -> float:
    """UPDATES updates of Adam; returns the mean loss of the last fifth."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    losses: list[float] = []
    while len(losses) < UPDATES:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(len(losses)))
        for batch in evaluate.batches(model, samples.take(order), batch_size=BATCH):
            loss = F.cross_entropy(model(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses[-UPDATES // 5 :]) / (UPDATES // 5)


def draw(curves: dict[str, list[tuple[float, float, float]]], picture: Path) -> None:
    """Similarity and gradient by layer; dotted: what theory gives for wide networks with ReLU."""
    figure, (left, right) = plots.figure(1, 2, (9.0, 3.9))
    for (label, values), (color, style) in zip(curves.items(), plots.STYLES, strict=False):
        gradients, cosines, _ = zip(*values, strict=True)
        left.plot(range(1, len(values) + 1), cosines, style, color=color, label=label)
        right.semilogy(range(1, len(values) + 1), [g / gradients[-1] for g in gradients], style, color=color)
    depth, expected = max(DEPTHS), [curves["no norm, ReLU"][0][1]]
    while len(expected) < depth:
        expected.append(relu_cosine(expected[-1]))
    left.plot(range(1, depth + 1), expected, ":", color="black", label="theory, ReLU")
    rate = math.sqrt(math.pi / (math.pi - 1))
    right.semilogy(range(1, depth + 1), [rate ** (depth - layer) for layer in range(1, depth + 1)], ":", color="black")
    for axes, unit in ((left, "mean cosine between two images"), (right, "gradient norm, relative to the last layer")):
        axes.set_xlabel(f"convolution, of {depth}")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    plots.save(figure, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the layers of CNN-69 into this file")
    picture = parser.parse_args().picture
    samples = data.load_images("c10", "train").take(torch.arange(2000)).resized(SIZE_PX)
    measured = samples.take(torch.arange(IMAGES))
    print(
        "network\tupdates\tloss\tgradient, first\tgradient, last\ttheir ratio\tcosine, first\tcosine, last\trms, last"
    )

    def row(name: str, model: nn.Module, updates: int, loss: float = math.nan) -> list[tuple[float, float, float]]:
        found = list(layers(model, next(evaluate.batches(model, measured, batch_size=IMAGES))))
        (first, alike, _), (last, alike_last, scale) = found[0], found[-1]
        shown = f"{first:.3g}\t{last:.3g}\t{first / last:.2g}\t{alike:.2f}\t{alike_last:.3f}\t{scale:.2g}"
        print(f"{name}\t{updates}\t{loss:.3f}\t{shown}".replace("nan", "-"), flush=True)
        return found

    curves = {}
    for sphere in (True, False):
        kind = "sphere" if sphere else "plain"
        for norm in NORMS if sphere else ("batch norm", "no norm"):
            for form in FORMS if norm != "SphereNorm" else ("ReLU",):  # at the start it is SphereConv
                for depth in DEPTHS:
                    name = f"{kind}_cnn{depth}, {norm}, {form}"
                    found = row(name, network(sphere, norm, form, depth), 0)
                    if sphere and depth == max(DEPTHS) and (norm, form) in SHOWN:
                        curves[f"{norm}, {form}"] = found
                if (norm, form) in SHOWN:
                    model = network(sphere, norm, form, TRAINED)
                    loss = train(model, samples)
                    row(f"{kind}_cnn{TRAINED}, {norm}, {form}", model, UPDATES, loss)
        row(f"{kind}_cnn69 of {WIDE} channels, batch norm, ReLU", network(sphere, "batch norm", "ReLU", 69, WIDE), 0)
    if picture:
        draw(curves, picture)


if __name__ == "__main__":
    main()
