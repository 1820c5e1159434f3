"""What a comparison of results comes to: by metric, by cell, and in all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final, Literal

from qemu_ring.errors import UsageError
from qemu_ring.experiment.errors import UndecidedError

__all__ = [
    "METRICS",
    "CellComparison",
    "CompletedRuns",
    "Criteria",
    "MetricDifference",
    "ResultsComparison",
    "Verdict",
]

METRICS: Final = {
    "seconds": "time to migrate",
    "downtime_seconds": "downtime",
    "guest_downtime_seconds": "downtime, by the guest",
    "qemu_downtime_seconds": "downtime, by QEMU",
    "setup_seconds": "time to set up",
    "bytes": "bytes sent",
    "resent_per_write": "pages resent for each page written",
}
"""What can be compared; of all of them less is better."""


class Verdict(str, Enum):
    """What became of something, from A to B."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "same"
    """No difference was shown, or one too small to matter."""
    TOO_FEW = "too-few"
    """There are too few runs: even the clearest difference could not be shown by them."""
    INCOMPARABLE = "incomparable"
    """B looks better, but fewer of its runs completed: those that did may be the easy ones."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """When something counts as worse.

    Args:
        metrics: which of METRICS.
        alpha: the share of false alarms among the differences found (false discovery rate), of
            each metric.
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
        if not self.threshold >= 0:
            raise UsageError(f"the threshold must not be below 0, but is {self.threshold:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDifference:
    """One metric of one cell.

    Args:
        metric: which.
        runs: completed in A and in B.
        medians: in A and in B.
        change: of the median, relative to A's; None where that is 0.
        interval: of that change; None with fewer than two runs on a side, or a 0 in A.
        interval_kind: what the interval is: by bootstrap; or, where so few repeats allow no such
            interval, the range from the least of B against the most of A to the reverse.
        p: of the Mann-Whitney rank test, two-sided.
        q: the same, corrected for all cells of this metric (Benjamini-Hochberg).
        least_p: the least that so many runs can give, if no value of A is among those of B.
        verdict: what that comes to.
        runs_needed: in A and in B each, so that a difference could be shown; None if it could.
    """

    metric: str
    runs: tuple[int, int]
    medians: tuple[float, float]
    change: float | None
    interval: tuple[float, float] | None
    interval_kind: Literal["bootstrap", "range"] | None = None
    p: float
    q: float = 1.0
    least_p: float
    verdict: Verdict = Verdict.SAME
    runs_needed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedRuns:
    """How many runs of one cell completed.

    Args:
        runs: measured in A and in B.
        completed: of them.
        p: of Fisher's exact test of whether fewer complete in B, one-sided.
        q: the same, corrected for all cells.
        verdict: what that comes to.
        runs_needed: as of a difference.
    """

    runs: tuple[int, int]
    completed: tuple[int, int]
    p: float
    q: float = 1.0
    verdict: Verdict = Verdict.SAME
    runs_needed: int | None = None

    @property
    def fell(self) -> bool:
        """Whether a smaller share completed in B."""
        (runs_a, runs_b), (a, b) = self.runs, self.completed
        return b * runs_a < a * runs_b


@dataclass(frozen=True, slots=True)
class CellComparison:
    """One cell in A and in B.

    Args:
        name: what tells it from the others.
        ids: of the cell of A and of that of B.
        statuses: how often each status in A and in B, of the measured runs.
        warm_up_statuses: the same of the runs to warm up.
        completion: how many completed.
        differences: its metrics.
        regressions: what got worse and needs no statistics, in words.
    """

    name: str
    ids: tuple[str, str]
    statuses: tuple[dict[str, int], dict[str, int]]
    warm_up_statuses: tuple[dict[str, int], dict[str, int]]
    completion: CompletedRuns
    differences: tuple[MetricDifference, ...]
    regressions: tuple[str, ...]

    @property
    def judged(self) -> Iterator[CompletedRuns | MetricDifference]:
        """All that has a verdict."""
        yield self.completion
        yield from self.differences

    @property
    def worse(self) -> bool:
        """Whether anything of it got worse."""
        return bool(self.regressions) or any(one.verdict is Verdict.WORSE for one in self.judged)


@dataclass(frozen=True, slots=True)
class ResultsComparison:
    """All cells that A and B have in common.

    Args:
        cells: compared.
        regressions: what got worse outside of them, in words.
        undecided: what keeps B from being cleared, in words.
        unlike: what A's and B's cells were asked to do that is not the same, but for the axes
            they were matched by: values in A and in B.
        provenance: the same of the hosts and QEMUs that they were run with.
        only_a, only_b: names of cells that the other one lacks.
    """

    cells: tuple[CellComparison, ...]
    regressions: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    unlike: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    provenance: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """Whether B is worse in anything."""
        return bool(self.regressions) or any(cell.worse for cell in self.cells)

    def require_decided(self) -> None:
        """Check that a regression would have been seen; for one who relies on there being none.

        Raises:
            UndecidedError: something was not compared, or by too few runs.
        """
        if self.undecided:
            raise UndecidedError("; ".join(self.undecided))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "worse": self.worse,
            "decided": not self.undecided,
            "cells": [asdict(cell) | {"worse": cell.worse} for cell in self.cells],
            "regressions": self.regressions,
            "undecided": self.undecided,
            "unlike": self.unlike,
            "provenance": self.provenance,
            "only_a": self.only_a,
            "only_b": self.only_b,
        }
