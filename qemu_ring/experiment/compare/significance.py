"""Whether values of A and B differ: rank and exact tests, corrected for how many are made.

Each metric is a family of tests of its own: false discoveries are held to alpha among its cells.
Only tests that can come to alpha at all are in a family. Whether one can depends on how many runs
there are and which values occur in A and B together, not on which of them are whose; so leaving
the others out favours nothing, and those that cannot show anything cost the rest no power.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Literal

from qemu_ring import statistics
from qemu_ring.experiment.compare.verdicts import (
    CompletedRuns,
    Criteria,
    MetricDifference,
    Verdict,
)

__all__ = ["Tested", "completion", "difference", "judge_completions", "judge_differences"]

_MOST_RUNS = 1000


@dataclass(frozen=True, slots=True)
class Tested:
    """A test before it is judged.

    Args:
        p: what it gave.
        least_p: the least that it could have given with these values, however they had fallen.
        clearest_p: the least that so many runs could have given, whatever their values.
    """

    p: float
    least_p: float
    clearest_p: float


def difference(
    metric: str, a: Sequence[float], b: Sequence[float], criteria: Criteria
) -> tuple[MetricDifference, Tested]:
    """Compare a metric of one cell; neither of A and B is empty."""
    change = statistics.median_change(b, a, criteria.confidence)
    interval: tuple[float, float] | None = None
    kind: Literal["bootstrap", "range"] | None = None
    if change is not None and change.low is not None and change.high is not None:
        interval, kind = (change.low, change.high), "range" if change.is_range else "bootstrap"
    tested = _ranks(a, b)
    found = MetricDifference(
        metric=metric,
        runs=(len(a), len(b)),
        medians=(float(median(a)), float(median(b))),
        change=None if change is None else change.value,
        interval=interval,
        interval_kind=kind,
        p=tested.p,
        least_p=tested.clearest_p,
    )
    return found, tested


def completion(runs: tuple[int, int], completed: tuple[int, int]) -> tuple[CompletedRuns, Tested]:
    """Compare how many runs of one cell completed."""
    failed = sum(runs) - sum(completed)
    most = min(failed, runs[1])  # of all that failed, in B
    least_p = statistics.fewer_completed(runs, (runs[0] - (failed - most), runs[1] - most))
    p = statistics.fewer_completed(runs, completed)
    return CompletedRuns(runs=runs, completed=completed, p=p), Tested(p, least_p, least_p)


def judge_differences(
    found: Sequence[tuple[MetricDifference, Tested]], criteria: Criteria
) -> list[MetricDifference]:
    """Judge all differences of one metric together."""
    of = [tested for _, tested in found]
    corrected = _corrected(of, criteria)
    judged = []
    for place, (one, _) in enumerate(found):
        verdict, needed = Verdict.SAME, None
        if corrected[place] <= criteria.alpha:
            verdict = _direction(one, criteria)
        elif not _could_show(of, place, criteria):
            verdict = Verdict.TOO_FEW
            needed = _runs_needed(lambda n: statistics.least_p(n, n), len(of), criteria)
        judged.append(replace(one, q=corrected[place], verdict=verdict, runs_needed=needed))
    return judged


def judge_completions(
    found: Sequence[tuple[CompletedRuns, Tested]], criteria: Criteria
) -> list[CompletedRuns]:
    """Judge how many completed, of all cells together; only that it fell is asked."""
    of = [tested for _, tested in found]
    corrected = _corrected(of, criteria)
    judged = []
    for place, (one, _) in enumerate(found):
        verdict, needed = Verdict.SAME, None
        if one.fell and corrected[place] <= criteria.alpha:
            verdict = Verdict.WORSE
        elif one.fell and not _could_show(of, place, criteria):
            verdict = Verdict.TOO_FEW
            share = min((sum(one.runs) - sum(one.completed)) / one.runs[1], 1.0)
            family = sum(tested.least_p < 1 for tested in of)
            needed = _runs_needed(partial(_all_failures_in_b, share), family, criteria)
        judged.append(replace(one, q=corrected[place], verdict=verdict, runs_needed=needed))
    return judged


def _all_failures_in_b(share: float, runs: int) -> float:
    return statistics.fewer_completed((runs, runs), (runs, runs - max(1, int(runs * share))))


def _direction(one: MetricDifference, criteria: Criteria) -> Verdict:
    """Of a difference that was shown."""
    if one.change is None:
        return Verdict.WORSE if one.medians[1] > one.medians[0] else Verdict.SAME
    if one.change > criteria.threshold:
        return Verdict.WORSE
    return Verdict.BETTER if one.change < -criteria.threshold else Verdict.SAME


def _corrected(of: Sequence[Tested], criteria: Criteria) -> list[float]:
    """The p of those in the family, corrected; 1 of the others."""
    family = [one.p for one in of if one.least_p <= criteria.alpha]
    corrected = iter(statistics.false_discovery(family))
    return [next(corrected) if one.least_p <= criteria.alpha else 1.0 for one in of]


def _could_show(of: Sequence[Tested], place: int, criteria: Criteria) -> bool:
    """Whether so many runs of this one would have been enough for the clearest difference."""
    one = of[place]
    if one.clearest_p > criteria.alpha:
        return False
    rest = (tested for other, tested in enumerate(of) if other != place)
    family = [tested.p for tested in rest if tested.least_p <= criteria.alpha]
    if one.clearest_p * (1 + len(family)) <= criteria.alpha:
        return True
    return statistics.false_discovery([one.clearest_p, *family])[0] <= criteria.alpha


def _runs_needed(least_p: Callable[[int], float], family: int, criteria: Criteria) -> int | None:
    """On each side, for one difference among so many cells that do not differ."""
    fits = (n for n in range(2, _MOST_RUNS) if least_p(n) * family <= criteria.alpha)
    return next(fits, None)


def _ranks(a: Sequence[float], b: Sequence[float]) -> Tested:
    """Test the ranks, and tell what else the same values could have come to."""
    clearest = statistics.least_p(len(a), len(b))
    ranked = sorted([*a, *b])
    if ranked[0] == ranked[-1]:
        return Tested(1.0, 1.0, clearest)
    below, above = len(a), len(b)
    least = min(
        statistics.rank_test(ranked[:below], ranked[below:]),
        statistics.rank_test(ranked[above:], ranked[:above]),
    )
    return Tested(statistics.rank_test(a, b), least, clearest)
