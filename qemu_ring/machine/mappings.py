"""What a process of this host has mapped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mapping", "is_mapped", "mappings", "opened_mapping", "path_in_process"]

_PROC = Path("/proc")
_SELF = "/proc/self/"


@dataclass(frozen=True, slots=True)
class Mapping:
    """A line of /proc/PID/maps.

    Args:
        start, end: addresses in the process; the end is the first one that is not part of it.
        shared: whether what is written goes into the file.
        offset: in the file, bytes.
        device: the file's, as in `os.stat_result`.
        inode: the file's; 0 without one.
        name: the file's, or what it is; empty as a rule without a file.
    """

    start: int
    end: int
    shared: bool
    offset: int
    device: int
    inode: int
    name: str


def mappings(process: int, proc: Path = _PROC) -> list[Mapping]:
    """All that a process, or a thread's, has mapped, by address.

    Raises:
        OSError: there is no such process here, or this user may not look at it.
    """
    found = []
    for line in (proc / str(process) / "maps").read_text(errors="replace").splitlines():
        # address range, permissions, offset, device, inode, name
        where, permissions, offset, device, inode, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in where.split("-"))
        major, minor = (int(part, 16) for part in device.split(":"))
        found.append(
            Mapping(
                start=start,
                end=end,
                shared=permissions.endswith("s"),
                offset=int(offset, 16),
                device=os.makedev(major, minor),
                inode=int(inode),
                name=name[0] if name else "",
            )
        )
    return found


def path_in_process(process: int, path: str) -> Path:
    """Where this process finds a file that another one knows by a path."""
    folder = _PROC / str(process)
    if path.startswith(_SELF):
        return folder / path.removeprefix(_SELF)
    return folder / "root" / path[1:] if path.startswith("/") else folder / "cwd" / path


def is_mapped(address: int, size: int, mapped: Sequence[Mapping]) -> bool:
    """Whether all of these bytes are mapped, in one piece or several; `mapped` by address."""
    end = address
    for one in mapped:
        if one.start <= end < one.end:
            end = one.end
    return end >= address + size


def opened_mapping(process: int, mapping: Mapping) -> int | None:
    """Open the very file that a process has mapped, whatever its name leads to by now.

    Returns:
        a readable descriptor, for the caller to close; None if it cannot be had, as on file
        systems that tell another device there than everywhere else.
    """
    folder = _PROC / str(process)
    candidates: list[Path] = []
    with suppress(OSError):
        candidates += (folder / "fd").iterdir()
    candidates.append(folder / "map_files" / f"{mapping.start:x}-{mapping.end:x}")
    wanted = (mapping.device, mapping.inode)
    for path in candidates:
        with suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) != wanted:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) == wanted:
                return fd
            os.close(fd)
    return None
