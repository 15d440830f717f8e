"""What a recipe may say about the method: the loss, the terms that are added to it, and the mixing of images.

Every block holds the arguments of the class that `build.py` makes of it, under the same names.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hyperzoo.layers.operators import OPERATORS
from hyperzoo.training.strict_yaml import AtLeastOne, Block, Fraction, NonNegative, Positive

Layers = str | Annotated[list[str], Field(min_length=1)]


class AngularSettings(Block):
    """W-, A- and GA-Softmax instead of cross-entropy."""

    operator: Literal[tuple(OPERATORS)] = "cosine"  # type: ignore[valid-type]
    margin: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1
    k: Positive = 0.3
    annealing: Annotated[list[NonNegative], Field(min_length=3, max_length=3)] | None = [1000.0, 5.0, 0.12]


class MHESettings(Block):
    """Minimum hyperspherical energy."""

    hidden: NonNegative
    output: NonNegative
    power: Literal[0, 1, 2] = 2
    half_space: bool = False
    angular: bool = False
    authors_code: bool = False
    layers: Layers | None = None
    exclude: list[str] = []
    neurons: AtLeastOne | None = None


class OrthogonalitySettings(Block):
    """Orthogonal filters, also of unit length."""

    strength: NonNegative
    output: NonNegative = 0.0
    unit_rows: bool = False
    layers: Layers | None = None
    exclude: list[str] = []


class MinimumAngleSettings(Block):
    """The largest angle between each filter and its nearest (MMA)."""

    hidden: NonNegative
    output: NonNegative
    layers: Layers | None = None
    exclude: list[str] = []


class PERSettings(Block):
    """Projected error function."""

    strength: NonNegative
    layers: Layers = "stages"
    slices: AtLeastOne | None = 256
    reduce: Literal["mean", "batch", "sum"] = "mean"
    view: Literal["location", "flatten"] = "location"


class VCLSettings(Block):
    """Variance constancy loss."""

    strength: NonNegative = 0.01
    layers: Layers
    group: AtLeastOne = 5


class ActivationNormSettings(Block):
    """L1 or L2 penalty of activations."""

    strength: NonNegative
    p: Literal[1, 2] = 1
    layers: Layers = "stages"


class MixupSettings(Block):
    """Mixup or CutMix of the images."""

    alpha: NonNegative = 1.0
    cutmix: bool = False


class ManifoldMixupSettings(Block):
    """Mixup of the images or of a hidden layer."""

    alpha: NonNegative = 2.0
    layers: Annotated[list[str], Field(min_length=1)] | None = None


class Method(Block):
    """The loss, its terms, and the mixing."""

    label_smoothing: Fraction = 0.0
    soft_target: Literal["cross_entropy", "bce"] = "cross_entropy"  # the loss of mixed labels
    angular: AngularSettings | None = None
    mhe: MHESettings | None = None
    orthogonality: OrthogonalitySettings | None = None
    minimum_angle: MinimumAngleSettings | None = None
    per: PERSettings | None = None
    vcl: VCLSettings | None = None
    activation_norm: ActivationNormSettings | None = None
    mixup: MixupSettings | None = None
    manifold_mixup: ManifoldMixupSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Method":
        if self.mixup and self.manifold_mixup:
            raise ValueError("method has mixup and manifold_mixup; a batch is mixed once")
        if self.angular and (self.mixup or self.manifold_mixup):
            raise ValueError("method.angular takes one class an image: no mixing")
        return self
