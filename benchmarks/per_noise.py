"""Gradient noise of PER with sampled directions and vectors, compared with the noise of mini-batches.

    HYPERZOO_DATA=... python benchmarks/per_noise.py [MODEL]    # an untrained cnn11_elu, or local-dir:RUN

CIFAR-10, batches of 128, PER on the output of every ELU, no dropout, whose masks would add noise of their own. Noise is
the root mean squared distance of the gradients, over all parameters together, from their mean, relative to the norm of
the mean.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo import data, zoo
from hyperzoo.analysis import evaluate
from hyperzoo.regularizers import PER

BATCH, DRAWS, STRENGTH = 128, 16, 0.1


def flat(model: nn.Module) -> Tensor:
    """The gradient of all parameters as one vector; clears the gradients."""
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return gradient


def of_term(model: nn.Module, x: Tensor, slices: int | None, rows: float = 1.0, seed: int = 0) -> Tensor:
    per = PER(model, strength=STRENGTH, layers="type:ELU", slices=slices, rows=rows, seed=seed)
    with per:
        model(x)
        per().backward()
    return flat(model)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0
    return model


def noise(gradients: list[Tensor], mean: Tensor) -> float:
    """Root mean squared distance from the mean."""
    return float(torch.stack([(g - mean).square().sum() for g in gradients]).mean().sqrt())


def main(name: str) -> None:
    torch.manual_seed(0)
    model = without_dropout(zoo.any_network(name)).train()
    images = data.load_split("c10", "train").take(torch.arange(DRAWS * BATCH))
    batches = list(evaluate.batches(model, images, batch_size=BATCH))
    tasks = []
    for batch in batches:
        F.cross_entropy(model(batch.images), batch.labels).backward()
        tasks.append(flat(model))
    task = torch.stack(tasks).mean(0)
    task_noise = noise(tasks, task) * (DRAWS / (DRAWS - 1)) ** 0.5
    print(
        f"{name}: gradient of the task {task.norm():.4g}, its noise from batch to batch {task_noise / task.norm():.2f}"
    )
    x = batches[0].images
    exact = of_term(model, x, None)
    again = noise([of_term(model, x, None)], exact) / exact.norm()
    print(f"PER of strength {STRENGTH:g}, all directions: gradient {exact.norm():.4g}, noise {again:.3f}")
    for slices, rows in ((256, 1.0), (256, 0.25), (256, 0.0625), (16, 1.0)):
        sampled = noise([of_term(model, x, slices, rows, seed) for seed in range(DRAWS)], exact)
        print(
            f"{slices:4} directions, rows {rows:g}: noise {sampled / exact.norm():.3f} of it, "
            f"{sampled / task_noise:.2g} of the task's",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cnn11_elu")
