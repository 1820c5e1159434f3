"""A shell command that takes what is saved, or gives what is restored; run by us, not by QEMU."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import UsageError
from qemu_ring.machine import last_lines
from qemu_ring.machine.process import ChildProcess
from qemu_ring.migration.channels.channel import STREAM_MAGIC, Channel, Connection
from qemu_ring.migration.channels.passed_fds import PassedFds
from qemu_ring.migration.errors import MigrationError
from qemu_ring.qmp import Monitor

__all__ = ["Command"]

_SHELL = "/bin/sh"
_ENDS_SECONDS = 5.0
"""Until a command ends with which nobody talks any more."""
_PEEK_SECONDS = 0.01
_SIGNALLED = 128
"""To which a shell adds a signal's number."""


@dataclass(frozen=True, slots=True)
class Command(Channel):
    """A shell command on this host: the stream is its standard input, or its standard output.

    It is our child, with all that it starts: no QEMU has to be allowed to run it, its failure is
    told, and it ends with us. The other end is passed to QEMU through its monitor, which has to be
    a unix socket. What it reads or writes is a socket, too, which cannot be opened by name
    (/dev/stdin). It saves or restores only; two QEMUs cannot be connected by it.

    Args:
        command: for `sh -c`.

    Raises:
        UsageError: it is empty.
    """

    bidirectional: ClassVar[bool] = False
    multiple: ClassVar[bool] = False
    command: str

    def __post_init__(self) -> None:
        if not self.command.strip():
            raise UsageError("the command is empty", hint="name one, such as 'zstd -qo guest.zst'")

    @property
    def words(self) -> str:
        """Such as command:zstd -qo guest.zst."""
        return f"command:{self.command}"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""
        if source is not None and destination is not None:
            raise UsageError(
                f"{self.words} saves or restores a guest: it cannot connect two QEMUs",
                hint="use fd, unix, tcp or exec",
            )
        return _CommandConnection(self.command, source, destination)


class _CommandConnection(Connection):
    # Sockets, not pipes: QEMU notices the end of one that nothing was written to, can shut one
    # down that nobody reads when it is cancelled, and what a command gives can be looked at first.

    def __init__(self, command: str, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        self._command = command
        self._given = PassedFds(instead="")
        for monitor in (source, destination):
            if monitor is not None:
                self._given.require_taken(monitor)
        self._ours, self._theirs = socket.socketpair()
        self._process: ChildProcess | None = None
        self._saved = False

    @property
    def is_lost(self) -> bool:
        return self.source is not None and not self._saved

    async def listen(self) -> str:
        with self._theirs:
            self._process = ChildProcess.start(self._line, stdout=self._theirs.fileno(), group=True)
        await self._wait_for_stream(self._process)
        return await self._given.give(self.destination, self._ours.fileno())

    async def reach(self) -> str:
        # QEMU's end is kept open here: the command shall not take a migration that failed for one
        # that is whole, as its end would look to it.
        uri = await self._given.give(self.source, self._ours.fileno())
        with self._theirs:
            self._process = ChildProcess.start(self._line, stdin=self._theirs.fileno(), group=True)
        return uri

    def established(self) -> None:
        self._given.forget()

    async def finish(self) -> None:
        if self._process is None:
            return
        if self.source is None:
            await self._finish_restoring(self._process)
        elif not self._saved:
            await self._finish_saving(self._process)

    async def reason(self) -> str:
        if self._process is None:
            return ""
        ended = await self._ended(self._process)
        if not ended:
            return ""  # its end was ours
        return f"; {self._how(self._process)}"

    def cut_off(self) -> None:
        # QEMU shuts its end down when it is cancelled, and so ours.
        if self._process is not None:
            self._process.kill()

    async def abandon(self) -> None:
        try:
            await self._given.take_back()
        finally:
            if self._process is not None:
                await self._process.end()

    def close(self, completed: bool) -> None:  # noqa: ARG002
        self.established()
        self._ours.close()
        self._theirs.close()

    @property
    def _line(self) -> list[str]:
        return [_SHELL, "-c", self._command]

    async def _wait_for_stream(self, process: ChildProcess) -> None:
        """Wait until it gives a QEMU's stream; one that does not has used up no QEMU.

        Raises:
            MigrationError: it gives something else, or nothing.
        """
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            loop.add_reader(self._ours, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._ours)
            ended = process.returncode is not None
            begins = self._ours.recv(len(STREAM_MAGIC), socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if begins == STREAM_MAGIC:
                return
            if not STREAM_MAGIC.startswith(begins) or not begins or ended:
                break
            await asyncio.sleep(_PEEK_SECONDS)  # in the middle of its first bytes
        hint = "the QEMU that waits was not touched: name another command"
        if begins and not STREAM_MAGIC.startswith(begins):
            raise MigrationError(f"{self._named} gives no saved guest", hint=hint)
        if not await self._ended(process):
            raise MigrationError(f"{self._named} has closed its output", hint=hint)
        raise MigrationError(f"{self._how(process)}, and gave no saved guest", hint=hint)

    async def _finish_restoring(self, process: ChildProcess) -> None:
        """See how it ends: what it finds wrong last, such as a checksum, is told by that alone."""
        self._ours.close()
        if not await self._ended(process):
            await process.stop()
        elif process.returncode not in (0, _SIGNALLED + signal.SIGPIPE):
            raise MigrationError(
                f"the guest was restored, but {self._how(process)}: what it gave may be damaged"
            )

    async def _finish_saving(self, process: ChildProcess) -> None:
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_WR)  # all is in it: the command may come to its end
        await process.wait()
        if process.returncode != 0:
            raise MigrationError(f"the guest was not saved: {self._how(process)}")
        if self._ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise MigrationError(
                f"the guest was not saved: {self._named} ended before it had read all"
            )
        self._saved = True

    @staticmethod
    async def _ended(process: ChildProcess) -> bool:
        """Whether it has ended, which takes a moment when it has closed its end."""
        with suppress(TimeoutError):
            async with deadline(_ENDS_SECONDS):
                await process.wait()
        return process.returncode is not None

    @property
    def _named(self) -> str:
        return f"the command {self._command!r}"

    def _how(self, process: ChildProcess) -> str:
        """That it has ended, how, and its last words."""
        status, words = process.returncode, process.output()
        assert status is not None
        how = f"ended with status {status}"
        number = -status if status < 0 else status - _SIGNALLED
        with suppress(ValueError):
            how += f" ({signal.Signals(number).name})"
        return f"{self._named} {how}: {last_lines(words, nothing='it wrote nothing')}"
