"""Memslots that the guest itself removes: one vCPU toggles PCI devices, the others write.

The removal then runs on a vCPU's thread, which holds the BQL, while the other vCPUs write
into the slot, or wait for the BQL because the slot is away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import DeadlineError
from qemu_ring.guest import (
    Pattern,
    Region,
    Stream,
    VcpuState,
    Workload,
    WorkloadControl,
    image_bytes,
    pages_changed,
    read_tokens,
)
from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_qemu,
)
from qemu_ring.memslot import FlushPolicy, PciAddress, PciSlots, SlotDevice, query_flush
from qemu_ring.migration import EndedEarlyError, HeldPrecopy
from qemu_ring.qmp import Monitor, commands
from qemu_ring.verify import Block, compare
from tests.waiting import DEADLINE

pytestmark = pytest.mark.ring

MIB = 1 << 20
TSC_HZ = 2_000_000_000
RING, BITMAP = "ring:4096", "bitmap:no-manual-protect"
REMOVALS = 200
MAX_ROUNDS = 30

SIZES = {"ram": 48 * MIB, "slot": 32 * MIB, "helper": 2 * MIB}
# While "slot" is away, the removal of "helper" makes QEMU reap the ring.
PCI = {"slot": PciAddress(4), "helper": PciAddress(5)}
PLACES = {"slot": 1 << 30, "helper": 2 << 30}
REGIONS = (Region("ballast", 16 * MIB, 32 * MIB), Region("slot", PLACES["slot"], SIZES["slot"]))
SPANS = Workload(REGIONS, (Stream(),))

# What the four vCPUs do before, and while slots go away: one removes them, three write pages
# that were clean.
BALLAST = tuple(Stream(Pattern.LOOP, part) for part in SPANS.span("ballast").split(4))
TOGGLE = Stream(
    Pattern.PCI_TOGGLE,
    pci_commands=tuple(address.register(0x04) for address in PCI.values()),
    rest_seconds=0.0001,
)
WALK = tuple(
    Stream(Pattern.ONCE, part, pages_per_second=5000) for part in SPANS.span("slot").split(3)
)
IDLE = (Stream(),) * 4


@dataclass
class Guest:
    qemu: Path
    accelerator: Accelerator
    machine: Machine
    control: WorkloadControl
    files: dict[str, UnnamedFile]


@dataclass
class Total:
    """What some rounds did and found."""

    rounds: int = 0
    void_rounds: int = 0
    removals: int = 0
    pages_written: int = 0
    pages_stale: int = 0


async def accelerator(qemu: Path, tracking: str, policy: FlushPolicy) -> Accelerator:
    properties = Tracking.parse(tracking).accelerator(await probe_qemu(qemu)).properties
    return Accelerator("kvm", {**properties, "memslot-flush": policy.value})


@asynccontextmanager
async def running(
    qemu: Path, accelerator: Accelerator, *, destination: bool = False
) -> AsyncIterator[Guest]:
    """A guest with two removable slots; both are there, unless it waits for a migration."""
    workload = Workload(REGIONS, BALLAST)
    with ExitStack() as stack:
        files = {name: stack.enter_context(UnnamedFile(name, size)) for name, size in SIZES.items()}
        devices = [SlotDevice(MemoryBackend(name, files[name]), PCI[name]) for name in PCI]
        description = MachineDescription(
            accelerator=accelerator,
            memory=MemoryBackend("ram", files["ram"]),
            vcpus=len(workload.streams),
            backends=tuple(device.backend for device in devices),
            devices=tuple(device.device() for device in devices),
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(TSC_HZ),
            incoming="defer" if destination else None,
            paused=destination,
        )
        name = "destination" if destination else "source"
        async with await Machine.start(qemu, description, name=name) as machine:
            control = stack.enter_context(WorkloadControl(files["ram"].fd, workload, TSC_HZ))
            if not destination:
                await control.wait_writing()
                slots = PciSlots(machine.monitor, devices)
                for slot, address in PLACES.items():
                    await slots.add(slot, address)
            yield Guest(qemu, accelerator, machine, control, files)


async def toggle_while_migrating(source: Guest, total: Total) -> None:
    """One migration; one that a busy host lets complete before it is held does not count."""
    async with running(source.qemu, source.accelerator, destination=True) as destination:
        try:
            await migrate(source, destination, total)
        except EndedEarlyError:
            total.void_rounds += 1
            if total.void_rounds > MAX_ROUNDS:
                raise
        else:
            await go_on(destination)


async def migrate(source: Guest, destination: Guest, total: Total) -> None:
    """Migrate while one vCPU removes slots and the others walk over one of them; compare."""
    monitor, control = source.machine.monitor, source.control
    async with HeldPrecopy(source.machine, destination.machine) as migration:
        await commands.cont(monitor)
        await control.set_streams(BALLAST)
        await control.wait_through(
            timeout=DEADLINE, what="the guest did not get through its ballast in time"
        )
        await migration.hold()
        await control.set_streams(IDLE)  # the ballast's passes are not to be counted
        tokens, removed = slot_tokens(source), await removals(monitor)
        cycles = control.statistics().vcpus[0].passes
        await control.set_streams((TOGGLE, *WALK))
        try:
            await control.wait(
                lambda now: all(vcpu.state is VcpuState.DONE for vcpu in now.vcpus[1:]),
                timeout=DEADLINE,
                what="the guest did not get through its memory in time",
            )
        except DeadlineError:
            await migration.progress()  # a guest that has moved on writes nothing
            raise
        await migration.finish()  # within a cycle, as likely as not
    comparison = await compare(
        [Block(n, f.fd, destination.files[n].fd, f.size) for n, f in source.files.items()]
    )
    removed = await removals(monitor) - removed
    cycles = control.statistics().vcpus[0].passes - cycles
    # Each cycle removed two slots, and the one that was cut short at most two.
    assert 0 <= removed - 2 * cycles <= 2
    total.rounds += 1
    total.removals += removed
    total.pages_written += pages_changed(tokens, slot_tokens(source))
    total.pages_stale += comparison.pages_stale_total


async def go_on(guest: Guest) -> None:
    """Let the guest finish its cycle where it has moved to, and see that all slots are there."""
    passes = guest.control.statistics().vcpus[0].passes
    await commands.cont(guest.machine.monitor)
    await guest.control.wait(
        lambda now: now.vcpus[0].passes >= passes + 2,
        timeout=DEADLINE,
        what="the guest does not toggle at the destination",
    )
    await guest.control.set_streams(IDLE)
    assert await mapped(guest.machine.monitor) == list(PLACES.values())


def slot_tokens(guest: Guest) -> list[int]:
    return read_tokens(guest.files["slot"].fd, SIZES["slot"])


async def removals(monitor: Monitor) -> int:
    """Removals so far of slots that logged dirty pages, by QEMU's own count."""
    return sum(one.removals for one in (await query_flush(monitor)).stats)


async def mapped(monitor: Monitor) -> list[int]:
    """Where the devices' slots are, by QEMU's account."""
    return [
        region.address
        for bus in await commands.query_pci(monitor)
        for device in bus.devices
        for region in device.regions
        if region.bar == 2
    ]


@pytest.mark.parametrize(
    ("tracking", "policy"),
    [
        (RING, FlushPolicy.READ_ONLY),
        (RING, FlushPolicy.QUIESCE),
        (RING, FlushPolicy.TOMBSTONE),
        (BITMAP, FlushPolicy.READ_ONLY),
        (BITMAP, FlushPolicy.QUIESCE),
    ],
)
async def test_no_page_is_lost_when_the_guest_removes_the_slots(
    patched_qemu: Path, tracking: str, policy: FlushPolicy
) -> None:
    total = Total()
    async with running(patched_qemu, await accelerator(patched_qemu, tracking, policy)) as source:
        while True:
            await toggle_while_migrating(source, total)
            info = await query_flush(source.machine.monitor)
            stats = info.of(info.effective)
            # By ring QEMU tells of pages that best-effort would have lost: it was needed.
            if total.removals >= REMOVALS and (tracking == BITMAP or stats.pages_late):
                break
            assert total.rounds < MAX_ROUNDS, (total, stats)
    assert total.pages_stale == 0
    assert total.pages_written > 1000
    assert info.policy is policy
    assert info.entries_dropped == 0
    assert stats.removals >= total.removals
    if info.effective is FlushPolicy.TOMBSTONE:
        assert 0 < stats.holds <= stats.removals  # when a slot comes back only
    else:
        assert stats.holds >= total.removals


@pytest.mark.parametrize("tracking", [RING, BITMAP])
async def test_best_effort_loses_pages_when_the_guest_removes_the_slots(
    patched_qemu: Path, tracking: str
) -> None:
    total = Total()
    best_effort = await accelerator(patched_qemu, tracking, FlushPolicy.BEST_EFFORT)
    async with running(patched_qemu, best_effort) as source:
        while not total.pages_stale:
            assert total.rounds < MAX_ROUNDS, total
            await toggle_while_migrating(source, total)
        info = await query_flush(source.machine.monitor)
    if tracking == RING:
        assert info.entries_dropped >= total.pages_stale
