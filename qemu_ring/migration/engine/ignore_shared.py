"""What `x-ignore-shared` leaves out of a migration: memory backends that are shared.

QEMU sends of them only where they are in the guest: the offset of the region in what contains it. A
QEMU that has one elsewhere refuses the migration ("Mismatched GPAs"), though it would go there with
the state of the device that follows. For a PCI BAR that is the address where it was mapped last,
even if it is mapped no longer, and 0 if it never was.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from qemu_ring.errors import UsageError
from qemu_ring.memslot.pci_config import PciPath
from qemu_ring.qmp import Monitor, commands

__all__ = ["SharedMemory", "query_paths", "query_shared_memory", "require_restorable"]

_PLACED = re.compile(
    r"^\s*[0-9a-f]{4}:(?P<root>[0-9a-f]{2})(?P<places>(?::[0-9a-f]{2}\.[0-7])+)/(?P<name>\S+)\s",
    re.MULTILINE,
)
"""A line of `info ramblock` for the memory of a PCI device: its path, and the memory's name."""
_WITH_MEMORY = "save all of it, by another kind than cpr-reboot"


@dataclass(frozen=True, slots=True)
class SharedMemory:
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


async def query_shared_memory(monitor: Monitor) -> dict[str, SharedMemory]:
    """All of a QEMU's shared memory backends, by id.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    listed = [b for b in await commands.query_memdev(monitor) if b.share and b.id is not None]
    found = await asyncio.gather(*(_shared(monitor, str(b.id), b.size) for b in listed))
    return {one.name: one for one in found}


async def _shared(monitor: Monitor, name: str, size: int) -> SharedMemory:
    path = f"/objects/{name}"
    children: Any = await monitor.execute("qom-list", {"path": path})
    region = next(one["name"] for one in children if one["type"] == "child<memory-region>")
    address = await commands.qom_get(monitor, f"{path}/{region}", "addr")
    assert isinstance(address, int)
    file, discarded = None, False
    if "mem-path" in {one["name"] for one in children}:
        file = str(await commands.qom_get(monitor, path, "mem-path"))
        discarded = bool(await commands.qom_get(monitor, path, "discard-data"))
    return SharedMemory(name, file, discarded, address, size)


async def query_paths(monitor: Monitor) -> dict[str, PciPath]:
    """The PCI devices that memory belongs to, by the backend's id."""
    paths = {}
    for one in _PLACED.finditer(await commands.human(monitor, "info ramblock")):
        places = [place.split(".") for place in one["places"].removeprefix(":").split(":")]
        path = PciPath(int(one["root"], 16), tuple((int(a, 16), int(b)) for a, b in places))
        paths[one["name"].rpartition("/")[2]] = path
    return paths


async def require_restorable(monitor: Monitor) -> None:
    """Check that a guest can be restored that is saved without its shared memory.

    Raises:
        QmpError: as in `Monitor.call`.
        UsageError: it cannot.
    """
    memories = await query_shared_memory(monitor)
    in_bars = await query_paths(monitor)
    for name, memory in memories.items():
        if name in in_bars and memory.address:
            raise UsageError(
                f"the source cannot be saved without its memory: {name} is, or was, mapped at "
                f"{memory.address:#x} by a PCI device, and no new QEMU would take it there",
                hint=_WITH_MEMORY,
            )
        if memory.discarded:
            raise UsageError(
                f"the source cannot be saved without its memory: the file behind {name} is emptied "
                "when it ends",
                hint=f"leave out discard-data=on, or {_WITH_MEMORY}",
            )
