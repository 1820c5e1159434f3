"""Where in guest memory the stale pages were: a strip a cell, by address inside the block."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qemu_ring.report import units
from qemu_ring.report.plot import Choice, Plot, Rows, Spec, row_axis
from qemu_ring.report.results import PAGE_BYTES
from qemu_ring.report.summary import CellSummary
from qemu_ring.report.theme import HEAT, colour

__all__ = ["stale_map"]

_MOST_BINS = 128


def stale_map(cells: Sequence[CellSummary]) -> Plot | None:
    """Plot the stale pages of each block of memory by address; None if there were none.

    Results list the first 1000 stale pages of a run; more than those are not in the map.
    """
    bad = [cell for cell in cells if any(run.stale for run in cell.runs)]
    if not bad:
        return None
    blocks = _blocks(bad)
    axis = row_axis([cell.name for cell in bad])
    heat = [_heat(block, pages, bad) for block, pages in blocks.items()]
    rows = [row for found in heat for row in found]
    unlisted = sum(cell.stale_pages - sum(len(run.stale) for run in cell.runs) for cell in bad)
    shades = _shades(max(row["count"] for row in rows))
    for row in rows:
        row["shade"] = next(name for least, name in reversed(shades) if row["count"] >= least)
    return Plot(
        name="stale-pages",
        title="Where the stale pages were",
        caption=(
            "A strip is all of a block of guest memory, from its first page at the left; all runs "
            "of a cell together."
            + (
                f" {unlisted:,} further pages are counted, but not listed by the results."
                if unlisted > 0
                else ""
            )
        ),
        spec={
            "vconcat": [
                _view(block, pages, axis, shades, len(bad)) for block, pages in blocks.items()
            ],
            "spacing": 22,
        },
        choices=(Choice("", "", {"heat": rows, "blocks": _strips(blocks, len(bad))}),),
        margin=axis.extent + 30,
    )


def _blocks(cells: Sequence[CellSummary]) -> dict[str, int]:
    """Find the blocks with stale pages, and how many pages each has."""
    sizes: dict[str, int] = {}
    for cell in cells:
        for run in cell.runs:
            for page in run.stale:
                known = run.block_pages.get(page.block, 0)
                sizes[page.block] = max(sizes.get(page.block, 0), known, page.page + 1)
    return dict(sorted(sizes.items()))


def _heat(block: str, pages: int, cells: Sequence[CellSummary]) -> list[dict[str, Any]]:
    width = math.ceil(pages / _MOST_BINS)
    rows = []
    for row, cell in enumerate(cells):
        found = Counter(
            page.page // width for run in cell.runs for page in run.stale if page.block == block
        )
        for place, number in sorted(found.items()):
            first, last = place * width, min((place + 1) * width, pages) - 1
            rows.append(
                {
                    "block": block,
                    "row": row,
                    "top": row - 0.36,
                    "bottom": row + 0.36,
                    "from": first,
                    "to": last + 1,
                    "count": number,
                    "cell": cell.name,
                    "pages": f"{first:,}" if first == last else f"{first:,} to {last:,}",
                    "address": f"{first * PAGE_BYTES:#x} to {(last + 1) * PAGE_BYTES - 1:#x}",
                }
            )
    return rows


def _strips(blocks: dict[str, int], rows: int) -> list[dict[str, Any]]:
    return [
        {"block": block, "top": row - 0.36, "bottom": row + 0.36, "from": 0, "to": pages}
        for block, pages in blocks.items()
        for row in range(rows)
    ]


def _shades(most: int) -> list[tuple[int, str]]:
    """Choose the count at which each colour begins, and name its counts."""
    steps = len(HEAT)
    later = (
        range(2, most + 1)
        if most <= steps
        else sorted({max(2, math.ceil(most ** (step / steps))) for step in range(1, steps)})
    )
    edges = [1, *later]
    ends = [*(edge - 1 for edge in later), most]
    return [
        (least, f"{least:,}" if least == last else f"{least:,} to {last:,}")
        for least, last in zip(edges, ends, strict=True)
    ]


def _view(block: str, pages: int, axis: Rows, shades: Sequence[tuple[int, str]], rows: int) -> Spec:
    unit = units.size_unit(pages * PAGE_BYTES)
    per_unit = unit.factor / PAGE_BYTES
    row_y = {**axis.encoding, "field": "top"}
    span = {"x": {"field": "from", "type": "quantitative"}, "x2": {"field": "to"}}
    colours = {1: HEAT[2:3], 2: HEAT[1:4:2], 3: HEAT[1:4]}.get(len(shades), HEAT[: len(shades)])
    return {
        "title": f"{block}: {units.size(pages * PAGE_BYTES)}, {units.many(pages, 'page')}",
        "height": max(34, axis.least) * rows,
        "transform": [{"filter": {"field": "block", "equal": block}}],
        "encoding": {
            "x": {
                "type": "quantitative",
                "title": f"Offset in the block ({unit.symbol})",
                "scale": {"domain": [0, pages], "nice": False},
                "axis": {
                    "grid": False,
                    "values": _ticks(pages, per_unit),
                    "labelExpr": f"format(datum.value / {per_unit}, ',~r')",
                    "labelOverlap": True,
                },
            },
            "y": row_y,
            "y2": {"field": "bottom"},
        },
        "layer": [
            {
                "data": {"name": "blocks"},
                "mark": {"type": "rect", "color": colour("panel"), "stroke": colour("line")},
                "encoding": span,
            },
            {
                "data": {"name": "heat"},
                "mark": "rect",
                "encoding": {
                    **span,
                    "color": {
                        "field": "shade",
                        "type": "ordinal",
                        "scale": {"domain": [name for _, name in shades], "range": colours},
                        "legend": {"title": "Stale pages in one place", "symbolType": "square"},
                    },
                    "tooltip": [
                        {"field": "cell", "title": "Cell"},
                        {"field": "pages", "title": "Pages"},
                        {"field": "address", "title": "Offset"},
                        {"field": "count", "title": "Stale"},
                    ],
                },
            },
        ],
    }


def _ticks(pages: int, per_unit: float) -> list[float]:
    """Place about eight ticks at round offsets."""
    total = pages / per_unit
    step = 2.0 ** math.floor(math.log2(total / 4)) if total > 0 else 1.0
    return [place * step * per_unit for place in range(int(total / step) + 1)]
