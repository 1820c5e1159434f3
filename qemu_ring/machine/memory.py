"""Files without a name: guest RAM, logs and parameters that no crash can leave behind."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from qemu_ring.errors import HostError
from qemu_ring.machine.host import shm_free_bytes

__all__ = ["UnnamedFile", "require_space"]


class UnnamedFile:
    """An open file that exists only as long as a process holds it.

    It is a memfd, or an O_TMPFILE in a directory of the user's choice, and is passed
    to QEMU by descriptor. When the last holder ends, however it ends, it is gone.

    Args:
        name: shown in /proc/PID/fd.
        size: bytes; the file is sparse.
        directory: where to make it (tmpfs, hugetlbfs or disk); None for a memfd.

    Raises:
        HostError: the directory is missing, too small or cannot make unnamed files.
    """

    def __init__(self, name: str, size: int = 0, *, directory: Path | None = None) -> None:
        self.name = name
        self.size = size
        if directory is None:
            self._fd = os.memfd_create(f"qemu-ring:{name}")
        else:
            self._fd = _open_in(directory, size)
        os.ftruncate(self._fd, size)

    def __enter__(self) -> UnnamedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """Its descriptor in this process."""
        return self._fd

    @property
    def path(self) -> str:
        """Its path for a process that inherited the descriptor."""
        return f"/proc/self/fd/{self._fd}"

    def read(self) -> bytes:
        """All of it; for logs and the like, not for guest RAM."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def write(self, content: bytes) -> None:
        """Replace its content."""
        os.ftruncate(self._fd, 0)
        view = memoryview(content)
        offset = 0
        while offset < len(view):
            offset += os.pwrite(self._fd, view[offset:], offset)
        self.size = offset

    def close(self) -> None:
        """Close the descriptor; safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def require_space(directory: Path, needed_bytes: int) -> None:
    """Check that files of so many bytes in all fit into a directory's file system.

    Unnamed files are sparse, so that each for itself seems to fit; what does not fit in
    the end kills the guest.

    Raises:
        HostError: the directory is missing, or its file system has too little space.
    """
    free = shm_free_bytes(directory)
    if free < needed_bytes:
        raise HostError(
            f"not enough space in {directory}: {needed_bytes >> 20} MiB needed, "
            f"{free >> 20} MiB free",
            hint="free some, enlarge it (mount -o remount,size=...), or use another directory",
        )


def _open_in(directory: Path, size: int) -> int:
    require_space(directory, size)
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(
            f"{directory} cannot hold unnamed files: {error.strerror}",
            hint="name a directory on tmpfs, such as /dev/shm",
        ) from error
