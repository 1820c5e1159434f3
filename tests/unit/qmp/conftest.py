"""A fake QEMU on real sockets, and the watch that no test leaves anything behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.waiting import DEADLINE

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Fake 1:10.0"},
        "capabilities": ["oob"],
    }
}


class Peer:
    """QEMU's side of one connection, played by a test's script."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._text = ""

    async def send(self, *messages: object) -> None:
        """Send each: bytes as they are, the rest as one line of JSON."""
        for message in messages:
            line = json.dumps(message).encode() + b"\r\n" if type(message) is not bytes else message
            self.writer.write(line)
        await self.writer.drain()

    async def open(self) -> None:
        """Greet and negotiate, as QEMU does."""
        await self.send(GREETING)
        request = await self.command()
        assert request["execute"] == "qmp_capabilities"
        assert request["arguments"] == {"enable": ["oob"]}
        await self.send({"return": {}})

    async def command(self) -> dict[str, Any]:
        """Take one command."""
        while True:
            try:
                request, end = json.JSONDecoder().raw_decode(self._text)
            except json.JSONDecodeError:
                received = await self.reader.read(1 << 20)
                if not received:
                    raise EOFError from None
                self._text = (self._text + received.decode()).lstrip()
            else:
                self._text = self._text[end:].lstrip()
                assert isinstance(request, dict)
                return request

    async def answer(self, result: object) -> dict[str, Any]:
        """Take one command and return `result`."""
        request = await self.command()
        await self.send({"return": result, "id": request["id"]})
        return request

    async def event(self, name: str, **data: object) -> None:
        stamp = {"seconds": 1_700_000_000, "microseconds": 250_000}
        await self.send({"event": name, "data": data, "timestamp": stamp})

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        with suppress(ConnectionError):
            await self.reader.read(-1)


Script = Callable[[Peer], Awaitable[None]]


class FakeQemu:
    """Runs scripts as peers; an assertion that fails in one fails the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.AbstractServer] = []

    async def pair(self, script: Script) -> socket.socket:
        """Run the script at one end of a socket pair, and return the other end."""
        ours, theirs = socket.socketpair()
        self._start(script, *await asyncio.open_connection(sock=theirs))
        return ours

    async def unix(self, script: Script) -> Path:
        """Run the script for each connection to a unix socket."""
        path = self._folder / "qmp.sock"
        self._servers.append(
            await asyncio.start_unix_server(lambda r, w: self._start(script, r, w), path)
        )
        return path

    async def tcp(self, script: Script) -> tuple[str, int]:
        """Run the script for each connection to a TCP port."""
        server = await asyncio.start_server(lambda r, w: self._start(script, r, w), "127.0.0.1", 0)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()
        return host, port

    def _start(
        self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def play() -> None:
            try:
                await script(Peer(reader, writer))
            finally:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

        self._tasks.add(asyncio.create_task(play(), name="peer"))

    async def finish(self) -> None:
        for server in self._servers:
            server.close()
        if not self._tasks:
            return
        _, stuck = await asyncio.wait(self._tasks, timeout=DEADLINE)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*self._tasks)


class Ear(logging.Handler):
    """Hears what is logged, from warnings up."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@pytest_asyncio.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """Fail the test for an exception nobody retrieved, a warning logged or a task left."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    ear = Ear()
    logging.getLogger().addHandler(ear)
    yield
    logging.getLogger().removeHandler(ear)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    gc.collect()
    assert not left
    assert not complaints
    assert not ear.heard


@pytest_asyncio.fixture
async def qemu(nothing_left: None, tmp_path: Path) -> AsyncIterator[FakeQemu]:
    fake = FakeQemu(tmp_path)
    yield fake
    await fake.finish()


@pytest.fixture
def tasks() -> Callable[[], set[str]]:
    """Name the tasks that are left besides the test itself and the peers."""

    def left() -> set[str]:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return {task.get_name() for task in others} - {"peer"}

    return left
