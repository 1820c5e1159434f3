"""Requests of this user's other processes, and their answers: a line of JSON each.

On a unix socket, which the kernel tells of who is at the other end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from typing_extensions import Self

from qemu_ring.errors import QemuRingError, UsageError
from qemu_ring.machine import credentials
from qemu_ring.tasks import to_the_end

__all__ = ["LINE_BYTES", "Reply", "RequestServer", "ask", "parse_request"]

LINE_BYTES = 1 << 16
"""Of a request; an answer may be longer."""
_ASK_SECONDS = 5.0
"""For a client to send its request, once it is connected."""


class RequestServer:
    """Answers requests, each on a connection of its own.

    Args:
        answer: makes the answer to a line, whatever is in it; cancelled at the server's end.
        patience: seconds that answers under way have until then.
    """

    def __init__(
        self, answer: Callable[[bytes], Awaitable[BaseModel]], *, patience: float = 0.0
    ) -> None:
        self._make_answer = answer
        self._patience = patience
        self._answering: set[asyncio.Task[None]] = set()
        self._closing = False

    @asynccontextmanager
    async def serve(self, at: str | socket.socket) -> AsyncIterator[None]:
        """Take requests of this user's processes; those under way at the end are cancelled.

        Args:
            at: a path, or a socket that is bound.
        """
        if isinstance(at, str):
            server = await asyncio.start_unix_server(self._connected, path=at, limit=LINE_BYTES)
        else:
            server = await asyncio.start_unix_server(self._connected, sock=at, limit=LINE_BYTES)
        try:
            yield
        finally:
            # Not the server's own wait_closed(): it waits until the clients see fit to leave.
            self._closing = True
            server.close()
            try:
                if self._answering and self._patience:
                    await asyncio.wait(set(self._answering), timeout=self._patience)
            finally:
                for task in self._answering:
                    task.cancel()
                if self._answering:
                    await to_the_end(_all_done(set(self._answering)))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:
            writer.close()
            return
        task = asyncio.ensure_future(self._answer(reader, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        task.add_done_callback(lambda _: writer.close())  # it may be cancelled unbegun

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if credentials(writer.get_extra_info("socket"))[1] not in {os.getuid(), 0}:
                return
            try:
                line = await asyncio.wait_for(reader.readline(), _ASK_SECONDS)
            except ValueError:  # it is longer than a line may be
                line = b""
            answer = await self._make_answer(line)
            writer.write(answer.model_dump_json().encode() + b"\n")
            await writer.drain()
        except (ConnectionError, asyncio.TimeoutError):
            pass  # whoever asked has gone, or never did; what was asked for is done all the same


async def ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: BaseModel,
    *,
    timeout: float,
) -> bytes:
    """Send a request, and wait for its answer; then the connection is closed.

    Returns:
        a line; empty if the other side ended, or refused to answer.

    Raises:
        TimeoutError: asyncio's; there was no answer within `timeout` seconds.
    """
    try:
        writer.write(request.model_dump_json().encode() + b"\n")
        return await asyncio.wait_for(reader.readline(), timeout)
    except ConnectionError:
        return b""
    finally:
        writer.close()


R = TypeVar("R", bound=BaseModel)


def parse_request(kind: type[R], line: bytes) -> R:
    """Read a request.

    Raises:
        UsageError: it is none.
    """
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise UsageError(f"not a request: {str(error).splitlines()[0]}") from error


class Reply(BaseModel):
    """What came of a request; or `error`, with its exit status, if it was not done."""

    error: str | None = None
    hint: str = ""
    exit_status: int = 0

    @classmethod
    def refusal(cls, error: QemuRingError) -> Self:
        """That it was not done, and why."""
        return cls(error=error.message, hint=error.hint, exit_status=error.exit_status)

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read an answer.

        Raises:
            QemuRingError: it was not done.
        """
        answer = cls.model_validate_json(line)
        if answer.error is not None:
            raise QemuRingError.of_another_process(answer.error, answer.hint, answer.exit_status)
        return answer


async def _all_done(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
