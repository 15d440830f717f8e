"""The block `method` of a recipe: the loss, its added terms, and the mixing of images.

Each block has the arguments of the class that `experiments/build.py` makes from it, under the same names; the docstring
of that class has their meaning.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hyperzoo.layers.operators import OPERATORS
from hyperzoo.training.strict_yaml import AtLeastOne, Block, Fraction, NonNegative, Positive

Layers = str | Annotated[list[str], Field(min_length=1)]


class AngularSettings(Block):
    """`losses.AngularSoftmax` (W-, A- and GA-Softmax) instead of cross-entropy."""

    operator: Literal[tuple(OPERATORS)] = "cosine"  # type: ignore[valid-type]
    margin: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1
    k: Positive = 0.3
    annealing: Annotated[list[NonNegative], Field(min_length=3, max_length=3)] | None = [1000.0, 5.0, 0.12]


class MHESettings(Block):
    """`regularizers.MHE`: minimum hyperspherical energy."""

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
    """`regularizers.Orthogonality`: orthogonal or orthonormal filters."""

    strength: NonNegative
    output: NonNegative = 0.0
    unit_rows: bool = False
    layers: Layers | None = None
    exclude: list[str] = []


class MinimumAngleSettings(Block):
    """`regularizers.MinimumAngle`: maximize the angle between each filter and its nearest (MMA)."""

    hidden: NonNegative
    output: NonNegative
    layers: Layers | None = None
    exclude: list[str] = []


class PERSettings(Block):
    """`regularizers.PER`: projected error function."""

    strength: NonNegative
    layers: Layers = "stages"
    slices: AtLeastOne | None = 256
    reduce: Literal["mean", "batch", "sum"] = "mean"
    view: Literal["location", "flatten"] = "location"


class VCLSettings(Block):
    """`regularizers.VCL`: variance constancy loss."""

    strength: NonNegative = 0.01
    layers: Layers
    group: AtLeastOne = 5


class ActivationNormSettings(Block):
    """`regularizers.ActivationNorm`: L1 or L2 penalty of activations."""

    strength: NonNegative
    p: Literal[1, 2] = 1
    layers: Layers = "stages"


class MixupSettings(Block):
    """`mixup.Mixup` or `mixup.CutMix` of the images."""

    alpha: NonNegative = 1.0
    cutmix: bool = False


class ManifoldMixupSettings(Block):
    """`mixup.ManifoldMixup`: mixup of the images or of a hidden layer."""

    alpha: NonNegative = 2.0
    layers: Annotated[list[str], Field(min_length=1)] | None = None


class Method(Block):
    """The loss, its added terms, and the mixing; all can be combined, except as `_consistent` says."""

    label_smoothing: Fraction = 0.0
    soft_target: Literal["cross_entropy", "bce"] = "cross_entropy"  # loss of mixed labels
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
            raise ValueError("method has both mixup and manifold_mixup; a batch is mixed once, so remove one")
        if self.angular and (self.mixup or self.manifold_mixup):
            raise ValueError("method.angular needs one class per image; remove mixup and manifold_mixup (no mixing)")
        return self
