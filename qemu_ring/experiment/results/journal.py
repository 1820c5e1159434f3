"""Files that are whole, whatever ends their writer: a document, and one of lines."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from qemu_ring.errors import ExitStatus
from qemu_ring.experiment.errors import StoreError

__all__ = ["Journal", "write_whole"]

_LOOK_BYTES = 1 << 20
"""Read at a time, back from the end, to find the last whole line."""


class Journal:
    """A file of lines, appended to, by one process at a time; each line is there whole, or not.

    Args:
        path: the file; made where it is missing.

    Raises:
        OSError: it cannot be written.
        BlockingIOError: another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._torn = False
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Let it go, for another writer; an append under way is waited for."""
        with self._lock:
            os.close(self._fd)
            self._fd = -1

    @property
    def is_empty(self) -> bool:
        """Whether there is not even a torn line."""
        return os.fstat(self._fd).st_size == 0

    def cut_torn_line(self) -> None:
        """Cut off the last line if it has no end.

        Raises:
            StoreError: the file cannot be changed.
        """
        with self._lock:
            try:
                size = os.fstat(self._fd).st_size
                whole = self._whole_bytes(size)
                if whole != size:
                    self._truncate(whole)
            except OSError as error:
                raise self._unwritten(error) from error

    def append(self, line: bytes) -> None:
        """Add a line, and see it on the disk. When that fails, nothing of it is left.

        Args:
            line: with its end; no other in it.

        Raises:
            StoreError: the disk is full, or worse.
        """
        with self._lock:
            if self._fd < 0:
                raise StoreError(f"{self._path} is closed")
            try:
                if self._torn:  # a line behind a torn one would be lost with it
                    self._truncate(self._whole_bytes(os.fstat(self._fd).st_size))
                    self._torn = False
                size = os.fstat(self._fd).st_size
                try:
                    _write_all(self._fd, line)
                    os.fsync(self._fd)
                except OSError:
                    self._torn = True
                    with suppress(OSError):
                        self._truncate(size)
                        self._torn = False
                    raise
            except OSError as error:
                raise self._unwritten(error) from error

    def _whole_bytes(self, size: int) -> int:
        """Bytes up to the end of the last whole line."""
        end = size
        while end:
            start = max(0, end - _LOOK_BYTES)
            found = os.pread(self._fd, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)

    def _unwritten(self, error: OSError) -> StoreError:
        failed = _unwritten(self._path, error)
        failed.exit_status = ExitStatus.FAILED  # other than at the start, runs were made
        return failed


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there with all its content, on the disk, or as it was before.

    Raises:
        StoreError: it cannot be written.
    """
    aside = path.with_name(f"{path.name}.new")
    try:
        try:
            with aside.open("wb", buffering=0) as file:
                _write_all(file.fileno(), content)
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _unwritten(path, error) from error


def _write_all(fd: int, content: bytes) -> None:
    """Write it, in one go where the kernel takes it so.

    Raises:
        OSError: it is not all written.
    """
    left = memoryview(content)
    while left:
        written = os.write(fd, left)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left = left[written:]


def _unwritten(path: Path, error: OSError) -> StoreError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "make room, then run it again" if full else "see that it can be written, then resume"
    return StoreError(f"{path} could not be written: {error.strerror}", hint=hint)
