"""Turns a page into HTML, and its plots into SVG and PNG.

It needs what the extra `report` installs, so nothing may import it before a report is wanted.
"""

from __future__ import annotations

import json
import math
import re
from importlib import resources

import jinja2
import vl_convert

from qemu_ring import __version__
from qemu_ring.report import units
from qemu_ring.report.page import Page
from qemu_ring.report.plots.plot import Spec
from qemu_ring.report.plots.theme import DARK, LIGHT

__all__ = ["drawings", "html", "svg"]

_PNG_SCALE = 2.0
_MOST_PIXELS = 4e6
_SIZE = re.compile(r'<svg[^>]* width="([\d.]+)"[^>]* height="([\d.]+)"')


def html(page: Page) -> str:
    """Make the page: one document that fetches nothing."""
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
    return environment.get_template("report.html.j2").render(
        page=page,
        version=__version__,
        light=LIGHT,
        dark=DARK,
        plots=_embedded(plots),
        script=_script() if page.plots else "",
    )


def drawings(page: Page) -> dict[str, bytes]:
    """Draw each plot, in light colours; the result is by file name."""
    files = {}
    for plot in page.plots:
        for name, spec in plot.drawings():
            drawing = svg(spec)
            files[f"{name}.svg"] = drawing.encode()
            files[f"{name}.png"] = vl_convert.svg_to_png(drawing, scale=_png_scale(drawing))
    return files


def _png_scale(drawing: str) -> float:
    """Twice the size, but no larger than can be drawn in little memory."""
    found = _SIZE.search(drawing)
    assert found is not None
    pixels = float(found[1]) * float(found[2])
    return min(_PNG_SCALE, math.sqrt(_MOST_PIXELS / pixels))


def svg(spec: Spec) -> str:
    """Draw a Vega-Lite description, whose colours are the theme's, in light colours."""
    text = json.dumps({**spec, "background": LIGHT["page"]})
    for name, value in LIGHT.items():
        text = text.replace(f"var(--{name})", value)
    drawing: str = vl_convert.vegalite_to_svg(json.loads(text))
    return drawing


def _script() -> str:
    """Bundle Vega and its parts with the page's own script."""
    bundle = vl_convert.javascript_bundle(_text("report.js"))
    return f"(() => {{{bundle}\n}})();".replace("</script", "<\\/script")


def _embedded(value: object) -> str:
    """Write JSON that can stand in a script element: no `<` that could end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c")


def _text(name: str) -> str:
    return (resources.files("qemu_ring.report") / name).read_text(encoding="utf-8")
