"""A migration under way, controlled by this user's other processes, through a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from qemu_ring.errors import DeadlineError, QemuRingError, UsageError
from qemu_ring.machine import named_socket
from qemu_ring.migration.migration import Migration
from qemu_ring.migration.requests import Reply, RequestServer, ask, parse_request
from qemu_ring.qmp import CommandError, commands

__all__ = [
    "ControlAnswer",
    "ControlRequest",
    "ControlServer",
    "control_socket",
    "request_control",
    "serve_control",
]

_ANSWER_BYTES = 1 << 22
_SECONDS = 60.0
_LAST_SECONDS = 5.0
"""For the answer to what ended the migration."""

ControlAction = Literal["status", "set", "pause", "resume", "switchover", "postcopy", "cancel"]


class ControlRequest(BaseModel):
    """What is to be done, or only told.

    Args:
        action: see `Migration`, and for pause, resume and switchover `LiveSettings`.
        max_bandwidth: for set, bytes a second.
        downtime_limit: for set, seconds.
        postcopy_bandwidth: for set, bytes a second.
    """

    action: ControlAction
    max_bandwidth: int | None = None
    downtime_limit: float | None = None
    postcopy_bandwidth: int | None = None


class ControlAnswer(Reply):
    """How the migration fares after it.

    Sizes in bytes, times in seconds, rates a second; None where QEMU does not tell.

    Args:
        status: QEMU's.
        paused: whether next to nothing is sent, because it was asked for.
        seconds: since the migration's start.
        max_bandwidth, downtime_limit, postcopy_bandwidth: that are set.
        decisions: made for its goal, each in a line.
    """

    status: str = ""
    paused: bool = False
    seconds: float | None = None
    iteration: int | None = None
    transferred: int | None = None
    remaining: int | None = None
    bandwidth: float | None = None
    dirty_rate: int | None = None
    expected_downtime: float | None = None
    throttle: int | None = None
    max_bandwidth: int | None = None
    downtime_limit: float | None = None
    postcopy_bandwidth: int | None = None
    decisions: tuple[str, ...] = ()


@asynccontextmanager
async def control_socket(path: Path) -> AsyncIterator[ControlServer]:
    """Listen at a path, for this user only; the name is gone afterwards, kill -9 included.

    Raises:
        UsageError: the path cannot be used.
    """
    async with named_socket(path) as listening:
        server = ControlServer()
        async with RequestServer(server.answer, patience=_LAST_SECONDS).serve(listening):
            yield server


class ControlServer:
    """Answers requests about a migration.

    Attributes:
        migration: it; None before it has begun, and when it is over.
    """

    def __init__(self) -> None:
        self.migration: Migration | None = None

    async def answer(self, line: bytes) -> ControlAnswer:
        """Do what a line asks for."""
        try:
            request = parse_request(ControlRequest, line)
            if self.migration is None:
                raise QemuRingError("the migration has not begun, or is over")
            await _do(self.migration, request)
            return await _status(self.migration)
        except QemuRingError as error:
            return ControlAnswer.refusal(error)


@asynccontextmanager
async def serve_control(migration: Migration, path: Path) -> AsyncIterator[None]:
    """Have a migration that has begun be controlled through a socket at a path.

    Raises:
        UsageError: the path cannot be used.
    """
    async with control_socket(path) as server:
        server.migration = migration
        yield


async def request_control(
    path: str, request: ControlRequest, *, timeout: float = _SECONDS
) -> ControlAnswer:
    """Ask whoever drives a migration.

    Args:
        path: of its control socket.
        request: what is wanted.
        timeout: seconds.

    Raises:
        UsageError: there is no such socket.
        DeadlineError: there was no answer in time; whether it was done is not known.
        QemuRingError: it was not done.
    """
    try:
        connection = asyncio.open_unix_connection(path, limit=_ANSWER_BYTES)
        reader, writer = await asyncio.wait_for(connection, timeout)
        line = await ask(reader, writer, request, timeout=timeout)
    except asyncio.TimeoutError as error:  # before OSError, of which it is one
        raise DeadlineError(
            f"{path} did not answer within {timeout:g} s; whether it was done is not known"
        ) from error
    except OSError as error:
        raise UsageError(
            f"no migration is controlled at {path}: {error.strerror or error}",
            hint="name the socket of qemu-ring migrate --control",
        ) from error
    if not line:
        raise QemuRingError(f"whoever drives the migration at {path} ended, or refused to answer")
    return ControlAnswer.parse(line)


async def _do(migration: Migration, request: ControlRequest) -> None:
    match request.action:
        case "set":
            await migration.set_parameters(
                max_bandwidth=request.max_bandwidth,
                downtime_limit=request.downtime_limit,
                postcopy_bandwidth=request.postcopy_bandwidth,
            )
        case "pause":
            await migration.live.pause()
        case "resume":
            await migration.live.resume()
        case "switchover":
            await migration.live.switch_over()
        case "postcopy":
            await _start_postcopy(migration)
        case "cancel":
            await migration.cancel()


async def _start_postcopy(migration: Migration) -> None:
    if migration.plan.postcopy is None:
        raise UsageError(
            "it was not set up for postcopy, which QEMU takes only before a migration begins",
            hint="start it as postcopy, or with a goal that ends by postcopy",
        )
    try:
        await migration.start_postcopy()
    except CommandError as error:
        raise UsageError(f"the source refuses it: {error.description}") from error


async def _status(migration: Migration) -> ControlAnswer:
    now = await commands.query_parameters(migration.source.monitor)
    latest = migration.latest
    figures = {} if latest is None else {name: getattr(latest, name) for name in _FIGURES}
    limit = now.get("downtime-limit")
    return ControlAnswer(
        status=str(migration.status),
        paused=migration.live.paused,
        max_bandwidth=_int(now.get("max-bandwidth")),
        downtime_limit=limit / 1000 if isinstance(limit, int) else None,
        postcopy_bandwidth=_int(now.get("max-postcopy-bandwidth")),
        decisions=tuple(map(str, migration.decisions)),
        **figures,
    )


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


_FIGURES = (
    "seconds",
    "iteration",
    "transferred",
    "remaining",
    "bandwidth",
    "dirty_rate",
    "expected_downtime",
    "throttle",
)
