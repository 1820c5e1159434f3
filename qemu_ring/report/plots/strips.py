"""A measure by cell: every repeat as a mark, the median and its interval above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qemu_ring.experiment.results.record import RunRecord
from qemu_ring.report import units
from qemu_ring.report.plots.plot import Choice, Plot, Spec, row_axis
from qemu_ring.report.plots.theme import SERIES, colour
from qemu_ring.report.summary import Measure
from qemu_ring.statistics import median

__all__ = ["Row", "strip_plot"]

_EQUAL, _STALE = "every page arrived", "stale pages"
_BEYOND = 1.3  # how far beyond the largest value an interval is shown
_ROOM = 1.03  # beyond the largest value, for its mark
_LOG_FROM = 30  # largest by smallest value from which the axis is logarithmic


@dataclass(frozen=True, slots=True)
class Row:
    """A cell, or one that two experiments have in common.

    Args:
        name: in words.
        runs: of each experiment; empty where it does not have the cell.
    """

    name: str
    runs: tuple[Sequence[RunRecord], ...]


def strip_plot(rows: Sequence[Row], measure: Measure, sets: Sequence[str] = ("",)) -> Plot | None:
    """Plot a measure by cell; None if no run has it.

    Args:
        rows: from top to bottom.
        measure: what to plot.
        sets: names of the experiments, where there are two.
    """
    rows = [row for row in rows if any(measure.values(runs) for runs in row.runs)]
    if not rows:
        return None
    values = [value for row in rows for runs in row.runs for value in measure.values(runs)]
    unit = units.time_unit(max(values))
    is_log = min(values) > 0 and max(values) / min(values) > _LOG_FROM
    floor = unit.of(min(values)) * 0.8 if is_log else 0.0
    points, medians = [], []
    for index, row in enumerate(rows):
        for number, runs in enumerate(row.runs):
            lane = _Lane.of(index, number, len(sets))
            points += _points(row.name, runs, measure, unit, lane, sets[number])
            found = measure.values(runs)
            if found:
                medians.append(_median(row.name, found, unit, lane, sets[number], floor))
    is_range = any(one["interval"].startswith("range") for one in medians)
    furthest = max((one["high"] for one in medians), default=0.0)
    limit = unit.of(max(values)) * _BEYOND
    is_cut = furthest > limit
    most = min(max(furthest, unit.of(max(values)) * _ROOM), limit)
    axis = row_axis([row.name for row in rows])
    has_stale = any(point["outcome"] == _STALE for point in points)
    spec = {
        "height": max(46 if len(sets) == 1 else 68, axis.least) * len(rows),
        "encoding": {
            "y": axis.encoding,
            "x": _x(f"{measure.title} ({unit.symbol})", is_log=is_log, most=most),
        },
        "layer": _layers(measure, sets, has_stale=has_stale),
    }
    return Plot(
        name=measure.key,
        title=f"{measure.title} by cell",
        caption=(
            f"Each mark is one repeat{', a cross one with stale pages' if has_stale else ''}. "
            "The line above is the median with its 95 % interval"
            + (", or the range of fewer than 6 repeats." if is_range else ".")
            + (" The axis is logarithmic." if is_log else "")
            + (" A line that reaches the edge goes on beyond it." if is_cut else "")
        ),
        spec=spec,
        choices=(Choice("", "", {"points": points, "medians": medians}),),
        margin=axis.extent + 30,
    )


@dataclass(frozen=True, slots=True)
class _Lane:
    """Where in a row an experiment's marks are."""

    median: float
    points: float
    spread: float

    @classmethod
    def of(cls, row: int, number: int, lanes: int) -> _Lane:
        if lanes == 1:
            return cls(row - 0.2, row + 0.14, 0.12)
        middle = row + (-0.22 if number == 0 else 0.22)
        return cls(middle - 0.1, middle + 0.08, 0.06)


def _points(
    name: str,
    runs: Sequence[RunRecord],
    measure: Measure,
    unit: units.Unit,
    lane: _Lane,
    group: str,
) -> list[dict[str, Any]]:
    counted = [run for run in runs if measure.values([run])]
    points = []
    for place, run in enumerate(counted):
        (value,) = measure.values([run])
        migration = run.migration
        assert migration is not None
        shift = (place / (len(counted) - 1) * 2 - 1) if len(counted) > 1 else 0.0
        points.append(
            {
                "row": round(lane.points + shift * lane.spread, 3),
                "value": unit.of(value),
                "set": group,
                "outcome": _STALE if run.stale_pages else _EQUAL,
                "cell": name,
                "repeat": run.repeat,
                "time": units.seconds(migration.seconds),
                "downtime": units.seconds(migration.downtime_seconds),
                "qemu": units.seconds(migration.qemu_downtime_seconds),
                "sent": units.size(migration.bytes),
                "stale": units.count(run.stale_pages or 0),
            }
        )
    return points


def _median(
    name: str, values: Sequence[float], unit: units.Unit, lane: _Lane, group: str, floor: float
) -> dict[str, Any]:
    estimate = median(values)
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return {
        "row": lane.median,
        "value": unit.of(estimate.value),
        "low": max(unit.of(low), floor),
        "high": unit.of(high),
        "set": group,
        "cell": name,
        "median": units.seconds(estimate.value),
        "interval": units.interval(estimate) or "none, one repeat",
        "repeats": len(values),
    }


def _x(title: str, *, is_log: bool, most: float) -> Spec:
    scale: Spec = {"type": "log", "nice": False} if is_log else {"zero": True}
    scale["domainMax"] = most
    axis = {"tickCount": 6, "format": ",~r", "labelOverlap": True}
    return {"type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _layers(measure: Measure, sets: Sequence[str], *, has_stale: bool) -> list[Spec]:
    outcomes = [_EQUAL, _STALE] if has_stale else [_EQUAL]
    shape: Spec = {
        "field": "outcome",
        "scale": {"domain": outcomes, "range": ["circle", "cross"][: len(outcomes)]},
        "legend": {} if has_stale else None,
    }
    by_set: Spec = {
        "field": "set",
        "scale": {"domain": list(sets), "range": SERIES[: len(sets)]},
        "legend": {"symbolType": "square"},
    }
    by_outcome: Spec = {
        "field": "outcome",
        "scale": {"domain": outcomes, "range": [SERIES[0], colour("bad")][: len(outcomes)]},
        "legend": {} if has_stale else None,
    }
    is_two = len(sets) > 1
    ink: Spec = by_set if is_two else {"value": colour("ink")}
    told = [
        {"field": "cell", "title": "Cell"},
        {"field": "median", "title": f"Median {measure.short}"},
        {"field": "interval", "title": "95 % interval"},
        {"field": "repeats", "title": "Repeats"},
    ]
    return [
        {
            "data": {"name": "medians"},
            "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.55, "clip": True},
            "encoding": {
                "x": {"field": "low"},
                "x2": {"field": "high"},
                "color": ink,
                "tooltip": told,
            },
        },
        {
            "data": {"name": "medians"},
            "mark": {"type": "tick", "thickness": 3, "size": 14},
            "encoding": {"x": {"field": "value"}, "color": ink, "tooltip": told},
        },
        {
            "data": {"name": "points"},
            "mark": {"type": "point", "filled": True, "size": 62, "opacity": 0.85},
            "encoding": {
                "x": {"field": "value"},
                "shape": shape,
                "color": by_set if is_two else by_outcome,
                "tooltip": [
                    {"field": "cell", "title": "Cell"},
                    *([{"field": "set", "title": "Experiment"}] if is_two else []),
                    {"field": "repeat", "title": "Repeat"},
                    {"field": "time", "title": "Migration time"},
                    {"field": "downtime", "title": "Downtime"},
                    {"field": "qemu", "title": "QEMU's own figure"},
                    {"field": "sent", "title": "Sent"},
                    {"field": "stale", "title": "Stale pages"},
                ],
            },
        },
    ]
