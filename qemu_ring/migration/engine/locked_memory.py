"""What the source's QEMU may lock, before pages are sent uncopied; else it is told too late.

A QEMU that may lock too little fails in the middle of the migration. 7.2 may hang there for good.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.qmp import Monitor, commands

__all__ = ["LOCK_ADVICE", "require_lockable"]

LOCK_ADVICE: Final = (
    "allow QEMU's process to lock more memory (ulimit -l, systemd's LimitMEMLOCK, "
    "libvirt's hard_limit), or do without zero copy"
)
_PACKET_BYTES: Final = 128 << 12
"""Pages that QEMU sends at a time on each connection."""
_CAP_IPC_LOCK: Final = 1 << 14
"""Whoever has it may lock without a limit."""


async def require_lockable(monitor: Monitor, connections: int) -> None:
    """Check that a QEMU on this host may lock what it sends at once; nothing if that is not known.

    Args:
        monitor: of the source.
        connections: by which pages are sent.

    Raises:
        QemuUnsuitableError: it may not.
    """
    vcpus = await commands.query_cpus_fast(monitor)
    limit = await asyncio.to_thread(_limit, vcpus[0].thread_id) if vcpus else None
    least = connections * _PACKET_BYTES
    if limit is not None and limit < least:
        raise QemuUnsuitableError(
            f"the source may lock {limit:,} bytes of memory, and sending pages uncopied takes "
            f"{least:,} at least",
            hint=LOCK_ADVICE,
        )


def _limit(thread: int) -> int | None:
    """Bytes that a thread's process may lock; None for no limit, or if it is not known."""
    try:
        status, limits = (
            Path(f"/proc/{thread}/{name}").read_text(errors="replace")
            for name in ("status", "limits")
        )
    except OSError:
        return None
    capable = re.search(r"^CapEff:\s+([0-9a-f]+)$", status, re.MULTILINE)
    found = re.search(r"^Max locked memory\s+(\d+) ", limits, re.MULTILINE)
    if found is None or capable is None or int(capable[1], 16) & _CAP_IPC_LOCK:
        return None
    return int(found[1])
