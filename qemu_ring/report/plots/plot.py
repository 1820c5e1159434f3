"""A plot: one Vega-Lite description, from which the page, the SVG and the PNG are made."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from qemu_ring.report.plots.theme import CONFIG

__all__ = [
    "ROW_LABEL_CHARACTERS",
    "SCHEMA",
    "WIDTH",
    "Choice",
    "Data",
    "Plot",
    "Rows",
    "Spec",
    "row_axis",
    "slug",
    "zoom_x",
]

Spec: TypeAlias = dict[str, Any]
Data: TypeAlias = dict[str, list[dict[str, Any]]]

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"
WIDTH: Final = 860  # pixels of a whole plot in a file, axes included; the page fits it to its own
ROW_LABEL_CHARACTERS: Final = 24
ROW_LABEL_LINES: Final = 3
_LINE_PIXELS: Final = 14


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sets of data that a plot can show.

    Args:
        name: for file names.
        label: for people.
        data: by the names that the description uses.
    """

    name: str
    label: str
    data: Data


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the report.

    Args:
        name: for file names.
        title: what it shows.
        caption: how to read it.
        spec: Vega-Lite, without data sets, configuration and widths.
        choices: the data; with several, the page lets the reader choose.
        margin: pixels beside the plotted area, for axes.
        files: names of the choices that are written as files.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    choices: tuple[Choice, ...]
    margin: int = 70
    files: frozenset[str] | None = None

    @property
    def frame(self) -> Spec:
        """The description that all choices share."""
        return {
            "$schema": SCHEMA,
            "config": CONFIG,
            "usermeta": {"margin": self.margin},
            **self.spec,
        }

    def drawings(self) -> Iterator[tuple[str, Spec]]:
        """Give the file name, without suffix, and the whole description of each drawing."""
        for choice in self.choices:
            if self.files is None or choice.name in self.files:
                name = f"{self.name}-{choice.name}" if choice.name else self.name
                spec = with_width(_without_tooltips(self.frame), WIDTH - self.margin)
                heading = {"text": self.title, "frame": "bounds", "fontSize": 16, "offset": 12}
                if choice.label:
                    heading["subtitle"] = choice.label
                data = _named_fields(spec, choice.data)
                yield name, {**spec, "title": heading, "datasets": data}


def _without_tooltips(spec: Any) -> Any:
    """A description for a file, in which nobody points at anything."""
    if isinstance(spec, dict):
        return {key: _without_tooltips(one) for key, one in spec.items() if key != "tooltip"}
    return [_without_tooltips(one) for one in spec] if isinstance(spec, list) else spec


def _named_fields(spec: Spec, data: Data) -> Data:
    """The data, without the fields that only tooltips show: most of it, where there are many."""
    text = json.dumps(spec)
    return {
        name: [{key: value for key, value in row.items() if key in text} for row in rows]
        for name, rows in data.items()
    }


def with_width(spec: Spec, width: int) -> Spec:
    """Give each view of a description the same plotted width, as the page's script does."""
    if "vconcat" in spec:
        return {**spec, "vconcat": [with_width(view, width) for view in spec["vconcat"]]}
    return {**spec, "width": width}


@dataclass(frozen=True, slots=True)
class Rows:
    """A y encoding with one named row for each whole number.

    It is quantitative, so that marks can be placed inside a row.

    Args:
        encoding: for Vega-Lite.
        extent: pixels of the labels.
        least: pixels that a row needs for its label.
    """

    encoding: Spec
    extent: int
    least: int


def row_axis(names: Sequence[str]) -> Rows:
    """Make the axis of these rows, from top to bottom."""
    lines = [
        textwrap.wrap(
            name,
            ROW_LABEL_CHARACTERS,
            max_lines=ROW_LABEL_LINES,
            placeholder=" …",
            break_on_hyphens=False,
        )
        or [""]
        for name in names
    ]
    longest = max((len(line) for label in lines for line in label), default=0)
    extent = int(longest * 6.4) + 16
    encoding = {
        "field": "row",
        "type": "quantitative",
        "scale": {"domain": [len(names) - 0.5, -0.5], "nice": False, "zero": False},
        "axis": {
            "values": list(range(len(names))),
            "labelExpr": f"{json.dumps(lines)}[datum.value]",
            "labelColor": CONFIG["legend"]["labelColor"],
            "labelLimit": extent,
            "labelLineHeight": _LINE_PIXELS,
            "labelOffset": {
                "condition": [
                    {
                        "test": f"length({json.dumps(lines)}[datum.value]) === {number}",
                        "value": -_LINE_PIXELS / 2 * (number - 1),
                    }
                    for number in range(2, ROW_LABEL_LINES + 1)
                ],
                "value": 0,
            },
            "maxExtent": extent,
            "minExtent": extent,
            "labelPadding": 8,
            "grid": False,
            "ticks": False,
            "title": None,
        },
    }
    most = max((len(label) for label in lines), default=1)
    return Rows(encoding, extent, most * _LINE_PIXELS + 8)


def zoom_x(name: str) -> Spec:
    """Let the reader drag along x, and zoom with shift and the wheel; a double click resets."""
    return {
        "name": name,
        "select": {"type": "interval", "encodings": ["x"], "zoom": "wheel![event.shiftKey]"},
        "bind": "scales",
    }


def slug(text: str, taken: Iterable[str] = ()) -> str:
    """Make a file name of words, one that is not taken."""
    base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "plot"
    name, number, used = base, 2, set(taken)
    while name in used:
        name, number = f"{base}-{number}", number + 1
    return name
