"""The answers, in words: were pages stale, and which cell is the fastest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qemu_ring.experiment import Results, Status
from qemu_ring.report import units
from qemu_ring.report.summary import DOWNTIME, ENDINGS, CellSummary, Measure
from qemu_ring.statistics import (
    ALPHA,
    false_discovery,
    least_p,
    median_change,
    median_difference,
    rank_test,
)

__all__ = ["Answer", "failures", "fastest", "stale_pages"]

_NAMED = 4  # cells that a sentence names
_LONGEST = 200  # characters of an error that are shown


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one question.

    Args:
        kind: whether that is good, bad, or no answer.
        headline: the answer.
        details: what it rests on, a sentence each.
    """

    kind: Literal["good", "bad", "open"]
    headline: str
    details: tuple[str, ...] = ()


def stale_pages(results: Results, cells: Sequence[CellSummary]) -> Answer:
    """Tell if memory was lost, and what else went wrong."""
    stale, stale_runs = sum(c.stale_pages for c in cells), sum(c.stale_runs for c in cells)
    compared, written = sum(c.compared for c in cells), sum(c.pages_written for c in cells)
    removed = sum(c.slots_removed for c in cells)
    did = f"The guests wrote {units.many(written, 'page')} while they were migrated"
    if removed:
        was = "was" if removed == 1 else "were"
        did += f", and {units.many(removed, 'memory slot')} {was} removed"
    did += "."
    rest = _left_open(results, cells)
    if stale:
        bad = [cell for cell in cells if cell.stale_pages]
        where = (
            "In every cell."
            if len(bad) == len(cells) > 1
            else f"In {_list([f'{c.name} ({c.stale_pages:,})' for c in bad])}."
        )
        headline = (
            f"{units.many(stale, 'stale page')} in {stale_runs:,} of "
            f"{units.many(compared, 'migration')}: memory was lost"
        )
        return Answer("bad", headline, (where, did, *rest))
    if not compared:
        return Answer(
            "open", "No memory was compared, so nobody knows if pages were lost", tuple(rest)
        )
    if not written:
        headline = "No stale page, but the guests wrote nothing: that shows nothing"
        return Answer("open", headline, (did, *rest))
    headline = f"No stale page in {units.many(compared, 'migration')}: every byte arrived"
    return Answer("good", headline, (did, *rest))


def failures(cells: Sequence[CellSummary]) -> Answer | None:
    """Tell of runs that did not complete; None if all did."""
    found: Counter[Status] = sum((cell.failures for cell in cells), Counter())
    if not found:
        return None
    parts = ", ".join(f"{n:,} {ENDINGS[status]}" for status, n in found.most_common())
    runs = units.many(sum(len(cell.runs) for cell in cells), "run")
    where = [f"{cell.name} ({cell.failures.total():,})" for cell in cells if cell.failures]
    details = [f"In {_list(where)}.", "They are in no figure of time."]
    causes = Counter(
        run.error for cell in cells for run in cell.runs if run.error and not run.is_completed
    )
    if causes:
        error, times = causes.most_common(1)[0]
        details.append(f"Most often, {units.many(times, 'time')}: {_short(error)}")
    kind: Literal["bad", "open"] = (
        "bad" if {Status.CRASHED, Status.TIMEOUT} & set(found) else "open"
    )
    return Answer(kind, f"{found.total():,} of {runs} did not complete: {parts}", tuple(details))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\N{HORIZONTAL ELLIPSIS}"


def fastest(cells: Sequence[CellSummary], measure: Measure) -> Answer:
    """Name the cell that takes least, if the repeats tell it from the others."""
    quick = "shortest downtime" if measure is DOWNTIME else "fastest migration"
    lossless = [cell for cell in cells if not cell.stale_pages]
    able = [cell for cell in lossless or cells if cell.values(measure)]
    left_out = [cell for cell in cells if cell.values(measure) and cell not in able]
    notes = []
    if left_out:
        notes.append(f"Left out for stale pages: {_list([cell.name for cell in left_out])}.")
    elif not lossless:
        notes.append("All cells had stale pages.")
    if not able:
        return Answer("open", f"No {measure.short} was measured", tuple(notes))
    ranked = sorted(able, key=lambda cell: _median(cell, measure))
    best = ranked[0]
    figure = f"{units.seconds(_median(best, measure))}{_range(best, measure)}"
    if len(ranked) == 1:
        return Answer("open", f"{measure.title} of {best.name}: {figure}", tuple(notes))
    least = best.values(measure)
    others = [cell.values(measure) for cell in ranked[1:]]
    p = [rank_test(values, least) for values in others]
    corrected = false_discovery(p)
    close = [cell.name for cell, q in zip(ranked[1:], corrected, strict=True) if q > ALPHA]
    second, gap = ranked[1], median_difference(others[0], least)
    next_figure = f"{units.seconds(_median(second, measure))}{_range(second, measure)}"
    more = units.seconds(gap.value)
    share = median_change(others[0], least)
    if share is not None:
        more += f" ({units.percent(share.value)})"
    said = units.interval(gap)
    if said and not gap.is_range:
        said = f"95 % interval {said}"
    details = [
        f"The next is {second.name} with {next_figure}: {more} more"
        + (f", {said}." if said else "."),
    ]
    if close:
        blind = any(
            q > ALPHA and not _could_tell(p, place, least_p(len(least), len(others[place])))
            for place, q in enumerate(corrected)
        )
        why = "so few repeats cannot tell" if blind else "the repeats overlap too much"
        details.insert(0, f"Not told apart from {_list(close)}: {why}.")
    kind: Literal["good", "open"] = "open" if close else "good"
    clear = (
        f"The {quick} is {best.name}"
        if not close
        else f"No cell clearly has the {quick}; least is {best.name}"
    )
    return Answer(kind, f"{clear}: {figure}", (*details, *notes))


def _could_tell(p: Sequence[float], place: int, least: float) -> bool:
    """Tell if one of several differences could be told by so few values, however far apart."""
    return false_discovery([least, *p[:place], *p[place + 1 :]])[0] <= ALPHA


def _median(cell: CellSummary, measure: Measure) -> float:
    estimate = cell.estimate(measure)
    assert estimate is not None
    return estimate.value


def _range(cell: CellSummary, measure: Measure) -> str:
    estimate = cell.estimate(measure)
    said = units.interval(estimate) if estimate else ""
    return f" ({said})" if said else ""


def _left_open(results: Results, cells: Sequence[CellSummary]) -> list[str]:
    """Tell of runs that are missing, or were not compared."""
    said = []
    left, planned = len(results.left), len(results.runs)
    if left:
        said.append(
            f"The experiment is not finished: {planned - left:,} of {planned:,} runs are done."
        )
    if results.damaged:
        said.append(f"{units.many(len(results.damaged), 'damaged line')} of the results left out.")
    blind = sum(cell.not_compared for cell in cells)
    if blind:
        said.append(f"{units.many(blind, 'run')} completed without a comparison of memory.")
    return said


def _list(names: Sequence[str]) -> str:
    shown = list(names[:_NAMED])
    if len(names) > _NAMED:
        shown.append(f"{len(names) - _NAMED:,} more")
    separator = "; " if any("," in name for name in shown) else ", "
    return separator.join(shown)
