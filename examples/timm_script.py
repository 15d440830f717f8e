"""Our networks, and a regulariser, in timm's own training script, of which no line changes.

`--device-modules` imports modules before the script makes its model; importing hyperzoo registers our networks:

    python train.py --data-dir FOLDER --device-modules hyperzoo --model spherenet20 --num-classes 3 --img-size 32

(train.py is not in the package timm; take it from the same tag of github.com/huggingface/pytorch-image-models. FOLDER
holds train/<class>/* and validation/<class>/*.) The script lets its user choose a model and no term of the loss.
This file registers a model that brings its term along, here MHE:

    PYTHONPATH=examples python train.py --data-dir FOLDER --device-modules timm_script --model spherenet20_mhe ...

The gradient is that of loss + term; the loss that the script prints is without the term. Two things follow from the
script not knowing of it: with --grad-accum-steps n the term acts n times an update, so divide its strengths by n
(--model-kwargs hidden=0.05 output=0.5), and --amp needs --amp-dtype bfloat16, which scales no loss.
"""

from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from hyperzoo.models.spherenet import spherenet20
from hyperzoo.regularizers import MHE


class AddTerm(torch.autograd.Function):
    """The logits as they are; backward, the gradient of a term joins that of whatever loss they go into."""

    @staticmethod
    def forward(_: Any, logits: Tensor, term: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient.new_ones(())


@register_model
def spherenet20_mhe(pretrained: bool = False, hidden: float = 0.1, output: float = 1.0, **kwargs: Any) -> nn.Module:
    """SphereNet-20 that trains with minimum hyperspherical energy, whatever the loss."""
    model = spherenet20(pretrained, **kwargs)
    mhe = MHE(model, hidden=hidden, output=output)
    model.register_forward_hook(lambda _, images, logits: AddTerm.apply(logits, mhe()) if model.training else logits)
    return model
