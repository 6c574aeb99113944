"""Error rates of scores against hand-computed cases, scikit-learn and explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics

from drconv_mm.evaluation.roc import area_under_curve, equal_error_rate, roc_curve, tar_at_far


def scores_with_ties(seed: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(size) < 0.4
    return np.round(rng.normal(same * 1.0), 1), same


def test_roc_curve_by_hand():
    scores, same = np.array([0.9, 0.7, 0.7, 0.5, 0.3]), np.array([True, True, False, False, True])
    thresholds, false_accepts, true_accepts = roc_curve(scores, same)
    assert thresholds.tolist() == [np.inf, 0.9, 0.7, 0.5, 0.3]
    assert false_accepts.tolist() == [0, 0, 1, 2, 2]  # the tie at 0.7 is accepted as a whole
    assert true_accepts.tolist() == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_roc_curve_is_scikit_learns(seed):
    scores, same = scores_with_ties(seed)
    far, tar, thresholds = metrics.roc_curve(same, scores, drop_intermediate=False)
    ours = roc_curve(scores, same)
    np.testing.assert_array_equal(ours[0], thresholds)
    np.testing.assert_allclose(ours[1] / (~same).sum(), far)
    np.testing.assert_allclose(ours[2] / same.sum(), tar)


def test_tar_at_far_by_hand():
    negative = np.array([0.1, 0.8, 0.3, 0.4, 0.2, 0.6, 0.0, 0.5, 0.7, 0.15])  # ten of them
    positive = np.array([0.9, 0.75, 0.65, 0.3])
    # One false accept (0.8): accepted are the scores above 0.7. Two: those above 0.6. All ten: everything.
    assert tar_at_far(positive, negative, [0.1, 0.2, 1.0]).tolist() == [0.5, 0.75, 1.0]
    # 0.19 of ten allows one, not two; 0.09 allows none, which ten negatives cannot tell from 0.0001.
    np.testing.assert_array_equal(tar_at_far(positive, negative, [0.19, 0.09, 1e-4]), [0.5, np.nan, np.nan])


def test_tar_at_far_takes_no_part_of_a_tie():
    negative = np.array([0.8, 0.6, 0.6, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    # Two false accepts are allowed, but at 0.6 there would be four: a positive at 0.6 is rejected, too.
    assert tar_at_far(np.array([0.7, 0.6]), negative, [0.2]).tolist() == [0.5]
    assert tar_at_far(np.array([0.7, 0.6]), negative, [0.4]).tolist() == [1.0]


def test_tar_at_far_counts_what_a_float_falls_short_of():
    assert 0.29 * 100 < 29
    negative = np.arange(100.0)
    assert tar_at_far(np.array([70.5]), negative, [0.29]).tolist() == [1.0]  # 71 to 99 are 29 false accepts
    assert tar_at_far(np.array([70.0]), negative, [0.29]).tolist() == [0.0]


@pytest.mark.parametrize("seed", range(5))
def test_tar_at_far_is_scikit_learns_best(seed):
    scores, same = scores_with_ties(seed)
    far, tar, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
    rates = [0.5, 0.1, 0.05, 0.01]
    expected = [tar[far <= rate + 1e-12].max() for rate in rates]
    np.testing.assert_allclose(tar_at_far(scores[same], scores[~same], rates), expected)


def test_area_under_curve_by_hand():
    # Of the six comparisons of a positive with a negative: 0.9 wins two, 0.7 one and a half, 0.3 none.
    scores, same = np.array([0.9, 0.7, 0.7, 0.5, 0.3]), np.array([True, True, False, False, True])
    assert area_under_curve(scores, same) == pytest.approx(3.5 / 6)


@pytest.mark.parametrize("seed", range(5))
def test_area_under_curve_is_scikit_learns(seed):
    scores, same = scores_with_ties(seed)
    assert area_under_curve(scores, same) == pytest.approx(metrics.roc_auc_score(same, scores), abs=1e-12)


def test_equal_error_rate_by_hand():
    # At 0.6 one of four negatives is accepted, and one of four positives rejected.
    scores = np.array([0.9, 0.8, 0.6, 0.2, 0.7, 0.4, 0.3, 0.1])
    same = np.array([True] * 4 + [False] * 4)
    assert equal_error_rate(scores, same) == pytest.approx(0.25)
    # From (FAR 0, FRR 1/2) straight to (1, 0): they meet at a third.
    assert equal_error_rate(np.array([0.9, 0.5, 0.5]), np.array([True, True, False])) == pytest.approx(1 / 3)
    assert equal_error_rate(np.array([0.9, 0.1]), np.array([True, False])) == 0
    assert equal_error_rate(np.array([0.1, 0.9]), np.array([True, False])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_equal_error_rate_from_scikit_learns_curve(seed):
    scores, same = scores_with_ties(seed, size=4000)
    far, tar, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
    expected = brentq(lambda rate: 1 - rate - interp1d(far, tar)(rate), 0, 1)
    assert equal_error_rate(scores, same) == pytest.approx(expected, abs=1e-9)
