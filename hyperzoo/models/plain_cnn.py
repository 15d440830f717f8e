"""CNN-n of the MHE paper for 32 x 32 images: plain networks of n convolutions of 3 x 3, in five widths.

Learning towards Minimum Hyperspherical Energy, Liu et al., NeurIPS 2018 (arXiv 1805.09298), with the layers of the code
at wy1iu/MHE: three stages of w, 2w and 4w channels, batch norm and ReLU after each convolution, and 2 x 2 max pooling
after each stage; `fc6`, a 4 x 4 convolution to 256 channels without norm and ReLU; a classifier without bias. These are
the networks of `sphere_cnn.py` with inner products, other widths and another `fc6`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn as nn

from hyperzoo.models._create import Variant, create, register_variants, weight_cfgs
from hyperzoo.models.resnet_cifar import cfg_cifar
from hyperzoo.models.sphere_cnn import SphereCNN

__all__ = ["PlainCNN"]
PAPERS = ("1805.09298",)  # arXiv numbers, on the cards of weights

HIDDEN = 256  # channels of `fc6` for all widths


class PlainCNN(SphereCNN):
    """Three stages of inner products, `fc6` with 256 channels and without norm, a classifier without bias.

    Shapes, Args and Raises: as for `SphereCNN`.
    """

    def __init__(
        self,
        depth: int = 9,
        widths: Sequence[int] = (64, 128, 256),
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(depth, widths, 0, in_chans, global_pool, drop_rate, operator=None, fc6_norm=False, **dd)
        self.fc6.conv = nn.Conv2d(widths[-1], HIDDEN, 4, bias=False, **dd)
        self.num_features = HIDDEN
        self.reset_classifier(num_classes)
        self.init_weights()


VARIANTS = {
    f"cnn{depth}_w{width}": Variant(
        f"CNN-{depth} of the MHE paper with {width}, {2 * width} and {4 * width} channels.",
        dict(depth=depth, widths=(width, 2 * width, 4 * width)),
    )
    for depth, width in ((6, 64), (9, 16), (9, 32), (9, 64), (9, 128), (9, 256), (15, 64))
}
default_cfgs = weight_cfgs(
    dict.fromkeys(VARIANTS, cfg_cifar() | dict(pool_size=(1, 1), first_conv="stage1.0.conv")),
)
register_variants(__name__, VARIANTS, partial(create, PlainCNN, feature_cfg=dict(out_indices=(0, 1, 2))))
