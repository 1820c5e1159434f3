"""A child process that cannot outlive this one, and whose last words are kept."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import HostError
from qemu_ring.machine.memory import UnnamedFile

__all__ = ["ChildProcess", "last_lines"]

_MOST_LINES = 3

# setpriv asks the kernel to kill the child when its parent dies. If the parent died
# before that was in force, the shell sees another parent and does not go on.
# (Not preexec_fn: Python code between fork and exec can deadlock with threads.)
_GUARD = 'test "$PPID" = "$0" && exec "$@"'

# This one stays, and leads the group: the kernel kills no children of a child. What it starts in
# the background would have no standard input, but for the redirection.
_GROUP_GUARD = """test "$PPID" = "$0" || exit 1
trap 'kill -KILL 0' TERM
exec 3<&0
"$@" <&3 3<&- & exec 3<&- </dev/null >/dev/null
wait $!"""


class ChildProcess:
    """A running program; made by `start`, on a running event loop.

    The kernel kills it when the thread that started it ends, kill -9 included.
    It has a session of its own, so that Ctrl-C reaches only the controller. One with a group ends
    with all that it started: when it is stopped, when its owner ends, and when it ends itself.
    """

    # Not asyncio's subprocesses: there, a signal to a child that has just ended takes its
    # exit status away from the child watcher. A pidfd has no such race, and no thread.

    def __init__(
        self, process: subprocess.Popen[bytes], output: UnnamedFile, *, group: bool = False
    ) -> None:
        self._process = process
        self._output = output
        self._leads_group = group
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    def start(
        cls,
        arguments: Sequence[str],
        *,
        fds: Collection[int] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        group: bool = False,
    ) -> ChildProcess:
        """Start a program.

        Args:
            arguments: its path, then its arguments.
            fds: descriptors that it inherits, under the same numbers.
            stdin: a descriptor to read.
            stdout: a descriptor to write to; None to keep it with standard error, as `output`.
            group: whether what it starts ends with it. Its exit status is a shell's then: 128 and
                the signal's number if one ended it.

        Raises:
            HostError: setpriv(1) is missing.
        """
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise HostError(
                "setpriv is not installed", hint="install it: apt-get install util-linux"
            )
        number, script = ("TERM", _GROUP_GUARD) if group else ("KILL", _GUARD)
        guard = [setpriv, "--pdeathsig", number, "sh", "-c", script, str(os.getpid())]
        output = UnnamedFile("output")
        try:
            process = subprocess.Popen(
                [*guard, *arguments],
                stdin=stdin,
                stdout=output.fd if stdout is None else stdout,
                stderr=output.fd,
                pass_fds=tuple(fds),
                start_new_session=True,
            )
        except BaseException:
            output.close()
            raise
        try:
            return cls(process, output, group=group)
        except BaseException:  # no descriptor is left to watch it by
            process.kill()
            process.wait()
            output.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id; the guard replaces itself, so it stays the same."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, minus the signal's number if one ended it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._ended.wait()

    def output(self) -> str:
        """What it wrote to standard output and error so far."""
        return self._output.read().decode(errors="replace")

    def kill(self) -> None:
        """Kill it now, if it runs."""
        self._signal(signal.SIGKILL)

    async def stop(self, *, timeout: float = 5.0) -> None:
        """Ask it to end (SIGTERM), and kill it after `timeout` seconds; gone afterwards.

        When cancelled it is killed at once, and still waited for.
        """
        self._signal(signal.SIGTERM)
        try:
            async with deadline(timeout):
                await self.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
            await self._gone()

    async def _gone(self) -> None:
        """Wait for a child that was killed, even through cancellation, raised after that.

        SIGKILL cannot be refused, so this is short, but for the freeing of a large guest.
        """
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.is_set():
            try:
                await self._ended.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def end(self) -> str:
        """Stop it and let go of its output, even when cancelled; returns what it wrote."""
        try:
            await self.stop()
        finally:
            text = self.output()
            self.close()
        return text

    def close(self) -> None:
        """Let go of its output."""
        self._output.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd < 0:
            return
        with suppress(ProcessLookupError):
            if self._leads_group:  # which keeps its number: it is not reaped yet
                os.killpg(self.pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> None:
        """Take the exit status of a process that has ended, or is just being killed."""
        if self._leads_group:
            self._signal(signal.SIGKILL)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._process.wait()
        self._ended.set()


def last_lines(text: str, *, nothing: str = "") -> str:
    """The last lines of what a program wrote, in one, without QEMU's name before them.

    Args:
        text: all that it wrote.
        nothing: what to say of a program that wrote nothing.
    """
    lines = [re.sub(r"^\S*qemu-system-\S*: ", "", one).strip() for one in text.splitlines()]
    return " | ".join([one for one in lines if one][-_MOST_LINES:]) or nothing
