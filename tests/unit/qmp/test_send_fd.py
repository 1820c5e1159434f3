"""Monitor.send_fd: descriptors arrive where they are named, and harm no other command."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from qemu_ring.qmp import DisconnectedError, Monitor, QmpError

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer


async def test_send_fd(qemu: FakeQemu) -> None:
    """Every descriptor arrives right before the getfd that names it, however many send at once."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    named: dict[str, int] = {}

    async def receive() -> tuple[dict[str, object], list[int]]:
        readable = asyncio.Event()
        loop.add_reader(theirs, readable.set)
        await asyncio.wait_for(readable.wait(), 10)
        loop.remove_reader(theirs)
        data, fds, _, _ = socket.recv_fds(theirs, 1_000_000, 8)
        while not data.strip():
            more, extra = await receive()
            return more, fds + extra
        return json.loads(data), fds

    async def send(message: object) -> None:
        await loop.sock_sendall(theirs, json.dumps(message).encode() + b"\n")

    async def script() -> None:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}}
        await send({"QMP": {"version": version, "capabilities": []}})
        await receive()
        await send({"return": {}})
        for _ in range(3):
            request, fds = await receive()
            arguments = request["arguments"]
            assert request["execute"] == "getfd"
            assert isinstance(arguments, dict)
            assert len(fds) == 1
            named[arguments["fdname"]] = fds[0]
            await send({"return": {}, "id": request["id"]})

    playing = asyncio.create_task(script(), name="peer")
    ends = [os.pipe() for _ in range(3)]
    async with await Monitor.connect(ours) as monitor:
        await asyncio.gather(*(monitor.send_fd(f"fd{n}", end[1]) for n, end in enumerate(ends)))
        await playing
        for number, (reading, writing) in enumerate(ends):
            received = named[f"fd{number}"]
            assert os.fstat(received).st_ino == os.fstat(writing).st_ino
            for fd in (received, reading, writing):
                os.close(fd)
    theirs.close()


async def test_send_fd_does_not_cut_into_a_command(qemu: FakeQemu) -> None:
    """The blank that carries the descriptor waits until a long command is out."""
    blob = "x" * 4_000_000
    sending = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        await sending.wait()
        for _ in range(2):
            request = await peer.command()
            assert request["arguments"] in ({"blob": blob}, {"fdname": "out"})
            await peer.send({"return": {}, "id": request["id"]})
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        command = asyncio.create_task(monitor.execute("x", {"blob": blob}))
        await asyncio.sleep(0)
        sender = asyncio.create_task(monitor.send_fd("out", 0))
        await asyncio.sleep(0)
        sending.set()
        assert await command == {}
        await sender


async def test_send_fd_needs_a_unix_socket(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.gone()

    async with await Monitor.connect(await qemu.tcp(script)) as monitor:
        with pytest.raises(QmpError, match="UNIX socket"):
            await monitor.send_fd("x", 0)


async def test_send_fd_that_is_closed(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with pytest.raises(QmpError, match="cannot send fd 1000000000: Bad file descriptor"):
            await monitor.send_fd("x", 1_000_000_000)
        assert monitor.connected


async def test_send_fd_after_the_end(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        await monitor.wait_disconnected()
        with pytest.raises(DisconnectedError):
            await monitor.send_fd("x", 0)
