"""What the commands share that look at a running guest through its QMP monitor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from qemu_ring.cli.running import run
from qemu_ring.machine import Machine, probe_host
from qemu_ring.qmp import Monitor

__all__ = ["ask", "document", "json_option", "socket_argument"]

T = TypeVar("T")

socket_argument = click.argument("socket", metavar="SOCKET")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def ask(socket: str, question: Callable[[Monitor], Awaitable[T]]) -> tuple[T, dict[str, object]]:
    """Attach to the monitor at a path or HOST:PORT, ask, and leave.

    Returns:
        the answer, and what QEMU it was.
    """

    async def attached() -> tuple[T, dict[str, object]]:
        host, colon, port = socket.rpartition(":")
        tcp = colon and port.isdecimal() and "/" not in socket
        address = (host, int(port)) if tcp else socket
        async with await Machine.attach(address, name=socket) as machine:
            version = ".".join(map(str, machine.monitor.version))
            qemu = {"version": version, "package": machine.monitor.package, "patched": True}
            return await question(machine.monitor), qemu

    return run(attached())


def document(name: str, qemu: dict[str, object], **content: object) -> dict[str, object]:
    """Make a JSON document of a command: its schema, host, QEMU and content."""
    schema = {"name": f"qemu-ring.{name}", "version": 1}
    return {"schema": schema, "host": probe_host().as_dict(), "qemu": qemu, **content}
