"""What the timeline of one migration looks like: the plots, which data are put into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qemu_ring.report import units
from qemu_ring.report.plots.plot import Spec, zoom_x
from qemu_ring.report.plots.theme import SERIES, colour

__all__ = ["BANDWIDTH", "DIRTY", "Scales", "timeline_spec"]

BANDWIDTH: Final = "sent"
DIRTY: Final = "dirtied by the guest"


@dataclass(frozen=True, slots=True)
class Scales:
    """What all runs share: units, and if the ring's fill can be told as a share of its size."""

    rate: units.Unit
    size: units.Unit
    ring: Literal["", "share", "entries"]


def timeline_spec(
    scales: Scales, *, with_removals: bool, with_samples: bool, shapes: Sequence[str]
) -> Spec:
    """Describe the plots below each other, which share their x axis."""
    views = [_iterations_view()]
    if with_removals:
        views.append(_removals_view(shapes))
    views.append(_rates_view(scales))
    if with_samples:
        views.append(_remaining_view(scales))
    if scales.ring:
        views.append(_ring_view(scales))
    for number, view in enumerate(views):
        view["layer"][0]["params"] = [zoom_x(f"zoom{number}")]
        is_last = number == len(views) - 1
        view["encoding"] = {
            "x": {
                "type": "quantitative",
                "scale": {"nice": False, "zero": True},
                "axis": {
                    "title": "Seconds since the migration began" if is_last else None,
                    "labels": is_last,
                    "ticks": is_last,
                    "grid": False,
                    "tickCount": 8,
                    "format": ",~r",
                },
            }
        }
    return {
        "vconcat": views,
        "spacing": 14,
        "resolve": {"scale": {"x": "shared", "color": "independent", "shape": "independent"}},
    }


def _background() -> list[Spec]:
    told = [
        ("iteration", "Iteration"),
        ("took", "Took"),
        ("left", "Remaining as it began"),
        ("sent", "Sent"),
        ("rate", "Bandwidth"),
        ("dirty", "Dirty rate"),
        ("expected", "Expected downtime"),
        ("ring", "Ring full after"),
    ]
    span = {"x": {"field": "from"}, "x2": {"field": "to"}}
    return [
        {
            "data": {"name": "whole"},
            "mark": {"type": "rect", "color": colour("panel"), "opacity": 0.5, "clip": True},
            "encoding": span,
        },
        {
            "data": {"name": "bands"},
            "mark": {"type": "rect", "clip": True},
            "encoding": {
                **span,
                "fill": {
                    "condition": {"test": "datum.odd", "value": colour("line")},
                    "value": colour("panel"),
                },
                "opacity": {"value": 0.75},
                "tooltip": [{"field": field, "title": title} for field, title in told],
            },
        },
        {
            "data": {"name": "down"},
            "mark": {"type": "rect", "color": colour("bad"), "opacity": 0.35, "clip": True},
            "encoding": {**span, "tooltip": [{"field": "took", "title": "Downtime"}]},
        },
    ]


def _iterations_view() -> Spec:
    return {
        "title": "Iterations",
        "height": 18,
        "layer": [
            *_background(),
            {
                "data": {"name": "bands"},
                "mark": {"type": "text", "color": colour("ink"), "clip": True},
                "encoding": {
                    "x": {"field": "middle"},
                    "y": {"value": 9},
                    "text": {"field": "number"},
                },
            },
        ],
    }


def _removals_view(shapes: Sequence[str]) -> Spec:
    scale = {"domain": shapes, "range": [SERIES[n % len(SERIES)] for n in range(len(shapes))]}
    return {
        "title": "Memory slots removed",
        "height": max(18 * len(shapes), 24),
        "layer": [
            *_background(),
            {
                "data": {"name": "removals"},
                "mark": {"type": "tick", "thickness": 1.5, "clip": True, "bandSize": 14},
                "encoding": {
                    "x": {"field": "at"},
                    "y": {
                        "field": "shape",
                        "type": "nominal",
                        "scale": {"domain": shapes},
                        "axis": {
                            "title": None,
                            "ticks": False,
                            "grid": False,
                            "labelLimit": 56,
                            "minExtent": 44,
                        },
                    },
                    "color": {"field": "shape", "scale": scale, "legend": None},
                    "tooltip": [
                        {"field": "at", "title": "At (s)"},
                        {"field": "shape", "title": "Shape"},
                        {"field": "count", "title": "Removals"},
                    ],
                },
            },
        ],
    }


def _rates_view(scales: Scales) -> Spec:
    colours = {
        "field": "what",
        "scale": {"domain": [BANDWIDTH, DIRTY], "range": [SERIES[0], SERIES[1]]},
        "legend": {"symbolType": "stroke"},
    }
    return {
        "title": f"Rates ({scales.rate.symbol})",
        "height": 170,
        "layer": [
            *_background(),
            {
                "data": {"name": "samples"},
                "mark": {"type": "line", "color": SERIES[0], "strokeWidth": 1, "clip": True},
                "encoding": {"x": {"field": "at"}, "y": _y("bandwidth")},
            },
            {
                "data": {"name": "rates"},
                "mark": {"type": "rule", "strokeWidth": 3.5, "strokeCap": "butt", "clip": True},
                "encoding": {
                    "x": {"field": "from"},
                    "x2": {"field": "to"},
                    "y": _y("value"),
                    "color": colours,
                    "tooltip": [
                        {"field": "iteration", "title": "Iteration"},
                        {"field": "what", "title": "Rate"},
                        {"field": "shown", "title": "Value"},
                    ],
                },
            },
        ],
    }


def _remaining_view(scales: Scales) -> Spec:
    return _samples_view(
        f"Remaining ({scales.size.symbol})", "remaining", SERIES[2], 110, _y("remaining")
    )


def _ring_view(scales: Scales) -> Spec:
    y = _y("fill")
    if scales.ring == "share":
        y["axis"]["format"] = ".0%"
        y["scale"]["domain"] = [0, 1]
        view = _samples_view("Fullest dirty ring", "fill", SERIES[3], 90, y)
    else:
        view = _samples_view("Fullest dirty ring (entries)", "fill", SERIES[3], 90, y)
    view["layer"].append(
        {
            "data": {"name": "absent"},
            "mark": {"type": "text", "color": colour("muted"), "align": "left"},
            "encoding": {"x": {"value": 12}, "y": {"value": 45}, "text": {"field": "text"}},
        }
    )
    return view


def _samples_view(title: str, field: str, fill: str, height: int, y: Spec) -> Spec:
    return {
        "title": title,
        "height": height,
        "layer": [
            *_background(),
            {
                "data": {"name": "samples"},
                "mark": {
                    "type": "area",
                    "color": fill,
                    "fillOpacity": 0.25,
                    "line": {"color": fill, "strokeWidth": 1.5},
                    "clip": True,
                },
                "encoding": {
                    "x": {"field": "at"},
                    "y": y,
                    "tooltip": [
                        {"field": "at", "title": "At (s)"},
                        {"field": field, "title": title, "format": y["axis"]["format"]},
                    ],
                },
            },
        ],
    }


def _y(field: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"zero": True},
        "axis": {"title": None, "tickCount": 4, "format": ",~r", "minExtent": 44, "maxExtent": 44},
    }
