"""What limits a step: bytes, FLOPs and number of its operations, with and without a method, and the time of both.

    python benchmarks/traffic.py            # about 2 minutes on two cores

Every operation counts what it reads and writes, in the cache or not (views count nothing). FLOPs are those of
convolutions and matrix products, a multiply-add being two. Where time grows less than bytes do, part of the traffic
stays in the cache; where it grows more, the number of operations decides. Eager; networks, batches and methods are
those of `sphere_layers.py` and `per.py`.
"""

from collections.abc import Callable
from typing import Any

import measure
import per
import sphere_layers
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], None]
FIXUP = "fixup_resnet56_cifar"


def sphere(arch: str, training: bool = True) -> Step:
    """A training step in the dtype of the machine, or the folded network on one image in float32."""
    if training:
        return sphere_layers.make_step(arch, "eager", True, sphere_layers.native_dtype())
    return sphere_layers.make_step(arch, "eager", False, torch.float32, (1, 3, 32, 32))


# label: what makes a step, its arguments for the plain step, those for the step with the method
PAIRS: dict[str, tuple[Callable[..., Step], tuple[Any, ...], tuple[Any, ...]]] = {
    "spherenet20, training step": (sphere, ("resnet20_cifar",), ("spherenet20",)),
    "spherenet20_linear, training step": (sphere, ("resnet20_cifar",), ("spherenet20_linear",)),
    "spherenet20_learnable, training step": (sphere, ("resnet20_cifar",), ("spherenet20_learnable",)),
    "spherenet20, folded, one image": (sphere, ("resnet20_cifar", False), ("spherenet20", False)),
    "PER, all directions, Fixup ResNet-56": (per.make_step, (FIXUP, False, {}), (FIXUP, True, {})),
    "PER, 256 directions, rows=0.1": (
        per.make_step,
        (FIXUP, False, {}),
        (FIXUP, True, {"slices": 256, "rows": 0.1}),
    ),
}


class Traffic(TorchDispatchMode):
    """Counts the operations that are not views, and the bytes of their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
            self.operations += 1
        return out


def count(step: Step) -> tuple[int, int, int]:
    """Bytes, FLOPs and operations of a step."""
    step()
    with FlopCounterMode(display=False) as flops:
        step()
    with Traffic() as traffic:
        step()
    return traffic.bytes, flops.get_total_flops(), traffic.operations


def main() -> None:
    torch.set_num_threads(2)
    print(f"{sphere_layers.native_dtype()} in training of sphere layers, float32 elsewhere; ratios to the plain step")
    print(f"{'what':40}{'GB':>8}{'GFLOP':>8}{'calls':>7}{'bytes':>8}{'FLOPs':>8}{'calls':>8}{'time':>8}")
    for what, (make, *arguments) in PAIRS.items():
        steps = tuple(make(*words) for words in arguments)
        plain, own = (count(step) for step in steps)
        a, b = measure.medians(measure.rounds(*steps, repeats=7))
        ratios = "".join(f"{after / before:8.2f}" for before, after in zip(plain, own, strict=True))
        print(f"{what:40}{plain[0] / 1e9:8.3f}{plain[1] / 1e9:8.2f}{plain[2]:7}{ratios}{b / a:8.2f}", flush=True)


if __name__ == "__main__":
    main()
