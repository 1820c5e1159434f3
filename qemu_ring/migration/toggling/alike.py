"""Whether a twin is what its original is now, and may be started at all.

A twin is started from the original's description; what was changed by QMP since is not there. All
that QEMU would find out in the middle of the move, or never (another disk image), is looked for
before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.comparison import differences
from qemu_ring.migration.toggling.drives import query_drives
from qemu_ring.migration.toggling.shared_memory import FileId, shared_files
from qemu_ring.qmp import commands

__all__ = ["require_alike", "require_no_harm"]

_VIRTIO_MEM = "virtio-mem-pci"
_KEEPS_MEMORY = "dynamic-memslots"
"""A property of virtio-mem: those that have it leave memory alone that is to come."""
_START_AGAIN = "undo that, or start the guest from a description that has it"


async def require_no_harm(original: Machine) -> None:
    """Check that neither a twin's start nor the original's end destroys anything.

    Raises:
        QmpError: as in `Monitor.call`.
        UsageError: block jobs or exports would end with the original.
        QemuUnsuitableError: a twin would empty the memory of a virtio-mem device.
    """
    monitor, name = original.monitor, original.name
    jobs: Any = await monitor.execute("query-block-jobs")
    if jobs:
        raise UsageError(
            f"{name} cannot be moved: block job {jobs[0]['device']} would end with the original",
            hint="wait for its end, or cancel it",
        )
    exports: Any = await monitor.execute("query-block-exports")
    if exports:
        raise UsageError(
            f"{name} cannot be moved: block export {exports[0]['id']} would end with the original",
            hint="remove it first",
        )
    devices: Any = await monitor.execute("query-memory-devices")
    plugged = [one for one in devices if one["type"] == "virtio-mem"]
    if plugged:
        known = await commands.device_list_properties(monitor, _VIRTIO_MEM)
        if _KEEPS_MEMORY not in {one.name for one in known}:
            raise QemuUnsuitableError(
                f"{name} cannot be moved: this QEMU's virtio-mem empties its memory when a twin "
                "is started",
                hint="use QEMU 8.2 or newer",
            )


async def require_alike(original: Machine, twin: Machine, files: Mapping[str, FileId]) -> None:
    """Check that a twin, before anything is sent to it, is what the original is.

    Args:
        original, twin: both.
        files: behind the original's shared memory.

    Raises:
        QmpError: as in `Monitor.call`.
        UsageError: it is not.
    """
    theirs = await shared_files(twin)
    for backend, file in files.items():
        if theirs.get(backend, file) != file:
            raise UsageError(
                f"{original.name} cannot be moved: its twin has another file behind memory "
                f"{backend}",
                hint="its mem-path has to name the file that the guest has",
            )
    found = [str(one) for one in await differences(original.monitor, twin.monitor)]
    if found:
        raise UsageError(
            f"{original.name} cannot be moved: its twin (the destination) would not be what it is "
            f"now (the source): {'; '.join(found)}",
            hint=_START_AGAIN,
        )
    here, there = await asyncio.gather(query_drives(original.monitor), query_drives(twin.monitor))
    for drive in sorted(here.keys() | there.keys()):
        ours, other = (side[drive].image if drive in side else "nothing" for side in (here, there))
        if ours != other:
            raise UsageError(
                f"{original.name} cannot be moved: drive {drive} has {ours}, in its twin it would "
                f"have {other}",
                hint=_START_AGAIN,
            )
