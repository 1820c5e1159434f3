"""Zipf's law as a table that a guest without floating point can draw from."""

from __future__ import annotations

from itertools import accumulate
from math import gcd, log

__all__ = ["bucket_table", "scatter_multiplier"]

_EXACT_RANKS = 1 << 16
"""Ranks weighed one by one; the rest, which are near alike, by the integral of the law."""


def bucket_table(pages: int, skew: float, buckets: int) -> list[int]:
    """Boundaries of equally likely ranges of ranks.

    A draw picks one of the `buckets` ranges evenly, then a rank within it evenly;
    rank r is then drawn about in proportion to (r + 1) ** -skew.

    Args:
        pages: number of ranks.
        skew: exponent of the law, greater than 0.
        buckets: number of ranges.

    Returns:
        buckets + 1 boundaries that never fall, the first 0 and the last `pages`.
    """
    exact = min(pages, _EXACT_RANKS)
    cumulative = list(accumulate((rank + 1) ** -skew for rank in range(exact)))
    total = cumulative[-1] + _tail(exact, pages, skew)
    boundaries = [0]
    rank = 0
    for bucket in range(1, buckets):
        target = total * bucket / buckets
        while rank < exact and cumulative[rank] < target:
            rank += 1
        if rank < exact:
            boundaries.append(rank)
        else:
            low, high = boundaries[-1], pages
            while low < high:  # the first rank whose tail reaches the target
                middle = (low + high) // 2
                if cumulative[-1] + _tail(exact, middle, skew) < target:
                    low = middle + 1
                else:
                    high = middle
            boundaries.append(low)
    boundaries.append(pages)
    return boundaries


def scatter_multiplier(pages: int) -> int:
    """A multiplier that permutes 0 to pages - 1, so that hot ranks do not lie side by side."""
    multiplier = int(pages * 0.6180339887) | 1
    while gcd(multiplier, pages) != 1:
        multiplier += 2
    return multiplier


def _tail(first: int, last: int, skew: float) -> float:
    """The weight of ranks first to last - 1, by the integral (midpoints)."""
    if last <= first:
        return 0.0
    low, high = first + 0.5, last + 0.5
    if abs(skew - 1.0) < 1e-9:
        return log(high / low)
    power = 1.0 - skew
    return float((high**power - low**power) / power)
