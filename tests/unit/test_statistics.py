"""Statistics against published examples, and against what comes out when they are used often."""

from __future__ import annotations

import itertools
import math
import random
import statistics as plain
import time

import numpy as np
import pytest
from scipy import stats

from qemu_ring.statistics import (
    ALPHA,
    false_discovery,
    fewer_completed,
    least_p,
    median,
    median_change,
    median_difference,
    rank_test,
    rule_of_three,
)

# M. Hollander and D. A. Wolfe, Nonparametric Statistical Methods, 1973, p. 69: permeability of
# the chorioamnion at term, and at 12 to 26 weeks of gestation (in R: ?wilcox.test).
AT_TERM = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
EARLIER = [1.15, 0.88, 0.90, 0.74, 1.21]
# Benjamini and Hochberg, 1995, section 3.2: p of 15 comparisons in a trial of thrombolysis; the
# four least are significant at 0.05.
THROMBOLYSIS = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
    0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000,
]  # fmt: skip


def samples(n: int, *, seed: int, ties: bool = False) -> list[float]:
    rng = random.Random(seed)
    values = [rng.lognormvariate(0, 0.4) for _ in range(n)]
    return [round(value, 1) for value in values] if ties else values


def test_rank_test_of_hollander_and_wolfe() -> None:
    assert rank_test(AT_TERM, EARLIER) == pytest.approx(2 * 0.1272, abs=2e-4)


def test_rank_test_with_ties_is_by_all_orders() -> None:
    """Of 10 orders, whatever scipy does: counted here."""
    a, b = [1.0, 2.0, 2.0], [2.0, 3.0]
    assert rank_test(a, b) == pytest.approx(_by_all_orders(a, b))
    assert rank_test([1.0, 1.0, 1.0, 2.0], [2.0, 2.0, 3.0, 3.0]) == pytest.approx(
        _by_all_orders([1.0, 1.0, 1.0, 2.0], [2.0, 2.0, 3.0, 3.0])
    )


def _by_all_orders(a: list[float], b: list[float]) -> float:
    def u(places: tuple[int, ...]) -> float:
        first = [values[place] for place in places]
        rest = [value for place, value in enumerate(values) if place not in places]
        return sum((x > y) + (x == y) / 2 for x in first for y in rest)

    values = [*a, *b]
    found = [u(places) for places in itertools.combinations(range(len(values)), len(a))]
    mine = u(tuple(range(len(a))))
    less = sum(one <= mine for one in found) / len(found)
    more = sum(one >= mine for one in found) / len(found)
    return min(1.0, 2 * min(less, more))


def test_tasting_of_tea() -> None:
    """R. A. Fisher, The Design of Experiments, 1935, chapter 2: three of four cups are right."""
    assert fewer_completed((4, 4), (3, 1)) == pytest.approx(17 / 70)
    assert fewer_completed((4, 4), (4, 0)) == pytest.approx(1 / 70)
    assert fewer_completed((10, 10), (10, 10)) == 1.0


def test_false_discovery_of_benjamini_and_hochberg() -> None:
    assert [q <= 0.05 for q in false_discovery(THROMBOLYSIS)] == [True] * 4 + [False] * 11
    assert false_discovery([]) == []
    assert false_discovery([0.03]) == [0.03]


@pytest.mark.parametrize(
    ("n", "order"), [(6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (20, 6), (25, 8), (50, 18)]
)
def test_median_interval_by_the_tables(n: int, order: int) -> None:
    """Orders of the sign test's 95 % interval, as tables have them (Hollander and Wolfe, A.2)."""
    values = [float(value) for value in range(1, n + 1)]
    estimate = median(values)
    assert (estimate.low, estimate.high) == (order, n + 1 - order)
    assert estimate.value == plain.median(values)


@pytest.mark.parametrize("n", [6, 7, 8, 9, 10, 11, 60, 61, 201])
@pytest.mark.parametrize("ties", [False, True])
def test_median_interval_is_scipys(n: int, ties: bool) -> None:
    values = samples(n, seed=n, ties=ties)
    estimate = median(values)
    low, high = stats.quantile_test(values).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == (low, high)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_values_have_their_range(n: int) -> None:
    values = samples(n, seed=n)
    estimate = median(values)
    assert (estimate.low, estimate.high, estimate.is_range) == (min(values), max(values), True)
    assert not median(samples(6, seed=1)).is_range
    new, old = [3.0, *[4.0] * n], [1.0, *[2.0] * (n - 1)]
    gap, share = median_difference(new, old), median_change(new, old)
    assert (gap.low, gap.high, gap.is_range) == (1.0, 3.0, True)
    assert share is not None
    assert (share.low, share.high, share.is_range) == (0.5, 3.0, True)


def test_what_has_no_interval() -> None:
    assert median([3.0]).low is None
    assert median_difference([3.0], [1.0, 2.0]).low is None
    assert median_change([1.0, 2.0], [0.0, 0.0]) is None
    share = median_change([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert share is not None
    assert (share.value, share.low) == (1.0, None)
    assert rank_test([2.0] * 10, [2.0] * 10) == 1


@pytest.mark.parametrize("n", [10, 100, 100_000])
def test_rule_of_three_is_the_exact_bound_or_a_little_more(n: int) -> None:
    exact = 1 - 0.05 ** (1 / n)
    assert exact <= rule_of_three(n) <= 1.17 * exact


def test_least_p_is_reached() -> None:
    assert rank_test([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(2 / 70)
    assert least_p(4, 4) == pytest.approx(2 / 70)


@pytest.mark.parametrize("n", [6, 8, 10, 15])
def test_intervals_cover_the_median(n: int) -> None:
    """With 95 % or more, of values of a lopsided distribution with median 1."""
    drawn = [median(samples(n, seed=1000 * n + one)) for one in range(1500)]
    covered = sum((one.low or 0) <= 1 <= (one.high or 0) for one in drawn) / len(drawn)
    assert 0.945 < covered < 0.997


@pytest.mark.parametrize("n", [6, 10, 20])
def test_intervals_cover_the_change(n: int) -> None:
    """Of medians that are 1 and 1.5; the bootstrap of so few covers 93 % and more."""
    covered = 0
    for one in range(200):
        old = samples(n, seed=5000 + one)
        new = [1.5 * value for value in samples(n, seed=9000 + one)]
        share = median_change(new, old)
        assert share is not None
        assert share.low is not None
        assert share.high is not None
        covered += share.low <= 0.5 <= share.high
    assert 0.90 < covered / 200 <= 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(4, 4), (5, 7), (10, 10), (20, 30)])
def test_false_alarms_of_the_rank_test(sizes: tuple[int, int], ties: bool) -> None:
    """No more than 5 % where nothing differs, with what chance does to 600 tries."""
    alarms = sum(
        rank_test(
            samples(sizes[0], seed=2 * one, ties=ties),
            samples(sizes[1], seed=2 * one + 1, ties=ties),
        )
        <= ALPHA
        for one in range(600)
    )
    assert alarms <= stats.binom.ppf(0.9999, 600, ALPHA)


def test_false_alarms_among_many() -> None:
    """Where none of 20 cells differs, 5 % of comparisons find any at all."""
    rng = np.random.default_rng(1)
    alarms = sum(min(false_discovery(list(rng.random(20)))) <= ALPHA for _ in range(1000))
    assert alarms <= stats.binom.ppf(0.9999, 1000, ALPHA)


def test_same_values_give_the_same_interval() -> None:
    old, new = samples(12, seed=1), samples(12, seed=2)
    assert median_change(new, old) == median_change(new, old)
    assert rank_test(old, new) == rank_test(new, old)


def test_many_values_take_no_longer_than_they_may() -> None:
    """And no more memory: resamples of thousands are drawn by parts."""
    old, new = samples(3000, seed=1, ties=True), samples(3000, seed=2)
    began = time.process_time()
    estimate, share = median(old), median_change(new, old)
    rank_test(new, old)
    assert time.process_time() - began < 20
    assert estimate.low is not None
    assert 0.9 < estimate.low <= estimate.value
    assert share is not None
    assert share.low is not None
    assert -0.2 < share.low < share.value
    assert math.isfinite(share.value)
