"""Orthogonality: pull the Gram matrix of a layer's neurons towards the identity.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), the penalty of SphereNets.

It also pulls every norm to 1; the tables of the MHE paper (arXiv 1805.09298) call it "orthonormal". With `unit_rows` it
is half the sum of squared cosines and depends on directions only, if rows are much longer than sqrt(eps) = 0.01. A
shorter row keeps less than unit length after the division: 0.995 for a row of length 0.1, 0.71 for one of 0.01.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperzoo.layers.precision import full_precision, inverse_root
from hyperzoo.regularizers.neurons import check_rows
from hyperzoo.regularizers.weight_term import WeightTerm


def orthogonality_penalty(weight: Tensor, *, unit_rows: bool = False, eps: float = 1e-4) -> Tensor:
    """1/2 sum_ij (<w_i, w_j> - [i = j])^2 (arXiv 1711.03189; authors' code, with strength 2e-4).

    With more rows than columns it cannot fall below (N - D) / 2. It is computed from the smaller of W W^T and W^T W,
    which give the same value, so memory grows with the square of the smaller side.

    Shapes:
        weight: (..., N, D), one neuron per row.   return: (...), float32 also under autocast; float64 for float64.
    Args:
        unit_rows: divide each row by sqrt(|w_i|^2 + eps) first.
        eps: used with `unit_rows`, above 0.
    Raises:
        InputError: not a matrix, not floating point, or sharded.
    Example:
        >>> orthogonality_penalty(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]]))
        tensor(5.8750)
    """
    check_rows(weight)
    with torch.autocast(weight.device.type, enabled=False):
        w = full_precision(weight)
        if unit_rows:
            w = w * inverse_root(w.square().sum(-1, keepdim=True), eps)
        rows, columns = w.shape[-2:]
        gram = w @ w.mT if rows <= columns else w.mT @ w
        identity = torch.eye(min(rows, columns), dtype=w.dtype, device=w.device)
        return 0.5 * ((gram - identity).square().sum((-2, -1)) + max(rows - columns, 0))


class Orthogonality(WeightTerm):
    """Loss term: strength times the sum over layers of `orthogonality_penalty`.

    Args:
        strength: for hidden layers; 2e-4 in the SphereNet code.
        output: strength for the output layer, which the SphereNet code omits.
        unit_rows: see `orthogonality_penalty`.
        layers, exclude, output_layer: see `neurons.select`. The SphereNet code penalizes sphere layers only, not the
            plain 1x1 shortcuts.
    Raises:
        InputError: see `WeightTerm`.
    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
        >>> _ = nn.init.eye_(net[0].weight)
        >>> Orthogonality(net, strength=2e-4)().item()
        0.0
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float,
        output: float = 0.0,
        unit_rows: bool = False,
        layers: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] = (),
        output_layer: str | None = None,
    ) -> None:
        self._unit_rows = unit_rows
        super().__init__(
            model,
            hidden=strength,
            output=output,
            layers=layers,
            exclude=exclude,
            output_layer=output_layer,
        )

    def _values(self, rows: Tensor, is_output: bool) -> Tensor:
        return orthogonality_penalty(rows, unit_rows=self._unit_rows)
