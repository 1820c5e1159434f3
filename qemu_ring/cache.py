"""A directory of the user's for what is fetched and made: one maker at a time, nothing half done.

::

    work/           what is being made; whoever holds the lock removes what others left
    logs/           each the latest of its kind
    lock            held by whoever fetches and makes
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError, HostError
from qemu_ring.programs import remove

__all__ = ["CacheDirectory"]

_LOCK_POLL = 0.2  # seconds
_LOCK_DEADLINE = 4 * 3600.0  # seconds


class CacheDirectory:
    """The directory for what is fetched and made.

    Args:
        root: it; None for qemu-ring in $XDG_CACHE_HOME, which is ~/.cache by default.

    Raises:
        HostError: this user has no home directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or _default_root()).absolute()

    def log(self, name: str) -> Path:
        """Path of a log; its directory is there."""
        (self.root / "logs").mkdir(exist_ok=True)
        return self.root / "logs" / f"{name}.log"

    @asynccontextmanager
    async def lock(self, on_wait: Callable[[], None]) -> AsyncIterator[None]:
        """Be the only one who fetches and builds.

        Args:
            on_wait: called once if another one is at it.

        Raises:
            HostError: the directory cannot be made or locked.
            DeadlineError: the other one took hours.
        """
        fd = self._open_lock()
        try:
            if not _try_lock(fd):
                on_wait()
                await self._wait_for_lock(fd)
            yield
        finally:
            os.close(fd)

    def _open_lock(self) -> int:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"{error.filename}: {error.strerror}",
                hint="set XDG_CACHE_HOME to a directory that can be written",
            ) from error

    async def _wait_for_lock(self, fd: int) -> None:
        try:
            async with deadline(_LOCK_DEADLINE):
                while not _try_lock(fd):  # noqa: ASYNC110 - flock(2) tells nobody of a release
                    await asyncio.sleep(_LOCK_POLL)
        except TimeoutError:
            raise DeadlineError(
                "another build has held the cache for hours", hint=f"see {self.root / 'logs'}"
            ) from None

    async def tidy(self) -> None:
        """Remove what a killed build left, unless a build runs."""
        left = list((self.root / "work").glob("*"))
        if not left:
            return
        fd = self._open_lock()
        try:
            if _try_lock(fd):
                await remove(left)
        finally:
            os.close(fd)

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Path]:
        """A directory to build in, gone afterwards; the lock is held.

        What a killed build left is removed first.
        """
        top = self.root / "work"
        await remove(top.glob("*"))
        top.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=top))
        try:
            yield place
        finally:
            await remove([place])


def _default_root() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME") or "-")
    if named.is_absolute():  # the specification wants others to be taken for none
        return named / "qemu-ring"
    try:
        return Path.home() / ".cache/qemu-ring"
    except RuntimeError as error:
        raise HostError(
            "this user has no home directory", hint="set XDG_CACHE_HOME to a directory"
        ) from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise HostError(
            f"the cache cannot be locked: {error.strerror}",
            hint="set XDG_CACHE_HOME to a directory on a local file system",
        ) from error
    return True
