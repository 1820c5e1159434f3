"""Folders in /dev/shm, whose names tell simultaneous sessions of this user whose they are."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["SHM", "is_of_another", "own_shm_folder"]

SHM = Path("/dev/shm")
_OWNER = re.compile(r"qemu-ring-(?:test-)?([0-9]+)-")  # what the package makes, and what tests do


@contextmanager
def own_shm_folder() -> Iterator[Path]:
    """A folder for memory with a name; its path leaves room for sockets' names."""
    prefix = f"qemu-ring-test-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=SHM) as name:
        yield Path(name)


def is_of_another(path: Path) -> bool:
    """Whether it is named as that of a process that lives, and is not this one."""
    owner = _OWNER.match(path.name)
    return owner is not None and int(owner[1]) != os.getpid() and Path("/proc", owner[1]).exists()
