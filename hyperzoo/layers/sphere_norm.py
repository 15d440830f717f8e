"""SphereNorm: SphereConv as the normaliser of a network (arXiv 1711.03189)."""

import torch
import torch.nn as nn
from torch import Tensor

from hyperzoo.errors import check_number
from hyperzoo.layers.sphere import SphereConv2d


class SphereNorm(SphereConv2d):
    """Sphere convolution with a scale and a shift per filter, in place of, before, or without batch norm.

    Out_o = beta_o g(theta_o) + gamma_o (arXiv 1711.03189, SphereNorm). The angle normalises patch and filter both, one
    image at a time, so nothing depends on the batch: meant for batches of 4 to 32.

    Shapes:
        x: (B, C, H, W).   return: (B, O, H', W').   beta, gamma: (O,).
    Args:
        kernel_size, stride, padding, dilation, groups, operator, k, eps: as for `SphereConv2d`.
        beta, gamma: the first values of scale and shift.
        learnable: train them; otherwise they are constants, kept in the state.
    Raises:
        InputError: as `SphereConv2d`; a beta or gamma that is not a finite number.
    Differs:
        The authors' code has no such layer: there the affine part of the batch norm behind does the same.
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
