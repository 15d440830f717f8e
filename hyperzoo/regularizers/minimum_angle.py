"""Minimum angle (MMA): push each neuron away from its nearest neighbor only.

MMA Regularization, Wang et al., NeurIPS 2020 (arXiv 2006.06527), an alternative to MHE. Formula and strengths follow
the authors' code and README (wznpub/MMA_Regularization).
"""

import torch
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.layers.precision import full_precision, inverse_root
from hyperzoo.regularizers.neurons import check_rows
from hyperzoo.regularizers.pair_energy import BLOCK
from hyperzoo.regularizers.weight_term import WeightTerm

LARGEST = 1 - 1e-5  # absolute cosine


def nearest_angle(weight: Tensor, *, eps: float = 1e-4) -> Tensor:
    """mean_i min_{j != i} arccos(c_ij), in radians: the average angle between a row and its nearest row.

    Only the nearest pairs are differentiated, so the backward pass costs N D instead of N^2 D.

    Shapes:
        weight: (..., N, D), one neuron per row.   return: (...), float32 also under autocast; float64 for float64.
    Args:
        eps: added to squared norms, above 0.
    Raises:
        InputError: not a matrix, no row, not floating point, or sharded.
    Differs:
        A single row has the angle pi, without a gradient; in the authors' code it is its own neighbor. Among equally
        near neighbors the first counts. Absolute cosines above 1 - 1e-5 have no gradient, as in their code.
    Example:
        >>> nearest_angle(torch.eye(3))                                 # pi / 2
        tensor(1.5708)
    """
    check_rows(weight)
    if not weight.size(-2):
        raise InputError(f"expected (..., N, D) with one row or more; got {tuple(weight.shape)}")
    with torch.autocast(weight.device.type, enabled=False):
        w = full_precision(weight)
        if w.size(-2) == 1:
            return w.new_full(w.shape[:-2], torch.pi)
        unit = w * inverse_root(w.square().sum(-1, keepdim=True), eps)
        nearest = _nearest(unit.detach()).unsqueeze(-1).expand_as(unit)
        cosine = (unit * unit.gather(-2, nearest)).sum(-1)
        return cosine.clamp(-LARGEST, LARGEST).arccos().mean(-1)


def _nearest(unit: Tensor) -> Tensor:
    """Index of the nearest other row of each row, (..., N, D) -> (..., N), in blocks."""
    found = []
    for start in range(0, unit.size(-2), BLOCK):
        cosine = unit[..., start : start + BLOCK, :] @ unit.mT
        cosine.diagonal(start, -2, -1).fill_(-2)
        found.append(cosine.argmax(-1))
    return torch.cat(found, -1)


class MinimumAngle(WeightTerm):
    """Loss term: minus `nearest_angle` of the layers of a model.

    Args:
        hidden, output: strengths, 0 or more. The authors use 0.07 without and 0.03 with shortcuts, for all layers.
        layers, exclude, output_layer: see `neurons.select`.
    Raises:
        InputError: see `WeightTerm`.
    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> MinimumAngle(net, hidden=0.07, output=0.07)().item() < 0
        True
    """

    def _values(self, rows: Tensor, is_output: bool) -> Tensor:
        return -nearest_angle(rows)
