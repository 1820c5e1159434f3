"""Commands on a Monitor: answers, errors, deadlines, cancellation, and a peer that fails."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from qemu_ring.errors import DeadlineError
from qemu_ring.qmp import (
    CommandError,
    CommandTimeoutError,
    DisconnectedError,
    Monitor,
    ProtocolError,
)

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer

Tasks = Callable[[], set[str]]


async def test_result_and_arguments(qemu: FakeQemu) -> None:
    requests = []

    async def script(peer: Peer) -> None:
        await peer.open()
        requests.append(await peer.answer({"a": [1, None]}))
        requests.append(await peer.answer("text"))
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert await monitor.execute("x-one", {"an-arg": {"deep": [True]}}) == {"a": [1, None]}
        assert await monitor.execute("x-two", oob=True) == "text"
    assert requests[0]["execute"] == "x-one"
    assert requests[0]["arguments"] == {"an-arg": {"deep": [True]}}
    assert requests[1]["exec-oob"] == "x-two"


async def test_error_class_and_text_are_kept(qemu: FakeQemu) -> None:
    text = "Could not open '/x':\n  No such file"

    async def script(peer: Peer) -> None:
        await peer.open()
        request = await peer.command()
        error = {"class": "DeviceNotFound", "desc": text}
        await peer.send({"error": error, "id": request["id"]})
        await peer.answer({})
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script), name="source") as monitor:
        with pytest.raises(CommandError) as caught:
            await monitor.execute("blockdev-add")
        assert caught.value.command == "blockdev-add"
        assert caught.value.error_class == "DeviceNotFound"
        assert caught.value.description == text
        assert str(caught.value) == "source: blockdev-add: Could not open '/x': No such file"
        assert await monitor.execute("next") == {}


async def test_answers_out_of_order(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        for request in reversed([await peer.command() for _ in range(20)]):
            await peer.send({"return": request["execute"], "id": request["id"]})
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        names = [f"command-{n}" for n in range(20)]
        assert await asyncio.gather(*map(monitor.execute, names)) == names


async def test_answer_byte_by_byte(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        request = await peer.command()
        for byte in json.dumps({"return": "slowly", "id": request["id"]}).encode() + b"\r\n":
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert await monitor.execute("x") == "slowly"


async def test_long_answer(qemu: FakeQemu) -> None:
    text = "x" * 9_000_000

    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer(text)
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert await monitor.execute("x") == text


async def test_answer_over_the_limit_is_an_honest_error(qemu: FakeQemu, tasks: Tasks) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        with suppress(ConnectionError):
            await peer.answer("x" * 11_000_000)

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with pytest.raises(DisconnectedError, match="a line longer than 10,485,760 bytes") as lost:
            await monitor.execute("query-qmp-schema")
        assert isinstance(lost.value.__cause__, ProtocolError)
    assert tasks() == set()


async def test_timeout_then_late_answer(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        late = await peer.command()
        next_one = await peer.command()
        await peer.send({"return": "late", "id": late["id"]})
        await peer.send({"return": "in time", "id": next_one["id"]})
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script), name="source") as monitor:
        with pytest.raises(CommandTimeoutError) as caught:
            await monitor.execute("stop", timeout=0.05)
        assert isinstance(caught.value, DeadlineError)
        assert caught.value.command == "stop"
        assert caught.value.seconds == 0.05
        assert caught.value.message.startswith("source: stop was not answered within 0.05 s")
        assert await monitor.execute("cont") == "in time"


async def test_cancelled_then_late_answer(qemu: FakeQemu) -> None:
    arrived = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        late = await peer.command()
        arrived.set()
        next_one = await peer.command()
        await peer.send({"error": {"class": "GenericError", "desc": "late"}, "id": late["id"]})
        await peer.send({"return": "in time", "id": next_one["id"]})
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        command = asyncio.create_task(monitor.execute("stop"))
        await asyncio.wait_for(arrived.wait(), 10)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
        assert await monitor.execute("cont") == "in time"


async def test_cancelled_at_every_step(qemu: FakeQemu, tasks: Tasks) -> None:
    """Cancel a command after 0, 1, 2, ... turns of the loop; the next must not notice."""

    async def script(peer: Peer) -> None:
        await peer.open()
        with suppress(EOFError, ConnectionError):
            while True:
                await peer.answer({})

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        for turns in range(1000):
            command = asyncio.create_task(monitor.execute("stop"))
            for _ in range(turns):
                await asyncio.sleep(0)
            if not command.cancel():
                assert await command == {}
                break
            with pytest.raises(asyncio.CancelledError):
                await command
            assert await monitor.execute("cont") == {}
        else:
            pytest.fail("never answered")
        assert turns > 2
        assert len(tasks()) == 3  # the session, its reader and its writer


@pytest.mark.parametrize(
    ("last_words", "says", "cause"),
    [
        (b"", "the peer closed the connection", EOFError),
        (b'{"return": {"sta', "in the middle of a message", EOFError),
        (b"qemu: fatal: oops\n", "the peer sent what is no JSON: b'qemu: fatal", ProtocolError),
        (b"\xff\xfe\n", "the peer sent what is no QMP: UnicodeDecodeError", ProtocolError),
        (b"[1]\n", "the peer sent JSON that is no object: [1]", ProtocolError),
        (b'{"event": ["x"]}\n', "an event out of form: ['x']", ProtocolError),
        (b'{"event": "STOP"}\n', "an event out of form: 'STOP'", ProtocolError),
        (b'{"id": [], "return": {}}\n', "the peer sent what is no QMP: TypeError", ProtocolError),
        (
            b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
            "an error that belongs to no command: {'class': 'GenericError', 'desc': 'JSON parse",
            ProtocolError,
        ),
    ],
)
async def test_peer_fails_during_a_command(
    qemu: FakeQemu, last_words: bytes, says: str, cause: type[Exception], tasks: Tasks
) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.command()
        await peer.command()
        await peer.send(last_words)
        if cause is ProtocolError:
            await peer.gone()

    async with await Monitor.connect(await qemu.pair(script), name="source") as monitor:
        lost = await asyncio.gather(
            monitor.execute("one"), monitor.execute("two"), return_exceptions=True
        )
        for error, command in zip(lost, ["one", "two"], strict=True):
            assert isinstance(error, DisconnectedError)
            assert f"source: monitor gone during {command}, outcome unknown: " in error.message
            assert says in error.message
            assert isinstance(error.__cause__, cause)
            assert len(error.message) < 300
        assert not monitor.connected
        assert tasks() == set()  # before close()
        with pytest.raises(DisconnectedError, match="three was not sent") as caught:
            await monitor.execute("three")
        assert says in str(caught.value)


async def test_peer_resets_the_connection() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}}
        greeting = {"QMP": {"version": version, "capabilities": []}}
        theirs.sendall(json.dumps(greeting).encode() + b'\n{"return": {}}\n')
        monitor = await Monitor.connect(ours)
        command = asyncio.create_task(monitor.execute("quit"))
        await asyncio.sleep(0)
    async with monitor:  # Closing with bytes unread was a reset.
        with pytest.raises(DisconnectedError, match=r"reset by peer|Broken pipe") as caught:
            await command
        assert isinstance(caught.value.__cause__, ConnectionError)


async def test_json_that_is_no_answer_is_dropped(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        request = await peer.command()
        await peer.send({}, {"id": "of another"}, {"return": 1}, {"QMP": {}})
        await peer.send({"return": "right", "id": request["id"]})
        await peer.send({"return": "twice", "id": request["id"]})
        await peer.answer("still here")
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert await monitor.execute("x") == "right"
        assert await monitor.execute("y") == "still here"


@pytest.mark.parametrize("answer", [{}, {"error": "oops"}, {"error": {"class": "GenericError"}}])
async def test_answer_with_neither_result_nor_error(
    qemu: FakeQemu, answer: dict[str, object]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        request = await peer.command()
        await peer.send({**answer, "id": request["id"]})
        await peer.answer({})
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with pytest.raises(ProtocolError, match="query-x"):
            await monitor.execute("query-x")
        assert await monitor.execute("next") == {}


async def test_arguments_that_json_cannot_carry(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        assert (await peer.answer({}))["execute"] == "next"
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with pytest.raises(TypeError):
            await monitor.execute("x", {"bytes": b"1"})
        assert await monitor.execute("next") == {}


class Model(BaseModel):
    count: int


async def test_call_checks_the_answer(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer({"count": 1, "more": 2})
        await peer.answer([{"count": 1}, {"count": 2}])
        await peer.answer([{"count": 1}, {"count": "many"}, {}])
        await peer.answer("x")
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert await monitor.call("query-x", Model) == Model(count=1)
        assert await monitor.call("query-x", list[Model]) == [Model(count=1), Model(count=2)]
        with pytest.raises(ProtocolError) as caught:
            await monitor.call("query-x", list[Model])
        assert "the reply to query-x does not fit: 1.count: " in caught.value.message
        assert "got 'many' (and 1 more)" in caught.value.message
        with pytest.raises(ProtocolError, match="query-x does not fit: the value itself"):
            await monitor.call("query-x", int)


async def test_connected_and_wait_disconnected(qemu: FakeQemu, tasks: Tasks) -> None:
    end = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.open()
        await end.wait()

    monitor = await Monitor.connect(await qemu.pair(script))
    waiters = [asyncio.create_task(monitor.wait_disconnected()) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()  # which must not disturb the session
    await asyncio.wait(waiters[:1])
    assert {task.get_name() for task in waiters[1:]} <= tasks()
    end.set()
    await asyncio.wait_for(asyncio.gather(*waiters[1:]), 10)
    assert not monitor.connected
    assert tasks() == set()
    await monitor.wait_disconnected()
    await monitor.close()
