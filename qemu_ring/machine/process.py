"""A child process that cannot outlive this one, and whose last words are kept."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Collection, Sequence

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import HostError
from qemu_ring.machine.memory import UnnamedFile

__all__ = ["ChildProcess"]

# setpriv asks the kernel to kill the child when its parent dies. If the parent died
# before that was in force, the shell sees another parent and does not go on.
# (Not preexec_fn: Python code between fork and exec can deadlock with threads.)
_GUARD = 'test "$PPID" = "$0" && exec "$@"'


class ChildProcess:
    """A running program; made by `start`.

    The kernel kills it when the thread that started it ends, kill -9 included.
    It has a session of its own, so that Ctrl-C reaches only the controller.
    """

    def __init__(self, process: asyncio.subprocess.Process, output: UnnamedFile) -> None:
        self._process = process
        self._output = output

    @classmethod
    async def start(cls, arguments: Sequence[str], *, fds: Collection[int] = ()) -> ChildProcess:
        """Start a program.

        Args:
            arguments: its path, then its arguments.
            fds: descriptors that it inherits, under the same numbers.

        Raises:
            HostError: setpriv(1) is missing.
        """
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise HostError(
                "setpriv is not installed", hint="install it: apt-get install util-linux"
            )
        guard = [setpriv, "--pdeathsig", "KILL", "sh", "-c", _GUARD, str(os.getpid())]
        output = UnnamedFile("output")
        try:
            process = await asyncio.create_subprocess_exec(
                *guard,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.fd,
                stderr=output.fd,
                pass_fds=tuple(fds),
                start_new_session=True,
            )
        except BaseException:
            output.close()
            raise
        return cls(process, output)

    @property
    def pid(self) -> int:
        """Its process id; the guard replaces itself, so it stays the same."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, minus the signal's number if one ended it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until it has ended; returns `returncode`."""
        return await self._process.wait()

    def output(self) -> str:
        """What it wrote to standard output and error so far."""
        return self._output.read().decode(errors="replace")

    def kill(self) -> None:
        """Kill it now, if it runs."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self, *, timeout: float = 5.0) -> None:
        """Ask it to end (SIGTERM), and kill it after `timeout` seconds; gone afterwards.

        When cancelled it is killed at once, and still waited for.
        """
        self._signal(signal.SIGTERM)
        try:
            async with deadline(timeout):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            # SIGKILL cannot be refused, so this wait is short; and a child that is
            # not waited for would be left behind.
            self.kill()
            await asyncio.shield(asyncio.ensure_future(self._process.wait()))

    def close(self) -> None:
        """Let go of its output."""
        self._output.close()
