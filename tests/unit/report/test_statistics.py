from __future__ import annotations

import random
import statistics as plain

import numpy as np
import pytest
from scipy import stats

from qemu_ring.experiment import Criteria
from qemu_ring.report import statistics
from qemu_ring.report.statistics import (
    could_tell,
    difference,
    false_discovery,
    median,
    rank_test,
)

RESAMPLES = 6_000


def samples(n: int, *, seed: int, ties: bool = False) -> list[float]:
    rng = random.Random(seed)
    values = [rng.lognormvariate(0, 0.4) for _ in range(n)]
    return [round(value, 1) for value in values] if ties else values


@pytest.mark.parametrize("n", [6, 7, 8, 9, 10, 11, 60, 61, 201])
@pytest.mark.parametrize("ties", [False, True])
def test_interval_of_the_median_is_scipys(n: int, ties: bool) -> None:
    values = samples(n, seed=n, ties=ties)
    estimate = median(values)
    assert estimate.value == plain.median(values)
    low, high = stats.quantile_test(values).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == (low, high)


def test_interval_stays_within_the_values() -> None:
    estimate = median([0.1, 0.11, 0.12, 0.13, 0.14, 0.9])
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0.1 <= estimate.low <= estimate.value <= estimate.high <= 0.9


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_values_have_their_range(n: int) -> None:
    values = samples(n, seed=n)
    estimate = median(values)
    assert (estimate.low, estimate.high, estimate.is_range) == (min(values), max(values), True)
    assert not median(samples(6, seed=1)).is_range
    gap = difference([3.0, *[4.0] * n], [1.0, *[2.0] * (n - 1)])
    assert (gap.absolute.low, gap.absolute.high) == (1.0, 3.0)
    assert gap.share is not None
    assert (gap.share.low, gap.share.high, gap.share.is_range) == (0.5, 3.0, True)


@pytest.mark.parametrize("n", [6, 7, 8, 9, 10, 15])
def test_intervals_cover_the_median(n: int) -> None:
    """With 95 % or more, of values of a lopsided distribution with median 1."""
    drawn = [median(samples(n, seed=1000 * n + one)) for one in range(2000)]
    covered = sum((one.low or 0) <= 1 <= (one.high or 0) for one in drawn) / len(drawn)
    assert 0.945 < covered < 0.997


def test_many_values_are_quick_and_narrow() -> None:
    estimate = median(samples(1500, seed=1))
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0.9 < estimate.low < estimate.value < estimate.high < 1.1


def test_one_value_has_no_interval() -> None:
    assert median([3.0]).low is None
    gap = difference([3.0], [1.0, 2.0])
    assert gap.absolute.low is None
    assert not could_tell([gap], 0)


@pytest.mark.parametrize("sizes", [(6, 6), (7, 9), (10, 10), (24, 30)])
def test_change_of_the_median(sizes: tuple[int, int]) -> None:
    old, new = samples(sizes[0], seed=3), [1.5 * v for v in samples(sizes[1], seed=4)]
    gap = difference(new, old)
    assert gap.share is not None
    assert gap.share.value == pytest.approx(plain.median(new) / plain.median(old) - 1)
    found = stats.bootstrap(
        (np.array(old), np.array(new)),
        lambda a, b, axis=-1: np.median(b, axis=axis) / np.median(a, axis=axis) - 1,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert gap.share.low is not None
    assert gap.share.high is not None
    width = found.high - found.low
    assert gap.share.low == pytest.approx(found.low, abs=0.1 * width)
    assert gap.share.high == pytest.approx(found.high, abs=0.1 * width)


def test_no_share_of_nothing() -> None:
    assert difference([1.0, 2.0], [0.0, 0.0]).share is None


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (4, 4), (3, 12), (8, 40), (9, 9), (15, 20)])
def test_rank_test_is_scipys(sizes: tuple[int, int], ties: bool) -> None:
    for seed in range(20):
        new = [v + 0.05 * seed for v in samples(sizes[0], seed=seed, ties=ties)]
        old = samples(sizes[1], seed=100 + seed, ties=ties)
        expected = stats.mannwhitneyu(new, old, alternative="two-sided").pvalue
        assert rank_test(new, old) == pytest.approx(expected, rel=1e-9), (new, old)


def test_equal_values_do_not_differ() -> None:
    assert rank_test([2.0] * 10, [2.0] * 10) == 1


def test_least_p_is_reached() -> None:
    gap = difference([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0])
    assert gap.p == gap.least_p == pytest.approx(2 / 70)
    assert could_tell([gap], 0)
    assert not could_tell([difference([5.0, 6.0, 7.0], [1.0, 2.0, 3.0])], 0)


def test_too_few_is_decided_on_the_corrected_level() -> None:
    far, near = [5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0]
    same = difference([1.5, 2.5, 3.5, 0.5], near)
    assert not could_tell([difference(far, near), same], 0)
    assert could_tell([difference(far, near), difference(far, near)], 0)


def test_false_discovery_is_scipys() -> None:
    rng = random.Random(5)
    for n in (0, 1, 2, 17):
        p = [rng.random() ** 3 for _ in range(n)]
        expected = stats.false_discovery_control(p) if p else []
        assert false_discovery(p) == pytest.approx(list(expected))


def test_same_rules_as_compare() -> None:
    assert Criteria().alpha == statistics.ALPHA
