"""`qemu-ring slots`: parsing and printing."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from qemu_ring.cli.frame.attached import ask, document, socket_argument
from qemu_ring.cli.frame.options import answer_timeout_option, json_option
from qemu_ring.cli.frame.output import print_json
from qemu_ring.memslot import query_memslots

__all__ = ["slots"]


@click.command()
@socket_argument
@answer_timeout_option
@json_option
def slots(socket: str, as_json: bool) -> int:
    """List a guest's KVM memslots.

    Its QMP monitor is at SOCKET, a path, @NAME or HOST:PORT.
    """
    found, qemu = ask(socket, query_memslots)
    if as_json:
        print_json(document("slots", qemu, slots=[slot.model_dump() for slot in found]))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("space", "slot", "address", "size", "flags", "RAM block", "offset"):
        table.add_column(heading, justify="left" if heading in ("flags", "RAM block") else "right")
    for slot in found:
        flags = " ".join(
            word for word, there in (("log", slot.log_dirty), ("ro", slot.read_only)) if there
        )
        numbers = (f"{slot.address:#x}", f"{slot.size:#x}", flags, slot.ram_block or "")
        table.add_row(str(slot.as_id), str(slot.slot), *numbers, f"{slot.offset:#x}")
    Console(highlight=False).print(table)
    return 0
