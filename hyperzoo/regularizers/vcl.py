"""VCL: every unit's variance is to be the same in any few samples of a batch.

Regularizing by the variance of the activations' sample-variances, Littwin and Wolf, NeurIPS 2018 (arXiv 1811.08764).
With v1 and v2 the sample variances of one entry over two groups of n samples, and a learned beta for each entry,

    mean over entries of (1 - v1 / (v2 + beta))^2

which is small for an entry with two modes and large for one with a heavy tail. Groups, initial beta and strength are
those of avirambh/vcl_pytorch (models/VCL.py, vcl_tests_main.py).
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.errors import InputError
from hyperzoo.layers.hooks import attached
from hyperzoo.regularizers.activation_term import Recording, check_strength
from hyperzoo.regularizers.exact_error import full_precision


def variance_constancy(x: Tensor, beta: Tensor, *, group: int = 5) -> Tensor:
    """Penalize entries whose variance differs between two groups of samples (VCL, see above).

    Shapes:
        x: (B, ...) activations before the nonlinearity, B at least 2 * group.   beta: (...).   return: (), float32 also
        under autocast.
    Args:
        group: samples in each group, 2 or more: the first of the batch, and those behind them.
    Raises:
        InputError: a batch of less than two groups, a group of less than 2, or a beta of another shape.
    Example:
        >>> x = torch.tensor([[0.0], [2.0], [0.0], [4.0]])
        >>> variance_constancy(x, torch.tensor([2.0]), group=2)      # variances 2 and 8: (1 - 2 / 10)^2
        tensor(0.6400)
    """
    _check_group(group)
    if x.dim() < 2 or not x.is_floating_point() or len(x) < 2 * group:
        raise InputError(
            f"VCL takes two groups of {group} samples from a batch; got {x.dtype} of shape {tuple(x.shape)}"
        )
    if x.shape[1:] != beta.shape:
        raise InputError(
            f"VCL has a beta for each of {tuple(beta.shape)} entries, and a layer put out {tuple(x.shape[1:])} each: "
            "give the size of the training images as input_size"
        )
    first, second = x[: 2 * group].to(full_precision(x)).reshape(2, group, *x.shape[1:]).var(dim=1)
    ratio: Tensor = first / (second + beta)
    return (1 - ratio).square().mean()


class VCL:
    """VCL on layers of a model, as a term of the loss: strength times the sum over layers of `variance_constancy`.

    The term owns one beta for each entry of each layer's output; they are trained with the model and stay out of its
    state dict. A map (B, C, H, W) of another size, as progressive resizing makes them, takes at each location the
    nearest beta; this is ours, the authors have one size. Nothing is added in evaluation.

    Shapes:
        return of a call: (), float32 (float64 for a float64 model).
    Args:
        layers: words of `hooks.select`. Choose what comes before a nonlinearity ('type:Conv2d', 'type:BatchNorm2d').
        strength: 0 or more; 0.01 in the authors' code.
        group: samples in each of the two groups, 2 or more.
        input_size: of one training sample, to find the sizes of the outputs; None for the model's own description
            (`pretrained_cfg['input_size']`, which models of timm have).
    Raises:
        InputError, UnknownNameError: a bad strength, group or word, no such layer, one that a forward pass does not
            call, or no known input size. When called: see `variance_constancy` and `Recording.take`.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
        >>> term = VCL(model, layers='0', input_size=(2,))
        >>> with term:
        ...     loss = model(torch.randn(10, 2)).square().mean() + term()
        >>> [tuple(beta.shape) for beta in term.parameters()]
        [(8,)]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[str],
        strength: float = 0.01,
        group: int = 5,
        input_size: Sequence[int] | None = None,
    ) -> None:
        _check_group(group)
        self.strength = check_strength(strength)
        self.group = group
        self._recording = Recording(model, layers)
        self._values: dict[str, Tensor] = {}
        self._betas = {
            name: nn.Parameter(torch.ones_like(output[0], dtype=full_precision(output)))
            for name, output in self._outputs_of_zeros(input_size).items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """The betas, in the order of the layers."""
        return list(self._betas.values())

    def __enter__(self) -> None:
        self._recording.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recording.__exit__(kind, error, at)

    def __call__(self) -> Tensor:
        """strength times the sum over layers, of the forward pass in this `with`."""
        values = {
            name: torch.stack([variance_constancy(x, self._beta(name, x), group=self.group) for x in calls]).sum()
            for name, calls in self._recording.take().items()
        }
        self._values = {name: value.detach() for name, value in values.items()}
        return self.strength * sum(values.values(), self._recording.zero())

    def _beta(self, name: str, x: Tensor) -> Tensor:
        """The betas of a layer; for a map of another size the nearest ones.

        Not means or a smooth blend of them: behind these single betas fall below 0 unseen, and where a larger map
        takes them by themselves, v2 + beta meets 0.
        """
        beta = self._betas[name]
        if x.dim() == 4 and x.shape[2:] != beta.shape[1:]:
            return F.interpolate(beta[None], size=(x.shape[2], x.shape[3]), mode="nearest-exact")[0]
        return beta

    def report(self) -> dict[str, float]:
        """Of the last call: the value of each layer, without strength."""
        return {name: float(value) for name, value in self._values.items()}

    @torch.no_grad()
    def _outputs_of_zeros(self, input_size: Sequence[int] | None) -> dict[str, Tensor]:
        """What each layer makes of one sample of zeros, in evaluation mode, which changes no statistics."""
        model, modules = self._recording.model, self._recording.modules
        size = input_size or (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        if not size or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"VCL needs the size of one sample, as input_size=(3, 32, 32); got {input_size!r}")
        like = next(model.parameters())
        outputs: dict[str, Any] = {}
        modes = {module: module.training for module in model.modules()}
        try:
            with attached(modules, outputs.__setitem__):
                model.eval()(like.new_zeros(1, *size))
        finally:
            for module, mode in modes.items():
                module.training = mode
        if silent := [name for name in modules if not isinstance(outputs.get(name), Tensor)]:
            raise InputError(f"a forward pass gives no tensor of {', '.join(map(repr, silent))}")
        return {name: outputs[name] for name in modules}


def _check_group(group: int) -> None:
    if isinstance(group, bool) or not isinstance(group, int) or group < 2:
        raise InputError(f"group must be 2 or more samples, of which there is a variance; got {group!r}")
