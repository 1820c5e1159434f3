"""The memory of QEMUs that run already, found by asking them, to compare it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from qemu_ring.errors import UsageError
from qemu_ring.machine import Machine
from qemu_ring.qmp import CommandError, commands
from qemu_ring.verify import Block

__all__ = ["opened_blocks"]


@asynccontextmanager
async def opened_blocks(source: Machine, destination: Machine) -> AsyncIterator[list[Block]]:
    """Open the files behind both guests' memory backends, for as long as the context lasts.

    Raises:
        UsageError: a backend is no `memory-backend-file` with `share=on` and a path on this
            host, or the two sides have different backends.
    """
    paths = [await _paths(machine) for machine in (source, destination)]
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
        yield blocks


async def _paths(machine: Machine) -> dict[str, tuple[str, int]]:
    """Path and size of each memory backend, by id."""
    found = {}
    for backend in await commands.query_memdev(machine.monitor):
        name = backend.id or "without an id"
        try:
            path = str(await commands.qom_get(machine.monitor, f"/objects/{name}", "mem-path"))
        except CommandError:
            path = ""
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
