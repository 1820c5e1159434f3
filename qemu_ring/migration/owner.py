"""Whoever started a guest toggles it, at others' request.

A twin has to be a child of the process that owns the guest, or it would end with whoever asked, or
with nobody. So the owner listens for requests on a unix socket in the abstract namespace, which has
no file and goes with the process, named after its process id. The id is found by the guest's QMP
socket: the kernel tells which QEMU listens there, and the owner is its parent. Requests and answers
are one line of JSON each.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ValidationError

from qemu_ring.dirty import Tracking
from qemu_ring.errors import DeadlineError, ExitStatus, HostError, QemuRingError, UsageError
from qemu_ring.machine import Accelerator, Machine, probe_kvm, probe_qemu
from qemu_ring.memslot import FlushPolicy
from qemu_ring.migration.toggle import toggle

__all__ = ["GuestOwner", "ToggleAnswer", "ToggleRequest", "request_toggle"]

_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group
_LINE = 1 << 16


class ToggleRequest(BaseModel):
    """What the guest's tracking is to be.

    Args:
        tracking: such as "ring:4096".
        policy: flush policy, for a patched QEMU; None for QEMU's own choice.
    """

    tracking: str
    policy: FlushPolicy | None = None


class ToggleAnswer(BaseModel):
    """What came of it; `error` and its exit status, or the rest.

    Args:
        downtime_seconds: see `Toggled`.
        seconds: see `Toggled`.
        pid: process id of the QEMU that has the guest now.
    """

    error: str | None = None
    hint: str = ""
    exit_status: int = 0
    downtime_seconds: float | None = None
    seconds: float = 0.0
    pid: int | None = None


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
            accelerator = await self._accelerator(request)
            toggled = await toggle(
                self.machine,
                self.binary,
                accelerator,
                monitors=self.monitors,
                log_directory=self.log_directory,
            )
            self.machine = toggled.machine
        return ToggleAnswer(
            downtime_seconds=toggled.downtime_seconds,
            seconds=toggled.seconds,
            pid=toggled.machine.pid,
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
        """Take requests of this user's processes."""
        address = _address(os.getpid())
        server = await asyncio.start_unix_server(self._answer, path=address, limit=_LINE)
        async with server:
            yield

    async def _accelerator(self, request: ToggleRequest) -> Accelerator:
        tracking = Tracking.parse(request.tracking)
        description = self.machine.description
        if description is not None and description.accelerator.name != "kvm":
            raise UsageError("the guest does not use KVM", hint="TCG tracks in one way only")
        tracking.require(await asyncio.to_thread(probe_kvm))
        qemu = await probe_qemu(self.binary)
        accelerator = tracking.accelerator(qemu)
        if request.policy is None:
            return accelerator
        qemu.require_flush_policies()
        return Accelerator(
            accelerator.name, {**accelerator.properties, "memslot-flush": request.policy.value}
        )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = writer.get_extra_info("socket")
            if _credentials(peer)[1] not in {os.getuid(), 0}:
                return
            try:
                request = ToggleRequest.model_validate_json(await reader.readline())
                answer = await self.toggle(request)
            except (ValidationError, ValueError) as error:
                line = str(error).splitlines()[0]
                answer = ToggleAnswer(error=f"not a request: {line}", exit_status=ExitStatus.USAGE)
            except QemuRingError as error:
                answer = ToggleAnswer(
                    error=error.message, hint=error.hint, exit_status=error.exit_status
                )
            writer.write(answer.model_dump_json().encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            pass  # whoever asked has gone; the guest has moved, or not, all the same
        finally:
            writer.close()


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
        QemuRingError: it was not done; the guest goes on where it was.
    """
    listener = await asyncio.to_thread(_listener, path)
    owner = _parent(listener)
    try:
        reader, writer = await asyncio.open_unix_connection(_address(owner))
    except ConnectionRefusedError as error:
        raise HostError(
            f"the guest at {path}, process {listener}, was not started by qemu-ring run",
            hint="only its owner can start its twin; see migration.toggle for your own controller",
        ) from error
    try:
        writer.write(request.model_dump_json().encode() + b"\n")
        line = await asyncio.wait_for(reader.readline(), timeout)
    except asyncio.TimeoutError as error:
        raise DeadlineError(f"process {owner} did not answer within {timeout:g} s") from error
    finally:
        writer.close()
    if not line:
        raise QemuRingError(f"process {owner}, which has the guest, ended or refused to answer")
    answer = ToggleAnswer.model_validate_json(line)
    if answer.error is not None:
        refused = QemuRingError(answer.error, hint=answer.hint)
        refused.exit_status = ExitStatus(answer.exit_status)
        raise refused
    return answer


def _address(pid: int) -> str:
    return f"\0qemu-ring/guest/{pid}"


def _credentials(peer: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def _parent(pid: int) -> int:
    """The parent of a process; 0 if that is over already."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
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
        return _credentials(probe)[0]
