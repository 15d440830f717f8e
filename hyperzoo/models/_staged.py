"""Networks in stages: what every network for small images shares to fulfill timm's contract."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn

from hyperzoo.errors import InputError
from hyperzoo.models._input import check_images
from hyperzoo.models._timm import feature_take_indices

torch.fx.wrap("check_images")


class Staged(nn.Module):
    """Stages, then pooling and a classifier `fc`.

    A subclass sets the attributes annotated here, names its stages in `feature_info`, and calls `_add_head` in its
    `__init__`. Stage i is followed by the module `pool{i+1}` if that exists. `_before` computes what precedes the first
    stage, `_after` what follows the last one, and `after` names the modules of the latter. Each subclass writes out
    `forward_features`, for TorchScript.
    """

    num_classes: int
    in_chans: int
    num_features: int
    head_hidden_size: int
    drop_rate: float
    grad_checkpointing: bool
    head_bias: bool = True
    after: tuple[str, ...] = ()
    if TYPE_CHECKING:  # torch.jit.script takes no annotation of a module
        feature_info: list[dict[str, Any]]
        global_pool: SelectAdaptivePool2d
        fc: nn.Module

    def _before(self, x: Tensor) -> Tensor:
        return check_images(x, self.in_chans)

    def _after(self, x: Tensor) -> Tensor:
        return x

    def _add_head(self, num_classes: int, global_pool: str, **dd: Any) -> None:
        """Set timm's pooling and the classifier, with a bias if `head_bias`."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        if not self.head_bias and isinstance(self.fc, nn.Linear):
            self.fc.register_parameter("bias", None)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head: num_classes = 0 leaves the pooled features, global_pool = '' the map."""
        like = next(self.parameters())
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self._add_head(num_classes, pool, device=like.device, dtype=like.dtype)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def _stages(self) -> Iterator[tuple[nn.Sequential, nn.Module]]:
        """Every stage, with the pool that follows it."""
        for i, info in enumerate(self.feature_info):
            yield getattr(self, info["module"]), getattr(self, f"pool{i + 1}", nn.Identity())

    @torch.jit.ignore
    def _checkpointed(self, x: Tensor) -> Tensor:
        """All stages, whose activations are recomputed in the backward pass."""
        for stage, pool in self._stages():
            x = pool(checkpoint_seq(stage, x))
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last features, and the outputs of the stages in `indices` (the last n for an integer, all for None)."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt must be 'NCHW'; got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        end = last + 1 if stop_early else len(self.feature_info)
        intermediates = []
        x = self._before(x)
        for i, (stage, pool) in zip(range(end), self._stages(), strict=False):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in take:
                intermediates.append(x)
            x = pool(x)
        if intermediates_only:
            return intermediates
        return self._after(x) if end == len(self.feature_info) else x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop every stage after the last requested one, what follows, and the head; returns the indices kept."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        dropped = self.feature_info[last + 1 :]
        for info in dropped:
            setattr(self, info["module"], nn.Sequential())
        for i in range(last, len(self.feature_info)):
            if dropped and hasattr(self, f"pool{i + 1}"):
                setattr(self, f"pool{i + 1}", nn.Identity())
        if dropped or prune_norm:
            for name in self.after:
                setattr(self, name, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward_features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
