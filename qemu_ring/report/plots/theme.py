"""Colours and type: one palette for paper and light screens, one for dark ones.

Plots name a colour as `var(--name)`. In the page that is a CSS variable, so that plots follow
light, dark and print without being drawn again; in a file it is replaced by the light colour.
The series are told apart with any kind of colour vision (after Paul Tol), and by shape as well.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["CONFIG", "DARK", "HEAT", "LIGHT", "SERIES", "SHAPES", "colour"]

LIGHT: Final = {
    "page": "#ffffff",
    "panel": "#f4f6f8",
    "ink": "#1b2127",
    "muted": "#5a6672",
    "line": "#d5dbe1",
    "link": "#0a5ea8",
    "good": "#00705f",
    "bad": "#b3260f",
    "open": "#6b5200",
    "s0": "#0072b2",
    "s1": "#d9661f",
    "s2": "#00806c",
    "s3": "#c42a6b",
    "s4": "#2a9fd6",
    "s5": "#7a6a00",
    "heat1": "#f6c9a4",
    "heat2": "#ee9a5f",
    "heat3": "#d9662b",
    "heat4": "#ab3a12",
    "heat5": "#661a05",
}
DARK: Final = {
    "page": "#14181c",
    "panel": "#1e242a",
    "ink": "#e8ecf0",
    "muted": "#a3afba",
    "line": "#39434d",
    "link": "#7cbcf2",
    "good": "#3fcfb4",
    "bad": "#ff8a73",
    "open": "#e2c25c",
    "s0": "#5eb0f0",
    "s1": "#f39a5b",
    "s2": "#37c9b0",
    "s3": "#f17bab",
    "s4": "#a5dbfa",
    "s5": "#dccb5a",
    "heat1": "#5c2a14",
    "heat2": "#94471f",
    "heat3": "#cf6d32",
    "heat4": "#f4a66c",
    "heat5": "#fde3c8",
}


def colour(name: str) -> str:
    """Name a colour of the palette, for a plot."""
    assert name in LIGHT
    return f"var(--{name})"


SERIES: Final = [colour(f"s{n}") for n in range(6)]
SHAPES: Final = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"]
HEAT: Final = [colour(f"heat{n}") for n in range(1, 6)]

_FONT: Final = "Arial, Helvetica, Liberation Sans, sans-serif"
CONFIG: Final[dict[str, Any]] = {
    "font": _FONT,
    "background": None,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "domain": False,
        "gridColor": colour("line"),
        "gridWidth": 1,
        "labelColor": colour("muted"),
        "labelFontSize": 12,
        "tickColor": colour("line"),
        "titleColor": colour("muted"),
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {
        "orient": "top",
        "labelColor": colour("ink"),
        "labelFontSize": 12,
        "labelLimit": 320,
        "symbolBaseFillColor": colour("muted"),
        "symbolBaseStrokeColor": colour("muted"),
        "symbolOpacity": 1,
        "symbolSize": 90,
        "symbolStrokeWidth": 2,
        "title": None,
        "titleColor": colour("muted"),
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "offset": 6,
    },
    "title": {
        "anchor": "start",
        "frame": "group",
        "color": colour("ink"),
        "fontSize": 13,
        "fontWeight": "bold",
        "subtitleColor": colour("muted"),
        "subtitleFontSize": 13,
        "subtitlePadding": 5,
        "offset": 8,
    },
}
