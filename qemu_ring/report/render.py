"""Turns a page into HTML.

It needs what the extra `report` installs, so nothing may import it before a report is wanted.
"""

from __future__ import annotations

import json

import jinja2

from qemu_ring import __version__
from qemu_ring.report import units
from qemu_ring.report.page import Page
from qemu_ring.report.plots.theme import DARK, LIGHT

__all__ = ["html"]

_SCRIPT = "/* script */"


def html(page: Page) -> tuple[str, str]:
    """Make the page, one document that fetches nothing: what is before its script, and after it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qemu_ring.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["moment"] = units.moment
    plots = {
        plot.name: {
            "spec": plot.frame,
            "choices": [{"label": one.label, "data": one.data} for one in plot.choices],
        }
        for plot in page.plots
    }
    text = environment.get_template("report.html.j2").render(
        page=page,
        version=__version__,
        light=LIGHT,
        dark=DARK,
        plots=_embedded(plots),
        script=_SCRIPT,
    )
    before, _, after = text.rpartition(_SCRIPT) if page.plots else (text, "", "")
    return before, after


def _embedded(value: object) -> str:
    """Write JSON that can stand in a script element: no `<` that could end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c")
