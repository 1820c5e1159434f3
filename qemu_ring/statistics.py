"""Medians, differences and how sure they are: one set of rules for comparisons and reports.

Each function names the source that it follows. All take milliseconds for samples of up to
thousands: what is exact for few values and grows without bound has a limit, above which an
approximation stands in.

scipy does the work; it comes with the extras `experiment` and `report`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from qemu_ring.errors import UsageError

__all__ = [
    "ALPHA",
    "CONFIDENCE",
    "Estimate",
    "false_discovery",
    "fewer_completed",
    "least_p",
    "median",
    "median_change",
    "median_difference",
    "rank_test",
    "rule_of_three",
]

ALPHA: Final = 0.05
"""The share of false alarms among the differences that are called such."""
CONFIDENCE: Final = 0.95
"""Of intervals."""

_RESAMPLES: Final = 4999
_RESAMPLED_VALUES: Final = 1_000_000  # drawn at a time, for the memory that they take
_SEED: Final = 1  # so that the same results give the same intervals
_MOST_ORDERS: Final = 1000  # up to which a rank test among ties looks at all of them


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its confidence interval; of too few repeats for one, their range.

    Args:
        value: the median, or the difference of two.
        low: the interval's lower end; None for one value.
        high: its upper end.
        is_range: whether it is from the least to the most that the repeats can be, and so less
            sure than an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    is_range: bool = False


def median(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the median of one or more values.

    The interval is from the k-th least to the k-th most value. Whatever the distribution, it
    covers the median as often as k to n - k of n coins show heads: W. J. Conover, Practical
    Nonparametric Statistics, 3rd ed. 1999, section 3.2; NIST/SEMATECH e-Handbook of Statistical
    Methods, 7.2.4. Resampling covers too little of few values.
    """
    middle = statistics.median(values)
    n = len(values)
    if n < 2:
        return Estimate(middle)
    if _is_few(n, confidence):
        return Estimate(middle, min(values), max(values), is_range=True)
    left_out = int(_stats().binom.ppf((1 - confidence) / 2, n, 0.5)) - 1
    if 2 * float(_stats().binom.cdf(left_out + 1, n, 0.5)) <= 1 - confidence:
        left_out += 1
    ranked = sorted(values)
    return Estimate(middle, ranked[left_out], ranked[-1 - left_out])


def median_difference(
    new: Sequence[float], old: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate:
    """Estimate by how much the median of the new values is above that of the old ones.

    By the bootstrap's percentile interval: B. Efron and R. J. Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13. With a fixed seed, so that the same values give the same interval.
    """
    value = statistics.median(new) - statistics.median(old)
    few = min(len(new), len(old))
    if few < 2:
        return Estimate(value)
    if _is_few(few, confidence):
        return Estimate(value, min(new) - max(old), max(new) - min(old), is_range=True)
    return Estimate(value, *_bootstrap(new, old, confidence, relative=False))


def median_change(
    new: Sequence[float], old: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """The same as a share of the old median: 0.1 is 10 % more; None where that is 0.

    There is no interval where an old value is 0 or less.
    """
    before = statistics.median(old)
    if not before:
        return None
    value = (statistics.median(new) - before) / before
    few = min(len(new), len(old))
    if few < 2 or min(old) <= 0:
        return Estimate(value)
    if _is_few(few, confidence):
        low, high = min(new) / max(old) - 1, max(new) / min(old) - 1
        return Estimate(value, low, high, is_range=True)
    return Estimate(value, *_bootstrap(new, old, confidence, relative=True))


def rank_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Give the two-sided p of Mann and Whitney's test of whether one sample tends to be larger.

    H. B. Mann and D. R. Whitney, On a Test of Whether one of Two Random Variables is
    Stochastically Larger than the Other, Annals of Mathematical Statistics 18, 1947. Exact for
    few values: without ties by the distribution of U, with ties by all orders, as long as there
    are no more than a thousand. Otherwise by the normal approximation, corrected for ties and
    for continuity.
    """
    if len({*a, *b}) == 1:
        return 1.0
    stats = _stats()
    orders = math.comb(len(a) + len(b), len(a))
    method: Any = "auto"
    if len({*a, *b}) < len(a) + len(b) and orders <= _MOST_ORDERS:
        method = stats.PermutationMethod(n_resamples=_MOST_ORDERS)
    return float(stats.mannwhitneyu(a, b, alternative="two-sided", method=method).pvalue)


def least_p(n: int, m: int) -> float:
    """Give the least p of `rank_test` that so many values can have: all of one below the other."""
    return 2 / math.comb(n + m, n)


def fewer_completed(runs: tuple[int, int], completed: tuple[int, int]) -> float:
    """Give the one-sided p of whether a smaller share completes in the second.

    R. A. Fisher's exact test: The Logic of Inductive Inference, Journal of the Royal Statistical
    Society 98, 1935.

    Args:
        runs: in the first and in the second.
        completed: of them.
    """
    table = [[done, every - done] for done, every in zip(completed, runs, strict=True)]
    return min(float(_stats().fisher_exact(table, alternative="greater").pvalue), 1.0)


def rule_of_three(n: int) -> float:
    """Give the share that is not exceeded, at 95 %, of what did not happen once in n tries.

    If they do not depend on each other. J. A. Hanley and A. Lippman-Hand, If Nothing Goes Wrong, Is
    Everything All Right?, Journal of the American Medical Association 249 (1983), 1743.
    """
    return 3 / n


def false_discovery(p: Sequence[float]) -> list[float]:
    """Correct p for how many were tested at once.

    Y. Benjamini and Y. Hochberg, Controlling the False Discovery Rate, Journal of the Royal
    Statistical Society B 57, 1995.
    """
    return [float(one) for one in _stats().false_discovery_control(p)] if p else []


def _is_few(n: int, confidence: float) -> bool:
    """Whether not even from the least to the most of so many values is an interval that sure.

    All of them lie on one side of the median with 2 ** (1 - n).
    """
    return 1 - 2.0 ** (1 - n) < confidence


def _bootstrap(
    new: Sequence[float], old: Sequence[float], confidence: float, *, relative: bool
) -> tuple[float, float]:
    import numpy as np

    def change(before: Any, after: Any, axis: int = -1) -> Any:
        first = np.median(before, axis=axis)
        more = np.median(after, axis=axis) - first
        return more / first if relative else more

    found = (
        _stats()
        .bootstrap(
            (np.array(old), np.array(new)),
            change,
            n_resamples=_RESAMPLES,
            batch=max(1, _RESAMPLED_VALUES // (len(new) + len(old))),
            confidence_level=confidence,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(_SEED),
        )
        .confidence_interval
    )
    return float(found.low), float(found.high)


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise UsageError(
            "scipy is not installed", hint="pip install 'qemu-ring[experiment]'"
        ) from error
    return stats
