"""Helpers of the mixing tests: oracles, fixed draws, the formula as a loop, small networks."""

import json
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from hyperzoo.mixup import Mixup
from hyperzoo.mixup.mix import Draw
from hyperzoo.models.resnet_cifar import ResNetCifar

_FILE = Path(__file__).parents[1] / "assets" / "mixup_oracles.json"
ORACLES = {case["id"]: case for case in json.loads(_FILE.read_text())}
K = 5


def oracle(name):
    case = ORACLES[name]
    return case["inputs"], case["expected"], case["tolerance"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(layer, lam, partner, dtype=torch.float64):
    partner = torch.tensor(partner)
    return Draw(layer, torch.tensor(lam, dtype=dtype), partner, partner.argsort())


def fixed(mixup, layer, lam, partner, dtype=torch.float64):
    """The same object with a fixed draw."""
    mixup._draw = lambda *_: draw(layer, lam, partner, dtype)
    return mixup


def by_loop(rows, d):
    """The formula, row by row, in float64."""
    lam = d.lam.double()
    return torch.stack([lam * rows[i].double() + (1 - lam) * rows[j].double() for i, j in enumerate(d.partner)])


def close(got, expected, tolerance=1e-12):
    atol = tolerance * max(1.0, got.detach().abs().max().item())
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=0, atol=atol)


def traces(model):
    return [(len(module._forward_hooks), sorted(vars(module)), module.training) for module in model.modules()]


def small(arch):
    torch.manual_seed(0)
    sizes = {
        "resnet18": dict(channels=(8, 8, 12, 16)),
        "convnext_atto": dict(dims=(8, 8, 12, 16), depths=(1, 2, 1, 1)),
        "vit_tiny_patch16_224": dict(embed_dim=12, depth=3, num_heads=2, img_size=64),
        "swin_tiny_patch4_window7_224": dict(
            embed_dim=8, depths=(2, 1, 1, 1), num_heads=(1, 1, 1, 1), img_size=64, window_size=2
        ),
        "preact_resnet18": dict(widths=(8, 8, 12, 16), stem_width=8),
        "wrn16_4": dict(widths=(8, 8, 12)),
    }
    return timm.create_model(arch, num_classes=K, **sizes.get(arch, {}))


def batch(rows=3, size=64):
    return torch.randn(rows, 3, size, size, generator=generator(1)), torch.arange(rows) % K


@contextmanager
def mixed_by_hand(module, d):
    """The formula in a separate hook, on the last member of a stage, because checkpointing never calls the stage."""
    calls = []

    def hook(_, __, output):
        calls.append(output.shape)
        return by_loop(output, d).to(output.dtype)

    handle = module.register_forward_hook(hook)
    yield calls
    handle.remove()


def tiny(**args):
    torch.manual_seed(0)
    return ResNetCifar(depth=8, widths=(8, 12, 16), num_classes=K, **args)


def a_seed_for_each(layers):
    seeds = {}
    for seed in range(100):
        seeds.setdefault(Mixup(2, generator=generator(seed))._draw(torch.zeros(2, 1), layers).layer, seed)
    assert seeds.keys() == set(layers)
    return seeds.values()


def gradients(model, mixup, x, y, seed, inside=False, runs=None):
    """Gradients of one step, with the backward pass after the `with`, as in the engine, or inside it."""
    model.zero_grad()
    mixup.seed(seed)
    with mixup:
        images, targets = mixup(x, y)
        loss = F.cross_entropy((model if runs is None else runs)(images).float(), targets)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]
