"""The memory that a twin shares with its original: the same files, at the same guest addresses.

QEMU refuses a migration that leaves shared memory out if it is elsewhere in the twin, though it
would go there with the devices' state that follows. So the twin's BARs are mapped once where the
original's are, or were last.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Mapping
from contextlib import suppress

from qemu_ring.errors import QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.machine.mappings import mappings, path_in_process
from qemu_ring.memslot.pci_config import map_bars_once
from qemu_ring.migration.engine.ignore_shared import (
    SharedMemory,
    query_paths,
    query_shared_memory,
)
from qemu_ring.qmp import Monitor

__all__ = ["FileId", "addresses", "moved_meanwhile", "place_shared_memory", "shared_files"]

_ATTEMPTS = 3

FileId = tuple[int, int]
"""Device and inode."""


async def shared_files(machine: Machine) -> dict[str, FileId]:
    """The files behind a QEMU's shared memory, by backend.

    Args:
        machine: started here.

    Raises:
        QmpError: as in `Monitor.call`.
        UsageError: some of it has no file that another QEMU could map by its name, or one that
            is emptied when this QEMU ends.
    """
    process = machine.pid
    assert process is not None
    found = await query_shared_memory(machine.monitor)
    try:
        mapped = {one.inode for one in await asyncio.to_thread(mappings, process) if one.shared}
    except OSError as error:
        raise QemuRingError(
            f"{machine.name}: process {process} may not be looked at: {error.strerror}"
        ) from error
    files = {}
    for name, memory in found.items():
        status = None
        if memory.file is not None:
            with suppress(OSError):
                status = await asyncio.to_thread(path_in_process(process, memory.file).stat)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_ino not in mapped:
            raise UsageError(
                f"{machine.name} cannot be moved: its twin could not find the file behind memory "
                f"{name}, {memory.file or 'which has none'}",
                hint="use memory-backend-file with a mem-path that names a file and keeps to it, "
                "or migrate the guest",
            )
        if memory.discarded:
            raise UsageError(
                f"{machine.name} cannot be moved: the file behind memory {name} would be emptied "
                "when the original ends",
                hint="leave out discard-data=on",
            )
        files[name] = (status.st_dev, status.st_ino)
    return files


async def place_shared_memory(original: Machine, twin: Machine) -> dict[str, int]:
    """Let a twin have its shared memory where the original has it, as far as QEMU compares that.

    The twin's vCPUs have not run yet. The original is only asked.

    Returns:
        the addresses, by backend.

    Raises:
        QmpError: as in `Monitor.call`.
        QemuUnsuitableError: it cannot be.
    """
    for _ in range(_ATTEMPTS):  # the guest may move it meanwhile
        wanted = await query_shared_memory(original.monitor)
        elsewhere = await _elsewhere(wanted, twin.monitor)
        if not elsewhere:
            break
        paths = await query_paths(twin.monitor)
        for memory in elsewhere.values():
            if memory.name in paths:
                path = paths[memory.name]
                await map_bars_once(twin.monitor, path, memory.size, memory.address)
    else:
        elsewhere = await _elsewhere(wanted, twin.monitor)
    for name, memory in elsewhere.items():
        raise QemuUnsuitableError(
            f"{original.name} cannot be moved: its memory {name} is at {memory.address:#x}, and "
            "cannot be brought there in its twin",
            hint="migrate the guest with its memory: qemu-ring migrate",
        )
    return {name: memory.address for name, memory in wanted.items()}


async def addresses(machine: Machine) -> dict[str, int]:
    """Where a QEMU has its shared memory, by backend, as far as QEMU compares that.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    found = await query_shared_memory(machine.monitor)
    return {name: memory.address for name, memory in found.items()}


def moved_meanwhile(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Tell, for a message, what memory the guest has moved; empty if none."""
    moved = [
        f"the guest moved its memory {name} from {address:#x} to {now[name]:#x} in that moment, "
        "try again; "
        for name, address in before.items()
        if now.get(name, address) != address
    ]
    return "".join(moved)


async def _elsewhere(wanted: Mapping[str, SharedMemory], twin: Monitor) -> dict[str, SharedMemory]:
    """What the twin has at another address."""
    there = await query_shared_memory(twin)
    return {
        name: memory
        for name, memory in wanted.items()
        if name in there and there[name].address != memory.address
    }
