"""What the runs of each cell say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from qemu_ring.experiment import Cell, Results
from qemu_ring.experiment.results.record import MigrationRecord, RunRecord, Status
from qemu_ring.report import units
from qemu_ring.statistics import Estimate, median

__all__ = [
    "DOWNTIME",
    "ENDINGS",
    "GUEST_DOWNTIME",
    "SENT",
    "TIME",
    "CellSummary",
    "Measure",
    "summarise",
]


ENDINGS: Final = {
    Status.OK: "every page arrived",
    Status.STALE: "stale pages",
    Status.TIMEOUT: "timed out",
    Status.NOT_CONVERGED: "did not converge",
    Status.REFUSED: "refused",
    Status.CRASHED: "crashed",
}
"""How a run ended, in words, by its status."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that a migration took: of all of them, less is better.

    Args:
        key: for file names.
        title: what it is.
        short: the same inside a sentence.
        of: where it is found, in seconds or bytes.
        say: writes a value.
        unit: chooses the unit of values up to the one given.
    """

    key: str
    title: str
    short: str
    of: Callable[[MigrationRecord], float | None]
    say: Callable[[float | None], str] = units.seconds
    unit: Callable[[float], units.Unit] = units.time_unit

    def interval(self, estimate: Estimate) -> str:
        """Write an estimate's interval; empty where there is none."""
        return units.interval(estimate, self.unit)

    def values(self, runs: Sequence[RunRecord]) -> list[float]:
        """Collect it from those of the runs that count and that have it."""
        found = [self.of(run.migration) for run in runs if run.is_measured and run.migration]
        return [value for value in found if value is not None]


TIME: Final = Measure("time", "Migration time", "time", lambda one: one.seconds)
DOWNTIME: Final = Measure("downtime", "Downtime", "downtime", lambda one: one.downtime_seconds)
GUEST_DOWNTIME: Final = Measure(
    "guest-downtime",
    "Downtime as the guest saw it",
    "downtime in the guest",
    lambda one: one.guest_downtime_seconds,
)
SENT: Final = Measure(
    "sent", "Sent", "bytes sent", lambda one: one.bytes, units.size, units.size_unit
)


@dataclass(frozen=True)
class CellSummary:
    """One cell of one experiment."""

    cell: Cell
    name: str
    runs: tuple[RunRecord, ...]

    @property
    def measured(self) -> list[RunRecord]:
        """The runs whose times count."""
        return [run for run in self.runs if run.is_measured]

    @property
    def stale_pages(self) -> int:
        """Stale pages of all runs; one that was to warm up is no excuse."""
        return sum(run.stale_pages or 0 for run in self.runs)

    @property
    def stale_runs(self) -> int:
        """Runs with a stale page."""
        return sum(1 for run in self.runs if run.stale_pages)

    @property
    def compared(self) -> int:
        """Runs whose memory was compared."""
        return sum(1 for run in self.runs if run.is_compared)

    @property
    def not_compared(self) -> int:
        """Runs that completed, of which nobody knows if they lost memory."""
        return sum(1 for run in self.runs if run.is_completed and not run.is_compared)

    @property
    def pages_written(self) -> int:
        """Pages that the guest wrote, in all runs that were compared."""
        return sum(run.pages_written or 0 for run in self.runs if run.is_compared)

    @property
    def slots_removed(self) -> int:
        """Slots removed, in all runs that were compared."""
        return sum(run.slots_removed for run in self.runs if run.is_compared)

    @property
    def failures(self) -> Counter[Status]:
        """Runs that did not complete, by status."""
        return Counter(run.status for run in self.runs if not run.is_completed)

    def values(self, measure: Measure) -> list[float]:
        """All repeats of a measure, in seconds or bytes."""
        return measure.values(self.runs)

    def estimate(self, measure: Measure) -> Estimate | None:
        """Estimate the median of a measure; None if no run has it."""
        values = self.values(measure)
        return median(values) if values else None


def summarise(results: Results) -> list[CellSummary]:
    """Summarise each cell, fastest migration first; those that never completed last."""
    cells = [
        CellSummary(cell, results.name_of(cell.id), results.by_cell[cell.id])
        for cell in results.cells.values()
    ]

    def by_time(one: CellSummary) -> tuple[bool, float]:
        estimate = one.estimate(TIME)
        return (estimate is None, 0.0 if estimate is None else estimate.value)

    return sorted(cells, key=by_time)
