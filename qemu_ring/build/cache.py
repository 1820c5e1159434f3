"""Where builds live: whole ones only, one being made at a time, and nothing left of broken ones.

::

    builds/KEY/     the binary and its manifest; renamed to here when complete
    sources/        Debian's tarball, and debian.json, which tells its hash
    tools/          Python environments
    work/           the build that runs; whoever holds the lock removes what others left
    logs/           of fetches and builds, each the latest of its kind
    lock            held by whoever fetches and builds
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from qemu_ring._compat import timeout as deadline
from qemu_ring.build.options import BuiltQemu, Manifest
from qemu_ring.build.process import remove
from qemu_ring.build.source import QemuSource
from qemu_ring.errors import DeadlineError, HostError

__all__ = ["BINARY", "Cache"]

BINARY = "qemu-system-x86_64"
_MANIFEST = "manifest.json"
_LOCK_POLL = 0.2  # seconds
_LOCK_DEADLINE = 4 * 3600.0  # seconds


class Cache:
    """The directory for what is fetched and built.

    Args:
        root: it; None for qemu-ring in $XDG_CACHE_HOME, which is ~/.cache by default.

    Raises:
        HostError: this user has no home directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or _default_root()).absolute()

    def tools(self) -> Path:
        """Directory for Python environments; it is there."""
        (self.root / "tools").mkdir(exist_ok=True)
        return self.root / "tools"

    def log(self, name: str) -> Path:
        """Path of a log; its directory is there."""
        (self.root / "logs").mkdir(exist_ok=True)
        return self.root / "logs" / f"{name}.log"

    def newest(self, suits: Callable[[Manifest], bool]) -> BuiltQemu | None:
        """The newest whole build whose manifest suits."""
        loaded = (self._load(place) for place in (self.root / "builds").glob("*"))
        found = [built for built in loaded if built and suits(built.manifest)]
        return max(found, key=lambda built: built.manifest.built, default=None)

    def _load(self, place: Path) -> BuiltQemu | None:
        path = place / BINARY
        try:
            manifest = Manifest.load((place / _MANIFEST).read_text())
            whole = path.stat().st_size == manifest.size and os.access(path, os.X_OK)
        except (OSError, ValueError):
            return None
        return BuiltQemu(path, manifest, cached=True) if whole else None

    def publish(self, key: str, binary: Path, manifest: Manifest) -> BuiltQemu:
        """Take a binary in from a work directory, at one stroke; the lock is held."""
        made = binary.parent / "result"
        made.mkdir()
        binary.rename(made / BINARY)
        (made / _MANIFEST).write_text(manifest.dump())
        for path in (made / BINARY, made / _MANIFEST, made):  # a power cut makes no half of it
            _sync(path)
        place = self.root / "builds" / key
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)  # not whole, or it would have been found
        made.rename(place)
        return BuiltQemu(place / BINARY, manifest, cached=False)

    def debian_source(self) -> QemuSource | None:
        """Debian's tarball as last fetched; it may have been deleted since."""
        try:
            told = json.loads((self.root / "sources/debian.json").read_text())
            return QemuSource(self.root / "sources" / str(told["file"]), str(told["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_debian_source(self, tarball: Path, sha256: str) -> QemuSource:
        """Take in a tarball from a work directory, and remember it; the lock is held."""
        place = self.root / "sources" / tarball.name
        place.parent.mkdir(exist_ok=True)
        tarball.rename(place)
        note = tarball.with_name("debian.json")
        note.write_text(json.dumps({"file": place.name, "sha256": sha256}))
        note.rename(place.parent / "debian.json")
        return QemuSource(place, sha256)

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


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
