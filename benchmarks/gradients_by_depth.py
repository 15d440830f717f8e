"""Trainability of deep networks without shortcuts: gradient norm and image similarity by depth at initialization.

    python benchmarks/gradients_by_depth.py    # about a minute; data from HYPERZOO_DATA or the Hub

64 training images of CIFAR-10 at 12 px in networks of 69 convolutions in training mode. For the first and last
convolution of each stage: the norm of the gradient of the loss with respect to the output of its unit, and the mean
cosine between the outputs of two images.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F

import hyperzoo  # noqa: F401  registers the models
from hyperzoo import data
from hyperzoo.analysis import evaluate

IMAGES, NARROW, WIDE = 64, [16, 24, 32], [128, 192, 256]
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    *((arch, {"widths": NARROW}) for arch in ("sphere_cnn69", "sphere_cnn69_linear", "plain_cnn69")),
    *((arch, {"widths": WIDE}) for arch in ("sphere_cnn69", "plain_cnn69")),
    ("sphere_cnn69", {"widths": NARROW, "relu": False}),
    ("sphere_cnn69", {"widths": NARROW, "norm": "none"}),
    ("sphere_cnn69", {"widths": NARROW, "norm": "none", "relu": False}),
]


def main() -> None:
    samples = data.load_split("c10", "train").take(torch.arange(IMAGES)).resized(12)
    print("network\tgradient, first\tgradient, last\ttheir ratio\tcosine, first\tcosine, last")
    for arch, args in NETWORKS:
        torch.manual_seed(0)
        model = timm.create_model(arch, **args).train()
        batch = next(evaluate.batches(model, samples, batch_size=IMAGES))
        outputs: list[torch.Tensor] = []
        for unit in (model.stage1[0], model.stage3[-1]):
            unit.register_forward_hook(lambda _module, _inputs, output, to=outputs: to.append(output))
        loss = F.cross_entropy(model(batch.images), batch.labels)
        gradients = [gradient.norm().item() for gradient in torch.autograd.grad(loss, outputs)]
        rows = [F.normalize(output.detach().flatten(1)) for output in outputs]
        cosines = [((r @ r.T).sum().item() - IMAGES) / (IMAGES * (IMAGES - 1)) for r in rows]
        settings = ", ".join(f"{key} {value}" for key, value in args.items())
        first, last = gradients
        shown = "\t".join(f"{value:.2f}" for value in cosines)
        print(f"{arch}, {settings}\t{first:.3g}\t{last:.3g}\t{first / last:.2g}\t{shown}", flush=True)


if __name__ == "__main__":
    main()
