"""Where in guest memory the stale pages were: a strip a cell, by address inside the block."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from qemu_ring.experiment.results.record import RunRecord
from qemu_ring.report import units
from qemu_ring.report.plots.plot import Choice, Plot, Rows, Spec, row_axis
from qemu_ring.report.plots.theme import HEAT, colour
from qemu_ring.report.summary import CellSummary

__all__ = ["stale_map"]

PAGE_BYTES = 4096
_MOST_BINS = 128


def stale_map(cells: Sequence[CellSummary]) -> Plot | None:
    """Plot the stale pages of each block of memory by address; None if there were none.

    Results count the stale pages in each place. Those of earlier versions list the first 1000 of a
    run instead; what lies above the last of them is marked as not known.
    """
    bad = [cell for cell in cells if any(run.stale or run.stale_places for run in cell.runs)]
    if not bad:
        return None
    blocks = _blocks(bad)
    axis = row_axis([cell.name for cell in bad])
    heat = [_heat(block, pages, bad) for block, pages in blocks.items()]
    rows = [row for found in heat for row in found]
    unlisted = sum(
        (run.stale_pages or 0) - len(run.stale)
        for cell in bad
        for run in cell.runs
        if not run.stale_places
    )
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
                f" {unlisted:,} further pages are counted, but not listed by the results, which "
                "have the first 1,000 of a run: they are where the dotted line is."
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
        choices=(
            Choice(
                "",
                "",
                {
                    "heat": rows,
                    "blocks": _strips(blocks, len(bad)),
                    "unknown": list(_unknown(blocks, bad)),
                },
            ),
        ),
        margin=axis.extent + 30,
    )


def _blocks(cells: Sequence[CellSummary]) -> dict[str, int]:
    """Find the blocks with stale pages, and how many pages each has."""
    sizes: dict[str, int] = {}
    for cell in cells:
        for run in cell.runs:
            for name in run.stale_places:
                sizes[name] = max(sizes.get(name, 0), run.block_pages.get(name, 1))
            for page in run.stale:
                known = run.block_pages.get(page.block, 0)
                sizes[page.block] = max(sizes.get(page.block, 0), known, page.page + 1)
    return dict(sorted(sizes.items()))


def _heat(block: str, pages: int, cells: Sequence[CellSummary]) -> list[dict[str, Any]]:
    width = math.ceil(pages / _MOST_BINS)
    rows = []
    for row, cell in enumerate(cells):
        found = sum((_places(run, block, width) for run in cell.runs), Counter[int]())
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


def _places(run: RunRecord, block: str, width: int) -> Counter[int]:
    """Count a run's stale pages in places of so many pages."""
    if not run.stale_places:
        return Counter(page.page // width for page in run.stale if page.block == block)
    counted = run.stale_places.get(block, ())
    pages = math.ceil(run.block_pages.get(block, 1) / max(len(counted), 1))
    found: Counter[int] = Counter()
    for place, number in enumerate(counted):
        if number:
            found[place * pages // width] += number
    return found


def _unknown(blocks: dict[str, int], cells: Sequence[CellSummary]) -> Iterator[dict[str, Any]]:
    """The parts of which not every run tells, for it listed no more pages."""
    for row, cell in enumerate(cells):
        for block, pages in blocks.items():
            begin = min((_known(run, block, pages) for run in cell.runs), default=pages)
            if begin < pages:
                yield {"block": block, "row": row, "middle": row, "from": begin, "to": pages}


def _known(run: RunRecord, block: str, pages: int) -> int:
    """From the block's first page on, how many of them the list of stale pages tells of."""
    if run.stale_places or len(run.stale) >= (run.stale_pages or 0):
        return pages
    if not run.stale:
        return 0
    last, order = run.stale[-1], list(run.block_pages)
    if block == last.block:
        return last.page + 1
    listed = block in order and last.block in order
    return pages if listed and order.index(block) < order.index(last.block) else 0


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
                "data": {"name": "unknown"},
                "mark": {"type": "rule", "color": colour("muted"), "strokeDash": [2, 4]},
                "encoding": {**span, "y": {**row_y, "field": "middle"}, "y2": None},
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
