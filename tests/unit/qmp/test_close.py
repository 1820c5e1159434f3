"""Monitor.close: quiet, complete and repeatable, whatever the peer does meanwhile."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.qmp import DisconnectedError, Monitor
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer

Tasks = Callable[[], set[str]]


async def quiet(peer: Peer) -> None:
    await peer.open()
    await peer.gone()


async def test_idempotent(qemu: FakeQemu, tasks: Tasks) -> None:
    monitor = await Monitor.connect(await qemu.pair(quiet))
    await monitor.close()
    assert tasks() == set()
    await monitor.close()
    assert tasks() == set()


async def test_many_at_once(qemu: FakeQemu, tasks: Tasks) -> None:
    monitor = await Monitor.connect(await qemu.pair(quiet))
    await asyncio.gather(*(monitor.close() for _ in range(10)))
    assert tasks() == set()


@pytest.mark.parametrize("last_words", [b"", b'{"ret', b"garbage\n", b"[]\n", b"\xff\n", b"\n"])
@pytest.mark.parametrize("turns", range(12))
async def test_while_the_peer_fails(
    qemu: FakeQemu, tasks: Tasks, last_words: bytes, turns: int
) -> None:
    """Close so many turns of the loop after the peer failed: before, while and after it shows."""
    failed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.command()
        await peer.send(last_words)
        failed.set()

    monitor = await Monitor.connect(await qemu.pair(script))
    command = asyncio.create_task(monitor.execute("x"))
    await asyncio.wait_for(failed.wait(), 10)
    for _ in range(turns):
        await asyncio.sleep(0)
    await monitor.close()
    with pytest.raises(DisconnectedError, match="monitor gone during x, outcome unknown"):
        await command
    assert tasks() == set()
    await monitor.close()


async def test_commands_and_listeners_are_told(qemu: FakeQemu, tasks: Tasks) -> None:
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.command()
        arrived.set()
        await peer.gone()

    monitor = await Monitor.connect(await qemu.pair(script), name="source")
    with monitor.events() as events:
        command = asyncio.create_task(monitor.execute("stop"))
        listening = asyncio.create_task(anext(events))
        await asyncio.wait_for(arrived.wait(), 10)
        await monitor.close()
        with pytest.raises(DisconnectedError, match="during stop, outcome unknown: it was closed"):
            await command
        with pytest.raises(DisconnectedError, match="source: monitor gone: it was closed"):
            await asyncio.wait_for(listening, DEADLINE)
    with pytest.raises(DisconnectedError, match="cont was not sent: it was closed"):
        await monitor.execute("cont")
    assert tasks() == set()


async def stuck(qemu: FakeQemu) -> tuple[Monitor, asyncio.Task[object]]:
    """Connect to a peer that reads no more, and send it more than the socket takes."""
    started = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.reader.readexactly(1)
        started.set()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await monitor.wait_disconnected()

    monitor = await Monitor.connect(await qemu.pair(script))
    command = asyncio.create_task(monitor.execute("x", {"blob": "x" * 8_000_000}, timeout=60))
    await asyncio.wait_for(started.wait(), 10)
    return monitor, command


async def test_peer_that_does_not_read_is_cut_off(qemu: FakeQemu, tasks: Tasks) -> None:
    monitor, command = await stuck(qemu)
    began = time.monotonic()
    await monitor.close(timeout=0.1)
    assert 0.1 <= time.monotonic() - began < DEADLINE
    with pytest.raises(DisconnectedError, match="it was closed"):  # not: connection lost
        await command
    assert tasks() == set()


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_close_is_complete_too(qemu: FakeQemu, tasks: Tasks, times: int) -> None:
    monitor, command = await stuck(qemu)
    closing = asyncio.create_task(monitor.close(timeout=60))
    await asyncio.sleep(0)
    for _ in range(times):
        closing.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert tasks() <= {command.get_name()}  # which has yet to take the news
    with pytest.raises(DisconnectedError):
        await command
    assert tasks() == set()
    await monitor.close()


async def test_peer_that_fails_and_does_not_read(qemu: FakeQemu, tasks: Tasks) -> None:
    """Garbage ends the session at once, though bytes to the peer are still unsent."""
    started = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.reader.readexactly(1)
        await peer.send(b"garbage\n")
        started.set()
        await monitor.wait_disconnected()

    monitor = await Monitor.connect(await qemu.pair(script))
    with pytest.raises(DisconnectedError, match="no JSON: b'garbage"):
        await monitor.execute("x", {"blob": "x" * 8_000_000})
    assert started.is_set()
    assert tasks() == set()


def test_forgotten_monitor_ends_with_its_loop() -> None:
    """Nobody closes it: asyncio.run() cancels all tasks, and none of them may complain."""
    complaints: list[dict[str, Any]] = []
    ours, theirs = socket.socketpair()

    async def forget() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
        version = b'{"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}'
        theirs.sendall(b'{"QMP": {"version": ' + version + b', "capabilities": []}}\n')
        theirs.sendall(b'{"return": {}}\n')
        monitor = await Monitor.connect(ours)
        assert monitor.connected

    asyncio.run(forget())
    gc.collect()
    assert complaints == []
    with theirs, suppress(ConnectionError):
        while theirs.recv(1000):  # the client has hung up
            pass
