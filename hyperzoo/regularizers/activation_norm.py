"""L1 and L2 penalties of activations, the baselines of PER.

    (1 / B) sum_i |h_i|_p^p,   p = 1 or 2

(Joo et al., ICLR 2020, arXiv 2002.05366, baselines of the experiments. Merity et al., arXiv 1708.01009, call p = 2
activation regularization, but average over all entries.)
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from hyperzoo.errors import InputError
from hyperzoo.layers.precision import full_precision
from hyperzoo.regularizers.activation_term import ActivationTerm, Call


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
    x = full_precision(x)
    return (x.abs() if p == 1 else x.square()).sum() / len(x)


class ActivationNorm(ActivationTerm):
    """L1 or L2 penalty of the activations of a model: strength times the sum over layers of `lp_penalty`.

    Nothing is added in evaluation. For an LSTM, the hidden states of all steps count; of packed sequences, B is their
    number. A module that is called several times in a forward pass counts as a layer per call, so that `nn.LSTMCell`
    adds what `nn.LSTM` adds.

    Shapes:
        return of a call: (), float32 (float64 for a float64 model).
    Args:
        strength: 0 or more. The paper's grid for LSTMs is 3e-4 ... 3e-5, on PTB down to 1e-7.
        p: 1 or 2.
        layers: see `hooks.select`: 'stages', names, patterns, or 'type:ReLU', 'type:LSTM' for all of a class.
    Raises:
        InputError, UnknownNameError: a bad strength or p, or no such layer. When called: see `ActivationTerm`.
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
        self.p = p
        super().__init__(model, strength=strength, layers=layers)

    def _penalties(self, name: str, calls: list[Call]) -> Iterable[Tensor]:
        return [self._sum_and_report(name, (lp_penalty(x, p=self.p) * (len(x) / samples) for x, samples in calls))]


def _check_p(p: int) -> None:
    if p not in (1, 2):
        raise InputError(f"p must be 1 or 2; got {p!r}")
