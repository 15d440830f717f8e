"""One published weight: where its files are, what it was trained and tested on, and with which result."""

import dataclasses

from hyperzoo import names


@dataclasses.dataclass(frozen=True)
class InputInfo:
    """The input of the evaluation: (C, H, W) images, scaled to [0, 1], minus mean, divided by std."""

    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Hub id and config of the data set, and the fingerprints (sha256) of its decoded splits."""

    id: str
    config: str
    train_fingerprint: str
    test_fingerprint: str


@dataclasses.dataclass(frozen=True)
class Spread:
    """A metric over n training runs; sd is None for a single run."""

    mean: float
    sd: float | None
    n: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Correct answers on the part of the test set that is embedded in the repository."""

    correct: int
    total: int
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class ThisFile:
    """The metrics of the published file itself; accuracy and ece in percent, nll in nats per image."""

    accuracy: float
    nll: float
    ece: float
    correct: int
    total: int
    sample: Sample | None  # None unless images of the data set are embedded


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Accuracy in percent over all runs, and the metrics of the published file."""

    accuracy: Spread
    this_file: ThisFile


@dataclasses.dataclass(frozen=True)
class ThisText:
    """Metrics of the published language model on the test text: nll in nats per token; correct tokens had rank 1.

    No part of the text is embedded in the repository.
    """

    perplexity: float
    nll: float
    correct: int
    total: int


@dataclasses.dataclass(frozen=True)
class TextMetrics:
    """Perplexity over all runs, and the metrics of the published file."""

    perplexity: Spread
    this_file: ThisText


@dataclasses.dataclass(frozen=True)
class Training:
    """Length and machine of the published run."""

    epochs: int
    minutes: float
    machine: str
    precision: str


@dataclasses.dataclass(frozen=True)
class WeightInfo:
    """One published weight: the entry `name` of `weights.json`.

    `code_changed`: whether the code that trained it had changes since `code_commit`.
    """

    name: str
    default: bool
    task: str
    bundled: bool
    bytes: int
    parameters: int
    files: dict[str, str]
    commit: str | None
    num_classes: int
    input: InputInfo
    dataset: DatasetInfo
    metrics: Metrics | TextMetrics
    training: Training
    recipe: str
    recipe_sha256: str
    code_commit: str
    code_changed: bool
    versions: dict[str, str]
    license: str
    dataset_terms: str
    paper: tuple[str, ...]

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
