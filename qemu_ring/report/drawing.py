"""Turns plots into SVG and PNG, and bundles what draws them in the page.

It needs what the extra `report` installs, so nothing may import it before a report is wanted. Vega
runs in an engine that takes 150 MiB and gives none back.
"""

from __future__ import annotations

import json
import math
import re
from importlib import resources

import vl_convert

from qemu_ring.report.plots.plot import Spec
from qemu_ring.report.plots.theme import LIGHT

__all__ = ["png", "script", "svg"]

_PNG_SCALE = 2.0
_MOST_PIXELS = 4e6
_SIZE = re.compile(r'<svg[^>]* width="([\d.]+)"[^>]* height="([\d.]+)"')


def svg(spec: Spec) -> str:
    """Draw a Vega-Lite description, whose colours are the theme's, in light colours."""
    text = json.dumps({**spec, "background": LIGHT["page"]})
    for name, value in LIGHT.items():
        text = text.replace(f"var(--{name})", value)
    drawing: str = vl_convert.vegalite_to_svg(json.loads(text))
    return drawing


def png(drawing: str) -> bytes:
    """The same as pixels: twice the size, but no larger than can be drawn in little memory."""
    found = _SIZE.search(drawing)
    assert found is not None
    pixels = float(found[1]) * float(found[2])
    scale = min(_PNG_SCALE, math.sqrt(_MOST_PIXELS / pixels))
    content: bytes = vl_convert.svg_to_png(drawing, scale=scale)
    return content


def script() -> str:
    """Bundle Vega and its parts with the page's own script."""
    own = (resources.files("qemu_ring.report") / "report.js").read_text(encoding="utf-8")
    bundle = vl_convert.javascript_bundle(own)
    return f"(() => {{{bundle}\n}})();".replace("</script", "<\\/script")
