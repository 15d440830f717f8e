"""L1 and L2 penalties of activations: the plain rivals of PER.

    (1 / B) sum_i |h_i|_p^p,   p = 1 or 2

(Joo et al., ICLR 2020, arXiv 2002.05366, baselines of the experiments; Merity et al., arXiv 1708.01009, call p = 2
activation regularization, but take a mean over all entries.)
"""

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from hyperzoo.errors import InputError
from hyperzoo.regularizers.activation_term import Recording, check_strength
from hyperzoo.regularizers.exact_error import full_precision


def lp_penalty(x: Tensor, *, p: int = 1) -> Tensor:
    """Penalize the size of activations: (1 / B) times the sum of |entry|^p.

    Shapes:
        x: (B, ...), floating point.   return: (), float32 also under autocast.
    Args:
        p: 1 or 2.
    Raises:
        InputError: another p, an empty batch, or x that is not floating point.
    Example:
        >>> lp_penalty(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), p=2)
        tensor(7.)
    """
    _check_p(p)
    if x.dim() < 2 or not x.is_floating_point() or len(x) == 0:
        kind = str(x.dtype).removeprefix("torch.")
        raise InputError(
            f"activations must be floating point of shape (batch, ...), not empty; got {kind} {tuple(x.shape)}"
        )
    x = x.to(full_precision(x))
    return (x.abs() if p == 1 else x.square()).sum() / len(x)


class ActivationNorm:
    """L1 or L2 penalty of layers of a model, as a term of the loss: strength times the sum over layers.

    Nothing is added in evaluation. Of an LSTM, the hidden states of all steps count.

    Shapes:
        return of a call: (), float32 (float64 for a float64 model).
    Args:
        strength: 0 or more. The paper's grid for LSTMs is 3e-4 ... 3e-5, on PTB down to 1e-7.
        p: 1 or 2.
        layers: words of `hooks.select`: 'stages', names, patterns, or 'type:ReLU', 'type:LSTM' for all of a class.
    Raises:
        InputError, UnknownNameError: a bad strength, p or word, or no such layer. When called: see `Recording.take`.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> term = ActivationNorm(model, strength=1e-4, layers='type:ReLU')
        >>> with term:
        ...     loss = model(torch.zeros(4, 2)).square().mean() + term()
        >>> list(term.report())
        ['1']
    """

    def __init__(
        self, model: nn.Module, *, strength: float, p: int = 1, layers: str | Sequence[str] = "stages"
    ) -> None:
        _check_p(p)
        self.strength = check_strength(strength)
        self.p = p
        self._recording = Recording(model, layers)
        self._values: dict[str, Tensor] = {}

    def parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def __enter__(self) -> None:
        self._recording.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recording.__exit__(kind, error, at)

    def __call__(self) -> Tensor:
        """strength times the sum over layers, of the forward pass in this `with`."""
        outputs = self._recording.take()
        norms = {name: torch.stack([lp_penalty(x, p=self.p) for x in calls]).sum() for name, calls in outputs.items()}
        self._values = {name: norm.detach() for name, norm in norms.items()}
        return self.strength * sum(norms.values(), self._recording.zero())

    def report(self) -> dict[str, float]:
        """Of the last call: the norm of each layer, without strength."""
        return {name: float(value) for name, value in self._values.items()}


def _check_p(p: int) -> None:
    if p not in (1, 2):
        raise InputError(f"p must be 1 or 2; got {p!r}")
