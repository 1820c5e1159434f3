"""What the commands share that look at a running guest through its QMP monitor."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import click
from rich.text import Text

from qemu_ring.cli.frame.output import notes
from qemu_ring.cli.frame.running import run
from qemu_ring.machine import (
    Machine,
    RunningBinary,
    probe_host,
    serving_binary,
)
from qemu_ring.qmp import Address, ConnectError, Monitor, parse_address, unix_name

__all__ = ["Attached", "ask", "attached", "document", "socket_argument"]

T = TypeVar("T")
_REMARK_SECONDS = 5.0

socket_argument = click.argument("socket", metavar="SOCKET")


@dataclass(frozen=True, slots=True)
class Attached:
    """A guest that runs, and what is known of its QEMU.

    Args:
        machine: to ask and to drive.
        qemu: for a JSON document.
    """

    machine: Machine
    qemu: dict[str, object]


@asynccontextmanager
async def attached(where: str, name: str | None = None) -> AsyncIterator[Attached]:
    """Attach to the monitor at a path, @NAME or HOST:PORT, and leave it.

    Args:
        where: so the user named it.
        name: what to call the guest in errors; None for `where`.
    """
    address = await _connected(where)
    timer = asyncio.get_running_loop().call_later(_REMARK_SECONDS, _tell_of_waiting, where)
    try:
        machine = await Machine.attach(address, name=name or where, again=parse_address(where))
    except ConnectError as error:
        message = error.message.removeprefix(f"{where}: ").replace("a given socket", where)
        told = ConnectError(message, hint=error.hint)
        told.exit_status = error.exit_status
        raise told from error
    finally:
        timer.cancel()
    async with machine:
        binary = None
        if isinstance(address, sockets.socket):
            binary = await serving_binary(address)
        yield Attached(machine, await _qemu_behind(machine.monitor, binary))


def _tell_of_waiting(where: str) -> None:
    words = f"qemu-ring: {where} does not answer yet; another client may hold that monitor"
    notes.print(Text(words), soft_wrap=True)


def ask(socket: str, question: Callable[[Monitor], Awaitable[T]]) -> tuple[T, dict[str, object]]:
    """Attach to the monitor at a path, @NAME or HOST:PORT, ask, and leave.

    Returns:
        the answer, and what QEMU it was.
    """

    async def answered() -> tuple[T, dict[str, object]]:
        async with attached(socket) as guest:
            return await question(guest.machine.monitor), guest.qemu

    return run(answered())


async def _qemu_behind(monitor: Monitor, binary: RunningBinary | None = None) -> dict[str, object]:
    """What QEMU a monitor is of, for a JSON document; its path and digest are null if unknown."""
    return {
        "path": None if binary is None else str(binary.path),
        "version": ".".join(map(str, monitor.version)),
        "package": monitor.package,
        "patched": (await monitor.schema()).has_command("x-query-memslot-flush"),
        "sha256": None if binary is None else binary.sha256,
    }


async def _connected(where: str) -> Address:
    """A unix socket that is connected; whatever else, or is none, is for the monitor to tell."""
    address = parse_address(where)
    if not isinstance(address, str):
        return address
    client = sockets.socket(sockets.AF_UNIX)
    try:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, unix_name(address))
    except OSError:
        client.close()
        return address
    except BaseException:
        client.close()
        raise
    return client


def document(name: str, qemu: dict[str, object], **content: object) -> dict[str, object]:
    """Make a JSON document of a command: its schema, host, QEMU and content."""
    schema = {"name": f"qemu-ring.{name}", "version": 1}
    return {"schema": schema, "host": probe_host().as_dict(), "qemu": qemu, **content}
