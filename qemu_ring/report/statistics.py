"""Medians with their intervals, and differences of medians with a rank test.

The rules are those of `qemu-ring experiment compare`, so that both say the same of the same runs;
here without scipy, which a report does not need, and without random numbers: what resampling
with replacement would give in the long run is computed.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

__all__ = [
    "ALPHA",
    "THRESHOLD",
    "Difference",
    "Estimate",
    "difference",
    "false_discovery",
    "median",
    "rank_test",
]

ALPHA: Final = 0.05
"""The share of false alarms among the differences that are called such."""
THRESHOLD: Final = 0.05
"""The relative change of a median that matters."""

_TAIL: Final = 0.025  # left out at each end of an interval
_EXACT_RANKS: Final = 8  # the smaller sample's size up to which the rank test is exact
_EXACT_PAIRS: Final = 200  # values up to which both middle ones of a resample are followed
_MOST_ATOMS: Final = 200  # points that stand for a distribution where two are combined

_Weights = list[tuple[float, float]]  # value and probability, by value


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % confidence interval.

    Args:
        value: the median, or the difference of two.
        low: the interval's lower end; None where too few values allow none.
        high: its upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more the new values are than the old ones.

    Args:
        absolute: of the medians.
        share: the same as a share of the old median: 0.1 is 10 % more; None where that is 0.
        p: of the Mann-Whitney rank test, two-sided.
        least_p: the least that so few values can give.
    """

    absolute: Estimate
    share: Estimate | None
    p: float
    least_p: float

    @property
    def can_be_told(self) -> bool:
        """Tell if there are enough values for any difference to be shown."""
        return self.least_p <= ALPHA


def median(values: Sequence[float]) -> Estimate:
    """Estimate the median of one or more values; the interval is the bootstrap's."""
    middle = statistics.median(values)
    if len(values) < 2:
        return Estimate(middle)
    return Estimate(middle, *_interval(_resampled(tuple(values))))


def difference(new: Sequence[float], old: Sequence[float]) -> Difference:
    """Compare two independent samples, neither empty."""
    before, after = statistics.median(old), statistics.median(new)
    absolute = Estimate(after - before)
    share = Estimate((after - before) / before) if before else None
    if min(len(new), len(old)) > 1:
        here, there = _atoms(_resampled(tuple(old))), _atoms(_resampled(tuple(new)))
        pairs = [(a, b, p * q) for (a, p), (b, q) in itertools.product(here, there)]
        absolute = Estimate(after - before, *_interval((b - a, p) for a, b, p in pairs))
        if share and all(a for a, _ in here):
            share = Estimate(share.value, *_interval(((b - a) / a, p) for a, b, p in pairs))
    least = 2 / math.comb(len(new) + len(old), len(new))
    return Difference(absolute, share, rank_test(new, old), least)


def rank_test(new: Sequence[float], old: Sequence[float]) -> float:
    """Give the two-sided p of Mann and Whitney's test, exact for few values without ties."""
    n, m = len(new), len(old)
    pairs = itertools.product(new, old)
    u = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    u = max(u, n * m - u)
    ties = [count for count in Counter([*new, *old]).values() if count > 1]
    if not ties and min(n, m) <= _EXACT_RANKS:
        ways = _rank_sums(n, m)
        return min(2 * sum(ways[math.ceil(u) :]) / sum(ways), 1.0)
    total = n + m
    spread = total + 1 - sum(t**3 - t for t in ties) / (total * (total - 1))
    if spread <= 0:
        return 1.0  # all values are equal
    z = (u - n * m / 2 - 0.5) / math.sqrt(n * m / 12 * spread)
    return min(math.erfc(z / math.sqrt(2)), 1.0)


def false_discovery(p: Sequence[float]) -> list[float]:
    """Correct p for how many were tested at once (Benjamini and Hochberg)."""
    corrected = [0.0] * len(p)
    least = 1.0
    ranked = sorted(range(len(p)), key=lambda place: p[place])
    for rank, place in reversed(list(enumerate(ranked, 1))):
        least = min(least, p[place] * len(p) / rank)
        corrected[place] = least
    return corrected


@lru_cache(maxsize=4096)
def _resampled(values: tuple[float, ...]) -> _Weights:
    """Tell how likely each median is of as many values drawn with replacement."""
    ranked, n = sorted(values), len(values)
    half = n // 2
    if n % 2 or n > _EXACT_PAIRS:
        upto = [_at_least(n, place / n, n - half) for place in range(n + 1)]
        steps = zip(ranked, itertools.pairwise(upto), strict=True)
        return _merged((value, after - before) for value, (before, after) in steps)
    # The lower half's largest is value i and the upper half's smallest is j, in any order.
    ways = math.comb(n, half)
    tops = [((i + 1) / n) ** half - (i / n) ** half for i in range(n)]
    weights: _Weights = []
    for i in range(n):
        apart = [(j, ways * tops[i] * tops[n - 1 - j]) for j in range(i + 1, n)]
        lower = _at_least(n, (i + 1) / n, half) - _at_least(n, i / n, half)
        weights += [((ranked[i] + ranked[j]) / 2, p) for j, p in apart]
        weights.append((ranked[i], max(lower - sum(p for _, p in apart), 0.0)))
    return _merged(weights)


def _at_least(n: int, p: float, least: int) -> float:
    """Give the probability that `least` or more of n succeed, each with p."""
    if p in (0.0, 1.0):
        return p
    if n > _EXACT_PAIRS:  # the normal curve is as good, and quick
        return math.erfc((least - 0.5 - n * p) / math.sqrt(2 * n * p * (1 - p))) / 2
    log_p, log_q = math.log(p), math.log1p(-p)

    def exactly(k: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(ways + k * log_p + (n - k) * log_q)

    return min(math.fsum(exactly(k) for k in range(least, n + 1)), 1.0)


def _merged(weights: Iterable[tuple[float, float]]) -> _Weights:
    found: dict[float, float] = defaultdict(float)
    for value, p in weights:
        found[value] += p
    return sorted(found.items())


def _interval(weights: Iterable[tuple[float, float]]) -> tuple[float, float]:
    ranked = sorted(weights)
    upto = list(itertools.accumulate(p for _, p in ranked))
    ends = (bisect.bisect_left(upto, share * upto[-1]) for share in (_TAIL, 1 - _TAIL))
    low, high = (ranked[min(place, len(ranked) - 1)][0] for place in ends)
    return low, high


def _atoms(weights: _Weights) -> _Weights:
    """Let few equally likely values stand for many."""
    if len(weights) <= _MOST_ATOMS:
        return weights
    upto = list(itertools.accumulate(p for _, p in weights))
    shares = [(n + 0.5) / _MOST_ATOMS * upto[-1] for n in range(_MOST_ATOMS)]
    return [(weights[bisect.bisect_left(upto, one)][0], 1 / _MOST_ATOMS) for one in shares]


@lru_cache(maxsize=64)
def _rank_sums(n: int, m: int) -> list[int]:
    """Count the orders of n and m values by how many pairs the first are ahead in."""
    ways = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for place in range(n * m, m + i - 1, -1):
            ways[place] -= ways[place - m - i]
        for place in range(i, n * m + 1):
            ways[place] += ways[place - i]
    return ways
