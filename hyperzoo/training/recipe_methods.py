"""The block `method` of a recipe: the loss, its added terms, and the mixing of images.

Each block has the arguments of the class that `experiments/build.py` makes from it, under the same names; the docstring
of that class says more.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hyperzoo.errors import check_alpha
from hyperzoo.layers.operators import OPERATORS
from hyperzoo.training.strict_yaml import AtLeastOne, Block, Fraction, NonNegative, Positive

AtLeastTwo = Annotated[int, Field(ge=2)]
Alpha = Annotated[NonNegative, AfterValidator(check_alpha)]
Layers = str | Annotated[list[str], Field(min_length=1)]


class AngularSettings(Block):
    """`losses.AngularSoftmax` (W-, A- and GA-Softmax) instead of cross-entropy."""

    operator: Literal[tuple(OPERATORS)] = "cosine"  # type: ignore[valid-type]
    # function of the angle in the logits
    margin: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1  # m, the factor of the angle to the true class; 1:
    # no margin (W-Softmax)
    k: Positive = 0.3  # of the operator sigmoid; smaller is steeper
    annealing: Annotated[list[NonNegative], Field(min_length=3, max_length=3)] | None = [1000.0, 5.0, 0.12]  # start,
    # floor and rate of the weight of the logits without margin: max(start / (1 + rate * step), floor); null: the full
    # margin from the first step


class MHESettings(Block):
    """`regularizers.MHE`: minimum hyperspherical energy."""

    hidden: NonNegative  # strength for hidden layers
    output: NonNegative  # strength for the output layer
    power: Literal[0, 1, 2] = 2  # s of the energy distance^-s; 0: log(1 / distance)
    half_space: bool = False  # f and -f count as one direction
    angular: bool = False  # distance: the angle in radians instead of the chord
    authors_code: bool = False  # the values of the authors' code
    layers: Layers | None = None  # module names or patterns [default: all convolutions and linear layers]
    exclude: list[str] = []  # module names or patterns to leave out
    neurons: AtLeastTwo | None = None  # random filters of a layer per step [default: 1,024 of a wider layer, or all]


class OrthogonalitySettings(Block):
    """`regularizers.Orthogonality`: orthogonal or orthonormal filters."""

    strength: NonNegative  # for hidden layers
    output: NonNegative = 0.0  # strength for the output layer
    unit_rows: bool = False  # directions only, so orthogonal filters; false: also of length 1, so orthonormal ones
    layers: Layers | None = None  # as for mhe
    exclude: list[str] = []  # as for mhe


class MinimumAngleSettings(Block):
    """`regularizers.MinimumAngle`: maximize the angle between each filter and its nearest (MMA)."""

    hidden: NonNegative  # strength for hidden layers
    output: NonNegative  # strength for the output layer
    layers: Layers | None = None  # as for mhe
    exclude: list[str] = []  # as for mhe


class PERSettings(Block):
    """`regularizers.PER`: projected error function."""

    strength: NonNegative  # for each layer
    layers: Layers = "stages"  # 'stages', module names or patterns, or 'type:ReLU'; choose layers after a nonlinearity
    slices: AtLeastOne | None = 256  # random directions per step, as in the paper; null: all, exactly
    reduce: Literal["mean", "batch", "sum"] = "mean"  # the sum over vectors is divided by their number, by the samples
    # of the batch, or not at all
    view: Literal["location", "flatten"] = "location"  # a vector per position of a feature map, or one per sample
    axis: int | None = None  # the axis whose entries form one vector: -1 for maps (B, H, W, d), 1 for (B, d, T)
    # [default: by the class of the layer, or the number of its axes]
    every: AtLeastOne = 1  # act in the first of every n forward passes only, n times as strongly; costs 1 / n
    rows: Annotated[float, Field(gt=0, le=1)] = 1.0  # with slices, the share of vectors that have a gradient, drawn per
    # step; unbiased and cheaper

    @model_validator(mode="after")
    def _consistent(self) -> "PERSettings":
        if self.axis == 0 or (self.axis is not None and self.view == "flatten"):
            raise ValueError(
                f"axis: {self.axis} with view: {self.view}; axis 0 is the batch, and flatten takes no axis"
            )
        if self.rows < 1 and self.slices is None:
            raise ValueError(f"rows: {self.rows:g} needs slices; all directions (null) cost less, so remove rows")
        return self


class VCLSettings(Block):
    """`regularizers.VCL`: variance constancy loss."""

    strength: NonNegative = 0.01  # for each layer
    layers: Layers  # as for per, but before a nonlinearity
    group: AtLeastTwo = 5  # samples in each of the two groups whose variances are compared


class ActivationNormSettings(Block):
    """`regularizers.ActivationNorm`: L1 or L2 penalty of activations."""

    strength: NonNegative  # for each layer
    p: Literal[1, 2] = 1  # 1: sum of the absolute values of a sample; 2: of the squares
    layers: Layers = "stages"  # as for per


class MixupSettings(Block):
    """`mixup.Mixup` or `mixup.CutMix` of the images."""

    alpha: Alpha = 1.0  # shares are drawn from Beta(alpha, alpha); 0: no mixing
    cutmix: bool = False  # exchange a rectangle instead of blending


class ManifoldMixupSettings(Block):
    """`mixup.ManifoldMixup`: mixup of the images or of a hidden layer."""

    alpha: Alpha = 2.0  # shares are drawn from Beta(alpha, alpha); 0: no mixing
    layers: Annotated[list[str], Field(min_length=1)] | None = None  # 'input' and modules, of which one is drawn per
    # step [default: the input and the first two stages]


class Method(Block):
    """The loss, its added terms, and the mixing; all can be combined, except as `_consistent` says."""

    label_smoothing: Fraction = 0.0  # probability that is spread evenly over the classes
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
        if self.soft_target == "bce" and not (self.mixup or self.manifold_mixup):
            raise ValueError("method.soft_target is the loss of mixed labels; add mixup (alpha: 0 mixes nothing)")
        return self
