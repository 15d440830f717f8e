"""One published weight: where its files are, what it was trained and tested on, and with which result."""

import dataclasses

from hyperzoo import names


@dataclasses.dataclass(frozen=True)
class InputInfo:
    """The input of the evaluation: (C, H, W) images, scaled to [0, 1], minus mean, divided by std."""

    size: tuple[int, ...]  # (C, H, W) in pixels; a text: (1, 1, tokens of a piece)
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]  # per channel
    crop_pct: float  # part of the resized image that is cropped
    interpolation: str  # of the resizing


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Hub id and config of the data set, and the fingerprints (sha256) of its decoded splits."""

    id: str  # on the Hub
    config: str  # configuration on the Hub
    train_fingerprint: str  # sha256 of the decoded training split
    test_fingerprint: str  # sha256 of the decoded test split


@dataclasses.dataclass(frozen=True)
class Spread:
    """A metric over n training runs; sd is None for a single run."""

    mean: float  # in percent, or perplexity
    sd: float | None  # standard deviation; null for a single run
    n: int  # number of runs
    seeds: tuple[int, ...]  # one per run
    values: tuple[float, ...]  # one per run


@dataclasses.dataclass(frozen=True)
class Sample:
    """Correct answers on the part of the test set that is embedded in the repository."""

    correct: int  # correct answers
    total: int  # images
    fingerprint: str  # sha256 of the images


@dataclasses.dataclass(frozen=True)
class ThisFile:
    """The metrics of the published file itself, from one view of each image but for `multicrop`."""

    accuracy: float  # percent
    multicrop: float | None  # accuracy of `hyperzoo eval --tta multicrop`; None for weights published before 0.6
    nll: float  # negative log-likelihood in nats per image
    ece: float  # expected calibration error in percent
    correct: int  # correct answers
    total: int  # test images
    sample: Sample | None  # None unless images of the data set are embedded


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Accuracy in percent over all runs, and the metrics of the published file."""

    accuracy: Spread  # in percent, over all runs
    this_file: ThisFile  # metrics of the published file


@dataclasses.dataclass(frozen=True)
class ThisText:
    """Metrics of the published language model on the test text: nll in nats per token; correct tokens had rank 1.

    No part of the text is embedded in the repository.
    """

    perplexity: float  # exp(nll)
    nll: float  # negative log-likelihood in nats per token
    correct: int  # tokens of rank 1
    total: int  # test tokens


@dataclasses.dataclass(frozen=True)
class TextMetrics:
    """Perplexity over all runs, and the metrics of the published file."""

    perplexity: Spread  # over all runs
    this_file: ThisText  # metrics of the published file


@dataclasses.dataclass(frozen=True)
class Training:
    """Length and machine of the published run."""

    epochs: int  # of each run
    minutes: float  # of the published run
    machine: str  # the GPU, or cpu with threads and instruction set
    precision: str  # arithmetic: fp32, or bf16 mixed


@dataclasses.dataclass(frozen=True)
class WeightInfo:
    """One published weight: the entry `name` of `weights.json`.

    `code_changed`: whether the code that trained it had changes since `code_commit`.
    """

    name: str  # <architecture>.<method>_<dataset>
    default: bool  # whether timm loads it for the bare name of the architecture
    task: str  # image-classification or text-generation
    bundled: bool  # whether the package contains the file
    bytes: int  # of model.safetensors
    parameters: int  # of the network
    files: dict[str, str]  # name: sha256
    commit: str | None  # of the Hub repository; null if it is not there
    num_classes: int  # or words of the vocabulary
    input: InputInfo  # of the evaluation
    dataset: DatasetInfo  # that it was trained and tested on
    metrics: Metrics | TextMetrics  # on the test split
    training: Training  # length and machine
    recipe: str  # file below recipes/
    recipe_sha256: str  # digest of its settings
    code_commit: str  # of the code that trained it
    code_changed: bool  # whether that code had uncommitted changes
    versions: dict[str, str]  # package: version during training
    license: str  # of the weight
    dataset_terms: str  # terms of the data set
    paper: tuple[str, ...]  # arXiv numbers

    @property
    def arch(self) -> str:
        return names.parse(self.name).arch

    @property
    def tag(self) -> str:
        return names.parse(self.name).tag

    @property
    def metric(self) -> str:
        """The test metric: 'accuracy', in percent, or 'perplexity'."""
        return "perplexity" if isinstance(self.metrics, TextMetrics) else "accuracy"

    @property
    def score(self) -> Spread:
        """The test metric over all runs."""
        return self.metrics.perplexity if isinstance(self.metrics, TextMetrics) else self.metrics.accuracy

    def shown(self, value: float) -> str:
        """A value of the test metric as text, with its unit."""
        return as_text(self.metric, value)


def as_text(metric: str, value: float) -> str:
    """A value of 'accuracy' or 'perplexity' with its unit."""
    return f"{value:.2f}" if metric == "perplexity" else f"{value:.2f} %"
