"""What several seeds say: means, and differences that the data supports or does not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Of one conv type's values.

    Attributes:
        mean: Their mean.
        std: Their sample standard deviation (n - 1); nan for one value.
        n: How many.
    """

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class Paired:
    """The difference of two conv types, other minus base, over the seeds that both have.

    Attributes:
        mean: Mean difference.
        low: Lower end of the 95 % confidence interval of the mean; nan for one seed.
        high: Its upper end.
        p_value: Of the two-sided paired t test; nan for one seed.
        n: Seeds in common.
        supported: Whether the interval leaves zero out; never where all seeds differ by the same, as values that count
            few images may by chance.
        verdict: The same in words.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int
    supported: bool
    verdict: str


def summarize(values: Iterable[float]) -> Summary:
    """Mean and sample standard deviation.

    Raises:
        ValueError: There is no value.
    """
    values = np.fromiter(values, float)
    if not len(values):
        raise ValueError("values must hold at least one number, got none")
    return Summary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan, len(values))


def paired_difference(base: Mapping[Any, float], other: Mapping[Any, float]) -> Paired:
    """Compares two conv types seed by seed, which takes out what a seed does to both.

    The interval is Student's, ``mean ± t(0.975, n - 1) * std / sqrt(n)``: it takes the differences as normal, which
    few seeds cannot test.

    Args:
        base: Value by seed, or by whatever pairs them and can be sorted.
        other: Value by the same.

    Raises:
        ValueError: No seed is in both.
    """
    seeds = sorted(base.keys() & other.keys())
    if not seeds:
        raise ValueError(f"base (seeds {sorted(base)}) and other (seeds {sorted(other)}) have no seed in common")
    differences = np.array([other[seed] - base[seed] for seed in seeds], float)
    n, mean = len(seeds), float(differences.mean())
    if not np.isfinite(differences).all():
        return Paired(mean, math.nan, math.nan, math.nan, n, False, "not supported: a value is not finite")
    if n < 2:
        return Paired(mean, math.nan, math.nan, math.nan, n, False, "not supported by 1 seed: no spread to judge by")
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    # Differences that are equal but for rounding: a t test of them would divide by zero.
    if error <= 1e-12 * max(abs(float(v)) for v in (*base.values(), *other.values(), 1e-300)):
        verdict = f"not supported by {n} seeds: all differ by the same, no spread to judge by"
        return Paired(mean, mean, mean, math.nan, n, False, verdict)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p_value = float(stats.ttest_rel([other[seed] for seed in seeds], [base[seed] for seed in seeds]).pvalue)
    supported = abs(mean) > half
    if supported:
        verdict = f"{'higher' if mean > 0 else 'lower'}, supported by {n} seeds"
    else:
        verdict = f"not supported by {n} seeds"
    return Paired(mean, mean - half, mean + half, p_value, n, supported, verdict)
