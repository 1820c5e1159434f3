"""Memslots that really go away and come back, seen by the guest that writes to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring.errors import QemuRingError
from qemu_ring.guest import (
    Pattern,
    Region,
    Span,
    Stream,
    Workload,
    WorkloadControl,
    image_bytes,
    read_tokens,
)
from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
)
from qemu_ring.memslot import PciAddress, PciSlots, SlotDevice
from qemu_ring.qmp import commands
from tests.waiting import until

pytestmark = pytest.mark.kvm

MIB = 1 << 20
TSC_HZ = 1_000_000_000
# One region for each place where a slot may be; what is written where no slot is goes nowhere.
PLACES = {"low": 1 << 30, "other": 2 << 30, "high": 8 << 30}
SLOT_PAGES = 256


@dataclass
class Rig:
    machine: Machine
    control: WorkloadControl
    slots: PciSlots
    files: dict[str, UnnamedFile]

    async def landed(self, place: str, backend: str) -> int:
        """Let the guest write each page at `place` once; how many reached `backend`."""
        index = list(PLACES).index(place)
        before = read_tokens(self.files[backend].fd, MIB)
        passes = self.control.statistics().vcpus[0].passes
        stream = Stream(Pattern.ONCE, Span(index * SLOT_PAGES, SLOT_PAGES))
        await self.control.set_streams((stream,))
        await until(
            lambda: self.control.statistics().vcpus[0].passes != passes, "the guest has written"
        )
        after = read_tokens(self.files[backend].fd, MIB)
        return sum(old != new for old, new in zip(before, after, strict=True))


@asynccontextmanager
async def rig(qemu: Path, machine_type: str) -> AsyncIterator[Rig]:
    regions = tuple(Region(name, address, MIB) for name, address in PLACES.items())
    workload = Workload(regions, (Stream(),))
    with (
        UnnamedFile("ram", 4 * MIB) as ram,
        UnnamedFile("a", MIB) as a,
        UnnamedFile("b", MIB) as b,
    ):
        devices = [
            SlotDevice(MemoryBackend("a", a), PciAddress(5)),
            SlotDevice(MemoryBackend("b", b), PciAddress(7)),
        ]
        description = MachineDescription(
            machine=machine_type,
            accelerator=Accelerator("kvm"),
            memory=MemoryBackend("ram", ram),
            backends=tuple(device.backend for device in devices),
            devices=tuple(device.device() for device in devices),
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(TSC_HZ),
        )
        async with await Machine.start(qemu, description) as machine:
            with WorkloadControl(ram.fd, workload, TSC_HZ) as control:
                await control.wait_writing()
                slots = PciSlots(machine.monitor, devices)
                yield Rig(machine, control, slots, {"a": a, "b": b})


@pytest.mark.parametrize("machine_type", ["pc", "q35"])
async def test_slots_come_and_go_in_any_order(qemu_path: Path, machine_type: str) -> None:
    async with rig(qemu_path, machine_type) as r:
        assert await r.landed("low", "a") == 0
        await r.slots.add("a", PLACES["low"])
        await r.slots.add("b", PLACES["other"])
        assert (r.slots.address("a"), r.slots.address("b")) == (PLACES["low"], PLACES["other"])
        assert await r.landed("low", "a") == SLOT_PAGES
        assert await r.landed("other", "b") == SLOT_PAGES
        await r.slots.remove("b", "a")
        assert r.slots.removals == 2
        assert r.slots.address("a") is None
        assert await r.landed("low", "a") == 0
        await r.slots.add("a", PLACES["low"])
        assert await r.landed("low", "a") == SLOT_PAGES


async def test_slot_moves_to_another_address(qemu_path: Path) -> None:
    async with rig(qemu_path, "pc") as r:
        await r.slots.add("a", PLACES["low"])
        await r.slots.move("a", PLACES["high"])  # above 4 GiB
        assert await r.landed("low", "a") == 0
        assert await r.landed("high", "a") == SLOT_PAGES
        await r.slots.add("b", PLACES["low"])
        assert await r.landed("low", "b") == SLOT_PAGES
        assert r.slots.removals == 1


@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_cycle_removes_and_adds_where_it_was(qemu_path: Path, pause: float) -> None:
    async with rig(qemu_path, "pc") as r:
        await r.slots.add("a", PLACES["low"])
        await r.slots.add("b", PLACES["other"])
        for _ in range(20):
            await r.slots.cycle(("a", "b"), pause_seconds=pause)
        assert r.slots.removals == 40
        assert await r.landed("low", "a") == SLOT_PAGES
        assert await r.landed("other", "b") == SLOT_PAGES
        buses = await commands.query_pci(r.machine.monitor)
        bars = {
            region.address
            for bus in buses
            for device in bus.devices
            for region in device.regions
            if region.bar == 2
        }
        assert bars == {PLACES["low"], PLACES["other"]}


async def test_what_qemu_did_not_take_is_an_error(qemu_path: Path) -> None:
    async with rig(qemu_path, "pc") as r:
        with pytest.raises(QemuRingError, match=r"slot a did not .*0x40000800"):
            await r.slots.add("a", PLACES["low"] + 2048)
        with pytest.raises(ValueError, match="slot a is not there"):
            await r.slots.remove("a")
        with pytest.raises(ValueError, match="slot b is not there"):
            await r.slots.cycle(("b",))
