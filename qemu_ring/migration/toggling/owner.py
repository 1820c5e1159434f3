"""Whoever started a guest toggles it, at others' request.

A twin has to be a child of the process that owns the guest, or it would end with whoever asked, or
with nobody. So the owner listens for requests on a unix socket in the abstract namespace, which has
no file and goes with the process, named after its process id. The id is found by the guest's QMP
socket: the kernel tells who was last to listen there, the QEMU, whose parent is the owner, or the
owner itself. Requests and answers are one line of JSON each.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, Field

from qemu_ring.dirty import Tracking
from qemu_ring.errors import DeadlineError, HostError, QemuRingError, UsageError
from qemu_ring.machine import Machine, QemuBinary, credentials, probe_kvm, probe_qemu
from qemu_ring.memslot import FlushPolicy
from qemu_ring.migration.errors import MigrationError
from qemu_ring.migration.requests import Reply, RequestServer, ask, parse_request
from qemu_ring.migration.toggling.toggle import Toggled, toggle
from qemu_ring.migration.toggling.twin import twin_accelerator
from qemu_ring.qmp import commands

__all__ = ["GuestOwner", "ToggleAnswer", "ToggleRequest", "request_toggle"]

_FIND_SECONDS = 5.0
_POLL_SECONDS = 0.02


class ToggleRequest(BaseModel):
    """What the guest's tracking is to be.

    Args:
        tracking: such as "ring:4096".
        policy: flush policy, for a patched QEMU; None for the one that the guest has.
    """

    tracking: str
    policy: FlushPolicy | None = None


class ToggleAnswer(Reply):
    """What came of it.

    Args:
        downtime_seconds: see `Toggled`.
        seconds: see `Toggled`.
        pid: process id of the QEMU that has the guest now.
        running: see `Toggled`.
        state: the guest's run state now.
        qemu: what QEMU it is, as in every JSON document.
        notes: see `Toggled`.
    """

    downtime_seconds: float | None = None
    seconds: float = 0.0
    pid: int | None = None
    running: bool = False
    state: str = ""
    qemu: dict[str, object] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class GuestOwner:
    """A guest that was started here, wherever it has moved to since; an async context manager.

    Args:
        machine: the guest; whoever started it closes it, all later ones are closed here.
        binary: the QEMU for its twins.
        monitors: listening sockets that are handed on from each to the next.
        log_directory: where twins' logs are kept.
    """

    machine: Machine
    binary: Path
    monitors: Sequence[socket.socket] = ()
    log_directory: Path | None = None
    _first: Machine | None = None
    _busy: asyncio.Lock | None = None

    async def __aenter__(self) -> GuestOwner:
        self._first = self.machine
        self._busy = asyncio.Lock()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.machine is not self._first:
            await self.machine.close()

    async def toggle(self, request: ToggleRequest) -> ToggleAnswer:
        """Move the guest to a QEMU with the tracking asked for.

        Raises:
            QemuRingError: it could not be done; the guest goes on where it was.
        """
        assert self._busy is not None
        async with self._busy:
            qemu = await probe_qemu(self.binary)
            toggled = await self._toggle(request, qemu)
            self.machine = toggled.machine
        try:
            state = (await commands.query_status(toggled.machine.monitor)).status
        except QemuRingError as error:
            why = (await toggled.machine.explain(error)).message
            raise MigrationError(f"the guest was moved, but is lost since: {why}") from error
        return ToggleAnswer(
            downtime_seconds=toggled.downtime_seconds,
            seconds=toggled.seconds,
            pid=toggled.machine.pid,
            running=toggled.running,
            state=state,
            qemu=qemu.as_dict(),
            notes=toggled.notes,
        )

    async def wait(self) -> Machine:
        """Wait until the guest's QEMU ends by itself, and not because the guest moved on."""
        assert self._busy is not None
        while True:
            machine = self.machine
            await machine.wait()
            async with self._busy:
                if self.machine is machine:
                    return machine

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Take requests of this user's processes; those under way at the end are cancelled."""
        async with RequestServer(self._answer).serve(_address(os.getpid())):
            yield

    async def _toggle(self, request: ToggleRequest, qemu: QemuBinary) -> Toggled:
        tracking = Tracking.parse(request.tracking)
        tracking.require(await asyncio.to_thread(probe_kvm))
        accelerator = await twin_accelerator(self.machine, tracking, qemu, request.policy)
        try:
            return await toggle(
                self.machine,
                self.binary,
                accelerator,
                monitors=self.monitors,
                log_directory=self.log_directory,
            )
        except BaseException:
            # The twin listened on these last, so that the kernel names it as who is there.
            for listening in self.monitors:
                with suppress(OSError):
                    listening.listen()
            raise

    async def _answer(self, line: bytes) -> ToggleAnswer:
        try:
            return await self.toggle(parse_request(ToggleRequest, line))
        except QemuRingError as error:
            return ToggleAnswer.refusal(error)
        except OSError as error:
            return ToggleAnswer.refusal(QemuRingError(f"it failed: {error}"))


async def request_toggle(
    path: str, request: ToggleRequest, *, timeout: float = 60.0
) -> ToggleAnswer:
    """Ask a guest's owner to toggle it.

    Args:
        path: of the guest's QMP socket, as given to `qemu-ring run`.
        request: what is wanted.
        timeout: seconds.

    Raises:
        UsageError: there is no such socket.
        HostError: the guest was started by something that does not toggle.
        DeadlineError: there was no answer in time; whether it was done is not known.
        QemuRingError: it was not done; the message tells whether the guest goes on.
    """
    reader, writer, owner = await _connect(path)
    try:
        line = await ask(reader, writer, request, timeout=timeout)
    except asyncio.TimeoutError as error:
        raise DeadlineError(
            f"process {owner} did not answer within {timeout:g} s; whether it moves the guest, "
            "or has moved it, is not known",
            hint=f"see which QEMU answers at {path} then",
        ) from error
    if not line:
        raise QemuRingError(f"process {owner}, which has the guest, ended or refused to answer")
    return ToggleAnswer.parse(line)


async def _connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """Reach the owner of the guest at a path; returns its process id, too.

    The last to listen there was the guest's QEMU, its owner after a toggle that failed, or, for a
    moment, a twin that has just ended.

    Raises:
        UsageError: there is no such socket.
        HostError: nobody who toggles.
    """
    end = time.monotonic() + _FIND_SECONDS
    while True:
        listener = await asyncio.to_thread(_listener, path)
        parent = _parent(listener)
        for owner in (listener, parent):
            with suppress(ConnectionError):
                reader, writer = await asyncio.open_unix_connection(_address(owner))
                if credentials(writer.get_extra_info("socket"))[0] == owner:
                    return reader, writer, owner
                writer.close()  # it took another one's name
        if parent or time.monotonic() > end:
            raise HostError(
                f"the guest at {path}, process {listener}, was not started by qemu-ring run",
                hint="only its owner can start its twin; see migration.toggle for your own "
                "controller",
            )
        await asyncio.sleep(_POLL_SECONDS)


def _address(pid: int) -> str:
    return f"\0qemu-ring/guest/{pid}"


def _parent(pid: int) -> int:
    """The parent of a process; 0 if that is over already."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def _listener(path: str) -> int:
    """The process that listens on a unix socket.

    Raises:
        UsageError: nobody does.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
        except OSError as error:
            raise UsageError(
                f"{path}: {error.strerror or error}", hint="name the socket of qemu-ring run --qmp"
            ) from error
        return credentials(probe)[0]
