"""SphereConv: convolution and linear layers that respond to the angle between input and filter only.

Deep Hyperspherical Learning, Liu et al., NeurIPS 2017 (arXiv 1711.03189), section 2. See
`functional.py` for the formula and `operators.py` for the operators g.
"""

import torch
import torch.fx
import torch.nn as nn
from torch import Tensor

from hyperzoo.errors import InputError
from hyperzoo.layers.functional import Geometry, Response, pad_tf_same, sphere_conv2d, sphere_linear
from hyperzoo.layers.operators import OPERATORS, check_operator, first_raw_k

torch.fx.wrap("pad_tf_same")
torch.fx.wrap("sphere_conv2d")
torch.fx.wrap("sphere_linear")


class SphereConv2d(nn.Conv2d):
    """Convolution whose output depends only on the angle between filter and patch (arXiv 1711.03189, section 2).

    The output is g(theta) in [-1, 1], with theta the angle between the filter and the zero-padded patch and g from
    `operators.py`. The learnable operator adds `raw_k` (O,), one parameter per filter; being one-dimensional, it gets
    no weight decay.

    Shapes:
        x: (B, C, H, W).   return: (B, O, H', W'), as for `torch.nn.Conv2d`; channels-last stays channels-last.
    Args:
        kernel_size, stride, padding, dilation, groups: as for `torch.nn.Conv2d`; zero padding only. padding='tf_same'
            follows the authors' code: ceil(H / stride) rows, with an odd zero at the end.
        bias: add one number per filter to g, as in the paper's formula; the authors' code has no bias.
        operator: 'cosine', 'linear', 'sigmoid' or 'learnable'.
        k: of the sigmoid, above 0; smaller is steeper; the paper uses 0.1, 0.3 and 0.7. Other operators ignore it.
        eps: added to the squared norms of filter and patch. With 0 an all-zero patch gives NaN. The gradient at a zero
            patch is 1 / sqrt(eps) unit filters: 100 with 1e-4. In float16 a blank image therefore costs the loss scaler
            its first steps (7 of 60 in a small network, from 65,536 down to 512); bfloat16 needs no scaler.
    Raises:
        InputError: an unknown operator, k not above 0, a negative eps, or a string other than 'tf_same' for padding.
    Differs:
        The patch norm follows the stride (the authors' code computes it at stride 1). Linear and sigmoid clamp the
        cosine to +-(1 - 1e-6), so parallel vectors give 0.9991 for linear. Padding is symmetric, as always in torch.
        Norms and angles are float32 under autocast; the output has the dtype of a convolution. Where a squared norm
        overflows (entries of about 1e19 in float32), the output is NaN.
        With the cosine and no bias, the backward pass needs the output, so modifying it in place is an error.
        Do not fuse it with a batch norm: `torch.nn.utils.fusion.fuse_conv_bn_eval` and timm's `reparameterize_model`
        read the weight as that of an ordinary convolution and return another function, without an error.
    Example:
        >>> layer = SphereConv2d(3, 8, 3, padding=1, operator='linear')
        >>> layer(torch.zeros(2, 3, 32, 32)).abs().max().item()      # an all-zero patch gives exactly 0
        0.0
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    tf_same: bool
    operator: str
    k: float
    eps: float
    raw_k: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        operator: str = "cosine",
        k: float = 0.3,
        eps: float = 1e-4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_operator(operator, k, eps)
        if isinstance(padding, str) and padding != "tf_same":
            raise InputError(f"padding must be a number of pixels, a pair of them, or 'tf_same'; got {padding!r}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if isinstance(padding, str) else padding,
            dilation,
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self.tf_same = padding == "tf_same"
        self.operator = operator
        self.k = float(k)
        self.eps = float(eps)
        self.raw_k = first_raw_k(operator, out_channels, like=self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self._response(x)

    def _response(self, x: Tensor) -> Tensor:
        if self.tf_same:
            x = pad_tf_same(x, self.kernel_size, self.stride, self.dilation)
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)
        response = Response(self.operator, self.k, self.eps)
        return sphere_conv2d(x, self.weight, geometry, response, self.raw_k, self.bias)

    def extra_repr(self) -> str:
        shape = super().extra_repr().replace(", bias=False", "")
        if self.tf_same:
            shape += ", padding=tf_same"
        if self.bias is not None:
            shape += ", bias=True"
        return f"{shape}, {_operator_repr(self.operator, self.k, self.eps)}"


class SphereLinear(nn.Linear):
    """Linear layer whose output depends only on the angle between input and weight row (arXiv 1711.03189, section 2).

    Output j is g(theta_j) in [-1, 1], or with `scale_by_norm` sqrt(|x|^2 + eps) g(theta_j): the logits of a W-Softmax
    classifier (section 3 of the paper), which must not be bounded.

    Shapes:
        x: (..., D).   return: (..., O).
    Args:
        bias, operator, k, eps: as for `SphereConv2d`; the learnable operator has one `raw_k` per output.
        scale_by_norm: multiply by the norm of x that the cosine was divided by, eps included.
    Raises:
        InputError: an unknown operator, k not above 0, or a negative eps.
    Example:
        >>> layer = SphereLinear(2, 1, eps=0)
        >>> _ = layer.weight.data.copy_(torch.tensor([[2.0, 0.0]]))
        >>> layer(torch.tensor([[0.0, 3.0], [5.0, 0.0]])).flatten().tolist()
        [0.0, 1.0]
    """

    operator: str
    k: float
    eps: float
    scale_by_norm: bool
    raw_k: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        operator: str = "cosine",
        k: float = 0.3,
        eps: float = 1e-4,
        scale_by_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_operator(operator, k, eps)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.operator = operator
        self.k = float(k)
        self.eps = float(eps)
        self.scale_by_norm = scale_by_norm
        self.raw_k = first_raw_k(operator, out_features, like=self.weight)

    def forward(self, x: Tensor) -> Tensor:
        response = Response(self.operator, self.k, self.eps)
        return sphere_linear(x, self.weight, response, self.scale_by_norm, self.raw_k, self.bias)

    def extra_repr(self) -> str:
        scaled = ", scale_by_norm=True" if self.scale_by_norm else ""
        size = f"in_features={self.in_features}, out_features={self.out_features}"
        size += ", bias=True" if self.bias is not None else ""
        return f"{size}, {_operator_repr(self.operator, self.k, self.eps)}{scaled}"


def _operator_repr(operator: str, k: float, eps: float) -> str:
    steepness = f", k={k:g}" if OPERATORS[operator].k == "given" else ""
    return f"operator={operator}{steepness}, eps={eps:g}"
