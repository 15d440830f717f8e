"""Paired differences equal scipy's paired t-test, and the verdict follows from the interval."""

import math

import pytest
from scipy import stats

from hyperzoo.analysis.comparison import paired
from hyperzoo.errors import InputError

BASE = {0: 90.1, 1: 90.5, 2: 89.9, 3: 90.2}


@pytest.mark.parametrize(
    "gains, verdict",
    [((0.5, 0.7, 0.6, 0.4), "gain"), ((-0.5, -0.7, -0.6, -0.4), "loss"), ((0.5, -0.7, 0.6, 0.1), "inconclusive")],
)
def test_the_interval_is_that_of_the_paired_t_test(gains, verdict):
    method = {seed: BASE[seed] + gain for seed, gain in enumerate(gains)}
    found = paired(method, BASE)
    expected = stats.ttest_rel([method[s] for s in BASE], list(BASE.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.mean == pytest.approx(sum(gains) / 4)
    assert (found.n, found.verdict) == (4, verdict)


def test_lower_perplexity_is_a_gain():
    assert paired({0: 80.0, 1: 81.0, 2: 80.4}, {0: 90.0, 1: 91.2, 2: 90.1}, larger_is_better=False).verdict == "gain"


def test_only_common_seeds_are_paired():
    found = paired({1: 91.0, 2: 91.0, 7: 0.0}, {**BASE, 9: 99.0})
    assert found.n == 2
    assert found.mean == pytest.approx((91.0 - 90.5 + 91.0 - 89.9) / 2)


def test_a_single_pair_has_no_interval_and_no_verdict():
    found = paired({0: 95.0}, BASE)
    assert (found.low, found.high, found.verdict) == (None, None, "too few seeds")
    assert str(found) == "+4.90 (n = 1)"


def test_two_pairs_have_an_interval_and_no_verdict():
    found = paired({0: 95.0, 1: 95.5}, BASE)  # 4.9 and 5.0
    assert found.low > 0 and found.verdict == "too few seeds"


def test_equal_differences_have_no_interval_and_no_verdict():
    for gain in (0.0, 0.1):  # nothing of a rare class is ever recognized; or a coincidence
        found = paired({seed: score + gain for seed, score in BASE.items()}, BASE)
        assert (found.low, found.high, found.verdict) == (None, None, "no variation")
        assert found.mean == pytest.approx(gain)


@pytest.mark.parametrize("method, fault", [({5: 1.0}, "no seed in common"), ({0: math.nan}, "must be finite")])
def test_what_cannot_be_compared_is_refused(method, fault):
    with pytest.raises(InputError, match=fault):
        paired(method, BASE)
