"""vCPUs that are kicked while they reap their own full rings: no page is forgotten.

From Linux 6.17 on KVM_RESET_DIRTY_RINGS looks for signals, and forgets to protect pages if it finds
one. QEMU's kick is such a signal.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.machine import Machine
from qemu_ring.memslot import query_rings
from qemu_ring.migration import Migration, MigrationPlan
from qemu_ring.qmp import commands
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import StartPair

pytestmark = [pytest.mark.ring, pytest.mark.busy_guest]

MIB = 1 << 20
SYS_TGKILL = 234  # x86-64
KICK = signal.SIGUSR1  # QEMU's SIG_IPI


async def threads(machine: Machine) -> list[int]:
    return [cpu.thread_id for cpu in await commands.query_cpus_fast(machine.monitor)]


@contextmanager
def kicked(pid: int, tids: list[int]) -> Iterator[None]:
    """Kick each of them as often as can be."""
    libc, over = ctypes.CDLL(None, use_errno=True), threading.Event()

    def kick() -> None:
        while not over.is_set():
            for tid in tids:
                libc.syscall(SYS_TGKILL, pid, tid, int(KICK))

    thread = threading.Thread(target=kick, name="kicks")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("vcpus", [1, 2])
async def test_no_page_is_lost(start_pair: StartPair, patched_qemu: Path, vcpus: int) -> None:
    pair = start_pair(patched_qemu, tracking=Tracking(1024), vcpus=vcpus, pages_per_second=None)
    async with pair as guests:
        machine = guests.source
        assert machine.pid is not None
        plan = MigrationPlan(max_bandwidth=64 * MIB, downtime_limit=2.0)
        with kicked(machine.pid, await threads(machine)):
            migration = Migration(guests.source, guests.destination, plan, verify=guests.blocks)
            async with migration:
                result = await migration.complete(timeout=DEADLINE)
        assert result.comparison is not None
        assert result.comparison.equal
        rings = await query_rings(machine.monitor)
        assert any(ring.full for ring in rings.rings), "no vCPU has reaped its own ring"
        assert not rings.untrusted
