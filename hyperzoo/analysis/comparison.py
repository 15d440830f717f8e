"""Compare a method with its baseline over seeds: paired difference, 95 % interval and a verdict."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hyperzoo.errors import InputError

CONFIDENCE = 0.95
ROUNDING = 1e-9  # of a difference of two scores
SEEDS = 3  # pairs from which on a comparison has a verdict
Verdict = Literal["gain", "loss", "inconclusive", "too few seeds", "no variation"]


@dataclass(frozen=True)
class Difference:
    """Mean difference of a method to its baseline over paired seeds.

    Attributes:
        n: number of pairs.
        mean: method minus baseline, in the unit of the metric.
        low, high: ends of the 95 % interval of Student's t for paired samples; None for a single pair, and where all
            differences are equal, which leaves no spread to estimate it from.
        verdict: 'gain' or 'loss' if the interval excludes 0, 'inconclusive' if not; 'too few seeds' below `SEEDS`
            pairs; 'no variation' if all differences are equal.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    verdict: Verdict

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f} (n = {self.n})"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def prediction_width(known: int, new: int) -> float:
    """How far the mean of `new` scores may lie from that of `known` ones at 95 %, in standard deviations of the latter.

    Student's prediction interval: t sqrt(1 / known + 1 / new), with known - 1 degrees of freedom.

    Example:
        >>> round(prediction_width(3, 1), 2)
        4.97
    """
    from scipy.stats import t  # a slow import, part of [train]

    return float(t.ppf((1 + CONFIDENCE) / 2, known - 1)) * math.sqrt(1 / known + 1 / new)


def paired(method: Mapping[int, float], baseline: Mapping[int, float], *, larger_is_better: bool = True) -> Difference:
    """Compare the scores of a method with those of its baseline, paired by seed.

    Runs with one seed share their data order and augmentation, so their difference varies less than either score.

    Args:
        method, baseline: score by seed; seeds that only one of them has are left out.
        larger_is_better: True for accuracy, False for perplexity or NLL.
    Raises:
        InputError: no common seed, or a score that is not finite.
    Example:
        >>> print(paired({0: 93.0, 1: 93.4, 2: 93.5}, {0: 92.6, 1: 92.8, 2: 93.2}))
        +0.43 [+0.05, +0.81]
    """
    seeds = sorted(method.keys() & baseline.keys())
    if not seeds:
        raise InputError(f"no seed in common: the method has {sorted(method)}, its baseline {sorted(baseline)}")
    differences = [method[seed] - baseline[seed] for seed in seeds]
    if not all(map(math.isfinite, differences)):
        raise InputError(f"scores must be finite; the differences are {differences}")
    n, mean = len(seeds), statistics.fmean(differences)
    if max(differences) - min(differences) < ROUNDING:
        return Difference(n, mean, None, None, "too few seeds" if n < SEEDS else "no variation")
    from scipy.stats import t  # a slow import, part of [train]

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    low, high = mean - half, mean + half
    if n < SEEDS:
        return Difference(n, mean, low, high, "too few seeds")
    if low <= 0 <= high:
        return Difference(n, mean, low, high, "inconclusive")
    return Difference(n, mean, low, high, "gain" if (mean > 0) == larger_is_better else "loss")
