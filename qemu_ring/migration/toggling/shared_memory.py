"""The memory that a twin shares with its original: the same files, at the same guest addresses.

With `x-ignore-shared` QEMU sends of shared memory only where it is in the guest: the offset of its
region in what contains it. A QEMU that has it elsewhere refuses the migration ("Mismatched GPAs"),
though it would go there with the state of the device that follows. For a PCI BAR that is the
address where it was mapped last, even if it is mapped no longer, and 0 if it never was. So the
twin's BAR is mapped there once before.
"""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qemu_ring.errors import QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.machine.mappings import mappings, path_in_process
from qemu_ring.memslot.pci_config import PciPath, map_bars_once
from qemu_ring.qmp import Monitor, commands

__all__ = ["FileId", "addresses", "moved_meanwhile", "place_shared_memory", "shared_files"]

_PLACED = re.compile(
    r"^\s*[0-9a-f]{4}:(?P<root>[0-9a-f]{2})(?P<places>(?::[0-9a-f]{2}\.[0-7])+)/(?P<name>\S+)\s",
    re.MULTILINE,
)
"""A line of `info ramblock` for the memory of a PCI device: its path, and the memory's name."""
_ATTEMPTS = 3

FileId = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class _SharedMemory:
    """A memory backend with share=on.

    Args:
        name: its id.
        file: what it was given as mem-path; None if it has no file.
        discarded: whether QEMU empties the file when it ends.
        address: the offset of its region in what contains it, or did so last, bytes.
        size: bytes.
    """

    name: str
    file: str | None
    discarded: bool
    address: int
    size: int


async def _shared_memory(monitor: Monitor) -> dict[str, _SharedMemory]:
    """All of a QEMU's shared memory backends, by id.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    listed = [b for b in await commands.query_memdev(monitor) if b.share and b.id is not None]
    found = await asyncio.gather(*(_shared(monitor, str(b.id), b.size) for b in listed))
    return {one.name: one for one in found}


async def _shared(monitor: Monitor, name: str, size: int) -> _SharedMemory:
    path = f"/objects/{name}"
    children: Any = await monitor.execute("qom-list", {"path": path})
    region = next(one["name"] for one in children if one["type"] == "child<memory-region>")
    address = await commands.qom_get(monitor, f"{path}/{region}", "addr")
    assert isinstance(address, int)
    file, discarded = None, False
    if "mem-path" in {one["name"] for one in children}:
        file = str(await commands.qom_get(monitor, path, "mem-path"))
        discarded = bool(await commands.qom_get(monitor, path, "discard-data"))
    return _SharedMemory(name, file, discarded, address, size)


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
    found = await _shared_memory(machine.monitor)
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
        wanted = await _shared_memory(original.monitor)
        elsewhere = await _elsewhere(wanted, twin.monitor)
        if not elsewhere:
            break
        paths = await _paths(twin.monitor)
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
    found = await _shared_memory(machine.monitor)
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


async def _elsewhere(
    wanted: Mapping[str, _SharedMemory], twin: Monitor
) -> dict[str, _SharedMemory]:
    """What the twin has at another address."""
    there = await _shared_memory(twin)
    return {
        name: memory
        for name, memory in wanted.items()
        if name in there and there[name].address != memory.address
    }


async def _paths(monitor: Monitor) -> dict[str, PciPath]:
    """The PCI devices that memory belongs to, by the backend's id."""
    paths = {}
    for one in _PLACED.finditer(await commands.human(monitor, "info ramblock")):
        places = [place.split(".") for place in one["places"].removeprefix(":").split(":")]
        path = PciPath(int(one["root"], 16), tuple((int(a, 16), int(b)) for a, b in places))
        paths[one["name"].rpartition("/")[2]] = path
    return paths
