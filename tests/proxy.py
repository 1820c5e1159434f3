"""A proxy before a real QEMU's monitor, which loses, delays or reorders what goes through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Proxy", "Session", "proxied"]

_LINE = 1 << 24


@dataclass
class Session:
    """One client's connection, and the one to QEMU that was made for it."""

    client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    qemu: asyncio.StreamReader
    to_qemu: asyncio.StreamWriter

    async def read(self) -> dict[str, Any]:
        """Take QEMU's next message."""
        message: dict[str, Any] = json.loads(await self.qemu.readline())
        return message

    async def ask(self, name: str, **arguments: object) -> None:
        """Send QEMU a command, whose answer has no id."""
        self.to_qemu.write(json.dumps({"execute": name, "arguments": arguments}).encode())
        await self.to_qemu.drain()

    async def tell(self, *messages: dict[str, Any]) -> None:
        """Pass messages on to the client."""
        for message in messages:
            self.to_client.write(json.dumps(message).encode() + b"\n")
        await self.to_client.drain()


Opening = Callable[[Session], Awaitable[None]]


async def _as_qemu_does(session: Session) -> None:
    """Begin a session without a change."""


@dataclass
class Proxy:
    """Passes on what goes through, until it is told otherwise.

    Attributes:
        address: where to connect to.
        delay: seconds by which what QEMU sends comes late.
        edit: changes each line that QEMU sends.
        opening: begins each session; what follows is passed on.
        sessions: how many have begun.
    """

    upstream: Path
    address: Path | tuple[str, int]
    delay: float = 0.0
    opening: Opening = _as_qemu_does
    edit: Callable[[bytes], bytes] | None = None
    sessions: int = 0
    _server: asyncio.AbstractServer | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _failed: list[BaseException] = field(default_factory=list)

    async def listen(self) -> None:
        """Take clients, again after `cut`."""
        if isinstance(self.address, Path):
            with suppress(FileNotFoundError):
                self.address.unlink()
            self._server = await asyncio.start_unix_server(self._take, self.address)
        else:
            self._server = await asyncio.start_server(self._take, *self.address)
            host, port = self._server.sockets[0].getsockname()
            self.address = host, port

    async def cut(self) -> None:
        """Drop all connections, and take no further ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client, to_client), name="proxy")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed.append(error)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        writers, pumps = [to_client], []
        try:
            qemu, to_qemu = await asyncio.open_unix_connection(self.upstream, limit=_LINE)
            writers.append(to_qemu)
            self.sessions += 1
            await self.opening(Session(client, to_client, qemu, to_qemu))
            pumps = [
                asyncio.create_task(self._pump(client, to_qemu, late=False)),
                asyncio.create_task(self._pump(qemu, to_client, late=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for writer in writers:
                writer.transport.abort()
            closings = [writer.wait_closed() for writer in writers]
            await asyncio.gather(*pumps, *closings, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool
    ) -> None:
        by_line = late and self.edit is not None
        while data := await (reader.readline() if by_line else reader.read(1 << 16)):
            if by_line and self.edit is not None:
                data = self.edit(data)
            if late and self.delay:
                await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxied(upstream: Path, address: Path | tuple[str, int]) -> AsyncIterator[Proxy]:
    """A proxy at the address before the monitor at `upstream`; what fails in it fails the test."""
    proxy = Proxy(upstream, address)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.cut()
    unexpected = [error for error in proxy._failed if not isinstance(error, OSError | EOFError)]
    assert not unexpected, unexpected
