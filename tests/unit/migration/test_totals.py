"""What is made of QEMU's counts."""

from __future__ import annotations

from typing import Any

import pytest

from qemu_ring.migration import Totals
from qemu_ring.qmp import MigrationInfo

PAGES = 256


def totals(normal: int, zero: int, xbzrle: int = 0, **more: int) -> Totals:
    ram: dict[str, Any] = {
        "transferred": 1,
        "remaining": 0,
        "total": PAGES * 4096,
        "duplicate": zero,
        "normal": normal,
        "normal-bytes": normal * 4096,
        "dirty-pages-rate": 0,
        "mbps": 8.0,
        "dirty-sync-count": 3,
        "page-size": 4096,
    }
    cache = {"bytes": 7, "cache-size": 4096, "pages": xbzrle, "overflow": 0, "cache-miss": 2}
    whole = {"status": "completed", "ram": ram | more, "xbzrle-cache": cache}
    return Totals.of(MigrationInfo.model_validate(whole))


def test_pages_resent_are_what_is_sent_on_top_of_all_memory() -> None:
    assert totals(PAGES, 0).pages_resent == 0
    assert totals(PAGES, 44).pages_resent == 44
    assert totals(100, 200, xbzrle=56).pages_resent == 100


def test_less_than_all_memory_is_sent_where_some_is_shared() -> None:
    assert totals(10, 0).pages_resent == 0


@pytest.mark.parametrize(("written", "ratio"), [(200, 0.5), (50, 2.0), (0, None), (None, None)])
def test_pages_resent_for_each_page_written(written: int | None, ratio: float | None) -> None:
    assert totals(PAGES + 100, 0).resent_per_write(written) == ratio


def test_pages_absorbed_are_told_by_some_qemus() -> None:
    assert totals(PAGES, 0).pages_absorbed is None
    assert totals(PAGES, 0, **{"x-absorbed-pages": 0}).pages_absorbed == 0
