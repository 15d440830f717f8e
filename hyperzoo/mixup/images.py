"""Mixup of the images of a batch, and CutMix."""

import random
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from hyperzoo.errors import InputError, check_alpha, check_number, check_seed
from hyperzoo.layers.precision import full_dtype
from hyperzoo.mixup.mix import Draw, mix

INPUT = "input"  # layer name that stands for the images


class Mixup:
    """Mix the images of a batch and their labels.

    x'_i = lambda x_i + (1 - lambda) x_p(i),   t'_i = lambda t_i + (1 - lambda) t_p(i),   lambda ~ Beta(alpha, alpha)

    with one lambda and one random permutation p per batch (arXiv 1710.09412, section 2). Row i itself has the weight
    lambda. x and y are not modified.

    Shapes:
        x: (B, ...), floating point, B at least 1.   y: (B,) class indices, or (B, K) from 0 to 1, class shares.
        return of a call: x' (B, ...), and targets (B, K), float32, or float64 for a float64 x.
    Args:
        num_classes: K, 2 or more.
        alpha: parameter of the Beta distribution, 0 or from 0.01 to 1e6, where it can be sampled. 0 mixes nothing; 1 is
            uniform; the papers use 0.1 to 0.4 for ImageNet, 1 for CIFAR.
        smoothing: label smoothing of class indices before mixing, 0 to 1: t = (1 - s) onehot(y) + s / K.
        generator: CPU source of all draws, separate so that mixing does not change the order of the data
            [default: a new one, seeded with `torch.initial_seed()`]. In a `DataLoader` worker, its copy is seeded from
            its own seed and the worker's, so that draws differ between workers and epochs, but are reproducible.
    Raises:
        InputError: an argument or input outside these ranges. Class indices on a GPU are not read, because the program
            would wait for it; there, the kernel fails on a wrong one.
    Differs:
        The authors draw from numpy's global generator. In half precision, lambda is rounded for the images or hidden
        states, but not for the targets.
    Example:
        >>> mixup = Mixup(3, alpha=1.0, generator=torch.Generator().manual_seed(0))
        >>> x, targets = mixup(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
        >>> targets.sum(1)
        tensor([1., 1., 1., 1.])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 1.0,
        smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_number("num_classes", num_classes, low=2, whole=True)
        check_alpha(alpha)
        check_number("smoothing", smoothing, low=0, high=1)
        if generator is not None and generator.device.type != "cpu":
            raise InputError(f"generator must be on the CPU, whatever the device of x; got one on {generator.device}")
        self.num_classes = num_classes
        self.alpha = alpha
        self.smoothing = smoothing
        self.generator = generator or torch.Generator().manual_seed(torch.initial_seed())
        self._seeded_for: int | None = None  # seed of the DataLoader worker

    def seed(self, n: int) -> None:
        """Restart the sequence of draws from seed n; use a different n for each process and epoch."""
        check_seed(n)
        self.generator.manual_seed(n)
        self._seeded_for = _worker_seed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        targets = self._targets(x, y)
        draw = self._draw(x, (INPUT,))
        return mix(x, draw), mix(targets, draw)

    def _targets(self, x: Tensor, y: Tensor, smooth: bool = True) -> Tensor:
        """Labels as (B, K), on the device of x."""
        if x.dim() < 2 or not x.is_floating_point():
            raise InputError(f"x must be a floating-point batch (B, ...); got {_kind(x)}. Normalize the images first")
        if y.dim() not in (1, 2) or len(y) != len(x) or y.is_complex():
            raise InputError(f"y must be real, (B,) or (B, K) with B = {len(x)}, as x; got {_kind(y)}")
        if not x.numel():
            raise InputError(f"the batch is empty: x is {_kind(x)}")
        if y.dim() == 1:
            if y.is_floating_point() or y.dtype == torch.bool:
                raise InputError(f"class indices must be integers; got {_kind(y)}. Pass class shares as (B, K)")
            if y.device.type == "cpu":  # a GPU would wait for it
                low, high = (bound.item() for bound in y.aminmax())
                if low < 0 or high >= self.num_classes:
                    raise InputError(f"labels must be from 0 to {self.num_classes - 1}; got {low} to {high}")
            targets = F.one_hot(y.to(x.device, torch.int64), self.num_classes).to(full_dtype(x))
            return targets * (1 - self.smoothing) + self.smoothing / self.num_classes if smooth else targets
        if y.shape[1] != self.num_classes:
            raise InputError(f"targets must be (B, {self.num_classes}), one column per class; got {_kind(y)}")
        if self.smoothing:
            raise InputError(
                "smoothing applies to class indices (B,) only; smooth targets (B, K) yourself and set smoothing=0"
            )
        targets = y.to(x.device, full_dtype(x))
        low, high = (bound.item() for bound in targets.aminmax())
        if not (low >= 0 and high <= 1):
            raise InputError(f"targets must be from 0 to 1; got {low:g} to {high:g}")
        return targets

    def _draw(self, x: Tensor, layers: Sequence[str]) -> Draw:
        self._seed_worker()
        layer = layers[int(torch.randint(len(layers), (), generator=self.generator, device="cpu"))]
        source = random.Random(self._number())  # torch's Beta distribution takes no generator
        lam = source.betavariate(self.alpha, self.alpha) if self.alpha else 1.0
        partner = torch.randperm(len(x), generator=self.generator, device="cpu")
        rows = torch.stack([partner, partner.argsort()]).to(x.device, non_blocking=x.is_cuda)
        share = torch.tensor(lam, dtype=full_dtype(x), device="cpu").to(x.device, non_blocking=x.is_cuda)
        return Draw(layer, share, rows[0], rows[1])

    def _seed_worker(self) -> None:
        """In a new DataLoader worker, which holds a copy of the generator, start a sequence of its own."""
        worker = _worker_seed()
        if worker not in (None, self._seeded_for):
            self.seed(random.Random(f"{self.generator.initial_seed()} {worker}").getrandbits(63))

    def _number(self) -> int:
        return int(torch.randint(2**62, (), generator=self.generator, device="cpu"))


class CutMix(Mixup):
    """Paste a rectangle of the previous row into each image and mix labels by area, with torchvision's v2 transform.

    With lambda ~ Beta(alpha, alpha) the rectangle covers 1 - lambda of the area, minus the part outside the image; the
    labels follow the pasted area (arXiv 1905.04899, section 3). Everything else is as for `Mixup`.

    Shapes:
        x: (B, C, H, W).
    Differs:
        The partner of row i is row i - 1, as in torchvision, so the loader must shuffle.
    """

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2  # only CutMix needs it

        targets = self._targets(x, y)
        if x.dim() != 4:
            raise InputError(f"CutMix takes images (B, C, H, W); got {_kind(x)}")
        if not self.alpha:
            return x, targets
        with torch.random.fork_rng(devices=()), torch.device("cpu"):  # torchvision draws from the global generator
            self._seed_worker()
            torch.default_generator.manual_seed(self._number())
            mixed: tuple[Tensor, Tensor] = v2.CutMix(alpha=float(self.alpha), num_classes=self.num_classes)(x, targets)
        return mixed


def _worker_seed() -> int | None:
    """The seed that a DataLoader gives to each worker in each epoch; None outside a worker."""
    worker = get_worker_info()
    return None if worker is None else worker.seed


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
