"""Medians with their intervals, and differences between cells of one experiment.

The rules are those of `qemu-ring experiment compare`; here without scipy, which a report of one
experiment does not need, and without random numbers: what resampling with replacement would give
of a difference in the long run is computed.
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
    "Difference",
    "Estimate",
    "could_tell",
    "difference",
    "false_discovery",
    "median",
    "rank_test",
]

ALPHA: Final = 0.05
"""The share of false alarms among the differences that are called such."""

_TAIL: Final = 0.025  # left out at each end of an interval
_FEW: Final = 6  # repeats below which not even all of them cover the median with 95 %
_EXACT_RANKS: Final = 8  # the smaller sample's size up to which the rank test is exact
_EXACT_PAIRS: Final = 200  # values up to which both middle ones of a resample are followed
_MOST_ATOMS: Final = 200  # points that stand for a distribution where two are combined

_Weights = list[tuple[float, float]]  # value and probability, by value


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % confidence interval; of fewer than 6 repeats, their range.

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


def median(values: Sequence[float]) -> Estimate:
    """Estimate the median of one or more values.

    The interval is from the k-th least to the k-th most, which whatever the distribution covers
    the median as often as heads and tails allow; resampling covers too little of few values.
    """
    middle = statistics.median(values)
    if len(values) < 2:
        return Estimate(middle)
    if len(values) < _FEW:
        return Estimate(middle, min(values), max(values), is_range=True)
    ranked, left_out = sorted(values), _left_out(len(values))
    return Estimate(middle, ranked[left_out], ranked[-1 - left_out])


def difference(new: Sequence[float], old: Sequence[float]) -> Difference:
    """Compare two independent samples, neither empty."""
    before, after = statistics.median(old), statistics.median(new)
    absolute = Estimate(after - before)
    share = Estimate((after - before) / before) if before else None
    few = min(len(new), len(old))
    if 1 < few < _FEW:
        low, high = min(new) - max(old), max(new) - min(old)
        absolute = Estimate(after - before, low, high, is_range=True)
        if share and min(old) > 0:
            low, high = min(new) / max(old) - 1, max(new) / min(old) - 1
            share = Estimate(share.value, low, high, is_range=True)
    elif few > 1:
        here, there = _atoms(_resampled(tuple(old))), _atoms(_resampled(tuple(new)))
        pairs = [(a, b, p * q) for (a, p), (b, q) in itertools.product(here, there)]
        absolute = Estimate(after - before, *_interval((b - a, p) for a, b, p in pairs))
        if share and min(old) > 0:
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


def could_tell(of: Sequence[Difference], place: int) -> bool:
    """Tell if one of several differences could be told by so few values, however far apart."""
    rest = [one.p for other, one in enumerate(of) if other != place]
    return false_discovery([of[place].least_p, *rest])[0] <= ALPHA


@lru_cache(maxsize=1024)
def _left_out(n: int) -> int:
    """Values to leave out at each end, so that the others still cover the median with 95 %.

    It is as likely that so many or fewer are below it as so many heads among n coins.
    """
    left_out = 0
    while 1 - _at_least(n, 0.5, left_out + 2) <= _TAIL:
        left_out += 1
    return left_out


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
