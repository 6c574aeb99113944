"""Against formulas written out, with the t distribution's quantile from a printed table."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from drconv_mm.suite.statistics import paired_difference, summarize


def test_summary():
    summary = summarize([1.0, 2.0, 6.0])
    assert (summary.mean, summary.n) == (3.0, 3)
    assert summary.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_one_value_has_no_spread():
    summary = summarize(iter([5.0]))
    assert summary.mean == 5 and math.isnan(summary.std) and summary.n == 1


def test_no_value():
    with pytest.raises(ValueError, match="at least one number"):
        summarize([])


def test_interval_and_test_by_hand():
    base, other = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 2.5, 2: 4.5}
    found = paired_difference(base, other)
    # Differences 1, 0.5, 1.5: mean 1, standard deviation 0.5; t(0.975, 2) = 4.3027.
    half = 4.302653 * 0.5 / math.sqrt(3)
    assert found.mean == 1
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half), abs=1e-6)
    statistic = 1 / (0.5 / math.sqrt(3))
    assert found.p_value == pytest.approx(2 * stats.t.sf(statistic, 2))
    assert found.n == 3 and not found.supported and found.verdict == "not supported by 3 seeds"
    assert found.p_value > 0.05  # the interval and the test say the same


@pytest.mark.parametrize("sign", [1, -1])
def test_supported_difference(sign):
    base = {seed: 10.0 + seed for seed in range(4)}
    other = {seed: value + sign * (1 + 0.01 * seed) for seed, value in base.items()}
    found = paired_difference(base, other)
    assert found.supported and found.low * found.high > 0 and found.p_value < 0.05
    assert found.verdict == f"{'higher' if sign > 0 else 'lower'}, supported by 4 seeds"


def test_pairs_are_by_seed_and_others_are_left_out():
    found = paired_difference({0: 1.0, 1: 5.0, 7: 100.0}, {1: 6.0, 0: 3.0, 9: 0.0})
    assert found.n == 2 and found.mean == 1.5


def test_one_seed_is_never_enough():
    found = paired_difference({0: 1.0}, {0: 2.0})
    assert found.mean == 1 and math.isnan(found.low) and math.isnan(found.p_value) and not found.supported
    assert "not supported by 1 seed" in found.verdict


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_no_spread(shift):
    base = {0: 0.1, 1: 0.2, 2: 0.7}
    found = paired_difference(base, {seed: value + shift for seed, value in base.items()})
    assert found.mean == pytest.approx(shift) and not found.supported and "no spread" in found.verdict


def test_diverged_run():
    found = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: math.nan})
    assert not found.supported and "not finite" in found.verdict


def test_no_common_seed():
    with pytest.raises(ValueError, match=r"\[0\].*\[1\].*no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})
