"""Error rates of scores: the ROC curve by exact counting, TAR at a given FAR, area and equal error rate.

A comparison is accepted where its score is *at or above* the threshold. The false accept rate (FAR) is the accepted
share of the comparisons of different persons, the true accept rate (TAR) that of the same person. Nothing is
interpolated but the equal error rate, and comparisons of the same score are accepted together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def roc_curve(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of accepted comparisons at every threshold that makes a difference.

    Args:
        scores: ``[P]``, higher for more alike.
        same: bool ``[P]``, whether a comparison is of one person.

    Returns:
        Thresholds ``[T]`` (infinity, then the distinct scores from high to low), and how many comparisons of different
        persons and of the same person each accepts, int64 ``[T]`` both.
    """
    order = np.argsort(scores)[::-1]
    scores, same = scores[order], same[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # of each group of equal scores
    true_accepts = np.cumsum(same)[last]
    false_accepts = 1 + last - true_accepts
    return np.append(np.inf, scores[last]), np.append(0, false_accepts), np.append(0, true_accepts)


def tar_at_far(positive: np.ndarray, negative: np.ndarray, fars: Sequence[float]) -> np.ndarray:
    """The highest TAR of all thresholds whose FAR does not exceed the given one.

    Args:
        positive: Scores of the comparisons of the same person, ``[P]``.
        negative: Scores of those of different persons, ``[N]``.
        fars: False accept rates, ``[R]``.

    Returns:
        float64 ``[R]``; NaN where ``N < 1 / far``: not even one false accept is allowed there, so that the rate is not
        resolvable.
    """
    allowed = np.floor(np.asarray(fars) * len(negative) + 1e-9).astype(int)  # 0.1 * 30 may be just below 3
    # With k false accepts allowed the threshold lies above the negative number k + 1, and takes in none of its ties.
    barred = np.append(np.sort(negative)[::-1], -np.inf)[allowed]
    accepted = len(positive) - np.searchsorted(np.sort(positive), barred, side="right")
    return np.where(allowed > 0, accepted / len(positive), np.nan)


def area_under_curve(scores: np.ndarray, same: np.ndarray) -> float:
    """Area under the ROC curve, which runs straight across comparisons of equal score.

    It is the probability that a comparison of the same person scores above one of different persons, ties counted half.
    """
    _, false_accepts, true_accepts = roc_curve(scores, same)
    twice = np.diff(false_accepts) * (true_accepts[1:] + true_accepts[:-1])
    return float(twice.sum() / (2.0 * false_accepts[-1] * true_accepts[-1]))


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Where the false accept rate equals the false reject rate, interpolated between two points of the ROC curve."""
    _, false_accepts, true_accepts = roc_curve(scores, same)
    far, tar = false_accepts / false_accepts[-1], true_accepts / true_accepts[-1]
    return float(np.interp(0.0, far + tar - 1, far))  # FAR less FRR, which rises all along the curve
