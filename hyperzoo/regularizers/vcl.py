"""VCL: the variance of each unit should be the same in any few samples of a batch.

Regularizing by the variance of the activations' sample-variances, Littwin and Wolf, NeurIPS 2018 (arXiv 1811.08764).
With v1 and v2 the sample variances of one entry over two groups of n samples, and a learned beta for each entry,

    mean over entries of (1 - v1 / (v2 + beta))^2

which is small for an entry with two modes and large for one with a heavy tail. Groups, initial beta and strength follow
avirambh/vcl_pytorch (models/VCL.py, vcl_tests_main.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers.hooks import attached, evaluating
from hyperzoo.layers.precision import full_dtype, full_precision
from hyperzoo.regularizers.activation_term import ActivationTerm, Call, refuse_channels_last


def variance_constancy(x: Tensor, beta: Tensor, *, group: int = 5) -> Tensor:
    """Penalize entries whose variance differs between two groups of samples (VCL, see above).

    Shapes:
        x: (B, ...) activations before the nonlinearity, B at least 2 * group.   beta: (...).   return: (), float32 also
        under autocast.
    Args:
        group: samples per group, 2 or more. The first group is the first samples of the batch, the second the next.
    Raises:
        InputError: a batch of fewer than two groups, a group below 2, or a beta of another shape.
    Example:
        >>> x = torch.tensor([[0.0], [2.0], [0.0], [4.0]])
        >>> variance_constancy(x, torch.tensor([2.0]), group=2)      # variances 2 and 8: (1 - 2 / 10)^2
        tensor(0.6400)
    """
    check_number("group, the samples per variance,", group, low=2, whole=True)
    if x.dim() < 2 or not x.is_floating_point() or len(x) < 2 * group:
        raise InputError(
            f"VCL takes two groups of {group} samples from a batch; got {x.dtype} of shape {tuple(x.shape)}"
        )
    if x.shape[1:] != beta.shape:
        raise InputError(
            f"beta has the shape {tuple(beta.shape)}, but the layer's outputs have {tuple(x.shape[1:])} per sample: "
            "pass the size of the training images as input_size"
        )
    first, second = full_precision(x[: 2 * group]).reshape(2, group, *x.shape[1:]).var(dim=1)
    ratio: Tensor = first / (second + beta)
    return (1 - ratio).square().mean()


class VCL(ActivationTerm):
    """VCL on the layers of a model: strength times the sum over layers of `variance_constancy`.

    The term owns one beta per entry of each layer's output. The betas are not part of the model: in your own training
    loop, add them to the optimizer, as in the example, and save `term.state_dict()`; hyperzoo's training does both.
    Under DistributedDataParallel, which averages the gradients of the model alone, average theirs before each update
    (`torch.distributed.all_reduce`), or every process learns betas of its own.
    They follow the layer's output to its device, in float32 (float64 for a float64 output). A map (B, C, H, W) of
    another size, as in progressive resizing, takes the nearest beta at each location; the authors train at one size.
    Nothing is added in evaluation. A module that is called several times in a forward pass counts as a layer per call,
    with the same betas.

    Shapes:
        return of a call: (), float32 (float64 for a float64 model).
    Args:
        layers: see `hooks.select`. Choose layers before a nonlinearity ('type:Conv2d', 'type:BatchNorm2d').
        strength: 0 or more; 0.01 in the authors' code.
        group: samples in each of the two groups, 2 or more.
        input_size: size of one training sample, which determines the shapes of the betas
            [default: `pretrained_cfg['input_size']`, which timm's models have].
    Raises:
        InputError, UnknownNameError: a bad strength or group, no such layer, one that a forward pass does not call, or
            no known input size. When called: see `variance_constancy` and `ActivationTerm`.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
        >>> term = VCL(model, layers='0', input_size=(2,))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer.add_param_group({'params': term.parameters()})
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
        check_number("group, the samples per variance,", group, low=2, whole=True)
        refuse_channels_last(model)
        super().__init__(model, strength=strength, layers=layers)
        self.group = group
        self._betas = {
            name: nn.Parameter(torch.ones_like(output[0], dtype=full_dtype(output)))
            for name, output in self._outputs_of_zeros(input_size).items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """The betas, in the order of the layers."""
        return list(self._betas.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The betas by the name of their layer; as for a module, they share memory with those of the term."""
        return {name: beta.detach() for name, beta in self._betas.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the betas of `state_dict()` into this term.

        Raises:
            InputError: other layers or shapes; no beta was changed.
        """
        if state.keys() != self._betas.keys():
            needed, got = (", ".join(map(repr, names)) or "none" for names in (self._betas, state))
            raise InputError(f"betas of the layers {needed} are needed; got {got}")
        for name, beta in self._betas.items():
            if state[name].shape != beta.shape:
                raise InputError(
                    f"the beta of {name!r} must have the shape {tuple(beta.shape)}; got {tuple(state[name].shape)}"
                )
        for name, beta in self._betas.items():
            beta.copy_(state[name])

    def _penalties(self, name: str, calls: list[Call]) -> Iterable[Tensor]:
        penalties = (variance_constancy(x, self._beta(name, x), group=self.group) for x, _ in calls)
        return [self._sum_and_report(name, penalties)]

    def _beta(self, name: str, x: Tensor) -> Tensor:
        """The betas of a layer, for a map of another size the nearest ones.

        Nearest, not interpolated: an average can hide a negative beta, and v2 + beta must stay above 0.
        """
        beta = self._betas[name]
        if (beta.device, beta.dtype) != (x.device, full_dtype(x)):
            nn.ParameterList([beta]).to(x.device, full_dtype(x))  # in place, so the optimizer keeps its reference
        if x.dim() == 4 and x.shape[2:] != beta.shape[1:]:
            return F.interpolate(beta[None], size=(x.shape[2], x.shape[3]), mode="nearest-exact")[0]
        return beta

    @torch.no_grad()
    def _outputs_of_zeros(self, input_size: Sequence[int] | None) -> dict[str, Tensor]:
        """The output of each layer for one sample of zeros, in evaluation mode, which changes no statistics."""
        size = input_size or (getattr(self._model, "pretrained_cfg", None) or {}).get("input_size")
        if not size or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"VCL needs the size of one sample, such as input_size=(3, 32, 32); got {input_size!r}")
        like = next(self._model.parameters())
        outputs: dict[str, Any] = {}
        with evaluating(self._model), attached(self._modules, outputs.__setitem__):
            self._model(like.new_zeros(1, *size))
        if silent := [name for name in self._modules if not isinstance(outputs.get(name), Tensor)]:
            raise InputError(f"a forward pass returns no tensor from {', '.join(map(repr, silent))}")
        return {name: outputs[name] for name in self._modules}
