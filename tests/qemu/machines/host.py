"""What a host has, or lacks, for the machines."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from tests.qemu.machines.cells import Cell
from tests.qemu.machines.programs import OVMF
from tests.waiting import until

HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
HUGE_PAGES_NEEDED = 48
_HUGE_PAGES_SECONDS = 600.0


def has_huge_pages() -> bool:
    """Whether there are 2 MiB pages for a guest on both sides."""
    try:
        return int(HUGE_PAGES.read_text()) >= HUGE_PAGES_NEEDED
    except FileNotFoundError:
        return False


@asynccontextmanager
async def huge_pages() -> AsyncIterator[None]:
    """The host's few 2 MiB pages, for one machine at a time."""
    with (Path(tempfile.gettempdir()) / "qemu-ring-huge-pages").open("w") as file:
        await until(lambda: _locked(file), "2 MiB pages to spare", seconds=_HUGE_PAGES_SECONDS)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lacks(cell: Cell) -> str | None:
    """Why a cell cannot be tried here; None where it can."""
    if cell.net.needs_root and (os.geteuid() != 0 or shutil.which("ip") is None):
        return "a tap device takes root, and iproute2"
    if cell.board.flash and not cell.program.driven and not OVMF.exists():
        return "OVMF is not installed (ovmf)"
    return None
