"""Two sets of results compared, cell by cell: medians, how sure, and whether it got worse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from qemu_ring.experiment.compare import significance
from qemu_ring.experiment.compare.differences import (
    provenance_differences,
    specification_differences,
)
from qemu_ring.experiment.compare.matching import Matched, match_cells
from qemu_ring.experiment.compare.verdicts import (
    METRICS,
    CellComparison,
    CompletedRuns,
    Criteria,
    MetricDifference,
    ResultsComparison,
    Verdict,
)
from qemu_ring.experiment.plan.cells import Cell
from qemu_ring.experiment.results.reader import Results
from qemu_ring.experiment.results.record import MigrationRecord, RunRecord, Status

__all__ = ["compare_results"]

_NEVER_NEW = (Status.CRASHED, Status.TIMEOUT)
_OF_THE_GUEST = ("downtime_seconds", "guest_downtime_seconds")
"""What `verify` makes something else, for the guest stands still while memory is compared."""


def compare_results(
    a: Results,
    b: Results,
    criteria: Criteria | None = None,
    *,
    where_a: Mapping[str, str] | None = None,
    where_b: Mapping[str, str] | None = None,
    only_common: bool = False,
) -> ResultsComparison:
    """Compare B with A. Warm-up runs do not count, unless they lost memory, crashed or hung.

    Cells are matched by their axes. With `where_a` and `where_b`, only cells with these
    parameters are taken, and matched by their other axes: so two values of an axis can be
    compared, within one experiment.

    Args:
        a, b: what to compare.
        criteria: when something counts as worse.
        where_a, where_b: which cells of each.
        only_common: cells that only one of them has leave nothing undecided.

    Raises:
        NothingInCommonError: A and B have no cell in common.
        UsageError: a choice that cannot be.
    """
    criteria = criteria or Criteria()
    matched = match_cells(a, b, where_a or {}, where_b or {})
    by_cell = a.by_cell, b.by_cell
    compared = [
        _Pair(one, other, (by_cell[0][one.id], by_cell[1][other.id]))
        for one, other in matched.pairs
    ]
    cells = _judged(compared, criteria)
    of_a = [one for one, _ in matched.pairs]
    of_b = [one for _, one in matched.pairs]
    if not only_common:
        of_a += matched.only_a
        of_b += matched.only_b
    return ResultsComparison(
        cells=tuple(cells),
        regressions=tuple(_lost_elsewhere(by_cell[1], matched)),
        undecided=(
            *_unfinished("A", a, of_a),
            *_unfinished("B", b, of_b),
            *(() if only_common else _unmatched(matched)),
            *_not_compared(compared, criteria),
            *_too_few(cells),
        ),
        unlike=specification_differences(matched.pairs),
        provenance=provenance_differences(
            *([record for one in compared for record in one.records[side]] for side in (0, 1))
        ),
        only_a=tuple(cell.name for cell in matched.only_a),
        only_b=tuple(cell.name for cell in matched.only_b),
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """A cell of A and that of B, with what is known of them."""

    a: Cell
    b: Cell
    records: tuple[Sequence[RunRecord], Sequence[RunRecord]]

    @property
    def name(self) -> str:
        return self.a.name if self.a.name == self.b.name else f"{self.a.name} -> {self.b.name}"

    @property
    def same_verify(self) -> bool:
        return bool(self.a.specification["verify"] == self.b.specification["verify"])

    def statuses(self, *, warm_up: bool) -> tuple[dict[str, int], dict[str, int]]:
        here, there = (
            dict(Counter(one.status.value for one in side if one.warm_up is warm_up))
            for side in self.records
        )
        return here, there

    def values(self, metric: str) -> tuple[list[float], list[float]]:
        """Of the measured runs that completed, in A and in B."""
        one_of = attrgetter(metric)
        here, there = (
            [float(value) for one in _completed(side) if (value := one_of(one)) is not None]
            for side in self.records
        )
        return here, there

    def compares(self, metric: str) -> bool:
        return self.same_verify or metric not in _OF_THE_GUEST


def _judged(pairs: Sequence[_Pair], criteria: Criteria) -> list[CellComparison]:
    """All cells: each metric of all of them is judged at once."""
    completions = significance.judge_completions([_completion(one) for one in pairs], criteria)
    differences: dict[int, list[MetricDifference]] = {place: [] for place in range(len(pairs))}
    for metric in criteria.metrics:
        places, found = [], []
        for place, pair in enumerate(pairs):
            here, there = pair.values(metric)
            if here and there and pair.compares(metric):
                places.append(place)
                found.append(significance.difference(metric, here, there, criteria))
        for place, one in zip(places, significance.judge_differences(found, criteria), strict=True):
            differences[place].append(_by_survivors(one, completions[place]))
    return [
        CellComparison(
            name=pair.name,
            ids=(pair.a.id, pair.b.id),
            statuses=pair.statuses(warm_up=False),
            warm_up_statuses=pair.statuses(warm_up=True),
            completion=completions[place],
            differences=tuple(differences[place]),
            regressions=tuple(_broken(pair.records)),
        )
        for place, pair in enumerate(pairs)
    ]


def _completion(pair: _Pair) -> tuple[CompletedRuns, significance.Tested]:
    runs_a, runs_b = (sum(one.values()) for one in pair.statuses(warm_up=False))
    done_a, done_b = (
        sum(one.get(status.value, 0) for status in Status if status.is_completed)
        for one in pair.statuses(warm_up=False)
    )
    return significance.completion((runs_a, runs_b), (done_a, done_b))


def _by_survivors(one: MetricDifference, completion: CompletedRuns) -> MetricDifference:
    if one.verdict is Verdict.BETTER and completion.fell:
        return replace(one, verdict=Verdict.INCOMPARABLE)
    return one


def _broken(records: tuple[Sequence[RunRecord], Sequence[RunRecord]]) -> Iterator[str]:
    """What needs no statistics; runs to warm up are no excuse."""
    a, b = records
    total = len(b)
    if lost := _stale(b):
        before = _stale(a)
        was = f"{len(before)} of {len(a)} of A ({_pages(before)})" if before else "none of A"
        yield f"{len(lost)} of {total} runs of B lost memory ({_pages(lost)}), and {was}"
    for status in _NEVER_NEW:
        count = sum(one.status is status for one in b)
        if count and not any(one.status is status for one in a):
            did = "timed out" if status is Status.TIMEOUT else status.value
            yield f"{count} of {total} runs of B {did}, and none of A"
    measured = Counter(one.status.value for one in b if not one.warm_up)
    if list(_completed(a)) and measured and not list(_completed(b)):
        words = ", ".join(f"{count} {status}" for status, count in measured.items())
        yield f"no run of B completed ({words})"


def _lost_elsewhere(b: Mapping[str, Sequence[RunRecord]], matched: Matched) -> Iterator[str]:
    for cell in matched.only_b:
        records = b[cell.id]
        if lost := _stale(records):
            yield (
                f"{cell.name}, which A does not have: {len(lost)} of {len(records)} runs of B "
                f"lost memory ({_pages(lost)})"
            )


def _stale(records: Sequence[RunRecord]) -> list[RunRecord]:
    return [one for one in records if one.status is Status.STALE or one.stale_pages]


def _pages(records: Sequence[RunRecord]) -> str:
    pages = sum(one.stale_pages or 0 for one in records)
    return f"{pages:,} page{'' if pages == 1 else 's'}"


def _unfinished(letter: str, results: Results, cells: Sequence[Cell]) -> Iterator[str]:
    wanted = {cell.id for cell in cells}
    left = sum(run.cell in wanted for run in results.left)
    if left:
        planned = sum(run.cell in wanted for run in results.runs)
        yield f"{letter} is not finished: {left} of {planned} runs are to be made yet"


def _unmatched(matched: Matched) -> Iterator[str]:
    for letter, cells in (("A", matched.only_a), ("B", matched.only_b)):
        if cells:
            many = "1 cell is" if len(cells) == 1 else f"{len(cells)} cells are"
            yield f"{many} only in {letter}"


def _not_compared(pairs: Sequence[_Pair], criteria: Criteria) -> Iterator[str]:
    if not any(all(map(_any_completed, pair.records)) for pair in pairs):
        yield "no cell has completed runs in both, so nothing was compared"
        return
    idle = [pair for pair in pairs if _told_nothing(pair)]
    if idle:
        yield f"{_cells(len(idle))} completed in neither"
    for metric in criteria.metrics:
        if not all(pair.compares(metric) for pair in pairs):
            yield (
                f"{METRICS[metric]} was not compared where only one had `verify`, for with it "
                "the guest stands still longer"
            )
    for metric in criteria.metrics:
        missing = [
            pair
            for pair in pairs
            if pair.compares(metric)
            and all(map(_any_completed, pair.records))
            and not all(pair.values(metric))
        ]
        if missing:
            yield f"{METRICS[metric]} was not measured in {_cells(len(missing))}"


def _told_nothing(pair: _Pair) -> bool:
    """Whether it was made in both, but completed in none, and not because it never converges."""
    statuses = {one.status for side in pair.records for one in side}
    return (
        all(pair.records)
        and not any(map(_any_completed, pair.records))
        and statuses != {Status.NOT_CONVERGED}
    )


def _too_few(cells: Sequence[CellComparison]) -> Iterator[str]:
    few = [one for cell in cells for one in cell.differences if one.verdict is Verdict.TOO_FEW]
    if few:
        where = sum(any(o.verdict is Verdict.TOO_FEW for o in cell.differences) for cell in cells)
        least = tuple(min(one.runs[side] for one in few) for side in (0, 1))
        yield (
            f"{least[0]} and {least[1]} runs are too few to show a difference in {_cells(where)} "
            f"of {len(cells)}{_more(few)}"
        )
    fell = [cell.completion for cell in cells if cell.completion.verdict is Verdict.TOO_FEW]
    if fell:
        yield (
            f"fewer runs of B completed in {_cells(len(fell))}, which may be chance by so few"
            f"{_more(fell)}"
        )


def _more(found: Sequence[MetricDifference | CompletedRuns]) -> str:
    needed = max((one.runs_needed or 0 for one in found), default=0)
    return f": {needed} completed repeats of each would tell" if needed else ""


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _completed(records: Sequence[RunRecord]) -> Iterator[MigrationRecord]:
    """Migrations of the measured runs that completed."""
    for one in records:
        if one.is_measured and one.migration is not None:
            yield one.migration


def _any_completed(records: Sequence[RunRecord]) -> bool:
    return next(_completed(records), None) is not None
