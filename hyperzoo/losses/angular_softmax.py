"""W-, A- and GA-Softmax: cross-entropy on angles between features and class rows, with a margin for the target class.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 3. `layers/operators.py`
defines the operators g and continues them beyond 180 degrees, where a multiple of an angle may lie.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.errors import InputError, check_number
from hyperzoo.layers._torch import is_in_functorch
from hyperzoo.layers.operators import OPERATORS, angular, check_operator, steepness
from hyperzoo.layers.precision import full_dtype

_LARGEST = 1 - 1e-6  # cosine, as in `layers/operators.py`: arccos has an infinite gradient at 1


def angular_logits(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    operator: str = "cosine",
    margin: float = 1.0,
    k: float | Tensor = 0.3,
    eps: float = 1e-4,
    annealing: float | Tensor = 0.0,
) -> Tensor:
    """Logits from the length of x and its angles theta_j to the class rows w_j, with a margin for the target class y.

        z_j = |x| g(theta_j),    z_y = |x| (lambda g(theta_y) + g_m(theta_y)) / (1 + lambda)
        cosine             g_m(theta) = (-1)^q cos(m theta) - 2q,  q = floor(m theta / pi)      (A-Softmax)
        the others         g_m(theta) = g(m theta)                                              (GA-Softmax)

    (arXiv 1711.03189, section 3). m = 1 is W-Softmax, the logits of `SphereLinear(scale_by_norm=True)`.

    Shapes:
        features: (B, D).   weight: (K, D).   target: (B,) int64.   return: (B, K), float32 also under autocast.
    Args:
        margin: m, 1 or more. The cosine form is 1 minus the integral of |sin u| from 0 to m theta: continuous and
            decreasing from 1 at 0 degrees for every real m, and 1 - 2m at 180 degrees for an integer m.
        k: of the sigmoid, smaller is steeper; for 'learnable' a (K,) tensor, one per class.
        eps: added to the squared lengths of x and w_j. With 0, a zero vector gives NaN.
        annealing: lambda, 0 or more; 0 is the full margin.
    Differs:
        When m > 1, the cosine of the target class is clamped to +-(1 - 1e-6) (0.08 degrees), so that its gradient stays
        finite. Under autocast the products have half precision, but this angle has full float32 precision.
    """
    return _with_own(*_angular_logits(features, weight, target, operator, margin, k, eps, annealing), target)


def annealed(iteration: Tensor, start: float, floor: float, rate: float) -> Tensor:
    """The annealing weight lambda = max(floor, start / (1 + rate t)) at iteration t = 0, 1, ...

    (The schedule of SphereFace training, wy1iu/sphereface-plus, with 1000, 5 and 0.12.)

    Example:
        >>> annealed(torch.tensor([0, 100, 1000000]), 1000, 5, 0.12)
        tensor([1000.0000,   76.9231,    5.0000])
    """
    return (start / (1 + rate * iteration)).clamp(min=floor)


class AngularSoftmax(nn.Module):
    """Cross-entropy with an angular margin: W-Softmax (margin 1), A-Softmax (cosine), GA-Softmax (linear, sigmoid).

    The mean of -log softmax(z)_y, with the logits z of `angular_logits`. Prediction needs no margin; see
    `replace_classifier`. In evaluation mode the loss has the margin too; for a validation loss without it, use
    `torch.nn.functional.cross_entropy` on the model's logits.

    Shapes:
        features: (B, D).   weight: (K, D) class rows.   target: (B,) int64.   return: (), float32.
        raw_k (of the call): (K,), the `raw_k` of the `SphereLinear` classifier, for the operator 'learnable' only.
    Args:
        operator: 'cosine', 'linear', 'sigmoid' or 'learnable' (a sigmoid; the classifier owns its k, one per class).
        margin: m, any real number of at least 1; the paper uses integers, mostly 4.
        k: of 'sigmoid', above 0; smaller is steeper.
        eps: added to squared lengths, 0 or more.
        annealing: (start, floor, rate) of lambda, see `annealed`; None is the full margin from the first step.
        accumulate: forward passes per optimizer step. The buffer `iteration` counts forward passes in training mode
            with gradients enabled, so the schedule resumes from the state dict of this module and does not advance
            under `torch.no_grad()`. To validate with gradients enabled, call `eval()` on the model and this module.
        label_smoothing: 0 to 1, as for `torch.nn.CrossEntropyLoss`.
    Raises:
        InputError: an argument outside its range; features and rows of different width; a label out of range, in eager
            mode on the CPU. On other devices and in compiled code, the kernels themselves fail on such a label, so no
            step waits for the device (without a margin they ignore -100, as cross-entropy does).
    Example:
        >>> x, rows = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0], [-0.5, 1.0], [0.0, -3.0]])
        >>> loss = AngularSoftmax('linear', margin=4, annealing=None)
        >>> loss(x, rows, torch.tensor([0]))
        tensor(11.4004)
    """

    iteration: Tensor

    def __init__(
        self,
        operator: str = "cosine",
        margin: float = 1.0,
        *,
        k: float = 0.3,
        eps: float = 1e-4,
        annealing: tuple[float, float, float] | None = (1000.0, 5.0, 0.12),
        accumulate: int = 1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_operator(operator, k, eps)
        check_number("margin", margin, low=1)
        check_number("label_smoothing", label_smoothing, low=0, high=1)
        check_number("accumulate", accumulate, low=1, whole=True)
        if annealing is not None:
            if not isinstance(annealing, list | tuple) or len(annealing) != 3:
                raise InputError(f"annealing must be (start, floor, rate) or None; got {annealing!r}")
            for name, value in zip(("start", "floor", "rate"), annealing, strict=True):
                check_number(f"{name} of annealing", value, low=0)
        self.operator = operator
        self.margin = float(margin)
        self.k = float(k)
        self.eps = float(eps)
        self.annealing = annealing if margin > 1 else None
        self.accumulate = accumulate
        self.label_smoothing = label_smoothing
        if self.annealing:
            self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, weight: Tensor, target: Tensor, raw_k: Tensor | None = None) -> Tensor:
        _check_call(features, weight, target)
        learned = OPERATORS[self.operator].k == "learned"
        if raw_k is None and learned:
            raise InputError(f"the operator {self.operator!r} needs the raw_k of the classifier as its fourth argument")
        if raw_k is not None and not learned:
            raise InputError(f"the operator {self.operator!r} has no raw_k; got {tuple(raw_k.shape)}")
        if raw_k is not None and raw_k.shape != weight.shape[:1]:
            raise InputError(f"raw_k must be ({weight.size(0)},), one per class row; got {tuple(raw_k.shape)}")
        annealing: float | Tensor = 0.0
        if self.annealing:
            annealing = annealed(self.iteration // self.accumulate, *self.annealing)
            if self.training and torch.is_grad_enabled():
                self.iteration.add_(1)
        k = self.k if raw_k is None else steepness(raw_k)
        logits, own = _angular_logits(features, weight, target, self.operator, self.margin, k, self.eps, annealing)
        if own is None or self.label_smoothing:
            return F.cross_entropy(_with_own(logits, own, target), target, label_smoothing=self.label_smoothing)
        loss: Tensor = _CrossEntropyWithOwn.apply(logits, own, target.unsqueeze(1))
        return loss.mean()

    def extra_repr(self) -> str:
        k = f", k={self.k:g}" if OPERATORS[self.operator].k == "given" else ""
        return f"operator={self.operator}, margin={self.margin:g}{k}, annealing={self.annealing}"


def _angular_logits(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    operator: str,
    margin: float,
    k: float | Tensor,
    eps: float,
    annealing: float | Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Logits (B, K) without the margin, and (B, 1) with it for the target classes; None for m = 1."""
    scale = _squared_length(features, eps).sqrt().unsqueeze(1)
    # x is first scaled to length 1, so no product exceeds the length of a class row, which fits half precision
    unit = features / scale
    inverse = _squared_length(weight, eps).rsqrt()
    dtype = _product_dtype(weight)
    cosine: Tensor = _Cosines.apply(unit, weight, inverse, dtype)
    response = angular(cosine, operator, k)
    if margin == 1:
        return response * scale, None
    index = target.unsqueeze(1)
    own: Tensor = _Gather.apply(cosine, index)
    if dtype != inverse.dtype:  # value from float32 vectors, gradient through the product
        rows = weight.detach()[target] * inverse.detach()[target].unsqueeze(1)
        own = own + ((unit.detach() * rows).sum(1, keepdim=True) - own.detach())
    theta = torch.acos(own.clamp(-_LARGEST, _LARGEST))
    own_k = k[index] if isinstance(k, Tensor) else k
    continued = OPERATORS[operator].continued
    value = annealing * continued(theta, own_k) + continued(margin * theta, own_k)
    return response * scale, value * scale / (1 + annealing)


def _with_own(logits: Tensor, own: Tensor | None, target: Tensor) -> Tensor:
    return logits if own is None else logits.scatter(1, target.unsqueeze(1), own)


def _product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of a matrix product with this weight under the current autocast state."""
    device = weight.device.type
    if weight.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return weight.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _Cosines(torch.autograd.Function):
    """inverse_j <x_i, w_j> with inverse_j = 1 / |w_j|; the gradient of w includes the one through inverse_j.

    x has length 1 and the product is computed in `dtype`. Autograd would add the two gradients of w in three passes.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, inverse: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x.to(dtype), weight.to(dtype)) * inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], cosine: Tensor) -> None:
        *tensors, ctx.dtype = inputs
        ctx.save_for_backward(*tensors, cosine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse, cosine = ctx.saved_tensors
        scaled = (grad * inverse).to(ctx.dtype)
        along = (grad * cosine).sum(0) * inverse.square()
        grad_weight = scaled.t() @ x.to(ctx.dtype) - weight * along.unsqueeze(1)
        return (scaled @ weight.to(ctx.dtype)).to(x.dtype), grad_weight.to(weight.dtype), None, None


class _Gather(torch.autograd.Function):
    """x.gather(1, index) for one index per row, with a backward that a compiler can fuse."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(1, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, index = inputs
        ctx.save_for_backward(index)
        ctx.columns = x.size(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return torch.where(_is_column(index, ctx.columns), grad, 0.0), None


class _CrossEntropyWithOwn(torch.autograd.Function):
    """Cross-entropy (B, 1) of logits (B, K) after replacing those of the target classes by `own` (B, 1).

    With the loss L = lse - own:  p_j = exp(z_j - own - L) for the other classes,  p_y - 1 = exp(-L) - 1.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, own: Tensor, index: Tensor) -> Tensor:
        return torch.logsumexp(logits.scatter(1, index, own), 1, keepdim=True) - own

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], loss: Tensor) -> None:
        ctx.save_for_backward(*inputs, loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        logits, own, index, loss = ctx.saved_tensors
        others = torch.exp(logits - (own + loss)) * grad
        return torch.where(_is_column(index, logits.size(1)), 0.0, others), torch.expm1(-loss) * grad, None


def _is_column(index: Tensor, columns: int) -> Tensor:
    """(B, columns), True at index (B, 1); compares int32, which is faster."""
    return torch.arange(columns, device=index.device, dtype=torch.int32) == index.int()


def _squared_length(x: Tensor, eps: float) -> Tensor:
    """Sum of squares + eps of each row, at least float32, without a copy of x; a zero row has gradient 0."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=full_dtype(x))
    return length.square() + eps


def _check_call(features: Tensor, weight: Tensor, target: Tensor) -> None:
    if features.dim() != 2 or weight.dim() != 2 or features.size(1) != weight.size(1):
        raise InputError(
            "features must be (B, D) and class rows (K, D) with the same D; "
            f"got {tuple(features.shape)} and {tuple(weight.shape)}"
        )
    if not (features.is_floating_point() and weight.is_floating_point()):
        raise InputError(f"features and class rows must be floating point; got {features.dtype} and {weight.dtype}")
    classes = weight.size(0)
    if target.dtype != torch.int64 or target.shape != features.shape[:1] or len(target) == 0:
        raise InputError(
            f"target must be ({len(features)},) int64 class indices, at least one; got {tuple(target.shape)} "
            f"{target.dtype}. For mixed labels use SoftTarget: a margin needs a single target class"
        )
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and not is_in_functorch():
        outside = target[(target < 0) | (target >= classes)]
        if len(outside):
            raise InputError(f"labels must be from 0 to {classes - 1}, one per class row; got {outside[:8].tolist()}")
