"""The processes of this host, as tests look for those that should not be there, or should."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import AnyStr

__all__ = ["Process", "descendants", "find_processes", "is_running", "killed_if_it_fails"]

_PROC = Path("/proc")
_GUEST_TIME = 40  # of what follows the name in /proc/PID/stat


class Process:
    """One, looked at when it is asked; any question may raise OSError: gone, or another user's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.folder = _PROC / str(pid)

    def __str__(self) -> str:
        """Its command, as far as fits into a message."""
        try:
            return self.command[:80] or self.name
        except OSError:
            return "gone"

    @property
    def command(self) -> str:
        """Its arguments, with spaces between them."""
        return self._text("cmdline").rstrip("\0").replace("\0", " ")

    @property
    def name(self) -> str:
        """Its program's, at most 15 characters."""
        return self._text("comm").strip()

    @property
    def state(self) -> str:
        """A letter, see proc(5)."""
        return self._fields[0]

    @property
    def parent(self) -> int:
        return int(self._fields[1])

    @property
    def works_in(self) -> Path:
        return (self.folder / "cwd").readlink()

    @property
    def maps(self) -> str:
        return self._text("maps")

    @property
    def vcpu_threads(self) -> set[int]:
        """Its threads that have run a guest, under KVM."""
        fields = {
            int(task.name): (task / "stat").read_text(errors="replace").rpartition(")")[2].split()
            for task in (self.folder / "task").iterdir()
        }
        return {thread for thread, values in fields.items() if int(values[_GUEST_TIME])}

    @property
    def opened(self) -> list[str]:
        """What its descriptors refer to."""
        return [str(link.readlink()) for link in (self.folder / "fd").iterdir()]

    def was_told(self, mark: str) -> bool:
        """Whether it has NAME=VALUE in its environment."""
        return mark.encode() in (self.folder / "environ").read_bytes().split(b"\0")

    @property
    def _fields(self) -> list[str]:
        return self._text("stat").rpartition(")")[2].split()

    def _text(self, file: str) -> str:
        # What others run need not be called in UTF-8.
        return (self.folder / file).read_text(errors="replace")


@contextmanager
def killed_if_it_fails(program: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """What goes wrong in the block ends the program: otherwise nobody would stop waiting for it."""
    with program:
        try:
            yield program
        except BaseException:
            program.kill()
            raise


def find_processes(matches: Callable[[Process], bool]) -> list[Process]:
    """Those that match, and can be looked at; this one is not among them, zombies are."""
    found = []
    for entry in _PROC.glob("[0-9]*"):
        process = Process(int(entry.name))
        try:
            if process.pid != os.getpid() and matches(process):
                found.append(process)
        except OSError:
            continue
    return found


def descendants(pid: int, matches: Callable[[Process], bool] = lambda _: True) -> list[Process]:
    """A process's children, theirs, and so on, as far as they match."""
    parents: dict[int, int] = {}

    def looked_at(process: Process) -> bool:
        parents[process.pid] = process.parent
        return matches(process)

    matching = find_processes(looked_at)
    found, new = set[int](), {pid}
    while new := {one for one, parent in parents.items() if parent in new} - found:
        found |= new
    return [one for one in matching if one.pid in found]


def is_running(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        return Process(pid).state not in "ZX"
    except OSError:
        return False
