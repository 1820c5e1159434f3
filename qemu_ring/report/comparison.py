"""Two experiments side by side, as `qemu-ring experiment compare` has them: in words and drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qemu_ring.experiment import (
    NothingInCommonError,
    Results,
    ResultsComparison,
    compare_results,
)
from qemu_ring.experiment.compare.verdicts import (
    CellComparison,
    Criteria,
    MetricDifference,
    Verdict,
)
from qemu_ring.report import units
from qemu_ring.report.plots.plot import Choice, Plot, Rows, Spec, row_axis
from qemu_ring.report.plots.theme import colour
from qemu_ring.report.summary import DOWNTIME, SENT, TIME, CellSummary, Measure
from qemu_ring.report.verdict import Answer

__all__ = [
    "Change",
    "ComparedResults",
    "Pair",
    "change_plot",
    "compare_answer",
    "compare_experiments",
    "interval_words",
    "signed",
]

_MEASURES = {"seconds": TIME, "downtime_seconds": DOWNTIME, "bytes": SENT}
_WORDS = {"less": "takes less", "more": "takes more", "unclear": "no clear change"}
_MOST_TOLD = 6  # regressions that are told one by one


@dataclass(frozen=True)
class Pair:
    """A cell that both experiments have."""

    compared: CellComparison
    first: CellSummary
    second: CellSummary

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return self.compared.name


@dataclass(frozen=True)
class Change:
    """How much more of something the second takes than the first.

    Args:
        pair: the cell.
        measure: of what.
        difference: how much, and what that comes to.
    """

    pair: Pair
    measure: Measure
    difference: MetricDifference

    @property
    def kind(self) -> Literal["less", "more", "unclear"]:
        """Which way it changed, if the repeats tell, and by enough to matter."""
        if self.difference.verdict is Verdict.WORSE:
            return "more"
        return "less" if self.difference.verdict is Verdict.BETTER else "unclear"


@dataclass(frozen=True)
class ComparedResults:
    """What there is to say of two experiments.

    Args:
        found: all of it.
        pairs: the cells that both have.
        changes: of their measures, by measure and cell.
    """

    found: ResultsComparison
    pairs: tuple[Pair, ...]
    changes: tuple[Change, ...]


def compare_experiments(
    first: Results,
    second: Results,
    cells: tuple[Sequence[CellSummary], Sequence[CellSummary]],
) -> ComparedResults | None:
    """Compare two experiments by the rules of the command; None if no cell is in both."""
    try:
        found = compare_results(first, second, Criteria())
    except NothingInCommonError:
        return None
    by_id = [{cell.cell.id: cell for cell in side} for side in cells]
    pairs = tuple(Pair(one, by_id[0][one.ids[0]], by_id[1][one.ids[1]]) for one in found.cells)
    changes = [
        Change(pair, _MEASURES[one.metric], one)
        for pair in pairs
        for one in pair.compared.differences
    ]
    order = list(_MEASURES.values())
    changes.sort(key=lambda change: order.index(change.measure))
    return ComparedResults(found, pairs, tuple(changes))


def compare_answer(comparison: ComparedResults | None) -> Answer:
    """Say in which cells B takes more or less than A, and if it lost memory or failed."""
    if comparison is None:
        return Answer("open", "A and B have no cell in common")
    found, pairs, changes = comparison.found, comparison.pairs, comparison.changes
    cells = f"of {units.many(len(pairs), 'cell')}"
    heads, details = [*_lost(pairs, cells)], []
    failing = sum(_fails(pair.compared) for pair in pairs)
    if failing:
        heads.append(f"more runs fail in {failing} {cells}")
    same = []
    for measure in dict.fromkeys(change.measure for change in changes):
        mine = [change for change in changes if change.measure is measure]
        kinds = Counter(change.kind for change in mine)
        if parts := [f"{word} in {kinds[word]}" for word in ("more", "less") if kinds[word]]:
            heads.append(f"{measure.short}: {', '.join(parts)} {cells}")
        else:
            same.append(measure.short)
        details += _extremes(mine)
    if same:
        heads.append(f"no clear change of {_and(same)}")
    told = [f"{pair.name}: {one}" for pair in pairs for one in pair.compared.regressions]
    told += found.regressions
    details = [f"{one}." for one in told[:_MOST_TOLD]] + details
    if len(told) > _MOST_TOLD:
        details.append(f"{units.many(len(told) - _MOST_TOLD, 'more regression')}.")
    if found.undecided:
        details.append(f"Undecided: {'; '.join(found.undecided)}.")
    if any(change.difference.verdict is Verdict.INCOMPARABLE for change in changes):
        details.append(
            "Where fewer runs of B completed, the rest of them is not said to be better."
        )
    criteria = Criteria()
    details.append(
        f"More and less are told where the median changes by more than "
        f"{criteria.threshold * 100:g} % and the rank test, corrected for all cells, tells the "
        "repeats apart."
    )
    alone = sum(change.difference.p <= criteria.alpha < change.difference.q for change in changes)
    if alone:
        details.append(
            f"{units.many(alone, 'difference')} of {len(changes):,} compared would count if each "
            "were the only one: more repeats would tell."
        )
    kind: Literal["good", "bad", "open"] = (
        "bad" if found.worse else "open" if found.undecided else "good"
    )
    return Answer(kind, f"B against A: {'; '.join(heads) or 'nothing to compare'}", tuple(details))


def _lost(pairs: Sequence[Pair], cells: str) -> list[str]:
    """Where memory was lost in one of them."""
    lost = sum(bool(p.second.stale_pages and not p.first.stale_pages) for p in pairs)
    mended = sum(bool(p.first.stale_pages and not p.second.stale_pages) for p in pairs)
    both = sum(bool(p.first.stale_pages and p.second.stale_pages) for p in pairs)
    words = (("new in", lost), ("gone from", mended), ("still in", both))
    return [f"stale pages {word} {number} {cells}" for word, number in words if number]


def _fails(cell: CellComparison) -> bool:
    """Whether runs of it fail that did not in A; lost memory is another matter."""
    lost = any("stale" in statuses[1] for statuses in (cell.statuses, cell.warm_up_statuses))
    return cell.completion.verdict is Verdict.WORSE or len(cell.regressions) > lost


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _extremes(changes: Sequence[Change]) -> list[str]:
    """The largest change of one measure to more, and that to less."""
    found = []
    for kind in ("more", "less"):
        able = [one for one in changes if one.kind == kind and one.difference.change is not None]
        if able:
            most = max(able, key=lambda one: abs(one.difference.change or 0.0))
            share = units.percent(abs(most.difference.change or 0.0))
            what = f"The largest change to {kind} {most.measure.short}"
            found.append(f"{what} is {share}, in {most.pair.name}.")
    return found


def change_plot(comparison: ComparedResults | None) -> Plot | None:
    """Plot each change in percent with its interval; None if nothing can be compared."""
    if comparison is None:
        return None
    pairs = comparison.pairs
    changes = [one for one in comparison.changes if one.difference.change is not None]
    if not changes:
        return None
    axis = row_axis([pair.name for pair in pairs])
    places = {id(pair): place for place, pair in enumerate(pairs)}
    rows = [_row(places[id(change.pair)], change) for change in changes]
    measures = dict.fromkeys(change.measure for change in changes)
    views: list[Spec] = [_view(measure, axis, len(pairs)) for measure in measures]
    is_range = any(change.difference.interval_kind == "range" for change in changes)
    return Plot(
        name="change",
        title="What changed from A to B",
        caption=(
            "Change of the median in % of A's, with its 95 % interval"
            + (", or the range of fewer than 6 repeats" if is_range else "")
            + ". Left of 0, B takes less; "
            "a grey circle is a change that the repeats do not tell, or too small to matter."
        ),
        spec={"vconcat": views, "spacing": 22},
        choices=(Choice("", "", {"changes": rows}),),
        margin=axis.extent + 30,
    )


def _row(index: int, change: Change) -> dict[str, Any]:
    difference, measure, pair = change.difference, change.measure, change.pair
    value = difference.change or 0.0
    low, high = difference.interval or (value, value)
    return {
        "measure": measure.key,
        "row": index,
        "value": round(value * 100, 3),
        "low": round(low * 100, 3),
        "high": round(high * 100, 3),
        "kind": _WORDS[change.kind],
        "cell": pair.name,
        "old": measure.say(difference.medians[0]),
        "new": measure.say(difference.medians[1]),
        "change": signed(value),
        "interval": interval_words(difference) or "none",
        "q": f"{difference.q:.2g}",
        "verdict": str(difference.verdict).replace("-", " "),
    }


def signed(share: float) -> str:
    """Write a change, with its sign."""
    return f"{'+' if share > 0 else ''}{units.percent(share)}"


def interval_words(difference: MetricDifference) -> str:
    """Write the interval of a change, or what there is in its place; empty for nothing."""
    if difference.interval is None:
        return ""
    low, high = difference.interval
    kind = "range " if difference.interval_kind == "range" else ""
    return f"{kind}{signed(low).removesuffix(' %')} to {signed(high)}"


def _view(measure: Measure, axis: Rows, rows: int) -> Spec:
    kinds = list(_WORDS.values())
    colours = {
        "field": "kind",
        "scale": {"domain": kinds, "range": [colour("good"), colour("bad"), colour("muted")]},
    }
    shapes = {
        "field": "kind",
        "scale": {"domain": kinds, "range": ["triangle-left", "triangle-right", "circle"]},
    }
    told = [
        {"field": "cell", "title": "Cell"},
        {"field": "old", "title": "A"},
        {"field": "new", "title": "B"},
        {"field": "change", "title": "Change"},
        {"field": "interval", "title": "95 % interval"},
        {"field": "q", "title": "Rank test, corrected"},
        {"field": "verdict", "title": "B is"},
    ]
    return {
        "title": f"{measure.title}, change in %",
        "height": max(34, axis.least) * rows,
        "data": {"name": "changes"},
        "transform": [{"filter": f"datum.measure === '{measure.key}'"}],
        "encoding": {
            "y": axis.encoding,
            "x": {
                "type": "quantitative",
                "title": None,
                "axis": {"format": "+,~r", "tickCount": 7, "labelOverlap": True},
            },
            "tooltip": told,
        },
        "layer": [
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "color": colour("ink"), "strokeDash": [3, 3]},
                "encoding": {"x": {"datum": 0}, "y": {"value": 0}, "y2": {"value": "height"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.7},
                "encoding": {"x": {"field": "low"}, "x2": {"field": "high"}, "color": colours},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 100, "opacity": 1},
                "encoding": {"x": {"field": "value"}, "color": colours, "shape": shapes},
            },
        ],
    }
