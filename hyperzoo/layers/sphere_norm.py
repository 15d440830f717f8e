"""SphereNorm: SphereConv as a normalization layer (arXiv 1711.03189)."""

import torch
import torch.nn as nn
from torch import Tensor

from hyperzoo.errors import check_number
from hyperzoo.layers.sphere import SphereConv2d


class SphereNorm(SphereConv2d):
    """Sphere convolution with a scale and a shift per filter: replaces batch norm, or comes before it.

    Output o is beta_o g(theta_o) + gamma_o (arXiv 1711.03189, SphereNorm). The angle normalizes patch and filter of
    each image alone, independent of the batch; meant for batches of 4 to 32.

    Shapes:
        x: (B, C, H, W).   return: (B, O, H', W').   beta, gamma: (O,).
    Args:
        kernel_size, stride, padding, dilation, groups, operator, k, eps: as for `SphereConv2d`.
        beta, gamma: initial scale and shift.
        learnable: train them; otherwise they are buffers.
    Raises:
        InputError: as `SphereConv2d`; a beta or gamma that is not a finite number.
    Differs:
        The authors' code has no such layer; the affine part of the following batch norm does the same there.
    Example:
        >>> layer = SphereNorm(3, 2, 1, beta=2.0, gamma=0.5, learnable=False)
        >>> layer(torch.zeros(1, 3, 1, 1)).flatten().tolist()            # an all-zero patch gives gamma
        [0.5, 0.5]
    """

    beta: Tensor
    gamma: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        operator: str = "cosine",
        k: float = 0.3,
        eps: float = 1e-4,
        beta: float = 1.0,
        gamma: float = 0.0,
        learnable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("beta", beta), ("gamma", gamma)):
            check_number(name, value)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            operator=operator,
            k=k,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        for name, value in (("beta", beta), ("gamma", gamma)):
            values = torch.full((out_channels,), float(value), device=device, dtype=dtype)
            if learnable:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        out = self._response(x)
        return out * self.beta.to(out.dtype)[:, None, None] + self.gamma.to(out.dtype)[:, None, None]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, affine={'learnable' if isinstance(self.beta, nn.Parameter) else 'fixed'}"
