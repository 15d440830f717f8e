"""Hyperzoo models, and MHE, in timm's unmodified training script.

`--device-modules` imports modules before the script creates its model; importing hyperzoo registers the architectures:

    python train.py --data-dir FOLDER --device-modules hyperzoo --model spherenet20 --num-classes 3 --img-size 32

The package timm does not contain train.py; take it from the same tag of github.com/huggingface/pytorch-image-models.
FOLDER holds train/<class>/* and validation/<class>/*. The script has no option for another term of the loss. This file
registers a model that brings its own, here MHE:

    PYTHONPATH=examples python train.py --data-dir FOLDER --device-modules timm_script --model spherenet20_mhe ...

The gradient is that of loss + term; the loss that the script prints excludes the term. As the script does not know the
term, divide its strengths by n under --grad-accum-steps n (--model-kwargs hidden=0.05 output=0.5), where it is added n
times, and use --amp with --amp-dtype bfloat16, which does not scale the loss.
"""

from typing import Any

try:
    import torch
    from timm.models import register_model
    from torch import Tensor, nn

    from hyperzoo.models.spherenet import spherenet20
    from hyperzoo.regularizers import MHE
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is not installed: pip install hyperzoo") from error


class AddTerm(torch.autograd.Function):
    """Return the logits unchanged; the backward adds the gradient of a term to that of any loss of the logits."""

    @staticmethod
    def forward(_: Any, logits: Tensor, term: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient.new_ones(())


@register_model
def spherenet20_mhe(pretrained: bool = False, hidden: float = 0.1, output: float = 1.0, **kwargs: Any) -> nn.Module:
    """SphereNet-20 that adds the gradient of minimum hyperspherical energy to that of any loss."""
    model = spherenet20(pretrained, **kwargs)
    mhe = MHE(model, hidden=hidden, output=output)
    model.register_forward_hook(lambda _, images, logits: AddTerm.apply(logits, mhe()) if model.training else logits)
    return model
