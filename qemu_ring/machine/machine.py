"""A QEMU that we started, or one that was running already."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import aiofiles

from qemu_ring.errors import QemuRingError
from qemu_ring.machine.description import CommandLine, MachineDescription
from qemu_ring.machine.errors import MachineDiedError, MachineError
from qemu_ring.machine.instance import Instance, Life
from qemu_ring.machine.memory import UnnamedFile
from qemu_ring.machine.process import ChildProcess, last_lines
from qemu_ring.qmp import Address, ConnectError, Monitor, QmpError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Machine"]

_NOTICE_SECONDS = 0.3
_END_SECONDS = 2.0
"""For a process whose monitor is gone to end, if that is why."""
_REGAIN_SECONDS = 10.0
_IN_VAIN_SECONDS = 8.0
"""Of these, for a monitor that cannot be regained: what is left is for its process to end."""
_POLL_SECONDS = 0.05
_NOTHING = "it logged nothing"
_TEXTS = ("output", "log", "serial")
_log = logging.getLogger(__name__)


class Machine:
    """A QEMU and its monitor. Made by `start` or `attach`; an async context manager.

    Leaving the context stops a QEMU that `start` made. One that was attached to is
    only disconnected from: it was not ours to end. If it is an error that leaves the
    context, and the QEMU has ended by itself, MachineDiedError tells how, and replaces
    what was only its consequence.

    Attributes:
        name: what messages call it.
        monitor: its QMP session.
        description: what it was started from; None if attached.
        unsaved: why logs that were to be kept could not be written, in words; empty if they were.
    """

    def __init__(
        self,
        name: str,
        monitor: Monitor,
        *,
        description: MachineDescription | None = None,
        process: ChildProcess | None = None,
        logs: dict[str, UnnamedFile] | None = None,
        log_directory: Path | None = None,
    ) -> None:
        self.name = name
        self.monitor = monitor
        self.description = description
        self.unsaved = ""
        self._may_end = False
        self._process = process
        self._logs = logs or {}
        self._log_directory = log_directory
        self._instance: Instance | None = None
        self._patience = _REGAIN_SECONDS
        self._closing = asyncio.Lock()
        self._kept: dict[str, str] | None = None  # texts, once the files are closed

    @classmethod
    async def start(
        cls,
        binary: Path,
        description: MachineDescription,
        *,
        name: str = "guest",
        monitors: Sequence[socket.socket] = (),
        log_directory: Path | None = None,
        timeout: float | None = None,
    ) -> Self:
        """Start a QEMU, and return when its monitor answers.

        Args:
            binary: the qemu-system program.
            description: what to start.
            name: what messages call it.
            monitors: listening sockets on which it shall have further QMP monitors, for
                others; the caller may close them afterwards.
            log_directory: where to keep NAME.output, NAME.log (trace events too) and
                NAME.serial when it ends; None to forget them then.
            timeout: seconds; None for `qmp.answer_timeout()`.

        Raises:
            MachineError: it ended at once, or its monitor did not answer in time; the
                message holds its last log lines.
            HostError: the host lacks what starting needs.
        """
        with ExitStack() as files:
            logs = {kind: files.enter_context(UnnamedFile(kind)) for kind in ("log", "serial")}
            ours, theirs = socket.socketpair()
            files.callback(ours.close)
            with theirs, CommandLine() as line:
                line.machine(description, log=logs["log"])
                line.monitor(theirs)
                for listening in monitors:
                    line.listen(listening)
                line.add("-serial", f"file:{line.inherit(logs['serial'])}")
                process = ChildProcess.start([str(binary), *line.arguments], fds=line.fds)
            try:
                monitor = await Monitor.connect(ours, name=name, timeout=timeout)
            except BaseException as error:
                # A monitor that closed says that QEMU is ending; stop() reaps it.
                ended_itself = False
                try:
                    ended_itself = isinstance(error, ConnectError) and await _ends(process)
                finally:
                    text = await process.end()
                if not isinstance(error, ConnectError):
                    raise
                how = _how(process.returncode) if ended_itself else "its monitor did not answer"
                raise MachineError(
                    f"{name}: {binary} did not start: {how}: {last_lines(text, nothing=_NOTHING)}"
                ) from error
            files.pop_all()
        return cls(
            name,
            monitor,
            description=description,
            process=process,
            logs=logs,
            log_directory=log_directory,
        )

    @classmethod
    async def attach(
        cls,
        address: Address,
        *,
        name: str = "guest",
        timeout: float | None = None,
        again: Address | None = None,
    ) -> Self:
        """Connect to the QMP monitor of a QEMU that is running already.

        Args:
            address: a unix socket's path, or host and port.
            name: what messages call it.
            timeout: seconds; None for `qmp.answer_timeout()`.
            again: where to connect to if the monitor is lost; None for `address`.

        Raises:
            ConnectError: nobody answers there.
        """
        return cls(name, await Monitor.connect(address, name=name, timeout=timeout, again=again))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, QemuRingError) and not self._may_end and await self._is_gone():
                raise await self.explain(error) from error
        finally:
            await self.close()

    @property
    def owned(self) -> bool:
        """Whether it was started here, and so ends with this object."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Its process id; None if attached."""
        return None if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status as in `ChildProcess`; None while it runs, or if attached."""
        return None if self._process is None else self._process.returncode

    def text(self, kind: str) -> str:
        """What it wrote so far: to its "output", its "log" (trace events too) or "serial".

        Empty for a QEMU that was attached to.
        """
        if kind not in _TEXTS:
            raise ValueError(f"there is no text called {kind}")
        if self._kept is not None:
            return self._kept[kind]
        if self._process is None:
            return ""
        if kind == "output":
            return self._process.output()
        return self._logs[kind].read().decode(errors="replace")

    async def explain(self, error: QemuRingError) -> MachineDiedError:
        """Say what became of a QEMU whose monitor is gone, and show its last log lines.

        Returns:
            an error to raise from `error`.
        """
        if self._process is None:
            return MachineDiedError(f"{self.name}: {error.message}", hint=error.hint)
        ended = await _ends(self._process)
        how = _how(self._process.returncode) if ended else f"it runs, but {error.message}"
        lines = last_lines(self.text("output") or self.text("log"), nothing=_NOTHING)
        return MachineDiedError(f"{self.name}: QEMU ended unasked: {how}: {lines}")

    async def identify(self) -> None:
        """Find out which QEMU it is, so that it is known again, and its end is seen.

        Of one that was started here that is known.
        """
        if self._process is None and self._instance is None:
            with suppress(QmpError):  # then it is not known
                self._instance = await Instance.of(self.monitor)

    @property
    def life(self) -> Life:
        """What is known of its process; see `identify`."""
        if self._process is not None:
            return Life.RUNS if self._process.returncode is None else Life.ENDED
        return Life.UNKNOWN if self._instance is None else self._instance.life

    @property
    def is_local(self) -> bool:
        """Whether it is known to run on this host, and so by its clock; see `identify`."""
        return self.owned or (self._instance is not None and self._instance.is_local)

    async def regain(self) -> bool:
        """See that its monitor answers again, if the connection to it was lost.

        It is tried for 10 s, the first time, unless it is seen that QEMU has ended.

        Returns:
            whether it is connected, to the same QEMU; see `identify`.
        """
        until = time.monotonic() + self._patience
        while not self.monitor.connected:
            if self.life is Life.ENDED:
                return False
            if self._may_be_regained and await self._reconnected(until):
                return True
            if time.monotonic() > until - (0 if self._may_be_regained else _IN_VAIN_SECONDS):
                self._patience = 0.0
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    @property
    def _may_be_regained(self) -> bool:
        return self._instance is not None and self.monitor.can_reconnect

    async def _reconnected(self, until: float) -> bool:
        assert self._instance is not None
        with suppress(QmpError):
            await self.monitor.reconnect(timeout=max(until - time.monotonic(), _POLL_SECONDS))
            if await self._instance.is_at(self.monitor):
                return True
            await self.monitor.close()  # another QEMU has taken its place
        return False

    def may_end(self) -> None:
        """Let it end without being blamed for the error with which it is left.

        So does a destination when its migration is cancelled, in QEMU before 9.1.
        """
        self._may_end = True

    async def _is_gone(self) -> bool:
        """Whether it has ended, or is about to be seen to have: a peer may notice first.

        That the monitor of one that was attached to is lost says nothing of QEMU itself.
        """
        try:
            await asyncio.wait_for(self.monitor.wait_disconnected(), _NOTICE_SECONDS)
        except asyncio.TimeoutError:
            return False
        return self.owned or await self.has_ended()

    async def has_ended(self) -> bool:
        """Whether it is known to have ended, for one whose monitor is lost.

        The kernel closes the files of a process before it tells of its end, and on a busy host
        time passes in between: one that is seen to run is given up to 2 s.
        """
        if self._process is not None:
            return await _ends(self._process)
        return self._instance is not None and await self._instance.ends(_END_SECONDS)

    async def wait(self) -> None:
        """Wait until a QEMU that was started here has ended by itself; `returncode` tells how."""
        if self._process is None:
            raise ValueError("not ours to wait for")
        await self._process.wait()

    def kill(self) -> None:
        """Kill it now (SIGKILL), for those who mean it; `close` still has to follow."""
        if self._process is None:
            raise ValueError("not ours to kill")
        self._process.kill()

    async def close(self) -> None:
        """Disconnect, and stop the QEMU if it was started here; safe to call again.

        Logs that cannot be written are no error, but told of in `unsaved`, and logged.
        """
        try:
            await self.monitor.close()
        finally:
            if self._instance is not None:
                self._instance.close()
                self._instance = None
            if self._process is not None:
                async with self._closing:
                    if self._kept is None:
                        await self._end(self._process)

    async def _end(self, process: ChildProcess) -> None:
        try:
            await process.stop()
        finally:
            self._kept = {kind: self.text(kind) for kind in _TEXTS}
            process.close()
            for file in self._logs.values():
                file.close()
            if self._log_directory is not None:
                await self._save_logs(self._log_directory)

    async def _save_logs(self, directory: Path) -> None:
        for kind in _TEXTS:
            # Appended to, because several machines may share a name.
            path = directory / f"{self.name}.{kind}"
            try:
                async with aiofiles.open(path, "a", encoding="utf-8") as file:
                    await file.write(self.text(kind))
            except OSError as error:
                self.unsaved = f"{path}: {error.strerror or error}"
                _log.warning("%s: a log was not kept: %s", self.name, self.unsaved)


async def _ends(process: ChildProcess) -> bool:
    """Whether a process whose monitor is gone ends by itself, which takes a moment."""
    try:
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    except asyncio.TimeoutError:
        return False
    return True


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
