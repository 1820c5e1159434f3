"""What the flush policies count, and the order in which they work, by the test device.

The two vCPUs write to a half of one region each, over which windows come and go.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qemu_ring.machine import Machine
from qemu_ring.memslot import (
    FlushPolicy,
    FlushStatistics,
    Layout,
    MemslotTestdev,
    Window,
    query_flush,
    set_flush_policy,
)
from qemu_ring.qmp import Monitor, commands
from tests.kvm.patched.guest import running
from tests.kvm.patched.wait import log_dirty_pages
from tests.waiting import DEADLINE

pytestmark = pytest.mark.ring

MIB = 1 << 20
WRITTEN = Window(1 << 30, "w", 0, 64 * MIB)
HALVES = (WRITTEN.part(0, 32 * MIB), WRITTEN.part(32 * MIB, 32 * MIB))
UNTOUCHED = WRITTEN.at(8 << 30)
NOTHING = Layout()
# Short enough for pages to be left that were not written since a window came, and so are clean.
PAUSE = 0.002  # seconds; for the guest to write something
MAX_TRIES = 1000
LOSSLESS = [FlushPolicy.QUIESCE, FlushPolicy.READ_ONLY, FlushPolicy.TOMBSTONE]


@pytest.fixture(scope="module")
def by_transaction(patched_qemu: Path) -> bool:
    """Whether a transaction's slots change together, within one hold.

    QEMU 7.2 changes them one by one, while it tells listeners of a new memory map.
    """
    asked = [str(patched_qemu), "-trace", "help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    assert "kvm_memslot_flush\n" in done.stdout
    return "kvm_memslot_transaction\n" in done.stdout


@pytest.fixture
def transactions(by_transaction: bool) -> None:
    if not by_transaction:
        pytest.skip("each removal has a hold of its own in this QEMU")


@asynccontextmanager
async def written_to(
    qemu: Path, policy: FlushPolicy, *trace: str
) -> AsyncIterator[tuple[Machine, MemslotTestdev]]:
    """A guest with the device, which maps nothing yet; dirty pages are logged."""
    backend = ("-object", "memory-backend-ram,id=w,size=64M")
    device = ("-device", '{"driver":"memslot-testdev","memdevs":["w"]}')
    guest = running(
        qemu,
        *(*backend, *device),
        slot_size=WRITTEN.size,
        apart=True,
        trace=trace,
    )
    async with guest as (machine, _):
        await set_flush_policy(machine.monitor, policy)
        await log_dirty_pages(machine.monitor)
        yield machine, MemslotTestdev(machine.monitor)


async def statistics(monitor: Monitor, policy: FlushPolicy) -> FlushStatistics:
    return (await query_flush(monitor)).of(policy)


@pytest.mark.usefixtures("transactions")
@pytest.mark.parametrize("policy", [FlushPolicy.QUIESCE, FlushPolicy.TOMBSTONE])
async def test_late_pages_are_told_for_each_slot_of_a_transaction(
    patched_qemu: Path, policy: FlushPolicy
) -> None:
    """Those of the second are not counted as the first one's harvest."""
    late = dict.fromkeys((half.address for half in HALVES), 0)
    async with written_to(patched_qemu, policy) as (machine, device):
        monitor = machine.monitor
        await commands.set_parameters(monitor, max_bandwidth=256 << 10)  # it never ends
        await commands.migrate(monitor, "exec:cat > /dev/null")
        with monitor.events("X_MEMSLOT_FLUSH") as events:
            for _ in range(MAX_TRIES):
                await device.map(Layout(HALVES), NOTHING, pause_seconds=PAUSE)
                for _ in HALVES:
                    event = await events.wait(timeout=DEADLINE)
                    assert event.data["pages-late"] <= event.data["pages"]
                    late[event.data["address"]] += event.data["pages-late"]
                if all(late.values()):
                    break
        assert all(late.values()), late
        await commands.migrate_cancel(monitor)


@pytest.mark.usefixtures("transactions")
@pytest.mark.parametrize("policy", LOSSLESS)
async def test_no_page_is_late_where_best_effort_holds_the_vcpus_too(
    patched_qemu: Path, policy: FlushPolicy
) -> None:
    async with written_to(patched_qemu, policy) as (machine, device):
        monitor = machine.monitor
        await device.map(Layout((WRITTEN,)))
        await device.map(Layout((HALVES[0],)), Layout((WRITTEN,)), repeat=50, pause_seconds=PAUSE)
        stats = await statistics(monitor, policy)
        assert (stats.removals, stats.holds) == (100, 100)
        assert stats.pages_harvested > 0
        assert stats.pages_late == 0


async def test_writes_elsewhere_are_not_counted_as_trapped(patched_qemu: Path) -> None:
    """The vCPUs write to where nothing is, all the time.

    One that writes to the slot itself while it is read-only is next to never met: a vCPU that was
    made to leave KVM_RUN waits for QEMU's big lock, until the slot is gone, however late that is.
    """
    policy = FlushPolicy.READ_ONLY
    async with written_to(patched_qemu, policy) as (machine, device):
        monitor = machine.monitor
        await device.map(Layout((UNTOUCHED,)), NOTHING, repeat=100, pause_seconds=0.0005)
        stats = await statistics(monitor, policy)
        assert (stats.removals, stats.writes_trapped) == (100, 0)


@pytest.mark.parametrize("policy", LOSSLESS)
async def test_nobody_is_held_to_remove_a_slot_that_is_read_only(
    patched_qemu: Path, policy: FlushPolicy
) -> None:
    async with written_to(patched_qemu, policy) as (machine, device):
        monitor = machine.monitor
        rom = Layout((WRITTEN,), frozenset({"w"}))
        await device.map(rom)
        before = await statistics(monitor, policy)
        await device.map(NOTHING)
        stats = await statistics(monitor, policy)
        assert (stats.removals, stats.holds, stats.pages_late) == (1, before.holds, 0)


# What is traced of one removal, from its transaction on, a letter an event.
LETTERS = {
    "kvm_memslot_transaction": "t",
    "kvm_dirty_ring_reap_vcpu": "r",
    "kvm_memslot_hold_begin": "h",
    "kvm_memslot_hold_end": "e",
    "kvm_memslot_flush": "f",
    "kvm_set_user_memory": "s",
}
ORDERS = {
    FlushPolicy.BEST_EFFORT: "tfrrs",  # as it always was: harvest, then remove
    FlushPolicy.QUIESCE: "trrhfrrse",
    FlushPolicy.READ_ONLY: "tfrrhserrs",
    FlushPolicy.TOMBSTONE: "tfrrsrr",
}
ORDERS_ONE_BY_ONE = {
    FlushPolicy.BEST_EFFORT: "frrs",
    FlushPolicy.QUIESCE: "frrhrrse",
    FlushPolicy.READ_ONLY: "frrhserrs",
    FlushPolicy.TOMBSTONE: "frrsrr",
}


@pytest.mark.parametrize("policy", ORDERS)
async def test_order_of_a_removal(
    patched_qemu: Path, policy: FlushPolicy, by_transaction: bool
) -> None:
    order = (ORDERS if by_transaction else ORDERS_ONE_BY_ONE)[policy]
    names = [name for name, letter in LETTERS.items() if by_transaction or letter != "t"]
    async with written_to(patched_qemu, policy, *names) as (machine, device):
        await device.map(Layout((WRITTEN,)))
        await commands.stop(machine.monitor)  # no ring gets full and is reaped by its vCPU
        before = len(machine.text("log"))
        await device.map(NOTHING)
        lines = machine.text("log")[before:]
    events = "".join(LETTERS[name] for name in re.findall(r"^(?:\S+:)?(\w+) ", lines, re.MULTILINE))
    # Not what the other vCPUs' address spaces and the reaper thread do around it
    assert order in events, lines
    if policy is FlushPolicy.QUIESCE:
        assert re.search(r"kvm_memslot_hold_end held for [1-9]\d* ns", lines)


@pytest.mark.parametrize(
    ("policy", "again", "order"),
    [
        (FlushPolicy.BEST_EFFORT, WRITTEN, "ts"),
        (FlushPolicy.QUIESCE, WRITTEN, "ts"),  # they were held when it went
        (FlushPolicy.READ_ONLY, WRITTEN, "thse"),
        (FlushPolicy.TOMBSTONE, WRITTEN, "thse"),
        (FlushPolicy.TOMBSTONE, HALVES[1], "thse"),
        (FlushPolicy.TOMBSTONE, UNTOUCHED, "ts"),  # nothing went away there
    ],
)
async def test_vcpus_end_their_faults_before_a_slot_comes_back(
    patched_qemu: Path, policy: FlushPolicy, again: Window, order: str, by_transaction: bool
) -> None:
    """Each leaves KVM_RUN, if memory went away there while they ran; once is enough."""
    ignored = "rf" if by_transaction else "rft"
    letters = {name: letter for name, letter in LETTERS.items() if letter not in ignored}
    order = order if by_transaction else order.removeprefix("t")
    async with written_to(patched_qemu, policy, *letters) as (machine, device):
        monitor = machine.monitor
        # Whatever the machine removed when it started, they have been held since.
        await device.map(Layout((WRITTEN,)))
        await device.map(Layout(HALVES))
        await device.map(Layout((WRITTEN,)))
        before = await statistics(monitor, policy)
        await device.map(NOTHING)
        removed = await statistics(monitor, policy)
        start = len(machine.text("log"))
        await device.map(Layout((again,)))
        lines = machine.text("log")[start:]
        after = await statistics(monitor, policy)
    events = "".join(letters[name] for name in re.findall(r"^(?:\S+:)?(\w+) ", lines, re.MULTILINE))
    assert order in events, lines
    assert ("h" in events) == ("h" in order), lines
    assert after.holds - removed.holds == order.count("h")
    assert removed.removals - before.removals == 1
