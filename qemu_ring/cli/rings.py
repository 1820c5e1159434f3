"""`qemu-ring rings`: parsing and printing."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from qemu_ring.cli.attached import ask, document, json_option, socket_argument
from qemu_ring.cli.output import print_json
from qemu_ring.memslot import query_rings

__all__ = ["rings"]


@click.command()
@socket_argument
@json_option
def rings(socket: str, as_json: bool) -> int:
    """Show a guest's dirty rings.

    Its QMP monitor is at SOCKET, a path, @NAME or HOST:PORT.
    """
    found, qemu = ask(socket, query_rings)
    if as_json:
        print_json(document("rings", qemu, **found.model_dump()))
        return 0
    console = Console(highlight=False)
    if not found.size:
        console.print("This guest tracks dirty pages by bitmap; it has no rings.")
        return 0
    console.print(f"{found.size} entries each{', with a bitmap' if found.with_bitmap else ''}")
    table = Table(box=None, pad_edge=False)
    for heading in ("vCPU", "fill", "", "reaped", "full"):
        table.add_column(heading, justify="right")
    for ring in found.rings:
        share = f"{ring.fill / found.size:.0%}"
        table.add_row(str(ring.cpu_index), str(ring.fill), share, str(ring.reaped), str(ring.full))
    console.print(table)
    if found.reset_failures:
        console.print(f"KVM failed to reset them {found.reset_failures:,} times.")
    return 0
