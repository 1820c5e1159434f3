"""The memory of QEMUs that run already, found by asking them, to compare it."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

from qemu_ring.errors import UsageError
from qemu_ring.machine import Machine
from qemu_ring.qmp import CommandError, commands
from qemu_ring.verify import Block

__all__ = ["opened_blocks", "require_comparable"]

_OWN = "/proc/self/fd/"


@asynccontextmanager
async def opened_blocks(
    source: Machine, destination: Machine, *, processes: Sequence[int | None] = (None, None)
) -> AsyncIterator[list[Block]]:
    """Open the files behind both guests' memory backends, for as long as the context lasts.

    Args:
        source, destination: both sides.
        processes: their QEMUs' process ids, where known: memory without a name, as that of
            guests that `qemu-ring run` started, is opened through them.

    Raises:
        UsageError: a backend is no `memory-backend-file` with `share=on` and a file on this
            host, the two sides have different backends, or the same file.
    """
    sides = zip((source, destination), processes, strict=True)
    paths = [await _paths(machine, process) for machine, process in sides]
    if paths[0].keys() != paths[1].keys():
        raise UsageError(
            f"memory backends differ: {', '.join(paths[0])} at the source, "
            f"{', '.join(paths[1])} at the destination"
        )
    with ExitStack() as files:
        blocks = []
        for name, (path, size) in paths[0].items():
            fds = []
            for one in (path, paths[1][name][0]):
                try:
                    fd = os.open(one, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise UsageError(f"memory {name}: {one}: {error.strerror}") from error
                files.callback(os.close, fd)
                fds.append(fd)
            blocks.append(Block(name, fds[0], fds[1], size))
        require_comparable(blocks)
        yield blocks


def require_comparable(blocks: Sequence[Block]) -> None:
    """Check what a comparison needs, as far as it can be told before a migration.

    Raises:
        UsageError: one of them is no file, or too short, or both sides are the same file.
    """
    for block in blocks:
        files = []
        for role, fd in (("source", block.source_fd), ("destination", block.destination_fd)):
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    f"memory {block.name}: what is behind it at the {role} is no file",
                    hint="give QEMU a mem-path that names a file, not a directory",
                )
            if status.st_size < block.size:
                raise UsageError(
                    f"memory {block.name}: the {role}'s file has {status.st_size:,} bytes, "
                    f"not {block.size:,}"
                )
            files.append((status.st_dev, status.st_ino))
        if files[0] == files[1]:
            raise UsageError(
                f"memory {block.name}: both sides have the same file, nothing can differ",
                hint="give each QEMU a file of its own",
            )


async def _paths(machine: Machine, process: int | None) -> dict[str, tuple[str, int]]:
    """Path and size of each memory backend, by id."""
    found = {}
    for backend in await commands.query_memdev(machine.monitor):
        name = backend.id or "without an id"
        try:
            path = str(await commands.qom_get(machine.monitor, f"/objects/{name}", "mem-path"))
        except CommandError:
            path = ""
        if process is not None and path.startswith(_OWN):
            path = f"/proc/{process}/fd/{path.removeprefix(_OWN)}"
        if not path or path.startswith("/proc/self/") or not backend.share:
            raise UsageError(
                f"{machine.name}: memory {name} is no shared file with a name",
                hint="use -object memory-backend-file,share=on,mem-path=... on both sides",
            )
        found[name] = (path, backend.size)
    if not found:
        raise UsageError(
            f"{machine.name} has no memory backend whose file could be compared",
            hint="use -object memory-backend-file,share=on,mem-path=... on both sides",
        )
    return found
