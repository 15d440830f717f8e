"""White-box attacks: change every pixel by at most epsilon so that the network errs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperzoo.errors import InputError


def fgsm(network: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """Fast gradient sign method (arXiv 1412.6572, section 4): one step of size epsilon. Equals `pgd` with one step.

    Shapes and Raises: see `pgd`.
    """
    return pgd(network, pixels, labels, epsilon=epsilon, step=epsilon, steps=1)


def pgd(
    network: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent: sign-gradient ascent on the cross-entropy (arXiv 1706.06083, section 2.1).

    x_0 = P(x + u),   x_(t+1) = P(x_t + step sign(grad CE(f(x_t), y)))

    P clamps to [x - epsilon, x + epsilon] and to [0, 1]; u is uniform in [-epsilon, epsilon]. The gradients of the
    parameters are not touched.

    Shapes:
        pixels: x, (B, C, H, W) in [0, 1].   labels: y, (B,) int64.   return: as pixels.
    Args:
        network: f, from pixels to logits (B, K), including normalization. Set it to evaluation mode first; otherwise
            the attack changes running statistics.
        epsilon, step: 0 or more, for pixels in [0, 1].
        steps: 1 or more.
        generator: CPU generator for u; None starts at x.
    Raises:
        InputError: pixels outside [0, 1], a value out of range, or a gradient that is not finite.
    Example:
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> fgsm(lambda x: torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1), x, torch.tensor([0]), epsilon=0.1)
        tensor([[[[0.4000, 0.4000],
                  [0.4000, 0.4000]]]])
    """
    if not (epsilon >= 0 and step >= 0 and steps >= 1):
        raise InputError(f"epsilon and step must be 0 or more and steps 1 or more; got {epsilon}, {step} and {steps}")
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise InputError("pixels must lie in [0, 1]; pass them before normalization")
    low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
    changed = pixels.detach()
    if generator is not None:
        noise = torch.rand(pixels.shape, generator=generator, dtype=pixels.dtype, device="cpu").to(pixels.device)
        changed = (changed + epsilon * (2 * noise - 1)).clamp(low, high)
    for _ in range(steps):
        with torch.enable_grad():
            at = changed.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(network(at), labels, reduction="sum"), at)
        if not bool(gradient.isfinite().all()):
            raise InputError("the gradient of the network with respect to the pixels is NaN or infinite")
        changed = (at.detach() + step * gradient.sign()).clamp(low, high)
    return changed
