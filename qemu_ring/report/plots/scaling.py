"""A measure against a numeric parameter, a line for each combination of the others."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qemu_ring.experiment.plan.parameters import Scalar
from qemu_ring.report import units
from qemu_ring.report.plots.plot import Choice, Plot, Spec, slug
from qemu_ring.report.plots.theme import SERIES, SHAPES
from qemu_ring.report.summary import CellSummary, Measure
from qemu_ring.statistics import median

__all__ = ["scaling_plots"]

_LOG_FROM = 8  # largest by smallest value of the parameter from which its axis is logarithmic
_BEYOND = 1.2  # how far beyond the largest value an interval is shown
_MOST_SERIES = len(SERIES)
_APART = 0.012  # of the axis, from one line's marks to the next one's


def scaling_plots(cells: Sequence[CellSummary], measures: Sequence[Measure]) -> list[Plot]:
    """Plot the measures, below each other, for each numeric parameter that varies."""
    measured = [cell for cell in cells if cell.measured]
    keys = dict.fromkeys(key for cell in measured for key in cell.cell.parameters)
    plots = []
    for key in keys:
        plot = _plot(key, [c for c in measured if _number(c, key) is not None], measures)
        if plot is not None:
            plots.append(plot)
    return plots


def _number(cell: CellSummary, key: str) -> int | float | None:
    value = cell.cell.parameters.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _plot(key: str, cells: Sequence[CellSummary], measures: Sequence[Measure]) -> Plot | None:
    values = sorted({value for cell in cells if (value := _number(cell, key)) is not None})
    if len(values) < 2:
        return None
    series = _series(key, cells)
    lines = {name: members for name, members in series.items() if len(members) > 1}
    shown = dict(list(lines.items())[:_MOST_SERIES])
    if not shown:
        return None
    names = list(shown)
    views, data = [], []
    for measure in measures:
        found = [v for members in shown.values() for c in members for v in c.values(measure)]
        if not found:
            continue
        unit = units.time_unit(max(found))
        views.append(_view(key, values, measure, unit, names, most=unit.of(max(found))))
        for number, (name, members) in enumerate(shown.items()):
            beside = _Beside.of(values, number - (len(shown) - 1) / 2)
            data += _points(key, name, members, measure, unit, beside)
    if not views:
        return None
    left_out = len(lines) - len(shown)
    return Plot(
        name=f"scaling-{slug(key)}",
        title=f"Scaling with {_words(key)}",
        caption=(
            "Lines join the medians; bars are their 95 % intervals (of fewer than 6 repeats, "
            "their range), small marks are the repeats."
            + (f" {left_out} more combinations are in the table." if left_out else "")
        ),
        spec={"vconcat": views, "spacing": 22},
        choices=(Choice("", "", {"points": data}),),
        margin=80,
    )


def _series(key: str, cells: Sequence[CellSummary]) -> dict[str, list[CellSummary]]:
    """Group cells that differ in this parameter alone, or in what follows from it."""
    others = dict.fromkeys(k for cell in cells for k in cell.cell.parameters if k != key)
    varying: list[str] = []
    for other in others:
        known = [key, *varying]
        if _varies(other, cells) and not any(_follows(other, one, cells) for one in known):
            varying.append(other)
    groups: dict[str, list[CellSummary]] = defaultdict(list)
    for cell in cells:
        parts = [_said(k, cell.cell.parameters.get(k)) for k in varying]
        groups[" · ".join(parts)].append(cell)
    return groups


def _varies(key: str, cells: Sequence[CellSummary]) -> bool:
    return len({cell.cell.parameters.get(key) for cell in cells}) > 1


def _follows(key: str, from_key: str, cells: Sequence[CellSummary]) -> bool:
    """Tell if one parameter's value is settled by another's, as a ring's name by its size."""
    found: dict[Scalar, set[Scalar]] = defaultdict(set)
    for cell in cells:
        found[cell.cell.parameters.get(from_key)].add(cell.cell.parameters.get(key))
    return all(len(values) == 1 for values in found.values())


def _words(key: str) -> str:
    words = key.replace("_", " ").replace(".", " ")
    return words.removesuffix(" bytes").removesuffix(" seconds")


def _said(key: str, value: Scalar) -> str:
    shown = units.parameter(key, value)
    if isinstance(value, str):
        return shown
    return f"{_words(key.rpartition('.')[2])} {shown}"


@dataclass(frozen=True, slots=True)
class _Beside:
    """Where a line's marks stand, beside those of the others at the same value."""

    is_log: bool
    shift: float

    @classmethod
    def of(cls, values: Sequence[float], place: float) -> _Beside:
        if _is_log(values):
            return cls(is_log=True, shift=(values[-1] / values[0]) ** (place * _APART))
        return cls(is_log=False, shift=(values[-1] - values[0]) * place * _APART)

    def at(self, value: float) -> float:
        return value * self.shift if self.is_log else value + self.shift


def _is_log(values: Sequence[float]) -> bool:
    return values[0] > 0 and values[-1] / values[0] >= _LOG_FROM


def _points(
    key: str,
    name: str,
    members: Sequence[CellSummary],
    measure: Measure,
    unit: units.Unit,
    beside: _Beside,
) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for cell in members:
        found = cell.values(measure)
        if not found:
            continue
        at = _number(cell, key)
        assert at is not None
        place = float(f"{beside.at(at):.6g}")
        shared = {"x": place, "series": name, "measure": measure.key, "cell": cell.name}
        estimate = median(found)
        low = estimate.value if estimate.low is None else estimate.low
        high = estimate.value if estimate.high is None else estimate.high
        points.append(
            {
                **shared,
                "median": unit.of(estimate.value),
                "low": unit.of(low),
                "high": unit.of(high),
                "shown": units.seconds(estimate.value),
                "interval": units.interval(estimate) or "none, one repeat",
                "at": units.parameter(key, at),
            }
        )
        points += [{**shared, "value": unit.of(value)} for value in found]
    return points


def _view(
    key: str,
    values: Sequence[float],
    measure: Measure,
    unit: units.Unit,
    names: Sequence[str],
    *,
    most: float,
) -> Spec:
    is_log = _is_log(values)
    labels = json.dumps([units.parameter(key, value) for value in values])
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "title": _words(key),
        "scale": {"type": "log", "base": 2, "nice": False, "padding": 14}
        if is_log
        else {"zero": False, "nice": False, "padding": 14},
        "axis": {
            "values": list(values),
            "labelExpr": f"{labels}[indexof({json.dumps(list(values))}, datum.value)]",
            "labelOverlap": True,
            "grid": False,
        },
    }
    y = {
        "type": "quantitative",
        "title": None,
        "scale": {"zero": True, "domainMax": most * _BEYOND},
        "axis": {"tickCount": 5, "format": ",~r", "minExtent": 44, "maxExtent": 44},
    }
    is_one = len(names) == 1
    domain = {"domain": list(names)}
    colours = {
        "field": "series",
        "scale": {**domain, "range": SERIES[: len(names)]},
        "legend": None if is_one else {},
    }
    shapes = {
        "field": "series",
        "scale": {**domain, "range": SHAPES[: len(names)]},
        "legend": None if is_one else {},
    }
    medians: Spec = {"filter": "isValid(datum.median)"}
    told = [
        {"field": "cell", "title": "Cell"},
        {"field": "at", "title": _words(key)},
        {"field": "shown", "title": f"Median {measure.short}"},
        {"field": "interval", "title": "95 % interval"},
    ]
    return {
        "title": f"{measure.title} ({unit.symbol})",
        "height": 210,
        "data": {"name": "points"},
        "transform": [{"filter": f"datum.measure === '{measure.key}'"}],
        "encoding": {"x": x, "color": colours},
        "layer": [
            {
                "mark": {"type": "point", "size": 18, "opacity": 0.5},
                "transform": [{"filter": "isValid(datum.value)"}],
                "encoding": {"y": {"field": "value", **y}},
            },
            {
                "transform": [medians],
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7, "clip": True},
                "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}},
            },
            {
                "transform": [medians],
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": {"field": "median", **y}},
            },
            {
                "transform": [medians],
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {"y": {"field": "median", **y}, "shape": shapes, "tooltip": told},
            },
        ],
    }
