"""Minimum hyperspherical energy (MHE): the neurons of a layer repel each other on the unit sphere.

Learning towards Minimum Hyperspherical Energy, Liu et al., NeurIPS 2018 (arXiv 1805.09298). With u_i = w_i / n_i,
n_i = sqrt(|w_i|^2 + eps), c_ij = <u_i, u_j>, and z_ij = sqrt(2 - 2 c_ij), or arccos(c_ij) if `angular`,

    E = 2 / (N (N - 1)) sum_{i<j} f_s(z_ij),    f_s(z) = z^-s for s = 1, 2,   f_0(z) = log(1 / z)

(the paper's E_s / (N (N - 1))). `half_space` is the energy of the 2N vectors [W; -W], computed from the N x N cosines;
the pair of a vector and its own negative is a constant:

    E_half = (2 sum_{i<j} (f(c_ij) + f(-c_ij)) + N f(-1)) / (N (2N - 1)),    f(c) = f_s of the distance at the cosine c

`authors_code` computes the values of the code at wy1iu/MHE: log of the squared distance, angle / pi + 1e-4. Multiply
its strengths by these factors for the convention above: s = 0: 2; angular s = 1: pi, s = 2: pi^2; all others 1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number, check_seed
from hyperzoo.layers._torch import is_in_functorch
from hyperzoo.layers.precision import full_precision
from hyperzoo.regularizers.neurons import Layer, check_rows
from hyperzoo.regularizers.pair_energy import LabelMean, PairMean, repulsion
from hyperzoo.regularizers.weight_term import WeightTerm, stack

POWERS = (0, 1, 2)
WIDE = 1024  # rows; of a layer with more, as many random ones unless `neurons` says otherwise


class Rule(NamedTuple):
    """The definition of the energy: the arguments of `hyperspherical_energy`."""

    power: int
    half_space: bool
    angular: bool
    eps: float
    authors_code: bool


def hyperspherical_energy(
    weight: Tensor,
    *,
    power: int = 2,
    half_space: bool = False,
    angular: bool = False,
    eps: float = 1e-4,
    authors_code: bool = False,
) -> Tensor:
    """Mean energy of all pairs of rows (arXiv 1805.09298; see the top of the module for the formula).

    Exact for any number of rows, with time O(N^2 D) and memory O(N D). Works for features as well as weights.

    Shapes:
        weight: (N, D), one neuron or feature per row.   return: (), float32 also under autocast; float64 for float64.
    Args:
        power: s, 0, 1 or 2.
        half_space: f and -f count as one direction; orthogonal rows then have the least energy, not opposite ones.
        angular: use the angle in radians as the distance, not the chord.
        eps: added to squared norms, 0 or more. With eps, equal rows have a finite energy and a gradient.
        authors_code: compute the values of the authors' code, see above.
    Raises:
        InputError: another power, a negative eps, not a floating-point matrix, a sharded one; NaN or infinite rows (on
            the CPU; on other devices and in compiled code, where the check costs time, the energy is NaN).
    Differs:
        A single row has energy 0 (0 / 0 in the authors' code), or with `half_space` the constant energy of the row and
        its negative. A zero row is orthogonal to all others. Cosines within 1e-6 of a collision have the energy of
        1 - 1e-6 and no gradient. Second derivatives (`create_graph`) are refused.
    Example:
        >>> hyperspherical_energy(torch.eye(3))                         # orthogonal rows: 1 / (2 - 0)
        tensor(0.5000)
        >>> hyperspherical_energy(torch.tensor([[1.0, 0], [-1, 0]]), eps=0)   # opposite rows: 1 / 4
        tensor(0.2500)
    """
    rule = _rule(power, half_space, angular, eps, authors_code)
    _check_matrix(weight)
    energy = _energies(weight.unsqueeze(0), rule)[0]
    _check_finite(energy, weight)
    return energy


def label_energy(
    weight: Tensor,
    labels: Tensor,
    *,
    power: int = 2,
    angular: bool = False,
    eps: float = 1e-4,
    authors_code: bool = False,
) -> Tensor:
    """Energy of a large output layer, restricted to the classes of a batch (arXiv 1805.09298, section 3.6).

    (1 / (M (N - 1))) sum over the M labels y, sum over j != y, of f_s(distance of u_y and u_j): a class counts as often
    as it occurs. If every class occurs once, this equals `hyperspherical_energy`. Always in full space.

    Shapes:
        weight: (N, D), one class per row.   labels: (M,) int64.   return: ().
    Raises:
        InputError: as `hyperspherical_energy`; labels that are not int64 (M,), M > 0, or out of range (on the CPU).
    Example:
        >>> label_energy(torch.eye(3), torch.tensor([0, 0, 2]))
        tensor(0.5000)
    """
    rule = _rule(power, False, angular, eps, authors_code)
    _check_matrix(weight)
    energy = _label_energy(weight, labels, rule)
    _check_finite(energy, weight)
    return energy


class MHE(WeightTerm):
    """Loss term: hidden * sum of E over hidden layers + output * E(output layer).

    Args:
        hidden, output: strengths for hidden layers and for the output layer, 0 or more. The authors use 1 and 10 with
            `half_space` (angular s = 1, 2 in their convention: 0.1 and 1), and a tenth of that without.
        power, half_space, angular, eps, authors_code: see `hyperspherical_energy`. The output layer is always in full
            space, as in the authors' code.
        layers, exclude, output_layer: see `neurons.select`.
        neurons: use a random subset of at most this many rows per layer, redrawn at every call. Unbiased; the time
            falls with the square. [default: 1,024, so that only wider layers are sampled; a number as large as the
            widest layer takes all rows]
        output_by_labels: use `label_energy` for the output layer; then call `term(labels)`.
        seed: of the term's own generator.
    Raises:
        InputError, UnknownNameError: bad arguments; see also `WeightTerm`. The model is never changed.
    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with MHE(net, hidden=1.0, output=10.0, half_space=True) as term:
        ...     (net(torch.randn(5, 4)).square().mean() + term()).backward()
        >>> list(term.report())
        ['0', '2']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden: float,
        output: float,
        power: int = 2,
        half_space: bool = False,
        angular: bool = False,
        eps: float = 1e-4,
        authors_code: bool = False,
        layers: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] = (),
        output_layer: str | None = None,
        neurons: int | None = None,
        output_by_labels: bool = False,
        seed: int = 0,
    ) -> None:
        if neurons is not None:
            check_number("neurons, the rows drawn from a layer,", neurons, low=2, whole=True)
        rule = _rule(power, half_space, angular, eps, authors_code)
        self._rules = {False: rule, True: rule._replace(half_space=False)}
        self._neurons = neurons or WIDE
        self._output_by_labels = output_by_labels
        self.once_per_update = not output_by_labels
        self._generator = torch.Generator()
        self.seed(seed)
        super().__init__(
            model,
            hidden=hidden,
            output=output,
            layers=layers,
            exclude=exclude,
            output_layer=output_layer,
        )
        drawn = [layers[0] for _, out, layers in self._groups if not (out and output_by_labels)]
        self._draws = any(len(layer.rows()) > self._neurons for layer in drawn)

    def __call__(self, labels: Tensor | None = None) -> Tensor:
        """The term: (), float32 (float64 for float64 weights). Labels (M,) are required by `output_by_labels`."""
        return self._uncompiled(labels) if self._draws else self._value(labels)

    @torch.compiler.disable
    def _uncompiled(self, labels: Tensor | None) -> Tensor:
        """The term whose rows are drawn: a break for every draw would compile the functions around it once a shape."""
        return self._value(labels)

    def _value(self, labels: Tensor | None) -> Tensor:
        return self._total([s * self._drawn(layers, out, labels).sum() for s, out, layers in self._groups])

    def seed(self, n: int) -> None:
        """Restart the draws of `neurons` from this seed."""
        check_seed(n)
        self._generator.manual_seed(n)

    def _values(self, rows: Tensor, is_output: bool) -> Tensor:
        return _energies(rows, self._rules[is_output])

    def _drawn(self, layers: Sequence[Layer], out: bool, labels: Tensor | None) -> Tensor:
        """The energies of layers of one shape, (L,), estimated from random rows or from labels where asked."""
        rule = self._rules[out]
        if out and self._output_by_labels:
            if labels is None:
                raise InputError("output_by_labels needs the labels of the batch: call term(labels)")
            return torch.stack([_label_energy(layer.rows(), labels, rule) for layer in layers])
        rows = [layer.rows() for layer in layers]
        count = len(rows[0])
        if count > self._neurons:
            rows = [r[self._draw(count).to(r.device, non_blocking=r.is_cuda)] for r in rows]
        return _energies(stack(rows), rule, count)

    def _draw(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator, device="cpu")[: self._neurons]


def _energies(rows: Tensor, rule: Rule, count: int | None = None) -> Tensor:
    """(L, N, D) -> (L,): the energies of L layers, if `count` is given estimated from N of their `count` rows."""
    with torch.autocast(rows.device.type, enabled=False):
        w = full_precision(rows)
        wanted = is_in_functorch() or (torch.is_grad_enabled() and w.requires_grad)
        mean: Tensor
        mean, _ = PairMean.apply(w, rule.power, rule.half_space, rule.angular, rule.eps, rule.authors_code, wanted)
        if not rule.half_space:
            return mean
        n = count or rows.size(1)
        return ((n - 1) * mean + _antipode(w, rule)) / (2 * n - 1)


def _label_energy(weight: Tensor, labels: Tensor, rule: Rule) -> Tensor:
    _check_labels(labels, len(weight))
    with torch.autocast(weight.device.type, enabled=False):
        w = full_precision(weight)
        energy: Tensor
        energy, _ = LabelMean.apply(w, labels, rule.power, rule.angular, rule.eps, rule.authors_code)
        return energy


def _antipode(w: Tensor, rule: Rule) -> Tensor | float:
    """f_s of a row and its own negative; in the authors' code their cosine is -|w|^2 / (|w|^2 + eps)."""
    if rule.authors_code:
        squares = torch.linalg.vector_norm(w.detach(), dim=-1).square()
        return repulsion(-squares / (squares + rule.eps), rule.power, rule.angular, True)[0].mean(-1)
    distance = math.pi if rule.angular else 2.0
    return -math.log(distance) if rule.power == 0 else distance**-rule.power


def _rule(power: int, half_space: bool, angular: bool, eps: float, authors_code: bool) -> Rule:
    if power not in POWERS or isinstance(power, bool):
        raise InputError(f"power must be one of 0, 1, 2; got {power!r}")
    check_number("eps", eps, low=0)
    return Rule(int(power), bool(half_space), bool(angular), float(eps), bool(authors_code))


def _check_matrix(weight: Tensor) -> None:
    check_rows(weight)
    if weight.dim() != 2 or not weight.numel():
        raise InputError(
            f"expected (N, D), one neuron per row; got {tuple(weight.shape)}. Flatten a convolution: weight.flatten(1)"
        )


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1 or not labels.numel():
        raise InputError(f"expected labels (M,) int64, at least one; got {tuple(labels.shape)} {labels.dtype}")
    if _can_look(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"labels must be from 0 to {classes - 1}; got {int(labels.min())} to {int(labels.max())}")


def _check_finite(energy: Tensor, weight: Tensor) -> None:
    if _can_look(energy) and not math.isfinite(energy.item()):
        bad = (~weight.detach().isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise InputError(f"rows {str(bad[:8])[1:-1]}{' ...' if len(bad) > 8 else ''} contain NaN or infinity")
        raise InputError("the squared norms of the rows overflow: scale the rows down")


def _can_look(x: Tensor) -> bool:
    """Whether reading a value neither waits for a device nor breaks a compiled graph or a transform of `torch.func`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_in_functorch()
