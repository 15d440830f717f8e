"""The units of the networks for small images: a convolution of any kind, what normalises it, and the head."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, create_classifier
from torch import Tensor, nn

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereConv2d, SphereNorm

NORMS = ("batch", "sphere", "sphere+batch", "none")
BN_EPS = 1e-3


def make_conv(
    in_chs: int, out_chs: int, kernel_size: int, *, operator: str | None, k: float, norm: str, **kwargs: Any
) -> nn.Conv2d:
    """A convolution without bias: of inner products (operator None), of angles, or of angles rescaled by SphereNorm."""
    if operator is None:
        return nn.Conv2d(in_chs, out_chs, kernel_size, bias=False, **kwargs)
    layer = SphereNorm if "sphere" in norm else SphereConv2d
    return layer(in_chs, out_chs, kernel_size, operator=operator, k=k, **kwargs)


def make_norm(channels: int, norm: str, **dd: Any) -> nn.Module:
    """What stands behind a convolution: batch norm if the norm has one, else nothing."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, **dd) if "batch" in norm else nn.Identity()


def check_norm(norm: str, operator: str | None) -> None:
    """Raise InputError for an unknown norm, or SphereNorm without angles."""
    if norm not in NORMS:
        raise InputError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if "sphere" in norm and operator is None:
        raise InputError(
            f"norm={norm!r} rescales angles, and this network has inner products: take the one with an operator in its "
            "name, or norm='batch' or 'none'"
        )


def make_head(
    features: int, num_classes: int, pool: str, bias: bool, **dd: Any
) -> tuple[SelectAdaptivePool2d, nn.Module]:
    """timm's pooling and classifier, the latter with or without bias."""
    global_pool, fc = create_classifier(features, num_classes, pool_type=pool, **dd)
    if not bias and isinstance(fc, nn.Linear):
        fc.register_parameter("bias", None)
    return global_pool, fc


class Headed(nn.Module):
    """A network with pooling and a classifier `fc`: the part of timm's contract that is about these.

    The network sets all that is annotated here; `head_bias` says whether its classifier has a bias.
    """

    num_classes: int
    num_features: int
    head_hidden_size: int
    head_bias: bool
    drop_rate: float
    grad_checkpointing: bool
    if TYPE_CHECKING:  # torch.jit.script takes no annotation of a module
        global_pool: SelectAdaptivePool2d
        fc: nn.Module

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head: num_classes = 0 leaves the pooled features, global_pool = '' the map."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        like = next(self.parameters())
        self.global_pool, self.fc = make_head(
            self.num_features, num_classes, pool, self.head_bias, device=like.device, dtype=like.dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)
