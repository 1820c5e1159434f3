"""Monitor.connect: every way in which a peer can fail to be a QMP server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import ExitStatus
from qemu_ring.qmp import ConnectError, DisconnectedError, Monitor, ProtocolError, parse_address
from tests.unit.qmp.conftest import GREETING

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer

Tasks = Callable[[], set[str]]
VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}


async def good(peer: Peer) -> None:
    await peer.open()
    await peer.gone()


async def fails(
    address: str | Path | tuple[str, int] | socket.socket, timeout: float = 10
) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        await Monitor.connect(address, name="source", timeout=timeout)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("source: no QMP session on ")
    return caught.value


async def test_socket_pair(qemu: FakeQemu, tasks: Tasks) -> None:
    async with await Monitor.connect(await qemu.pair(good), name="source") as monitor:
        assert monitor.name == "source"
        assert monitor.version == (10, 0, 2)
        assert monitor.package == "Fake 1:10.0"
        assert monitor.connected
    assert tasks() == set()


@pytest.mark.parametrize("kind", [str, Path])
async def test_unix_socket(qemu: FakeQemu, kind: Callable[[Path], str | Path]) -> None:
    async with await Monitor.connect(kind(await qemu.unix(good))) as monitor:
        assert monitor.connected


async def test_tcp(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.tcp(good)) as monitor:
        assert monitor.connected


async def test_greeting_byte_by_byte(qemu: FakeQemu) -> None:
    async def slow(peer: Peer) -> None:
        for byte in b'{"QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 0}':
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        await peer.send(b'}, "capabilities": []}}\r\n')
        request = await peer.command()
        assert request == {"execute": "qmp_capabilities", "arguments": {}}
        await peer.send({"return": {}})
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(slow)) as monitor:
        assert monitor.version == (9, 1, 0)


async def test_no_such_socket(tmp_path: Path, tasks: Tasks) -> None:
    error = await fails(tmp_path / "nobody.sock")
    assert isinstance(error.__cause__, FileNotFoundError)
    assert error.exit_status is ExitStatus.USAGE
    assert str(tmp_path / "nobody.sock") in error.message
    assert "-qmp unix:" in error.hint
    assert tasks() == set()


async def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = await fails(tmp_path / "file" / "nobody.sock")
    assert "Not a directory" in error.message
    assert error.exit_status is ExitStatus.USAGE


@pytest.mark.parametrize(
    ("address", "where", "says"),
    [
        ("", "''", "an empty path"),
        ("/dev/null", "/dev/null", "not a socket"),
        (Path("/etc"), "/etc", "not a socket"),
        (Path("/etc/passwd"), "/etc/passwd", "not a socket"),
        (("::1", 0), "[::1]:0", "no such port"),
        (("host", 99999), "host:99999", "no such port"),
    ],
)
async def test_address_of_no_monitor(
    address: str | Path | tuple[str, int], where: str, says: str, tasks: Tasks
) -> None:
    error = await fails(address)
    assert error.message == f"source: no QMP session on {where}: {says}"
    assert error.hint
    assert error.exit_status is ExitStatus.USAGE
    assert tasks() == set()


async def test_address_that_is_the_name_is_told_once(tmp_path: Path) -> None:
    path = str(tmp_path / "nobody.sock")
    with pytest.raises(ConnectError) as caught:
        await Monitor.connect(path, name=path)
    assert caught.value.message == f"no QMP session on {path}: No such file or directory"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/tmp/a.qmp", "/tmp/a.qmp"),
        ("host:4444", ("host", 4444)),
        ("[::1]:4444", ("::1", 4444)),
        ("./host:4444", "./host:4444"),
        ("host:", "host:"),
        (":4444", ":4444"),
        ("", ""),
    ],
)
def test_what_a_user_names_a_monitor_by(text: str, address: object) -> None:
    assert parse_address(text) == address


async def test_nobody_listens_any_more(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale.sock"))
    error = await fails(tmp_path / "stale.sock")
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert "Connection refused" in error.message
    assert error.hint


async def test_tcp_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host, port = unused.getsockname()
        error = await fails((host, port))
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.message == f"source: no QMP session on {host}:{port}: Connection refused"
    assert error.exit_status is ExitStatus.FAILED


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Be somebody whom file permissions bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_permission(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "private.sock"
    with socket.socket(socket.AF_UNIX) as private:
        private.bind(str(path))
        private.listen()
        path.chmod(0)
        request.getfixturevalue("unprivileged")
        error = await fails(path)
    assert isinstance(error.__cause__, PermissionError)
    assert "Permission denied" in error.message
    assert "user" in error.hint


async def test_path_too_long(tmp_path: Path) -> None:
    error = await fails(tmp_path / ("x" * 200))
    assert "too long" in error.message


async def test_closes_right_after_accept(qemu: FakeQemu, tasks: Tasks) -> None:
    async def close(peer: Peer) -> None:
        pass

    error = await fails(await qemu.unix(close))
    assert isinstance(error.__cause__, EOFError)
    assert "the peer closed the connection" in error.message
    assert tasks() == set()


async def test_dies_within_greeting(qemu: FakeQemu) -> None:
    async def die(peer: Peer) -> None:
        await peer.send(b'{"QMP": {"ver')

    error = await fails(await qemu.pair(die))
    assert isinstance(error.__cause__, EOFError)
    assert "in the middle of a message" in error.message


async def test_dies_within_negotiation(qemu: FakeQemu) -> None:
    async def die(peer: Peer) -> None:
        await peer.send({"QMP": {"version": VERSION, "capabilities": []}})
        await peer.command()

    error = await fails(await qemu.pair(die))
    assert isinstance(error.__cause__, EOFError)


@pytest.mark.parametrize(
    ("garbage", "says"),
    [
        (b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ", "no JSON"),
        (b"\x16\x03\x01\xff\xfe\n", "no QMP: UnicodeDecodeError"),
        (b"\n", "no JSON"),
        (b"{" * 200 + b"\n", "no JSON"),
        (b"[" * 100_000 + b"\n", "no QMP: RecursionError"),
        (b"[1, 2, 3]\n", "JSON that is no object: [1, 2, 3]"),
        (b'{"return": {}}\n', "requires 'QMP' member"),
        (b'{"QMP": 7}\n', "'QMP' must be a JSON object"),
        (b'{"QMP": {"capabilities": []}}\n', "requires 'version' member"),
    ],
)
async def test_garbage_instead_of_greeting(
    qemu: FakeQemu, garbage: bytes, says: str, tasks: Tasks
) -> None:
    async def send(peer: Peer) -> None:
        await peer.send(garbage)
        await peer.gone()

    error = await fails(await qemu.pair(send))
    assert isinstance(error.__cause__, ProtocolError)
    assert says in error.message
    assert "(its greeting)" in error.message
    assert len(error.message) < 300
    assert "mode=control" in error.hint
    assert tasks() == set()


async def test_endless_line_instead_of_greeting(qemu: FakeQemu) -> None:
    async def flood(peer: Peer) -> None:
        with suppress(ConnectionError):
            while True:
                await peer.send(b"x" * 1_000_000)

    error = await fails(await qemu.pair(flood))
    assert "a line longer than 10,485,760 bytes" in error.message


async def test_closes_right_after_negotiation(qemu: FakeQemu, tasks: Tasks) -> None:
    """There was a session: connecting succeeds, and what comes next tells that it is over."""

    async def leave(peer: Peer) -> None:
        await peer.open()

    async with await Monitor.connect(await qemu.pair(leave)) as monitor:
        await asyncio.wait_for(monitor.wait_disconnected(), 10)
        with pytest.raises(DisconnectedError, match="the peer closed the connection"):
            await monitor.execute("x")
        assert tasks() == set()


STOP = {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}
LATE = {"return": {}, "id": "of an earlier client"}
LATE_ERROR = {"error": {"class": "GenericError", "desc": "late"}, "id": "the same"}


async def test_asides_while_a_session_is_made(qemu: FakeQemu, tasks: Tasks) -> None:
    """Neither events nor answers to an earlier client are the greeting, or the answer."""

    async def script(peer: Peer) -> None:
        await peer.send(STOP, LATE, {"QMP": {"version": VERSION, "capabilities": []}})
        await peer.command()
        await peer.send(LATE_ERROR, STOP, LATE, {"return": {}})
        await peer.answer("right")
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert monitor.version == (7, 2, 22)
        assert await monitor.execute("x") == "right"
    assert tasks() == set()


async def test_ids_of_two_sessions_differ(qemu: FakeQemu) -> None:
    ids = []

    async def script(peer: Peer) -> None:
        await peer.open()
        ids.append((await peer.answer({}))["id"])
        await peer.gone()

    for _ in range(2):
        async with await Monitor.connect(await qemu.pair(script)) as monitor:
            await monitor.execute("x")
    assert len(set(ids)) == 2


async def test_pretty_printed(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(json.dumps(GREETING, indent=4).replace("\n", "\r\n").encode(), b"\r\n")
        await peer.command()
        await peer.send(b'{\r\n    "return": {\r\n    }\r\n}\r\n')
        request = await peer.command()
        answer = {"return": {"text": "}\n{", "list": [{}, {"a": 1}]}, "id": request["id"]}
        await peer.send(json.dumps(answer, indent=4).encode() + b"\n")
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert await monitor.execute("x") == {"text": "}\n{", "list": [{}, {"a": 1}]}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b'{\r\n    "QMP": {\r\n', "in the middle of a message"),
        (b"{\n}\n", "requires 'QMP' member"),
        (b'{\n"x": 1 2\n}\n', "no JSON"),
        (b"{\n" + (b"x" * 1000 + b"\n") * 10_500, "a message longer than 10,485,760 bytes"),
    ],
    ids=["torn", "another", "garbage", "endless"],
)
async def test_pretty_printed_and_no_greeting(qemu: FakeQemu, lines: bytes, says: str) -> None:
    async def send(peer: Peer) -> None:
        with suppress(ConnectionError):
            await peer.send(lines)

    assert says in (await fails(await qemu.pair(send))).message


async def test_version_that_makes_no_sense(qemu: FakeQemu, tasks: Tasks) -> None:
    async def odd(peer: Peer) -> None:
        await peer.send({"QMP": {"version": {"qemu": {"major": "new"}}, "capabilities": []}})
        await peer.command()
        await peer.send({"return": {}})
        await peer.gone()

    error = await fails(await qemu.pair(odd))
    assert isinstance(error.__cause__, ProtocolError)
    assert "qemu.major" in error.message
    assert tasks() == set()


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"class": "CommandNotFound", "desc": "no"}},
        {"id": 1},
        ["return"],
        b"(qemu) \n",
        b"\xff\n",
    ],
)
async def test_negotiation_fails(qemu: FakeQemu, answer: object, tasks: Tasks) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.send({"QMP": {"version": VERSION, "capabilities": []}})
        await peer.command()
        await peer.send(answer)
        await peer.gone()

    error = await fails(await qemu.pair(refuse))
    assert isinstance(error.__cause__, ProtocolError)
    assert "capabilities" in error.message
    assert tasks() == set()


async def test_never_greets(qemu: FakeQemu, tasks: Tasks) -> None:
    sock = await qemu.pair(lambda peer: peer.gone())
    error = await fails(sock, timeout=0.05)
    assert "did not answer within 0.05 s (its greeting)" in error.message
    assert "one client" in error.hint
    assert sock.fileno() == -1
    assert tasks() == set()


async def test_never_accepts(tmp_path: Path, tasks: Tasks) -> None:
    with socket.socket(socket.AF_UNIX) as busy:  # as QEMU is, while it serves another client
        busy.bind(str(tmp_path / "busy.sock"))
        busy.listen()
        error = await fails(tmp_path / "busy.sock", timeout=0.05)
    assert "did not answer" in error.message
    assert tasks() == set()


async def test_others_wait_already(tmp_path: Path, tasks: Tasks) -> None:
    """A queue that is full refuses a connection, and asyncio takes no notice of that."""
    path = str(tmp_path / "busy.sock")
    with ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(path)
        busy.listen(0)
        for _ in range(100):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        error = await fails(path)
    assert error.message == f"source: no QMP session on {path}: others wait for it already"
    assert "one client" in error.hint
    assert error.__cause__ is None
    assert tasks() == set()


async def test_never_answers_negotiation(qemu: FakeQemu, tasks: Tasks) -> None:
    async def mute(peer: Peer) -> None:
        await peer.send({"QMP": {"version": VERSION, "capabilities": []}})
        await peer.gone()

    for timeout in (0.05, 0.5, 5, 50):  # a busy host may not come as far as that in less
        error = await fails(await qemu.pair(mute), timeout=timeout)
        if "(its greeting)" not in error.message:
            break
    assert f"did not answer within {timeout:g} s (capabilities negotiation)" in error.message
    assert tasks() == set()


async def test_socket_that_is_closed(qemu: FakeQemu) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.close()
    await fails(sock)


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_cancelled(qemu: FakeQemu, tasks: Tasks, again: bool) -> None:
    greeted = asyncio.Event()

    async def mute(peer: Peer) -> None:
        await peer.send({"QMP": {"version": VERSION, "capabilities": []}})
        await peer.command()
        greeted.set()
        await peer.gone()

    sock = await qemu.pair(mute)
    connecting = asyncio.create_task(Monitor.connect(sock))
    await asyncio.wait_for(greeted.wait(), 10)
    connecting.cancel()
    if again:
        await asyncio.sleep(0)
        connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert sock.fileno() == -1
    assert tasks() == set()


async def test_cancelled_at_every_step(qemu: FakeQemu, tasks: Tasks) -> None:
    """Cancel after 1, 2, ... turns of the loop, until connecting is done before that."""
    for turns in range(1, 200):
        sock = await qemu.pair(good_or_gone)
        connecting = asyncio.create_task(Monitor.connect(sock))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not connecting.cancel():
            await (await connecting).close()
            break
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert sock.fileno() == -1
        assert tasks() == set()
    else:
        pytest.fail("never connected")
    assert turns > 5


async def good_or_gone(peer: Peer) -> None:
    with suppress(ConnectionError, EOFError):
        await good(peer)
