"""Two experiments side by side: which cells they have in common, and what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qemu_ring.report import units
from qemu_ring.report.plot import Choice, Plot, Rows, Spec, row_axis
from qemu_ring.report.results import Scalar
from qemu_ring.report.statistics import (
    ALPHA,
    THRESHOLD,
    Difference,
    Estimate,
    difference,
    false_discovery,
)
from qemu_ring.report.summary import CellSummary, Measure
from qemu_ring.report.theme import colour
from qemu_ring.report.verdict import Answer

__all__ = ["Change", "Pair", "change_plot", "compare_answer", "compare_pairs", "pair_cells"]

_WORDS = {"less": "takes less", "more": "takes more", "unclear": "no clear change"}


@dataclass(frozen=True)
class Pair:
    """A cell that both experiments have."""

    name: str
    first: CellSummary
    second: CellSummary


@dataclass(frozen=True)
class Change:
    """How much more of something the second takes than the first.

    Args:
        pair: the cell.
        measure: of what.
        difference: how much.
        q: the rank test's p, corrected for all comparisons made.
    """

    pair: Pair
    measure: Measure
    difference: Difference
    q: float

    @property
    def share(self) -> Estimate:
        """The change as a share of the first's median."""
        share = self.difference.share
        assert share is not None  # compare_pairs leaves out those that have none
        return share

    @property
    def kind(self) -> Literal["less", "more", "unclear"]:
        """Which way it changed, if the repeats tell, and by enough to matter."""
        if self.q > ALPHA or abs(self.share.value) <= THRESHOLD:
            return "unclear"
        return "less" if self.share.value < 0 else "more"


def compare_pairs(pairs: Sequence[Pair], measures: Sequence[Measure]) -> list[Change]:
    """Compare the measures of each cell that both have, by measure and cell."""
    found = []
    for measure in measures:
        for pair in pairs:
            old, new = pair.first.values(measure), pair.second.values(measure)
            if old and new:
                found.append((pair, measure, difference(new, old)))
    corrected = false_discovery([gap.p for _, _, gap in found])
    return [
        Change(pair, measure, gap, q)
        for (pair, measure, gap), q in zip(found, corrected, strict=True)
        if gap.share is not None
    ]


def pair_cells(first: Sequence[CellSummary], second: Sequence[CellSummary]) -> list[Pair]:
    """Pair the cells with the same parameters.

    What is the same in all of one experiment's cells and in all of the other's, but not in both,
    such as the QEMU that each was run with, is what they are compared for, and sets no cells
    apart.
    """
    ignored = _settled_apart(_parameters(first), _parameters(second))
    wanted = {_key(cell, ignored): cell for cell in second}
    pairs = []
    for cell in first:
        other = wanted.get(_key(cell, ignored))
        if other is not None:
            pairs.append(Pair(cell.name, cell, other))
    return pairs


def _parameters(cells: Sequence[CellSummary]) -> list[Mapping[str, Scalar]]:
    return [cell.cell.parameters for cell in cells]


def _settled_apart(
    first: Sequence[Mapping[str, Scalar]], second: Sequence[Mapping[str, Scalar]]
) -> set[str]:
    keys = {key for parameters in (*first, *second) for key in parameters}
    found = set()
    for key in keys:
        here, there = {p.get(key) for p in first}, {p.get(key) for p in second}
        if len(here) == len(there) == 1 and here != there:
            found.add(key)
    return found


def _key(cell: CellSummary, ignored: set[str]) -> tuple[tuple[str, str], ...]:
    parameters = cell.cell.parameters.items()
    return tuple(sorted((key, repr(value)) for key, value in parameters if key not in ignored))


def compare_answer(pairs: Sequence[Pair], changes: Sequence[Change], unmatched: int) -> Answer:
    """Say in which cells B takes more or less than A, and if it lost memory that A did not.

    Args:
        pairs: the cells that both have.
        changes: what `compare_pairs` says of them.
        unmatched: cells that only one has.
    """
    if not pairs:
        return Answer("open", "A and B have no cell in common")
    heads, details = [], []
    lost = [p.name for p in pairs if p.second.stale_pages and not p.first.stale_pages]
    mended = [p.name for p in pairs if p.first.stale_pages and not p.second.stale_pages]
    both = [p.name for p in pairs if p.first.stale_pages and p.second.stale_pages]
    cells = f"of {units.many(len(pairs), 'cell')}"
    for word, found in (("new in", lost), ("gone from", mended), ("still in", both)):
        if found:
            heads.append(f"stale pages {word} {len(found)} {cells}")
    broken = [p.name for p in pairs if _completes(p.first) and not _completes(p.second)]
    if broken:
        heads.append(f"no run completes any more in {len(broken)} {cells}")
    same = []
    for measure in dict.fromkeys(change.measure for change in changes):
        mine = [change for change in changes if change.measure is measure]
        by_word = {word: [one for one in mine if one.kind == word] for word in ("more", "less")}
        parts = [f"{word} in {len(found)}" for word, found in by_word.items() if found]
        if parts:
            heads.append(f"{measure.short}: {', '.join(parts)} {cells}")
        else:
            same.append(measure.short)
        extremes = (("more", max), ("less", min))
        details += [_extreme(by_word[w], choose) for w, choose in extremes if by_word[w]]
    if same:
        heads.append(f"no clear change of {_and(same)}")
    if unmatched:
        left_out = units.many(unmatched, "cell")
        details.append(f"Left out because the other does not have them: {left_out}.")
    is_blind = not any(change.difference.can_be_told for change in changes)
    if is_blind:
        details.append("There are too few repeats for any difference to be told.")
    details.append(
        f"More and less are told where the median changes by more than {THRESHOLD * 100:g} % and "
        "the rank test, corrected for all comparisons, tells the repeats apart."
    )
    alone = sum(change.difference.p <= ALPHA < change.q for change in changes)
    if alone:
        details.append(
            f"{units.many(alone, 'difference')} of {len(changes):,} compared would count if each "
            "were the only one: more repeats would tell."
        )
    is_worse = lost or both or broken or any(change.kind == "more" for change in changes)
    kind: Literal["good", "bad", "open"] = "bad" if is_worse else "open" if is_blind else "good"
    return Answer(kind, f"B against A: {'; '.join(heads)}", tuple(details))


def _completes(cell: CellSummary) -> bool:
    return any(run.is_completed and not run.warm_up for run in cell.runs)


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _extreme(changes: Sequence[Change], choose: Callable[..., Change]) -> str:
    change = choose(changes, key=lambda one: one.share.value)
    direction = "more" if change.share.value > 0 else "less"
    share = units.percent(abs(change.share.value))
    return (
        f"The largest change to {direction} {change.measure.short} is {share}, "
        f"in {change.pair.name}."
    )


def change_plot(pairs: Sequence[Pair], changes: Sequence[Change]) -> Plot | None:
    """Plot each change in percent with its interval; None if nothing can be compared."""
    if not changes:
        return None
    axis = row_axis([pair.name for pair in pairs])
    places = {id(pair): place for place, pair in enumerate(pairs)}
    rows = [_row(places[id(change.pair)], change) for change in changes]
    measures = dict.fromkeys(change.measure for change in changes)
    views: list[Spec] = [_view(measure, axis, len(pairs)) for measure in measures]
    return Plot(
        name="change",
        title="What changed from A to B",
        caption=(
            "Change of the median in % of A's, with its 95 % interval. Left of 0, B takes less; "
            "a grey circle is a change that the repeats do not tell, or too small to matter."
        ),
        spec={"vconcat": views, "spacing": 22},
        choices=(Choice("", "", {"changes": rows}),),
        margin=axis.extent + 30,
    )


def _row(index: int, change: Change) -> dict[str, Any]:
    share, measure, pair = change.share, change.measure, change.pair
    low = share.value if share.low is None else share.low
    high = share.value if share.high is None else share.high
    old, new = pair.first.estimate(measure), pair.second.estimate(measure)
    return {
        "measure": measure.key,
        "row": index,
        "value": round(share.value * 100, 3),
        "low": round(low * 100, 3),
        "high": round(high * 100, 3),
        "kind": _WORDS[change.kind],
        "cell": pair.name,
        "old": measure.say(old.value if old else None),
        "new": measure.say(new.value if new else None),
        "change": measure.say(change.difference.absolute.value),
        "interval": measure.interval(change.difference.absolute) or "none, one repeat",
        "q": f"{change.q:.2g}",
    }


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
        {"field": "change", "title": "B less A"},
        {"field": "interval", "title": "95 % interval"},
        {"field": "q", "title": "Rank test, corrected"},
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
