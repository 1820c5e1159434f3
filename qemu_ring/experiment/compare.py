"""Two sets of results compared, cell by cell: medians, how sure, and whether it got worse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, Final

from qemu_ring.errors import UsageError
from qemu_ring.experiment.errors import TooFewRunsError
from qemu_ring.experiment.matrix import label_of
from qemu_ring.experiment.parameters import named_by_parameters
from qemu_ring.experiment.plan import Cell
from qemu_ring.experiment.store import Results

__all__ = [
    "METRICS",
    "CellComparison",
    "Criteria",
    "Difference",
    "ResultsComparison",
    "Verdict",
    "compare_results",
]

METRICS: Final = {
    "seconds": "time to migrate",
    "downtime_seconds": "downtime",
    "guest_downtime_seconds": "downtime, by the guest",
    "qemu_downtime_seconds": "downtime, by QEMU",
    "setup_seconds": "time to set up",
    "bytes": "bytes sent",
}
"""What can be compared; of all of them less is better."""
_RESAMPLES = 4999
_SEED = 1  # so that the same results give the same intervals


class Verdict(str, Enum):
    """What became of a metric, from A to B."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "same"
    """No difference was shown, or one too small to matter."""
    TOO_FEW = "too-few"
    """There are too few runs for any difference to be shown."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """When something counts as worse.

    Args:
        metrics: which of METRICS.
        alpha: the share of false alarms among the differences found (false discovery rate).
        threshold: the relative change of the median that matters.
        confidence: of the intervals.

    Raises:
        UsageError: a value that cannot be.
    """

    metrics: tuple[str, ...] = ("seconds", "downtime_seconds", "bytes")
    alpha: float = 0.05
    threshold: float = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise UsageError(f"no metric {metric}", hint=f"known: {', '.join(METRICS)}")
        for name, value in (("alpha", self.alpha), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise UsageError(f"{name} must be between 0 and 1, not {value:g}")
        if self.threshold < 0:
            raise UsageError(f"the threshold must not be below 0, but is {self.threshold:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of one cell.

    Args:
        metric: which.
        runs: completed in A and in B.
        medians: in A and in B.
        change: of the median, relative to A's; None where that is 0.
        interval: of that change, by bootstrap; None with fewer than two runs on a side.
        p: of the Mann-Whitney rank test, two-sided.
        q: the same corrected for all comparisons made (Benjamini-Hochberg).
        least_p: the least that so few runs can give.
        verdict: what that comes to.
    """

    metric: str
    runs: tuple[int, int]
    medians: tuple[float, float]
    change: float | None
    interval: tuple[float, float] | None
    p: float
    q: float = 1.0
    least_p: float
    verdict: Verdict = Verdict.SAME


@dataclass(frozen=True, slots=True)
class CellComparison:
    """One cell in A and in B.

    Args:
        name: what tells it from the others.
        statuses: how often each status in A and in B.
        differences: its metrics.
        regressions: what got worse other than by a metric, in words.
    """

    name: str
    statuses: tuple[dict[str, int], dict[str, int]]
    differences: tuple[Difference, ...]
    regressions: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether anything of it got worse."""
        bad = any(one.verdict is Verdict.WORSE for one in self.differences)
        return bad or bool(self.regressions)


@dataclass(frozen=True, slots=True)
class ResultsComparison:
    """All cells that A and B have in common.

    Args:
        cells: compared.
        unlike: parameters that differ throughout: their values in A and in B.
        only_a, only_b: names of cells that the other one lacks.
    """

    cells: tuple[CellComparison, ...]
    unlike: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """Whether B is worse in anything."""
        return any(cell.worse for cell in self.cells)

    def require_decided(self) -> None:
        """Check that a regression would have been seen; for one who relies on there being none.

        Raises:
            TooFewRunsError: nothing completed in both, or there were too few runs.
        """
        found = [one for cell in self.cells for one in cell.differences]
        if not found:
            raise TooFewRunsError("no cell has completed runs in both, so nothing was compared")
        few = [one for one in found if one.verdict is Verdict.TOO_FEW]
        if len(few) == len(found):
            raise TooFewRunsError(
                f"{min(one.runs[0] for one in few)} and {min(one.runs[1] for one in few)} runs "
                "are too few to show any difference",
                hint="4 of each can for a single comparison; more repeats are better",
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "worse": self.worse,
            "cells": [asdict(cell) | {"worse": cell.worse} for cell in self.cells],
            "unlike": self.unlike,
            "only_a": self.only_a,
            "only_b": self.only_b,
        }


def compare_results(
    a: Results,
    b: Results,
    criteria: Criteria | None = None,
    *,
    where_a: Mapping[str, str] | None = None,
    where_b: Mapping[str, str] | None = None,
) -> ResultsComparison:
    """Compare B with A. Warm-up runs do not count.

    Cells are matched by their axes. With `where_a` and `where_b`, only cells with these
    parameters are taken, and matched by their other axes: so two values of an axis can be
    compared, within one experiment.

    Raises:
        UsageError: A and B have no cell in common.
    """
    criteria = criteria or Criteria()
    where_a, where_b = where_a or {}, where_b or {}
    aside = {*where_a, *where_b}
    cells_a, cells_b = _cells(a, where_a, aside), _cells(b, where_b, aside)
    common = [key for key in cells_a if key in cells_b]
    if not common:
        raise UsageError(
            "they have no cell in common",
            hint="see `qemu-ring experiment show` for the axes, and --a and --b to choose",
        )
    compared = [_cell(a, cells_a[key], b, cells_b[key], criteria) for key in common]
    return ResultsComparison(
        cells=tuple(_corrected(compared, criteria)),
        unlike=_unlike([(cells_a[key], cells_b[key]) for key in common]),
        only_a=tuple(one.name for key, one in cells_a.items() if key not in cells_b),
        only_b=tuple(one.name for key, one in cells_b.items() if key not in cells_a),
    )


def _cells(
    results: Results, where: Mapping[str, str], aside: set[str]
) -> dict[frozenset[tuple[str, str]], Cell]:
    """The cells with these parameters, by their other axes."""
    found: dict[frozenset[tuple[str, str]], Cell] = {}
    for cell in results.cells.values():
        known = {key: label_of(value) for key, value in cell.parameters.items()}
        known |= dict(cell.axes)
        unknown = [key for key in where if key not in known]
        if unknown:
            raise UsageError(
                f"{results.directory} has no parameter {unknown[0]}",
                hint=f"it has {', '.join(known)}",
            )
        if any(known[key] != value for key, value in where.items()):
            continue
        rest = {
            key: label
            for key, label in cell.axes.items()
            if key not in aside and named_by_parameters(key) not in aside
        }
        key = frozenset(rest.items())
        if key in found:
            raise UsageError(
                f"{found[key].name} and {cell.name} of {results.directory} would be one cell",
                hint="choose one of them with --a or --b",
            )
        found[key] = cell
    return found


def _cell(a: Results, cell_a: Cell, b: Results, cell_b: Cell, criteria: Criteria) -> CellComparison:
    records = a.measured(cell_a.id), b.measured(cell_b.id)
    statuses = tuple(dict(Counter(one["status"] for one in side)) for side in records)
    differences = []
    for metric in criteria.metrics:
        values_a, values_b = (_values(side, metric) for side in records)
        if values_a and values_b:
            differences.append(_difference(metric, values_a, values_b, criteria))
    name = cell_a.name if cell_a.name == cell_b.name else f"{cell_a.name} -> {cell_b.name}"
    return CellComparison(
        name, (statuses[0], statuses[1]), tuple(differences), tuple(_broken(*statuses))
    )


def _broken(a: Mapping[str, int], b: Mapping[str, int]) -> list[str]:
    """What needs no statistics."""
    found = []
    if b.get("stale") and not a.get("stale"):
        found.append(f"{b['stale']} of {sum(b.values())} runs of B lost memory, and none of A")
    if a.get("ok") and b and not b.get("ok") and not b.get("stale"):
        words = ", ".join(f"{count} {status}" for status, count in b.items())
        found.append(f"no run of B completed ({words})")
    return found


def _values(records: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """Of the runs that completed; a stale one did."""
    completed = [one["migration"] for one in records if one["status"] in ("ok", "stale")]
    return [float(one[metric]) for one in completed if one and one[metric] is not None]


def _statistics() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise UsageError(
            "scipy is not installed", hint="pip install qemu-ring[experiment]"
        ) from error
    return stats


def _difference(metric: str, a: list[float], b: list[float], criteria: Criteria) -> Difference:
    stats = _statistics()
    import numpy as np

    medians = float(np.median(a)), float(np.median(b))
    interval = None
    if medians[0] and min(len(a), len(b)) > 1:

        def change(one: Any, other: Any, axis: int = -1) -> Any:
            before = np.median(one, axis=axis)
            return (np.median(other, axis=axis) - before) / before

        found = stats.bootstrap(
            (np.array(a), np.array(b)),
            change,
            n_resamples=_RESAMPLES,
            confidence_level=criteria.confidence,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
        interval = float(found.low), float(found.high)
    p = float(stats.mannwhitneyu(a, b, alternative="two-sided").pvalue)
    return Difference(
        metric=metric,
        runs=(len(a), len(b)),
        medians=medians,
        change=(medians[1] - medians[0]) / medians[0] if medians[0] else None,
        interval=interval,
        p=1.0 if math.isnan(p) else p,
        least_p=2 / math.comb(len(a) + len(b), len(a)),
    )


def _corrected(cells: Sequence[CellComparison], criteria: Criteria) -> list[CellComparison]:
    """With q and the verdicts, which need all comparisons together."""
    stats = _statistics()
    all_p = [one.p for cell in cells for one in cell.differences]
    all_q = iter(stats.false_discovery_control(all_p) if all_p else [])
    return [
        replace(
            cell,
            differences=tuple(
                _judged(one, float(next(all_q)), criteria) for one in cell.differences
            ),
        )
        for cell in cells
    ]


def _judged(one: Difference, q: float, criteria: Criteria) -> Difference:
    verdict = Verdict.SAME
    if one.least_p > criteria.alpha:
        verdict = Verdict.TOO_FEW
    elif q <= criteria.alpha:
        change = one.medians[1] - one.medians[0] if one.change is None else one.change
        if change > (0 if one.change is None else criteria.threshold):
            verdict = Verdict.WORSE
        elif one.change is not None and change < -criteria.threshold:
            verdict = Verdict.BETTER
    return replace(one, q=q, verdict=verdict)


def _unlike(pairs: Sequence[tuple[Cell, Cell]]) -> dict[str, tuple[Any, Any]]:
    """Parameters, not the axes that cells were matched by, that differ in all pairs alike."""
    found: dict[str, tuple[Any, Any]] = {}
    first, second = (one.parameters for one in pairs[0])
    for key in dict.fromkeys([*first, *second]):
        values = {(one.parameters.get(key), other.parameters.get(key)) for one, other in pairs}
        if len(values) == 1:
            one, other = values.pop()
            if one != other:
                found[key] = (one, other)
    return found
