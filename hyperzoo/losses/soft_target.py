"""Losses for mixed labels: cross-entropy, and the Manifold Mixup code's binary cross-entropy on softmax."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperzoo.errors import InputError
from hyperzoo.layers.precision import full_precision

KINDS = ("cross_entropy", "bce")


def bce_on_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy between p = softmax(z) and the labels t, averaged over samples and classes.

    -(1 / BK) sum_ij [t_ij log p_ij + (1 - t_ij) log(1 - p_ij)]

    (the loss of the authors' code of arXiv 1806.05236 for all methods; not `BCEWithLogits`, which uses sigmoids).

    Shapes:
        logits: (B, K), K at least 2.   target: (B, K), 0 to 1.   return: ().
    Differs:
        log(1 - p) is accurate even if p rounds to 1: only the largest p_j of a row can exceed 1/2, and its 1 - p_j is
        the sum of the others. The authors' code clamps both logarithms at -100, where its gradient is 0.
    Example:
        >>> bce_on_softmax(torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
        tensor(26.4356)
    """
    log_p = F.log_softmax(logits, 1)
    largest = logits.argmax(1, keepdim=True) == torch.arange(logits.size(1), device=logits.device)
    others = torch.logsumexp(log_p.masked_fill(largest, -torch.inf), 1, keepdim=True)
    log_rest = torch.where(largest, others, torch.log1p(-log_p.masked_fill(largest, -torch.inf).exp()))
    return -(target * log_p + (1 - target) * log_rest).mean()


class SoftTarget(nn.Module):
    """Loss for soft targets, such as those of `Mixup` and `ManifoldMixup`.

    'cross_entropy' is -(1 / B) sum_ij t_ij log p_ij; for 'bce' see `bce_on_softmax`. Both are linear in t, so mixing
    labels equals mixing losses (arXiv 1710.09412, arXiv 1806.05236). At equal logits the gradient of 'bce' is
    1 / (K - 1) times the other, so learning rates do not transfer.

    Shapes:
        logits: (B, K).   target: (B, K), float, 0 to 1.   return: (), float32, also under autocast.
    Args:
        kind: 'cross_entropy' or 'bce'.
    Raises:
        InputError: an unknown kind; logits and targets of different shapes, class indices as targets, an empty batch,
            a single class.
    Example:
        >>> SoftTarget()(torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([[0.3, 0.7, 0.0]]))
        tensor(1.2913)
    """

    def __init__(self, kind: str = "cross_entropy") -> None:
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = kind

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if logits.dim() != 2 or logits.size(0) == 0 or logits.size(1) < 2:
            raise InputError(f"logits must be (B, K) with B at least 1 and K at least 2; got {tuple(logits.shape)}")
        if target.shape != logits.shape or not target.is_floating_point():
            raise InputError(
                f"targets must be floating-point {tuple(logits.shape)}, a share per class; got {tuple(target.shape)} "
                f"{target.dtype}. Convert class indices: torch.nn.functional.one_hot(labels, {logits.size(1)}).float()"
            )
        wide = full_precision(logits)
        target = target.to(wide.dtype)
        if self.kind == "bce":
            return bce_on_softmax(wide, target)
        return F.cross_entropy(wide, target)

    def extra_repr(self) -> str:
        return f"kind={self.kind}"
