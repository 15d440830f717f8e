"""An LSTM layer with batch normalization in its recurrence, a baseline of PER."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number

State = tuple[Tensor, Tensor]
SCALE = 0.1  # initial gamma of the paper, which keeps tanh out of saturation


class StepNorm(nn.Module):
    """Batch norm with separate statistics for each of the first steps of a sequence, and one scale for all steps.

    Shapes:
        x: (B, N) of step t, counted from 0.   return: (B, N).
    Args:
        steps: number of steps with separate statistics; later steps use those of the last.
        shift: also learn beta.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        features: int,
        steps: int,
        *,
        shift: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((features,), SCALE, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype)) if shift else None
        self.register_buffer("mean", torch.zeros(steps, features, device=device, dtype=dtype))
        self.register_buffer("variance", torch.ones(steps, features, device=device, dtype=dtype))

    def forward(self, x: Tensor, t: int) -> Tensor:
        mean, variance = (statistic[min(t, len(statistic) - 1)] for statistic in (self.mean, self.variance))
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training)


class BatchNormLSTM(nn.Module):
    """LSTM layer with batch norm on both matrix products and on the cell (recurrent batch normalization).

        (i, f, g, o) = BN(W_h h_{t-1}) + BN(W_x x_t) + b,    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
        h_t = sigmoid(o) tanh(BN(c_t))

    (Cooijmans et al., arXiv 1603.09025, eq. 6 to 8). Training uses the batch statistics of each step, evaluation the
    running statistics of that step. Only the cell's norm learns a shift; b serves the other two.

    Shapes:
        x: (B, T, input_size).   state: a pair of (1, B, D), as for `nn.LSTM`; None starts from zeros.
        return: (B, T, D), and the state after the last step.
    Args:
        hidden_size: units, D.
        steps: number of steps with separate statistics, 1 or more; later steps use those of the last. Steps are counted
            from 0 in every call. Those that the training never reached keep mean 0 and variance 1.
    Raises:
        InputError: steps below 1; no step in the input; a training batch of one sequence, which has no variance.
    Differs:
        The gates are in torch's order (i, f, g, o). The initial matrices are torch's uniform ones, not orthogonal; the
        norms remove their scale.
    Example:
        >>> y, (hidden, cell) = BatchNormLSTM(3, 5)(torch.zeros(2, 4, 3))
        >>> y.shape, cell.shape
        (torch.Size([2, 4, 5]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        steps: int = 35,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_number("steps", steps, low=1, whole=True)
        self.hidden_size = hidden_size
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        bound, gates = hidden_size**-0.5, 4 * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(gates, input_size, **dd).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(gates, hidden_size, **dd).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(gates, **dd))
        self.norm_ih = StepNorm(gates, steps, **dd)
        self.norm_hh = StepNorm(gates, steps, **dd)
        self.norm_cell = StepNorm(hidden_size, steps, shift=True, **dd)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if x.shape[1] == 0:
            raise InputError(f"an LSTM needs at least one step; got {tuple(x.shape)}")
        if self.training and x.shape[0] == 1:
            raise InputError("recurrent batch norm needs a training batch of at least 2 sequences; got 1")
        zeros = x.new_zeros(
            x.shape[0], self.hidden_size
        )  # len(x) would make the batch size of an exported program constant
        hidden, cell = (zeros, zeros) if state is None else (part[0] for part in state)
        products, outputs = F.linear(x, self.weight_ih), []
        for t in range(x.shape[1]):
            recurrent = self.norm_hh(F.linear(hidden, self.weight_hh), t)
            i, f, g, o = (recurrent + self.norm_ih(products[:, t], t) + self.bias).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * self.norm_cell(cell, t).tanh()
            outputs.append(hidden)
        return torch.stack(outputs, 1), (hidden[None], cell[None])
