"""`qemu-ring rings`: parsing and printing."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from qemu_ring.cli.frame.attached import ask, document, socket_argument
from qemu_ring.cli.frame.options import answer_timeout_option, json_option
from qemu_ring.cli.frame.output import notes, print_json
from qemu_ring.dirty import STALL_ADVICE, StallWatch, stall_message
from qemu_ring.errors import ExitStatus
from qemu_ring.memslot import DirtyRings, query_rings
from qemu_ring.qmp import Monitor

__all__ = ["rings"]

_LOOK_SECONDS: Final = 0.5
"""How long vCPUs are given to show that they do not run."""
_POLL_SECONDS: Final = 0.1


@click.command()
@socket_argument
@answer_timeout_option
@json_option
def rings(socket: str, as_json: bool) -> int:
    """Show a guest's dirty rings.

    Its QMP monitor is at SOCKET, a path, @NAME or HOST:PORT. Exits with 1 if a vCPU does not
    run because its ring is full, and stays full.
    """
    (found, stalled), qemu = ask(socket, _look)
    if as_json:
        print_json(document("rings", qemu, **found.model_dump(), stalled=stalled))
    else:
        _print(found)
    if stalled:
        notes.print(f"{stall_message(stalled)}; {STALL_ADVICE}", soft_wrap=True)
    return int(ExitStatus.BAD if stalled else ExitStatus.GOOD)


async def _look(monitor: Monitor) -> tuple[DirtyRings, tuple[int, ...]]:
    """Ask for the rings, and for the vCPUs that do not run."""
    found = await query_rings(monitor)
    stalled: tuple[int, ...] = ()
    if found.size:
        watch, deadline = StallWatch(), time.monotonic() + _LOOK_SECONDS
        await watch.poll(monitor)
        while not stalled and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            stalled = await watch.poll(monitor)
    return found, stalled


def _print(found: DirtyRings) -> None:
    console = Console(highlight=False)
    if not found.size:
        console.print("This guest tracks dirty pages by bitmap; it has no rings.")
        return
    console.print(f"{found.size} entries each{', with a bitmap' if found.with_bitmap else ''}")
    table = Table(box=None, pad_edge=False)
    for heading in ("vCPU", "fill", "", "reaped", "full", "overruns"):
        table.add_column(heading, justify="right")
    for ring in found.rings:
        share = f"{ring.fill / found.size:.0%}"
        counts = (ring.reaped, ring.full, ring.overruns)
        table.add_row(str(ring.cpu_index), str(ring.fill), share, *map(str, counts))
    console.print(table)
    if found.untrusted:
        console.print("KVM does not take back what was reaped: all memory counts as dirty.")
