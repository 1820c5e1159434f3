"""How sessions with a real QEMU begin: with what is not theirs on the way, and printed prettily."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.machine.peer import serving_process
from qemu_ring.machine.sockets import listens
from qemu_ring.qmp import (
    CommandTimeoutError,
    ConnectError,
    DisconnectedError,
    Monitor,
    commands,
    unix_name,
)
from tests.processes import killed_if_it_fails
from tests.proxy import Session, proxied
from tests.waiting import wait_until

pytestmark = pytest.mark.qemu

PLAIN = ("-machine", "none", "-display", "none", "-nodefaults", "-accel", "tcg")


@pytest.fixture(params=["distribution", pytest.param("patched", marks=pytest.mark.build)])
def binary(request: pytest.FixtureRequest) -> Path:
    name = {"distribution": "qemu_path", "patched": "patched_qemu"}[request.param]
    found: Path = request.getfixturevalue(name)
    return found


@dataclass
class Running:
    """A QEMU, and its two monitors."""

    process: subprocess.Popen[bytes]
    monitors: tuple[Path, Path]

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(binary: Path, folder: Path, *, pretty: str = "off") -> Iterator[Running]:
    """A QEMU without a machine, and its two monitors."""
    sockets = [folder / "first.qmp", folder / "second.qmp"]
    arguments = list(PLAIN)
    for path, printed in zip(sockets, (pretty, "off"), strict=True):
        arguments += [
            *("-chardev", f"socket,id={path.stem},path={path},server=on,wait=off"),
            *("-mon", f"chardev={path.stem},mode=control,pretty={printed}"),
        ]
    with killed_if_it_fails(subprocess.Popen([str(binary), *arguments])) as process:
        try:
            wait_until(lambda: listens(str(sockets[-1])), "QEMU listens")
            yield Running(process, (sockets[0], sockets[1]))
            assert process.poll() is None
        finally:
            process.kill()


@pytest.fixture
def qemu(binary: Path, tmp_path: Path) -> Iterator[Running]:
    with running(binary, tmp_path) as found:
        yield found


async def test_events_before_the_greeting_and_before_the_answer(
    qemu: Running, tmp_path: Path
) -> None:
    """As a QEMU sends them that has not noticed yet that its client is another one."""
    order: list[str] = []

    async with await Monitor.connect(qemu.monitors[0], name="other") as other:

        async def event(session: Session, name: str) -> dict[str, Any]:
            await other.execute(name)
            return await session.read()

        async def opening(session: Session) -> None:
            greeting = await session.read()
            await session.ask("qmp_capabilities")
            done = await session.read()
            early = [await event(session, "stop"), await event(session, "cont")]
            await session.tell(*early, greeting)
            assert b"qmp_capabilities" in await session.client.read(1 << 16)
            late = [await event(session, "stop"), await event(session, "cont")]
            await session.tell(*late, done)
            order.extend(message["event"] for message in (*early, *late))

        async with proxied(qemu.monitors[1], tmp_path / "proxy") as proxy:
            proxy.opening = opening
            async with await Monitor.connect(proxy.upstream.with_name("proxy")) as monitor:
                with monitor.events() as events:
                    assert (await commands.query_status(monitor)).running
                    await other.execute("stop")
                    assert (await events.wait()).name == "STOP"  # and none of those before
    assert order == ["STOP", "RESUME"] * 2


async def test_answer_to_an_earlier_client(qemu: Running) -> None:
    """QEMU sends it to whoever is connected when it has carried the command out."""
    memory = {"qom-type": "memory-backend-ram", "size": 512 << 20, "prealloc": True}
    first, second = qemu.monitors
    async with await Monitor.connect(first) as other:
        for number in range(3):
            name = f"ram{number}"
            async with await Monitor.connect(second) as earlier:
                before = qemu.resident_bytes()
                asked = asyncio.create_task(earlier.execute("object-add", memory | {"id": name}))
                while not asked.done() and qemu.resident_bytes() < before + (32 << 20):
                    await asyncio.wait([asked], timeout=0.001)
            await asyncio.wait([asked])
            assert isinstance(asked.exception(), DisconnectedError | None)
            async with await Monitor.connect(second) as monitor:
                assert (await commands.query_version(monitor)).qemu.triple == monitor.version
                assert (await commands.query_status(monitor)).running
            assert [backend.id for backend in await commands.query_memdev(other)] == [name]
            await commands.object_del(other, name)


async def test_sessions_one_after_the_other_while_events_come(qemu: Running) -> None:
    async with await Monitor.connect(qemu.monitors[0], name="other") as other:

        async def toggle() -> None:
            while True:
                await commands.stop(other)
                await commands.cont(other)

        toggling = asyncio.create_task(toggle())
        try:
            for _ in range(300):
                async with await Monitor.connect(qemu.monitors[1]) as monitor:
                    await commands.query_status(monitor)
        finally:
            toggling.cancel()
            await asyncio.wait([toggling])
        assert toggling.cancelled()


async def test_pretty_printed(binary: Path, tmp_path: Path) -> None:
    with running(binary, tmp_path, pretty="on") as qemu:
        path, plain = qemu.monitors
        async with await Monitor.connect(path) as monitor, await Monitor.connect(plain) as other:
            assert monitor.version == other.version
            assert (await monitor.schema()).root == (await other.schema()).root
            with monitor.events("STOP", "RESUME") as events:
                await commands.stop(monitor)
                await commands.cont(other)
                assert [(await events.wait()).name for _ in range(2)] == ["STOP", "RESUME"]


@pytest.fixture(params=["@qemu-ring test", "./@file", "\udcff\udcfe.qmp"])
def named(
    request: pytest.FixtureRequest, binary: Path, tmp_path: Path
) -> Iterator[tuple[str, int]]:
    """Where a QEMU's monitor is, and its process: without a file, and with an odd name."""
    name = f"{request.param} {secrets.token_hex(4)}"
    if not name.startswith("@"):
        name = str(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(unix_name(name))
        listening.listen()
        chardev = f"socket,id=m,fd={listening.fileno()},server=on,wait=off"
        with killed_if_it_fails(
            subprocess.Popen(
                [str(binary), *PLAIN, "-chardev", chardev, "-mon", "chardev=m,mode=control"],
                pass_fds=[listening.fileno()],
            )
        ) as process:
            try:
                yield name, process.pid
            finally:
                process.kill()


async def test_names_of_sockets(named: tuple[str, int]) -> None:
    name, pid = named
    async with await Monitor.connect(name) as monitor:
        assert (await commands.query_status(monitor)).running
        with pytest.raises(UsageError, match=r"object-add: '\\udcff' is not UTF-8"):
            await commands.object_add(monitor, "iothread", "\udcff")
        with pytest.raises(UsageError, match="not UTF-8"):
            await monitor.execute("x", {"a": [{"\udcff": 1}]})
        assert (await commands.query_status(monitor)).running  # nothing was sent
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, unix_name(name))
    async with await Monitor.connect(client) as monitor:
        assert await asyncio.to_thread(serving_process, client) == pid
        assert monitor.connected


async def test_abstract_name_of_nobody() -> None:
    with pytest.raises(ConnectError, match="no QMP session on @qemu-ring nobody: Conn"):
        await Monitor.connect("@qemu-ring nobody")
    for name in ("@", "@" + "x" * 108):
        with pytest.raises(ConnectError, match="an abstract name has 1 to 107 bytes"):
            await Monitor.connect(name)


async def test_answers_that_come_late(qemu: Running, tmp_path: Path) -> None:
    """As on a host with too much to do; what is late is the answer to no other command."""
    async with (
        proxied(qemu.monitors[1], tmp_path / "proxy") as proxy,
        await Monitor.connect(tmp_path / "proxy") as monitor,
    ):
        proxy.delay = 1.0
        monitor.answer_timeout = 0.2
        with pytest.raises(CommandTimeoutError, match=r"query-kvm was not answered within 0\.2 s"):
            await commands.query_kvm(monitor)
        monitor.answer_timeout = 60
        assert (await commands.query_version(monitor)).qemu.triple == monitor.version
