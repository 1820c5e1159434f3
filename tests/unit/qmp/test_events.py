"""Events: none missed, none kept back, and a clear end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError
from qemu_ring.qmp import DisconnectedError, Event, Listener, Monitor
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer

Tasks = Callable[[], set[str]]
SECONDS = 1_700_000_000.25


async def three_then_close(peer: Peer) -> None:
    """On each command send an event; close after the third, or when the client does."""
    await peer.open()
    with suppress(EOFError):
        for name in ("STOP", "RESUME", "STOP"):
            request = await peer.command()
            await peer.event(name, reason=request["execute"])
            await peer.send({"return": {}, "id": request["id"]})


async def drain(listener: Listener) -> list[Event]:
    """Take all events up to the end of the connection."""
    events: list[Event] = []
    try:
        async with deadline(DEADLINE):
            async for event in listener:
                events.append(event)  # noqa: PERF401 - what came before the error counts
    except DisconnectedError as error:
        assert "the peer closed the connection" in error.message  # noqa: PT017
    return events


async def test_queue_is_delivered_before_the_end(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        with monitor.events() as events:
            for name in ("a", "b", "c"):
                await monitor.execute(name)
            await monitor.wait_disconnected()
            assert await drain(events) == [
                Event("STOP", {"reason": "a"}, SECONDS),
                Event("RESUME", {"reason": "b"}, SECONDS),
                Event("STOP", {"reason": "c"}, SECONDS),
            ]
            assert await drain(events) == []  # the end stays the end


async def test_many_listeners(qemu: FakeQemu, tasks: Tasks) -> None:
    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        with (
            monitor.events() as every,
            monitor.events("STOP") as stops,
            monitor.events("RESUME", "SHUTDOWN") as others,
            monitor.events("SHUTDOWN") as none,
        ):
            reading = [
                asyncio.create_task(drain(listener)) for listener in (every, stops, others, none)
            ]
            for name in ("a", "b", "c"):
                await monitor.execute(name)
            heard = [[event.data["reason"] for event in await task] for task in reading]
        assert heard == [["a", "b", "c"], ["a", "c"], ["b"], []]
    assert tasks() == set()


async def test_only_within_its_block(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        listener = monitor.events("STOP", "RESUME")
        await monitor.execute("a")
        with listener as events:
            await monitor.execute("b")
        with pytest.raises(RuntimeError, match="outside"):
            await anext(events)
        with listener as events, pytest.raises(RuntimeError, match="twice"), events:
            pass
        with monitor.events() as events:
            await monitor.execute("c")
            assert [event.data["reason"] for event in await drain(events)] == ["c"]


async def test_entered_again_starts_empty(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        listener = monitor.events()
        with listener:
            await monitor.execute("a")
        with listener:
            await monitor.execute("b")
            assert (await anext(listener)).data == {"reason": "b"}


async def test_after_the_end(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        await monitor.wait_disconnected()
        with monitor.events() as events:
            assert await drain(events) == []


async def test_wait(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        with monitor.events("STOP", "RESUME") as events:
            waiting = asyncio.create_task(events.wait(lambda event: event.data["reason"] == "b"))
            for name in ("a", "b", "c"):
                await monitor.execute(name)
            assert (await waiting).name == "RESUME"
            assert (await events.wait(timeout=DEADLINE)).data == {"reason": "c"}
            with pytest.raises(DisconnectedError):
                await events.wait(timeout=DEADLINE)


async def test_wait_passes_its_deadline(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer({})
        await peer.event("STOP", why="test")
        await peer.answer({})
        await peer.event("RESUME")
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script), name="source") as monitor:
        with monitor.events("STOP", "RESUME") as events:
            await monitor.execute("x")
            with pytest.raises(DeadlineError) as caught:
                await events.wait(lambda event: event.name == "RESUME", timeout=0.05)
            assert caught.value.message == (
                "source: no event RESUME or STOP within 0.05 s; "
                "the last event was STOP {'why': 'test'}"
            )
            with pytest.raises(
                DeadlineError, match=r"no sign of life within 0.05 s; no event came"
            ):
                await events.wait(timeout=0.05, what="sign of life")
            await monitor.execute("x")
            assert (await events.wait(timeout=DEADLINE)).name == "RESUME"


async def test_error_of_the_predicate_is_not_a_deadline(qemu: FakeQemu) -> None:
    def fails(event: Event) -> bool:
        raise TimeoutError("its own")

    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        with monitor.events() as events:
            await monitor.execute("a")
            with pytest.raises(TimeoutError, match="its own"):
                await events.wait(fails, timeout=DEADLINE)


async def test_cancelled_wait_loses_no_event(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        with monitor.events() as events:
            waiting = asyncio.create_task(events.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await monitor.execute("a")
            assert (await events.wait()).data == {"reason": "a"}


async def test_events_nobody_listens_for_are_not_kept(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.pair(three_then_close)) as monitor:
        await monitor.execute("a")
        assert monitor._session.client.events.empty()
        assert monitor._session.client.events.history == ()


async def test_event_without_data(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer({})
        stamp = {"seconds": -1, "microseconds": -1}  # the host's clock failed
        await peer.send({"event": "RESUME", "timestamp": stamp})

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with monitor.events() as events:
            await monitor.execute("x")
            [event] = await drain(events)
    assert event.name == "RESUME"
    assert event.data == {}
    assert event.seconds < 0


async def test_event_flood(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer({})
        for number in range(5000):
            await peer.event("MEMSLOT", number=number)

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with monitor.events("MEMSLOT") as events:
            await monitor.execute("x")
            assert [event.data["number"] for event in await drain(events)] == list(range(5000))
