"""Programs that are run: logged, with a deadline, and none of them outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import BuildError

__all__ = ["Runner", "clean_environment", "output_of", "remove"]

# The shell leads a process group of its own. When it is asked to end, by us or (setpriv)
# by the kernel because we are gone, it asks the whole group, so that ninja can end its
# compilers, which are in groups of their own. If we were gone before setpriv's request was
# in force, the shell sees another parent and does not begin.
_GUARD = """test "$PPID" = "$0" || exit 1
trap 'trap "" TERM; kill -TERM 0; wait; exit 143' TERM
"$@" & wait $!"""

_POLL = 0.1  # seconds between two looks at a log
_STOP_DEADLINE = 1.5  # seconds
_REMOVE_PATIENCE = 1.0  # seconds: a source and what was compiled of it are 50,000 files

# What would make a build differ without the cache's key showing it.
_LEFT_OUT = re.compile(
    "(CC|CXX|CPP|LD|AR|NM|RANLIB|STRIP|OBJCC|HOST_CC|(C|CXX|CPP|LD|OBJC)FLAGS|MAKEFLAGS|MAKELEVEL"
    "|DESTDIR|NINJA|NINJA_STATUS|PYTHONPATH|PYTHONHOME|PYTHONWARNINGS|POSIXLY_CORRECT"
    "|(PATCH|TAR|XZ|GZIP)(_|$).*|LANG|LANGUAGE|LC_.*)"
)

_ERROR = re.compile(r"\b(?:error|ERROR):|^E: |undefined reference|No space left")


def clean_environment(*path: Path) -> dict[str, str]:
    """This process's environment without what would steer a build.

    Args:
        path: directories to search for programs before $PATH.
    """
    kept = {name: value for name, value in os.environ.items() if not _LEFT_OUT.fullmatch(name)}
    kept["PATH"] = os.pathsep.join([*map(str, path), os.environ.get("PATH", os.defpath)])
    return {**kept, "LC_ALL": "C", "NINJA_STATUS": "[%f/%t] "}


async def output_of(*arguments: str, timeout: float = 30.0) -> str | None:
    """What a small program writes to standard output; None if it fails or is not there."""
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=clean_environment(),
        )
    except OSError:
        return None
    try:
        async with deadline(timeout):
            out, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(asyncio.ensure_future(process.wait()))
    return out.decode(errors="replace") if process.returncode == 0 else None


async def remove(paths: Iterable[Path], *, patience: float = _REMOVE_PATIENCE) -> None:
    """Remove files and directories; they are removed even if this is cancelled.

    What takes longer than `patience` seconds goes on by itself, even when this process has
    ended: nobody has to wait for it. That something cannot be removed is no error.
    """
    named = [str(path) for path in paths]
    if not named:
        return
    reader, writer = os.pipe()
    try:
        # The shell ends at once; its child has the pipe's other end until it is done.
        subprocess.run(  # noqa: ASYNC221 - some milliseconds, which nothing may come between
            ("sh", "-c", 'rm -rf -- "$@" &', "sh", *named),  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(writer)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(reader, done.set)
    try:
        async with deadline(patience):
            await done.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(reader)
        os.close(reader)


class Runner:
    """Runs a build's programs one after the other, and logs what they write.

    Args:
        log: the file for it; a file of that name is replaced.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        log.write_bytes(b"")

    async def run(
        self,
        what: str,
        *arguments: str | Path,
        cwd: Path,
        timeout: float,
        path: Sequence[Path] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Run a program to its end; when cancelled, end it and all that it started.

        Args:
            what: what it does, for an error's message, such as "configuring".
            arguments: the program, then its arguments.
            cwd: where it runs.
            timeout: seconds.
            path: directories to search for programs before $PATH.
            on_line: called with each line that it writes.

        Raises:
            BuildError: it failed or took too long.
        """
        lines: deque[str] = deque(maxlen=400)
        with self.log.open("ab") as output, self.log.open("rb") as written:
            output.write(f"\n--- {what}: {' '.join(map(str, arguments))}\n".encode())
            output.flush()
            written.seek(0, os.SEEK_END)
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "TERM", "sh", "-c", _GUARD, str(os.getpid())),
                *map(str, arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env=clean_environment(*path),
                start_new_session=True,
            )
            ended = asyncio.ensure_future(process.wait())
            rest = ""
            try:
                async with deadline(timeout):
                    done = False
                    while not done:
                        done = bool((await asyncio.wait({ended}, timeout=_POLL))[0])
                        *new, rest = (rest + written.read().decode(errors="replace")).split("\n")
                        lines.extend(new)
                        if on_line:
                            for line in new:
                                on_line(line)
            except TimeoutError:
                raise self._error(f"{what} took longer than {timeout:.0f} s") from None
            finally:
                await _stop(process, ended)
        if ended.result() != 0:
            raise self._error(f"{what} failed: {_last_errors([*lines, rest], ended.result())}")

    def _error(self, message: str) -> BuildError:
        return BuildError(message, hint=f"the full log is {self.log}")


async def _stop(process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
    """End a guarded process with all its group, if it runs."""
    if ended.done():
        return
    process.terminate()
    try:
        await asyncio.wait({ended}, timeout=_STOP_DEADLINE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(ended)


def _last_errors(lines: Sequence[str], status: int) -> str:
    """The last lines that tell of an error, or else the last lines; in one line."""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if _ERROR.search(line)]
    return " | ".join((errors or said)[-3:]) or f"exit status {status}"
